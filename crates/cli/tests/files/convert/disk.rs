//! A disk that fills, a process that is killed, two at once, and how much memory a conversion takes: the binary.

#![cfg(unix)]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tch_flux::checkpoint::{Access, Checkpoint};

use super::models::read;
use super::official;
use crate::support::{Line, layout, write_sparse};

const BINARY: &str = env!("CARGO_BIN_EXE_tch-flux");

fn convert(arguments: &[&Path]) -> Command {
    let mut command = Command::new(BINARY);
    command.arg("convert").args(arguments).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a folder holds, hidden files included.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// FLUX.1's first blocks at their full width, as holes.
fn wide(path: &Path, blocks: usize) {
    let block = |name: &str| {
        let rest = name.strip_prefix("double_blocks.").or(name.strip_prefix("single_blocks."));
        rest.and_then(|rest| rest.split('.').next()?.parse().ok()).unwrap_or(0usize)
    };
    let lines: Vec<Line> =
        layout("flux1-dev").into_iter().filter(|(name, ..)| block(name) < blocks).collect();
    write_sparse(path, &lines);
}

#[test]
fn a_disk_that_fills_leaves_nothing_and_the_next_run_works() {
    let (folder, path) = official("ae");
    let out = folder.path().join("out");
    // In units of 1024 bytes: a third of what is written.
    let limited = format!("trap '' XFSZ; ulimit -f 500; exec '{BINARY}' convert \"$@\"");
    let output = Command::new("bash").args(["-c", &limited, "-"]).args([&path, &out]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(said.contains("model.safetensors") && said.contains("too large"), "{said}");
    assert_eq!(names(&out), [""; 0]);
    assert!(convert(&[&path, &out]).status().unwrap().success());
    assert_eq!(read(&out).tensors, read(&path).tensors);
}

#[test]
fn a_killed_run_leaves_nothing_under_the_final_name_and_the_next_works() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.safetensors");
    wide(&path, 1);
    let out = folder.path().join("out.safetensors");
    let part = folder.path().join(".out.safetensors.part");
    let mut child = convert(&[&path, &out]).spawn().unwrap();
    let begin = Instant::now();
    while std::fs::metadata(&part).map_or(0, |m| m.len()) < 50_000_000 {
        assert!(begin.elapsed() < Duration::from_secs(60), "it does not write");
        assert!(child.try_wait().unwrap().is_none(), "it was too quick to be killed");
        std::thread::sleep(Duration::from_millis(1));
    }
    let second = convert(&[&path, &out]).output().unwrap();
    assert_eq!(second.status.code(), Some(1), "two at once");
    assert!(stderr(&second).contains("another process is writing this"), "{}", stderr(&second));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(names(folder.path()), [".out.safetensors.part", "in.safetensors"]);
    assert!(convert(&[&path, &out]).status().unwrap().success());
    assert_eq!(names(folder.path()), ["in.safetensors", "out.safetensors"]);
    let [before, after] = [&path, &out].map(|path| Checkpoint::open(path, Access::Read).unwrap());
    assert!(before.names().eq(after.names()));
}

#[test]
fn what_stands_there_is_replaced_only_by_force() {
    let (folder, path) = official("clip-l-text");
    let out = folder.path().join("out.safetensors");
    std::fs::write(&out, "mine").unwrap();
    let output = convert(&[&path, &out]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("stands there already"), "{}", stderr(&output));
    assert_eq!(std::fs::read(&out).unwrap(), b"mine");
    assert!(convert(&[&path, &out, Path::new("--force")]).status().unwrap().success());
    assert_eq!(read(&out).tensors, read(&path).tensors);
    let wrong = convert(&[&path, &folder.path().join("out.gguf")]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2), "a call that cannot be right");
}

/// The greatest resident memory of a process that is running, in bytes, until it has ended.
#[cfg(target_os = "linux")]
fn peak(mut command: Command) -> u64 {
    let mut child = command.spawn().unwrap();
    let (status, mut peak) = (format!("/proc/{}/status", child.id()), 0);
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        peak = peak.max(kilobytes.unwrap_or(0) * 1024);
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    peak
}

/// The blocks have their full width: that there are fewer of them changes nothing, since one tensor after the other goes
/// through.
#[test]
#[cfg(target_os = "linux")]
fn memory_stays_below_a_gigabyte_at_full_width() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.safetensors");
    wide(&path, 1);
    let bytes = std::fs::metadata(&path).unwrap().len();
    assert!(bytes > 900_000_000, "{bytes}");
    let lora = folder.path().join("lora.safetensors");
    let line = |name: &str, shape: &[i64]| (name.to_string(), "BF16".to_string(), shape.to_vec());
    write_sparse(
        &lora,
        &[
            line("single_blocks.0.linear1.lora_A.weight", &[64, 3072]),
            line("single_blocks.0.linear1.lora_B.weight", &[21504, 64]),
        ],
    );
    let merge = ["--kind", "fp8-scaled", "--merge", lora.to_str().unwrap()];
    for arguments in [&["--layout", "diffusers"][..], &merge[..2], &merge] {
        let out = folder.path().join("out");
        let mut command = convert(&[&path, &out]);
        command.args(arguments).arg("--force");
        let begin = Instant::now();
        let peak = peak(command);
        let seconds = begin.elapsed().as_secs_f64();
        println!(
            "{arguments:?}: {} MB of memory, {:.0} MB/s",
            peak / 1_000_000,
            bytes as f64 / 1e6 / seconds
        );
        assert!(peak < 1_000_000_000, "{arguments:?}: {peak} bytes");
        std::fs::remove_dir_all(&out).unwrap();
    }
}
