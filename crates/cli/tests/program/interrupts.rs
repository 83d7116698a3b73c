//! What is lost when a drawing ends early: nothing that was done.
#![cfg(unix)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tch_flux::image::Image;

use super::{CIRCLE, folder, run, stdout};

/// More pictures than can be drawn before a signal comes, a few at a time.
const MANY: [&str; 8] = ["generate", CIRCLE, "-n", "80", "--steps", "12", "--seed", "5"];

/// The same one by one.
const ONE_BY_ONE: [&str; 10] =
    ["generate", CIRCLE, "-n", "80", "--steps", "2", "--seed", "5", "--numerics", "exact"];

fn start(folder: &Path, call: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tch-flux"));
    command.current_dir(folder).args(call).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

fn wait_for(path: &Path) {
    let begun = Instant::now();
    while !path.exists() {
        assert!(begun.elapsed() < Duration::from_secs(300), "{} does not come", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// How many files are called pictures. All of them are whole.
fn whole(folder: &Path) -> usize {
    let is_named = |file: &&PathBuf| !file.file_name().unwrap().to_str().unwrap().starts_with('.');
    let files = files(folder);
    let named = files.iter().filter(is_named);
    named.inspect(|file| drop(Image::read_png(file).unwrap_or_else(|error| panic!("{error}")))).count()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn pictures_are_there_as_soon_as_they_are_drawn_and_ctrl_c_keeps_them() {
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let folder = folder();
        let child = start(folder.path(), &[&MANY[..], &["-o", "x/p.png", "--grid", "sheet.png"]].concat());
        wait_for(&folder.path().join("x/p-0.png"));
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        let written = whole(&folder.path().join("x"));
        assert!((1..80).contains(&written), "{written}");
        assert_eq!(files(&folder.path().join("x")).len(), written, "nothing half-written stays");
        let undrawn =
            format!("not drawn: {} pictures of {CIRCLE:?}, seeds {} to 84\n", 80 - written, 5 + written);
        assert!(said.contains(&undrawn), "{undrawn}: {said}");
        assert!(said.contains("once more ends at once"), "{said}");
        let lines = String::from_utf8(output.stdout).unwrap();
        let listed = lines.lines().filter(|line| line.starts_with("x/p-")).count();
        assert_eq!(listed, written, "{lines}");
        // The sheet has a place for each, white where there is none.
        let sheet = Image::read_png(folder.path().join("sheet.png")).unwrap().0;
        assert_eq!((sheet.width, sheet.height), (9 * 68 - 4, 9 * 68 - 4));
        // What was kept is what it is alone, and the seeds that are named draw the rest.
        let alone = ["generate", CIRCLE, "--steps", "12", "--seed", "5", "-o", "alone.png"];
        stdout(&run(folder.path(), &alone));
        let read = |name: &str| Image::read_png(folder.path().join(name)).unwrap();
        assert_eq!(read("x/p-0.png"), read("alone.png"));
    }
}

#[test]
fn a_report_of_what_was_interrupted_is_json() {
    // A process that was started by `nohup` outlives its terminal, and so do those that it starts.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap_or("0").trim();
    let outlives = u64::from_str_radix(ignored, 16).unwrap() & 1 == 1;
    for (name, code) in [("INT", 130), ("HUP", 129)] {
        if name == "HUP" && outlives {
            continue;
        }
        let folder = folder();
        let child = start(folder.path(), &[&MANY[..], &["-o", "x/p.png", "--json"]].concat());
        wait_for(&folder.path().join("x/p-0.png"));
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), stderr(&output)), (Some(code), String::new()));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let (drawn, undrawn) =
            (report["images"].as_array().unwrap(), report["not_drawn"].as_array().unwrap());
        assert_eq!((drawn.len(), drawn.len() + undrawn.len()), (whole(&folder.path().join("x")), 80));
        assert_eq!(undrawn.last().unwrap()["seed"], 84);
    }
}

#[test]
fn a_second_signal_ends_at_once_and_leaves_no_half_of_a_file() {
    let folder = folder();
    // One step of a large picture, which the first signal lets be finished.
    let large = ["generate", CIRCLE, "--steps", "1", "--width", "2048", "--height", "2048", "-o", "x.png"];
    let mut child = start(folder.path(), &large);
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    said.find(|line| line.starts_with("autoencoder: ")).unwrap();
    // The signals are listened for soon after that; before, the first ends the process, which would be the second's end.
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, "INT");
    said.find(|line| line.starts_with("stopping: ")).unwrap();
    let second = Instant::now();
    signal(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(second.elapsed() < Duration::from_secs(2), "{:?}", second.elapsed());
    assert!(files(folder.path()).is_empty(), "{:?}", files(folder.path()));
}

#[test]
fn what_ends_a_drawing_leaves_what_was_written() {
    // Killed: every file under its name is whole.
    let folder = folder();
    let mut child = start(folder.path(), &[&ONE_BY_ONE[..], &["-o", "x/p.png"]].concat());
    wait_for(&folder.path().join("x/p-1.png"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(whole(&folder.path().join("x")) >= 2);

    // The place is gone: an error that says what was not drawn, and nothing of what was before is lost.
    for json in [false, true] {
        let more = ["-o", "y/p.png", if json { "--json" } else { "--previews=0" }];
        let child = start(folder.path(), &[&ONE_BY_ONE[..], &more].concat());
        wait_for(&folder.path().join("y/p-0.png"));
        let kept = folder.path().join(format!("kept-{json}"));
        fs::rename(folder.path().join("y"), &kept).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let written = whole(&kept);
        assert!((1..80).contains(&written));
        if json {
            assert_eq!(stderr(&output), "");
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(report["error"]["kind"], "io");
            assert!(
                report["error"]["message"].as_str().unwrap().starts_with(&format!("y/p-{written}.png: "))
            );
            assert_eq!(report["images"].as_array().unwrap().len(), written);
            assert_eq!(report["not_drawn"].as_array().unwrap().len(), 80 - written);
        } else {
            let said = stderr(&output);
            assert!(said.contains(&format!("not drawn: {} pictures", 80 - written)), "{said}");
            assert!(said.contains(&format!("error: y/p-{written}.png: ")), "{said}");
        }
    }
}
