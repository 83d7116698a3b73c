//! What the program says of itself.

use std::fs;

use super::{folder, run, stdout};

const SUBCOMMANDS: [&[&str]; 14] = [
    &[],
    &["generate"],
    &["edit"],
    &["serve"],
    &["inspect"],
    &["convert"],
    &["parity"],
    &["bench", "load"],
    &["bench", "step"],
    &["bench", "decode"],
    &["bench", "text"],
    &["doctor"],
    &["completions"],
    &["man"],
];

#[test]
fn help_fits_the_screen_and_has_headings() {
    let folder = folder();
    for command in SUBCOMMANDS {
        let help = |flag: &'static str| stdout(&run(folder.path(), &[command, &[flag]].concat()));
        let (short, long) = (help("-h"), help("--help"));
        for line in short.lines().chain(long.lines()) {
            assert!(line.chars().count() <= 100, "{command:?}: {line}");
        }
        assert!(short.lines().count() <= 60, "{command:?}: {} lines", short.lines().count());
        assert!(!short.contains("\n\n\n") && long.lines().count() >= short.lines().count());
    }
    for command in ["generate", "edit"] {
        let short = stdout(&run(folder.path(), &[command, "-h"]));
        for flag in ["--model", "--output", "--seed", "--steps", "--force", "--dry-run", "'--help'"] {
            assert!(short.contains(flag), "{flag}: {short}");
        }
        assert!(!short.contains("--ip-strength"), "{short}");
        let long = stdout(&run(folder.path(), &[command, "--help"]));
        for heading in [
            "Prompt:",
            "Output:",
            "Model:",
            "Sampling:",
            "ControlNet:",
            "IP-Adapter:",
            "Redux:",
            "Memory and speed:",
        ] {
            assert!(long.lines().any(|line| line == heading), "{heading} {long}");
        }
    }
}

#[test]
fn shells_and_the_manual_know_every_flag() {
    let folder = folder();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(&run(folder.path(), &["completions", shell]));
        for word in ["generate", "variation-strength", "allow-unknown"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    assert!(stdout(&run(folder.path(), &["man"])).contains(".TH tch-flux 1"));
    let written = stdout(&run(folder.path(), &["man", "a/man1"]));
    assert!(written.contains("a/man1/tch-flux-bench-step.1"), "{written}");
    let page = fs::read_to_string(folder.path().join("a/man1/tch-flux-generate.1")).unwrap();
    assert!(page.contains(".TH tch-flux-generate 1") && page.contains("variation\\-strength"), "{page}");
    assert_eq!(run(folder.path(), &["man", "a/man1"]).status.code(), Some(1), "it stands there");
    stdout(&run(folder.path(), &["man", "a/man1", "--force"]));
}

#[test]
fn threads_are_at_least_one() {
    let folder = folder();
    for command in ["generate", "edit", "convert", "parity"] {
        let none = run(folder.path(), &[command, "x", "--threads", "0"]);
        let said = String::from_utf8_lossy(&none.stderr).into_owned();
        assert_eq!(none.status.code(), Some(2));
        assert!(said.contains("--threads") && said.contains("1..=1024"), "{said}");
    }
    let draw = |threads: &'static str, file: &'static str| {
        let call =
            ["generate", "a red circle", "--seed", "1", "--steps", "1", "--threads", threads, "-o", file];
        stdout(&run(folder.path(), &call));
        tch_flux::image::Image::read_png(folder.path().join(file)).unwrap()
    };
    assert_eq!(draw("1", "one.png"), draw("2", "two.png"), "fast numerics do not depend on it");
}
