//! diffusers loads what is written, from its settings to a forward pass: `scripts/check_converted.py`.

#[test]
fn diffusers_loads_every_model_and_lora_that_is_written() {
    let Some(mut python) = crate::support::require::python() else { return };
    let output = python
        .current_dir(crate::support::root())
        .args(["scripts/check_converted.py", "--binary", env!("CARGO_BIN_EXE_tch-flux")])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.lines().last().is_some_and(|line| line.ends_with("passed, 0 failed")), "{text}");
}
