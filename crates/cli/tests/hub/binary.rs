//! The binary as a user runs it.

use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use super::*;

const CIRCLE: &str = "a red circle on a blue background";

fn tiny() -> PathBuf {
    crate::support::root().join("fixtures/tiny")
}

/// The small model as a repository, with a picture that nobody needs.
fn tiny_files() -> BTreeMap<String, Vec<u8>> {
    let mut files: BTreeMap<_, _> = files_in(&tiny())
        .into_iter()
        .map(|name| (name.clone(), fs::read(tiny().join(name)).unwrap()))
        .collect();
    files.insert("circle.png".into(), bytes("png", 1_000_000));
    files
}

/// The binary with nothing of the environment that it would heed, but for `HF_HOME`.
fn command(place: &Place, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tch-flux"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if ["HF_", "HUGGING", "XDG_", "TRANSFORMERS_"].iter().any(|start| name.starts_with(start))
            || name.to_uppercase().ends_with("_PROXY")
        {
            command.env_remove(name);
        }
    }
    command.env("HF_HOME", place.folder.path()).env("HF_ENDPOINT", &place.server.url);
    command.current_dir(place.folder.path()).args(arguments);
    command
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

fn ends_well(output: Output) -> Output {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn draw(place: &Place, model: &str, file: &str) -> Vec<u8> {
    let arguments = ["generate", CIRCLE, "--model", model, "--seed", "7", "--steps", "1", "-o", file];
    ends_well(run(&mut command(place, &arguments)));
    fs::read(place.folder.path().join(file)).unwrap()
}

/// A run that only opens the model.
const PLAN: [&str; 6] = ["generate", CIRCLE, "--model", NAME, "--dry-run", "--quiet"];

#[test]
fn a_name_draws_what_the_folder_draws_also_without_a_network() {
    let place = Place::with(tiny_files());
    let expected = draw(&place, tiny().to_str().unwrap(), "folder.png");
    assert_eq!(draw(&place, NAME, "name.png"), expected);
    let fetched = files_in(&place.snapshot());
    assert!(
        !fetched.iter().any(|name| name.starts_with("transformer/") || name.ends_with(".png")),
        "{fetched:?}"
    );
    place.server.asked();
    let arguments = ["generate", CIRCLE, "--model", NAME, "--seed", "7", "--steps", "1", "-o", "offline.png"];
    ends_well(run(command(&place, &arguments).env("HF_HUB_OFFLINE", "1")));
    assert_eq!(fs::read(place.folder.path().join("offline.png")).unwrap(), expected);
    assert_eq!(place.server.asked().len(), 0);
}

#[cfg(unix)]
#[test]
fn after_a_kill_in_the_middle_of_a_download_the_next_run_draws() {
    let place = Place::with(tiny_files());
    let name = "flux1-schnell.safetensors";
    place.fault(name, 1, Fault::Stall(2_000_000));
    let mut child: Child = command(&place, &PLAN).stdout(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while fs::metadata(place.partial(name)).map_or(0, |file| file.len()) < 1_000_000 {
        assert!(begun.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    assert!(!place.blob(name).exists() && !place.snapshot().join(name).exists());
    let came = fs::metadata(place.partial(name)).unwrap().len() as usize;
    place.server.asked();
    let drawn = draw(&place, NAME, "name.png");
    assert_eq!(place.offsets(name), [came], "gone on with");
    assert_eq!(drawn, draw(&place, tiny().to_str().unwrap(), "folder.png"));
    assert!(
        !files_in(&place.root()).iter().any(|name| name.ends_with(".incomplete") || name.ends_with(".tmp"))
    );
}

#[test]
fn two_processes_fetch_every_file_once() {
    let place = Place::with(tiny_files());
    let name = "flux1-schnell.safetensors";
    place.fault(name, 1, Fault::Cut(1_000_000));
    let both = [(); 2].map(|()| command(&place, &PLAN).stdout(Stdio::null()).spawn().unwrap());
    for mut child in both {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(place.offsets(name), [0, 1_000_000]);
}

#[test]
fn the_variables_are_those_of_python() {
    let place = Place::with(tiny_files());
    let home = place.folder.path();
    fs::write(home.join("token"), "hf_from_home\n").unwrap();
    fs::write(home.join("other"), "hf_from_path\n").unwrap();
    let asked_with = |variables: &[(&str, &str)]| {
        let _ = fs::remove_dir_all(place.root());
        place.server.asked();
        ends_well(run(command(&place, &PLAN).envs(variables.iter().copied())));
        place.server.asked()[0].headers.get("authorization").cloned()
    };
    assert_eq!(asked_with(&[]).as_deref(), Some("Bearer hf_from_home"));
    assert_eq!(asked_with(&[("HF_TOKEN_PATH", "other")]).as_deref(), Some("Bearer hf_from_path"));
    assert_eq!(asked_with(&[("HF_TOKEN", "hf_own")]).as_deref(), Some("Bearer hf_own"));
    assert_eq!(asked_with(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
    let elsewhere = home.join("elsewhere");
    assert!(asked_with(&[("HF_HUB_CACHE", elsewhere.to_str().unwrap())]).is_some());
    assert!(elsewhere.join("models--test--tiny/refs/main").is_file() && !place.root().exists());
}

#[test]
fn an_existing_folder_wins_over_a_name_and_a_part_of_ones_own_over_both() {
    let place = Place::with(tiny_files());
    fs::create_dir_all(place.folder.path().join(NAME)).unwrap();
    let output = run(&mut command(&place, &PLAN));
    assert!(!output.status.success() && place.server.asked().is_empty());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("no transformer"), "{text}");
    fs::remove_dir_all(place.folder.path().join(NAME)).unwrap();
    let own = tiny().join("flux1-schnell.safetensors");
    ends_well(run(command(&place, &PLAN).args(["--transformer", own.to_str().unwrap()])));
    assert!(!place.blob("flux1-schnell.safetensors").exists());
}

#[test]
fn what_is_neither_a_folder_nor_on_the_hub_is_said_to_be_neither() {
    let place = Place::with(tiny_files());
    let says = |model: &str| {
        let output = run(&mut command(&place, &["generate", CIRCLE, "--model", model]));
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let text = says("test/other");
    assert!(text.contains("no such folder here: test/other: the hub has no such repository"), "{text}");
    let text = says("../other");
    assert!(
        text.contains("no such folder, nor is it a name on the hub: \"../other\": a repository's name is"),
        "{text}"
    );
    place.server.fault("/resolve/", 1, Fault::Status(401, &[("X-Error-Code", "GatedRepo")]));
    let text = says(NAME);
    assert!(
        text.contains("error: test/tiny: model_index.json") && text.contains("accept the licence"),
        "{text}"
    );
}

#[test]
fn without_a_terminal_nothing_is_said_but_warnings_and_with_quiet_nothing() {
    let place = Place::with(tiny_files());
    let says = |arguments: &[&str]| {
        place.server.fault("/api/", 1, Fault::Status(500, &[]));
        let output = ends_well(run(
            command(&place, &["generate", CIRCLE, "--model", NAME, "--dry-run"]).args(arguments)
        ));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let text = says(&[]);
    assert!(text.lines().count() == 1 && text.contains("warning: test/tiny: the hub answers 500"), "{text}");
    assert_eq!(says(&["--quiet"]), "");
}

#[cfg(target_os = "linux")]
#[test]
fn on_a_terminal_each_file_has_a_bar() {
    let place = Place::with(tiny_files());
    let plain = command(&place, &[]);
    let line = format!("{} generate x --model {NAME} --dry-run", plain.get_program().to_str().unwrap());
    let Some(script) = crate::support::require::program("script", &["script"]) else { return };
    let mut terminal = Command::new(script);
    terminal.args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).current_dir(place.folder.path());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => terminal.env(name, value),
            None => terminal.env_remove(name),
        };
    }
    terminal.env("TERM", "xterm");
    let output = terminal.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for name in files_in(&place.snapshot()) {
        assert!(text.contains(&name), "{name}: {text}");
    }
}
