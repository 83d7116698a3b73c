//! That the rows of the table agree with each other and with what is made of them.

use std::collections::BTreeSet;

use serde_json::json;

use super::*;

/// A value of a parameter's kind, and another one.
fn samples(kind: Kind) -> [Value; 2] {
    match kind {
        Kind::Text { .. } | Kind::Any => [json!("a"), json!("b")],
        Kind::Integer { .. } => [json!(3), json!(2)],
        Kind::Number { .. } | Kind::Fraction => [json!(0.5), json!(0.25)],
        Kind::Boolean => [json!(true), json!(false)],
        Kind::Choice(choices) => [json!(choices[0].0), json!(choices[1].0)],
        Kind::Side => [json!(32), json!(64)],
        Kind::Size => [json!("64x64"), json!("auto")],
        Kind::Numbers { counts: (_, _), .. } => [json!([0.5, 0.25]), json!(0.75)],
        Kind::Shift => [json!([0.5, 1.25]), json!(3)],
        Kind::Names => [json!(["a", "b"]), json!("a")],
        Kind::Modes => [json!(["Canny", 4]), json!("low_quality")],
        Kind::Scales { .. } => [json!([[1], [1, 2]]), json!(0.5)],
        Kind::Pictures => [json!("AAAA"), json!(["AAAA", "AAAA"])],
        Kind::Cache => [json!("tea-cache:0.5"), json!("taylor-seer:4,2,1")],
    }
}

#[test]
fn keys_flags_and_fields_stand_once_and_have_words() {
    let mut names = BTreeSet::new();
    for parameter in parameters() {
        let Parameter { key, flag, field, .. } = parameter;
        assert!(names.insert(format!("key {key}")), "{key}");
        assert!(
            parameter.about().ends_with('.') && parameter.about().len() > 10,
            "{key}: {}",
            parameter.about()
        );
        assert!(flag.is_some() || field.is_some(), "{key} cannot be given");
        let flags = flag.iter().flat_map(|flag| [Some(flag.name), flag.alias]).flatten();
        for flag in flags {
            assert!(flag.starts_with("--") && names.insert(flag.into()), "{flag}");
        }
        if let Some(field) = field {
            assert!(names.insert(format!("field {}", field.name)), "{}", field.name);
        }
    }
    assert!(names.len() > 100, "{}", names.len());
}

#[test]
fn each_kind_accepts_its_values_and_reads_them_from_text() {
    for parameter in parameters() {
        for value in samples(parameter.kind) {
            parameter.check(parameter.kind, &value).unwrap();
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
            let read = parameter.kind.parse(text);
            assert_eq!(read, if parameter.kind == Kind::Pictures { read.clone() } else { value });
        }
        let refused = parameter.check(parameter.kind, &json!({ "a": 1 })).unwrap_err();
        assert_eq!(refused.parameter(), parameter.key);
        let text = refused.to_string();
        assert!(text.starts_with(&format!("{} must be ", parameter.key)), "{text}");
        assert!(text.contains(r#"not {"a":1}"#), "{text}");
    }
}

#[test]
fn a_row_takes_its_value_says_it_and_lies_in_a_pictures_file() {
    for row in Request::ROWS {
        for value in samples(row.kind) {
            let mut values = Values::default();
            values.insert(row, value.clone()).unwrap();
            let mut request = Request::new("a", 64, 64);
            request.apply(&values);
            let (_, now) = request.row_values().into_iter().find(|(other, _)| other.key == row.key).unwrap();
            assert_eq!(now, value, "{}", row.key);
            let file: Request = serde_json::from_value(serde_json::to_value(&request).unwrap()).unwrap();
            // Previews change no bit of a picture.
            let previews = request.previews;
            assert_eq!(Request { previews, ..file }, request, "{}", row.key);
        }
    }
    let mut request = Request::new("a", 64, 64);
    request.guidance = Some(f64::NAN);
    let text = request.check().unwrap_err().to_string();
    assert_eq!(text, "guidance must be a number from 0 to 100, not \"NaN\"");
}

#[test]
fn pictures_are_computed_together_unless_a_field_keeps_them_apart() {
    let together = [
        "prompt_2",
        "literal",
        "guidance",
        "negative_prompt",
        "true_cfg_scale",
        "seed",
        "num_images",
        "legacy_noise",
        "previews",
    ];
    for row in Request::ROWS {
        let [one, other] = samples(row.kind).map(|value| {
            let mut values = Values::default();
            values.insert(row, value).unwrap();
            let mut request = Request::new("a", 16, 16);
            request.apply(&values);
            request
        });
        assert!(one.shares_batch_with(&one), "{}", row.key);
        assert_eq!(one.shares_batch_with(&other), together.contains(&row.key), "{}", row.key);
    }
    let guided = |scale| Request::new("a", 16, 16).negative_prompt("b", scale);
    assert!(guided(0.5).shares_batch_with(&guided(1.0)) && !guided(2.0).shares_batch_with(&guided(3.0)));
}

#[test]
fn rules_are_of_parameters_that_there_are() {
    for rule in RULES {
        let (when, other, text) = match *rule {
            Rule::Excludes(when, other, text) => (when, other.key(), text),
            Rule::Needs(when, other, text) => (when, other, text),
            Rule::NeedsPictures(when, other) => (when, other, ""),
        };
        assert!(parameter(when.key()).is_some() && parameter(other).is_some(), "{rule:?}");
        let problem = ParameterProblem::new(other, text, &[]);
        problem.worded(|key| parameter(key).unwrap_or_else(|| panic!("{key}")).key.into());
        let mut values = Values::default();
        let mut set = |given: Given| {
            let parameter = parameter(given.key()).unwrap();
            let value = match given {
                Given::Is(_, value) => json!(value),
                Given::True(_) => json!(true),
                Given::Any(_) => samples(parameter.kind)[0].clone(),
            };
            if parameter.kind != Kind::Pictures {
                values.insert(parameter, value).unwrap();
            }
        };
        set(when);
        if let Rule::Excludes(_, other, _) = rule {
            set(*other);
        }
        let key = if text.is_empty() { when.key() } else { other };
        let refused = values.check_rules(|pictures| pictures == when.key()).unwrap_err();
        assert_eq!(refused.parameter(), key, "{refused}");
    }
    Values::default().check_rules(|_| false).unwrap();
    Values::default().check_rules(|_| true).unwrap();
}

#[test]
fn a_schedule_comes_from_its_parameters_and_an_older_one_gives_way_to_steps() {
    let values = |pairs: &[(&str, Value)]| {
        let mut values = Values::default();
        for (key, value) in pairs {
            values.insert(parameter(key).unwrap(), value.clone()).unwrap();
        }
        values
    };
    let mut request = Request::new("a", 64, 64);
    request.apply(&values(&[("sigmas", json!([1, 0.5]))]));
    assert_eq!((request.steps, &request.schedule), (Some(2), &Some(Schedule::Sigmas(vec![1.0, 0.5]))));
    request.apply(&values(&[("guidance", json!(1))]));
    assert_eq!(request.schedule, Some(Schedule::Sigmas(vec![1.0, 0.5])));
    request.apply(&values(&[("steps", json!(3))]));
    assert_eq!((request.steps, &request.schedule), (Some(3), &None));
    for (pairs, schedule) in [
        (&[("schedule", json!("linear"))][..], Schedule::Linear),
        (&[("schedule", json!("shifted"))], Schedule::SHIFTED),
        (&[("shift", json!([0.25, 1]))], Schedule::Shifted { base: 0.25, max: 1.0 }),
        (
            &[("schedule", json!("shifted")), ("shift", json!([1, 2]))],
            Schedule::Shifted { base: 1.0, max: 2.0 },
        ),
    ] {
        request.apply(&values(pairs));
        assert_eq!(request.schedule, Some(schedule));
    }
    request.apply(&values(&[("cache", json!("none")), ("variation_strength", json!(0.5))]));
    assert_eq!((request.cache, request.variation.map(|variation| variation.strength)), (None, Some(0.5)));
    let seed = request.variation.unwrap().seed;
    request.apply(&values(&[("variation_strength", json!(1))]));
    assert_eq!(request.variation, Some(Variation { seed, strength: 1.0 }), "the seed stays");
}

#[test]
fn a_cache_is_written_as_it_is_read() {
    for cache in [StepCache::FIRST_BLOCK, StepCache::TEA_CACHE, StepCache::TAYLOR_SEER] {
        assert_eq!(cache.to_string().parse::<StepCache>().unwrap(), cache);
    }
}
