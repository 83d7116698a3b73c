//! Settings: flags, then the environment, then a file, then what is built in.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;

use crate::client::{generate, get, send};
use crate::life::Process;
use crate::small;

fn run(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tch-flux"));
    command.arg("serve").args(arguments).current_dir(folder).envs(variables.iter().copied());
    command.output().unwrap()
}

fn printed(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> toml::Table {
    let output = run(folder, &[arguments, &["--print-config"]].concat(), variables);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().parse().unwrap()
}

#[test]
fn flags_come_before_the_environment_and_that_before_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = "port = 1\nqueue = 1\ngrace = 1.5\nnumerics = \"exact\"\ncors-origin = [\"https://a\", \"https://b\"]\n";
    std::fs::write(folder.path().join("serve.toml"), file).unwrap();
    let all = printed(
        folder.path(),
        &["--config", "serve.toml", "--port", "3"],
        &[("TCH_FLUX_SERVE_PORT", "2"), ("TCH_FLUX_SERVE_QUEUE", "2")],
    );
    assert_eq!(all["port"].as_integer(), Some(3), "the flag");
    assert_eq!(all["queue"].as_integer(), Some(2), "the environment");
    assert_eq!(all["grace"].as_float(), Some(1.5), "the file");
    assert_eq!(all["numerics"].as_str(), Some("exact"));
    assert_eq!(all["cors-origin"].as_array().unwrap().len(), 2);
    assert_eq!(all["host"].as_str(), Some("127.0.0.1"), "built in");
    // The file may be named by the environment, and lists too.
    let all = printed(
        folder.path(),
        &[],
        &[
            ("TCH_FLUX_SERVE_CONFIG", "serve.toml"),
            ("TCH_FLUX_SERVE_DEVICE", "cpu,cpu"),
            ("TCH_FLUX_SERVE_KEEP_QUANTIZED", "true"),
        ],
    );
    assert_eq!((all["port"].as_integer(), all["device"].as_array().unwrap().len()), (Some(1), 2));
    assert_eq!(all["keep-quantized"].as_bool(), Some(true));
}

#[test]
fn what_is_printed_can_be_read_again_and_keeps_the_key_to_itself() {
    let folder = tempfile::tempdir().unwrap();
    let arguments =
        ["--api-key", "sesame", "--model", "somewhere", "--kind", "bf16", "--lora", "a:0.5", "--log-json"];
    let output = run(folder.path(), &[&arguments[..], &["--print-config"]].concat(), &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains("sesame") && text.contains("api-key = \"redacted\""), "{text}");
    std::fs::write(folder.path().join("again.toml"), text.replace("redacted", "sesame")).unwrap();
    let again = run(folder.path(), &["--config", "again.toml", "--print-config"], &[]);
    assert_eq!(String::from_utf8(again.stdout).unwrap(), text);
}

#[test]
fn settings_that_are_none_are_refused_with_the_nearest_name() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |file: &str| {
        std::fs::write(folder.path().join("serve.toml"), file).unwrap();
        let output = run(folder.path(), &["--config", "serve.toml", "--print-config"], &[]);
        assert!(!output.status.success(), "{file}");
        String::from_utf8(output.stderr).unwrap()
    };
    let said = refused("max-json-byte = 5");
    assert!(said.contains("`max-json-byte`") && said.contains("`max-json-bytes`"), "{said}");
    assert!(refused("port = \"x\"").contains("serve.toml"));
    assert!(refused("port = 70000").contains("port"));
    assert!(refused("port = ").contains("serve.toml"));
    assert!(refused("numerics = \"quick\"").contains("quick"));
    assert!(refused("print-config = true").contains("print-config"));
    let missing = run(folder.path(), &["--config", "none.toml"], &[]);
    assert!(String::from_utf8(missing.stderr).unwrap().contains("none.toml"));
    for (name, value) in [
        ("host", "nowhere"),
        ("grace", "-1"),
        ("device", "tpu"),
        ("vae-tile", "1"),
        ("log-level", "x=loud"),
        ("api-key", ""),
    ] {
        let output = run(folder.path(), &[&format!("--{name}={value}")], &[]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && said.contains(&name.replace("api-key", "API key")),
            "{name}: {said}"
        );
    }
}

#[test]
fn a_setting_does_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "sesame\n").unwrap();
    let process = Process::ready(&[
        "--api-key-file",
        key.to_str().unwrap(),
        "--model-name",
        "mine",
        "--model-alias",
        "yours",
        "--public-url",
        "https://pictures.example/",
        "--max-json-bytes",
        "1000",
        "--threads",
        "1",
    ]);
    let ask = |method: &str, path: &str, body: &str| {
        let headers = [("authorization", "Bearer sesame"), ("content-type", "application/json")];
        send(process.at, method, path, &headers, body.as_bytes())
    };
    get(process.at, "/v1/models").is_error(401, "");
    assert_eq!(ask("GET", "/v1/models", "").json()["data"][0]["id"], "mine");
    assert_eq!(ask("GET", "/v1/models/yours", "").status, 200);
    ask("GET", "/v1/models/dall-e-3", "").is_error(404, "model");
    let request = crate::with(small(1), "response_format", json!("url")).to_string();
    let answer = ask("POST", "/v1/images/generations", &request).json();
    let url = answer["data"][0]["url"].as_str().unwrap();
    assert!(url.starts_with("https://pictures.example/v1/images/"), "{url}");
    ask("POST", "/v1/images/generations", &" ".repeat(1001)).is_error(413, "");
}

#[test]
fn several_workers_draw_the_same_pictures() {
    let process = Process::ready(&["--device", "cpu", "--device", "cpu"]);
    let alone = generate(crate::shared(), &small(1)).pictures();
    std::thread::scope(|scope| {
        let asked: Vec<_> =
            (0..4).map(|_| scope.spawn(|| generate(process.at, &small(1)).pictures())).collect();
        asked.into_iter().for_each(|asked| assert_eq!(asked.join().unwrap(), alone));
    });
}
