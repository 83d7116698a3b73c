//! The `scheduler_config.json` of a diffusers folder.

use super::{FlowMatch, Sampler, Schedule, Spacing, TimeShift};
use crate::config::ConfigFile;
use crate::error::{Error, Result};

/// How a folder of diffusers says that its model is walked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scheduler {
    pub(crate) sampler: Sampler,
    pub(crate) schedule: Schedule,
    /// What the settings say that changes nothing.
    pub(crate) warnings: Vec<String>,
}

const EULER: &str = "FlowMatchEulerDiscreteScheduler";
const HEUN: &str = "FlowMatchHeunDiscreteScheduler";
const LCM: &str = "FlowMatchLCMScheduler";
const DPM_SOLVER: &str = "DPMSolverMultistepScheduler";

/// What the flow matching schedulers have beside their class.
const FLOW_MATCH_KEYS: [&str; 14] = [
    "base_image_seq_len",
    "base_shift",
    "invert_sigmas",
    "max_image_seq_len",
    "max_shift",
    "num_train_timesteps",
    "shift",
    "shift_terminal",
    "stochastic_sampling",
    "time_shift_type",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_karras_sigmas",
];
/// What `FlowMatchLCMScheduler` has beside those.
const LCM_KEYS: [&str; 2] = ["scale_factors", "upscale_mode"];
/// What `DPMSolverMultistepScheduler` has beside them. Those of a variance-preserving noise say nothing to flow matching.
const DPM_SOLVER_KEYS: [&str; 24] = [
    "algorithm_type",
    "beta_end",
    "beta_schedule",
    "beta_start",
    "dynamic_thresholding_ratio",
    "euler_at_final",
    "final_sigmas_type",
    "flow_shift",
    "lambda_min_clipped",
    "lower_order_final",
    "prediction_type",
    "rescale_betas_zero_snr",
    "sample_max_value",
    "solver_order",
    "solver_type",
    "steps_offset",
    "thresholding",
    "timestep_spacing",
    "trained_betas",
    "use_flow_sigmas",
    "use_lu_lambdas",
    "variance_type",
    // Of other schedulers' settings that this one's were made of.
    "clip_sample",
    "set_alpha_to_one",
];

impl Scheduler {
    /// # Errors
    /// [`Error::File`] with the key of what is not built here, or has no such value.
    pub(crate) fn from_config(config: &ConfigFile) -> Result<Self> {
        let class = config.text("_class_name")?.unwrap_or(EULER);
        let known: &[&str] = match class {
            EULER | HEUN => &[],
            LCM => &LCM_KEYS,
            DPM_SOLVER => &DPM_SOLVER_KEYS,
            _ => {
                let reason = format!(
                    "is {class:?}, which is not built here: {EULER}, {HEUN}, {LCM} and {DPM_SOLVER} are; \
                     a sampler and a schedule that a request names stand in its place"
                );
                return Err(config.wrong("_class_name", reason));
            }
        };
        let sampler = match class {
            HEUN => Sampler::Heun,
            LCM => Sampler::Lcm,
            DPM_SOLVER => Sampler::Dpmpp2m,
            // New noise at each step is what LCM does.
            _ if config.flag("stochastic_sampling")?.unwrap_or(false) => Sampler::Lcm,
            _ => Sampler::Euler,
        };
        let flow_match = match class {
            DPM_SOLVER => dpm_solver(config)?,
            _ => flow_match(config)?,
        };
        if class == LCM && config.has("scale_factors") {
            let reason = "asks for latents that grow on the way, which is not built here";
            return Err(config.wrong("scale_factors", reason));
        }
        flow_match.check().map_err(|error| match error {
            Error::Request(reason) => config.wrong(key_of(&reason), reason.clone()),
            other => other,
        })?;
        let unknown = config.unknown_keys(&[&FLOW_MATCH_KEYS[..], known].concat());
        let warnings = if unknown.is_empty() { Vec::new() } else { vec![config.unknown(&unknown)] };
        Ok(Self { sampler, schedule: flow_match.into(), warnings })
    }
}

/// The setting that a reason is about.
fn key_of(reason: &str) -> &'static str {
    let named = |key: &&&str| reason.contains(**key);
    let longest = |key: &&&str| key.len();
    FLOW_MATCH_KEYS.iter().filter(named).max_by_key(longest).copied().unwrap_or("shift")
}

fn flow_match(config: &ConfigFile) -> Result<FlowMatch> {
    let usual = FlowMatch::default();
    let dynamic = config.flag("use_dynamic_shifting")?.unwrap_or(false);
    // A key that is there and null is no number, though an absent one is the usual.
    let number = |key: &str, usual: f64| match config.float(key)? {
        None if dynamic && config.is_null(key) => Err(config.wrong(key, "is null, but the shift is dynamic")),
        number => Ok(number.unwrap_or(usual)),
    };
    let time_shift_type = match config.text("time_shift_type")? {
        None | Some("exponential") => TimeShift::Exponential,
        Some("linear") => TimeShift::Linear,
        Some(other) => {
            return Err(
                config.wrong("time_shift_type", format!("is {other:?}; exponential and linear are known"))
            );
        }
    };
    let spacings = [
        ("use_karras_sigmas", Spacing::Karras),
        ("use_exponential_sigmas", Spacing::Exponential),
        ("use_beta_sigmas", Spacing::Beta),
    ];
    let mut spacing = Spacing::Uniform;
    for (key, other) in spacings {
        if config.flag(key)?.unwrap_or(false) {
            if spacing != Spacing::Uniform {
                return Err(config.wrong(key, "is true, and so is another spacing: one of them is wanted"));
            }
            spacing = other;
        }
    }
    Ok(FlowMatch {
        num_train_timesteps: config.int("num_train_timesteps")?.unwrap_or(usual.num_train_timesteps),
        shift: config.float("shift")?.unwrap_or(usual.shift),
        use_dynamic_shifting: dynamic,
        base_shift: number("base_shift", usual.base_shift)?,
        max_shift: number("max_shift", usual.max_shift)?,
        base_image_seq_len: config.int("base_image_seq_len")?.unwrap_or(usual.base_image_seq_len),
        max_image_seq_len: config.int("max_image_seq_len")?.unwrap_or(usual.max_image_seq_len),
        time_shift_type,
        // As in Python, 0 is no terminal either.
        shift_terminal: config.float("shift_terminal")?.filter(|terminal| *terminal != 0.0),
        spacing,
        invert_sigmas: config.flag("invert_sigmas")?.unwrap_or(false),
        use_flow_sigmas: false,
    })
}

/// The one form of DPM-Solver++ that is built: see [`Sampler::Dpmpp2m`].
fn dpm_solver(config: &ConfigFile) -> Result<FlowMatch> {
    // An absent key is diffusers' default, which for these is not what flow matching asks for.
    config.only(
        "prediction_type",
        Some(config.text("prediction_type")?.unwrap_or("epsilon")),
        "flow_prediction",
    )?;
    config.only("use_flow_sigmas", Some(config.flag("use_flow_sigmas")?.unwrap_or(false)), true)?;
    config.only("algorithm_type", config.text("algorithm_type")?, "dpmsolver++")?;
    config.only("solver_type", config.text("solver_type")?, "midpoint")?;
    config.only("solver_order", config.int("solver_order")?, 2)?;
    config.only("final_sigmas_type", config.text("final_sigmas_type")?, "zero")?;
    for key in [
        "thresholding",
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "use_lu_lambdas",
        "invert_sigmas",
        "stochastic_sampling",
    ] {
        config.only(key, config.flag(key)?, false)?;
    }
    for key in ["variance_type", "shift_terminal"] {
        if config.has(key) {
            return Err(config.wrong(key, "is set; without it only DPM-Solver++ is built here"));
        }
    }
    Ok(FlowMatch {
        shift: config.float("flow_shift")?.unwrap_or(1.0),
        use_flow_sigmas: true,
        ..flow_match(config)?
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::{Value, json};

    use super::*;

    fn read(fields: Value) -> Result<Scheduler> {
        Scheduler::from_config(&ConfigFile::from_json(fields))
    }

    #[derive(Deserialize)]
    struct Case {
        config: Value,
        walks: Vec<Walk>,
    }

    #[derive(Deserialize)]
    struct Walk {
        steps: usize,
        image_seq_len: i64,
        sigmas: Vec<f64>,
        timesteps: Vec<f64>,
    }

    /// `scripts/export_schedules.py` writes what diffusers walks. The official schedule's own arithmetic, which stays to the
    /// bit, and libm's exponentials may differ from numpy's in the last bit of f32.
    #[test]
    fn times_are_those_of_diffusers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/schedules.json");
        let cases: Vec<Case> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert!(cases.len() > 20);
        for Case { config, walks } in cases {
            let Scheduler { schedule, .. } = read(config.clone()).unwrap();
            for Walk { steps, image_seq_len, sigmas, timesteps } in walks {
                let own = schedule.times(steps, image_seq_len);
                let told = schedule.timesteps(&own);
                assert_eq!((own.len(), told.len()), (steps + 1, steps + 1), "{config}");
                for (own, theirs) in own.iter().zip(&sigmas).chain(told.iter().zip(&timesteps)) {
                    assert!((own - theirs).abs() <= 2e-7, "{config}, {steps} steps: {own} and {theirs}");
                }
            }
        }
    }

    #[test]
    fn the_official_settings_are_the_official_schedule_to_the_bit() {
        let schedule = |fields: Value| read(fields).unwrap().schedule;
        let schnell = json!({
            "_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 256, "base_shift": 0.5,
            "max_image_seq_len": 4096, "max_shift": 1.15, "num_train_timesteps": 1000, "shift": 1.0,
            "use_dynamic_shifting": false
        });
        let dev = json!({
            "_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 256, "base_shift": 0.5,
            "max_image_seq_len": 4096, "max_shift": 1.15, "num_train_timesteps": 1000, "shift": 3.0,
            "use_dynamic_shifting": true
        });
        assert_eq!(schedule(schnell), Schedule::Linear);
        assert_eq!(schedule(dev), Schedule::SHIFTED);
        assert_eq!(schedule(json!({})), Schedule::Linear);
        let base =
            json!({ "use_dynamic_shifting": true, "base_shift": 0.9, "time_shift_type": "exponential" });
        assert_eq!(schedule(base), Schedule::Shifted { base: 0.9, max: 1.15 });
        // What nothing depends on is not remembered.
        let fixed = FlowMatch { shift: 3.0, ..FlowMatch::default() };
        assert_eq!(schedule(json!({ "shift": 3, "base_shift": 7 })), Schedule::FlowMatch(fixed));
    }

    #[test]
    fn each_class_has_its_sampler() {
        let sampler = |fields: Value| read(fields).unwrap().sampler;
        assert_eq!(sampler(json!({})), Sampler::Euler);
        assert_eq!(sampler(json!({ "_class_name": EULER, "stochastic_sampling": true })), Sampler::Lcm);
        assert_eq!(sampler(json!({ "_class_name": HEUN, "shift": 3.0 })), Sampler::Heun);
        assert_eq!(sampler(json!({ "_class_name": LCM })), Sampler::Lcm);
        let dpm = json!({ "_class_name": DPM_SOLVER, "use_flow_sigmas": true, "prediction_type": "flow_prediction" });
        assert_eq!(sampler(dpm), Sampler::Dpmpp2m);
    }

    #[test]
    fn what_is_not_built_is_refused_by_its_key() {
        let dpm = |more: Value| {
            let mut fields = json!({ "_class_name": DPM_SOLVER, "use_flow_sigmas": true, "prediction_type": "flow_prediction" });
            fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            fields
        };
        for (fields, key) in [
            (json!({ "_class_name": "UniPCMultistepScheduler" }), "_class_name"),
            (json!({ "_class_name": "EulerDiscreteScheduler" }), "EulerDiscreteScheduler"),
            (json!({ "_class_name": 3 }), "_class_name"),
            (json!({ "_class_name": DPM_SOLVER }), "prediction_type"),
            (dpm(json!({ "use_flow_sigmas": false })), "use_flow_sigmas"),
            (dpm(json!({ "solver_order": 3 })), "solver_order"),
            (dpm(json!({ "algorithm_type": "sde-dpmsolver++" })), "algorithm_type"),
            (dpm(json!({ "use_karras_sigmas": true })), "use_karras_sigmas"),
            (dpm(json!({ "final_sigmas_type": "sigma_min" })), "final_sigmas_type"),
            (json!({ "_class_name": LCM, "scale_factors": [0.5, 1.0] }), "scale_factors"),
            (json!({ "time_shift_type": "cosine" }), "time_shift_type"),
            (json!({ "shift": "3" }), "shift"),
            (json!({ "shift": 0 }), "shift"),
            (json!({ "shift": -1.0 }), "shift"),
            (json!({ "use_dynamic_shifting": true, "base_shift": null }), "base_shift"),
            (json!({ "use_dynamic_shifting": true, "max_shift": 1e9 }), "shift"),
            (json!({ "use_dynamic_shifting": true, "max_image_seq_len": 256 }), "max_image_seq_len"),
            (json!({ "use_dynamic_shifting": 1 }), "use_dynamic_shifting"),
            (json!({ "use_karras_sigmas": true, "use_beta_sigmas": true }), "use_beta_sigmas"),
            (json!({ "shift_terminal": 1.0 }), "shift_terminal"),
            (json!({ "num_train_timesteps": 0 }), "num_train_timesteps"),
        ] {
            let error = read(fields.clone()).map(|_| ()).unwrap_err();
            assert!(matches!(error, Error::File { .. }), "{fields}: {error}");
            let error = error.to_string();
            assert!(error.contains("config.json") && error.contains(key), "{fields}: {error}");
        }
    }

    #[test]
    fn what_is_not_known_is_said() {
        let warnings = |fields: Value| read(fields).unwrap().warnings;
        assert_eq!(warnings(json!({ "_diffusers_version": "0.30", "shift": 2.0 })), [""; 0]);
        let [warning] = &warnings(json!({ "sigma_min": 0.1, "use_lu": true, "none": null }))[..] else {
            panic!()
        };
        assert!(
            warning.contains("sigma_min") && warning.contains("use_lu") && !warning.contains("none"),
            "{warning}"
        );
    }

    #[test]
    fn a_schedule_is_read_back_as_it_was_written() {
        let all = FlowMatch {
            num_train_timesteps: 500,
            shift: 2.0,
            use_dynamic_shifting: true,
            base_shift: 0.1,
            max_shift: 0.2,
            base_image_seq_len: 3,
            max_image_seq_len: 4,
            time_shift_type: TimeShift::Linear,
            shift_terminal: Some(0.1),
            spacing: Spacing::Beta,
            invert_sigmas: true,
            use_flow_sigmas: true,
        };
        for settings in [all, FlowMatch::default(), FlowMatch { shift: 3.0, ..FlowMatch::default() }] {
            let schedule = Schedule::FlowMatch(settings);
            let text = serde_json::to_string(&schedule).unwrap();
            assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule, "{text}");
        }
        assert!(serde_json::from_str::<Schedule>(r#"{"flow_match": {"shifted": 3}}"#).is_err());
    }
}
