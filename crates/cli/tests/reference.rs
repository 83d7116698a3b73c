//! The whole way from prompt to picture against diffusers, which runs the same weights.
//!
//! `scripts/with-libtorch --reference` brings diffusers and says in `TCH_FLUX_PYTHON` where it is.

#[path = "../../../tests/support/mod.rs"]
mod support;

#[test]
fn generate_draws_what_diffusers_draws() {
    compare("scripts/compare_pipelines.py");
}

#[test]
fn edit_draws_what_diffusers_draws() {
    compare("scripts/compare_edits.py");
}

#[test]
fn other_ways_lead_where_they_lead_in_diffusers() {
    compare("scripts/compare_walks.py");
}

#[test]
fn a_folders_configs_mean_what_they_mean_in_diffusers() {
    compare("scripts/compare_configs.py");
}

#[test]
fn redux_draws_what_diffusers_draws() {
    compare("scripts/compare_redux.py");
}

#[test]
fn a_tiny_autoencoder_draws_what_it_draws_in_diffusers() {
    compare("scripts/compare_taef1.py");
}

#[test]
fn controlnets_and_ip_adapters_draw_what_diffusers_draws() {
    compare("scripts/compare_adapters.py");
}

#[test]
fn inputs_of_users_are_drawn_or_refused_as_is_right() {
    let cases = tempfile::tempdir().unwrap();
    let cases = cases.path().to_str().unwrap();
    if python(&["tests/cases/make_cases.py", "fixtures/tiny", cases]).is_some() {
        let text = python(&["tests/cases/run_cases.py", env!("CARGO_BIN_EXE_tch-flux"), cases]).unwrap();
        assert!(text.lines().last().is_some_and(|line| line.ends_with("passed, 0 failed")), "{text}");
    }
}

/// Runs a script that compares both, and ends with how many comparisons failed.
fn compare(script: &str) {
    let binary = env!("CARGO_BIN_EXE_tch-flux");
    if let Some(text) = python(&[script, "--model", "fixtures/tiny", "--binary", binary]) {
        assert!(text.lines().last().is_some_and(|line| line.ends_with("passed, 0 failed")), "{text}");
    }
}

/// What the reference's Python prints, which must end well; `None` where there is none.
fn python(args: &[&str]) -> Option<String> {
    let output = support::require::python()?.current_dir(support::root()).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{text}");
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    Some(text)
}
