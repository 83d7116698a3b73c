//! JSON Schema, as far as `/openapi.json` uses it. Patterns are left to `tests/openapi`, which has regular expressions.

use serde_json::{Value, json};

/// What a value lacks of a schema.
pub fn lacks(document: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    if let Some(name) = schema["$ref"].as_str() {
        let schema = &document["components"]["schemas"][name.trim_start_matches("#/components/schemas/")];
        assert!(schema.is_object(), "{name}");
        return lacks(document, schema, value, at);
    }
    let fits = |schema: &Value| lacks(document, schema, value, at).is_empty();
    let mut lacking = Vec::new();
    let mut wants = |holds: bool, what: &str| {
        if !holds {
            lacking.push(format!("{at}: {value} is not {what} of {schema}"));
        }
    };
    let of = |name: &str| schema[name].as_array().map(|all| all.iter().filter(|schema| fits(schema)).count());
    wants(of("anyOf").is_none_or(|count| count > 0), "any");
    wants(of("oneOf").is_none_or(|count| count == 1), "just one");
    wants(of("allOf").is_none_or(|count| schema["allOf"].as_array().unwrap().len() == count), "all");
    let applies = schema.get("if").is_some_and(&fits);
    wants(!applies || fits(&schema["then"]), "what it must be then");
    wants(schema.get("not").is_none_or(|schema| !fits(schema)), "what it may be");
    let is = |name: &str| match name {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64() || value.as_f64().is_some_and(|x| x.fract() == 0.0),
        "number" => value.is_number(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        other => panic!("{other}"),
    };
    match &schema["type"] {
        Value::String(name) => wants(is(name), "of the type"),
        Value::Array(names) => wants(names.iter().any(|name| is(name.as_str().unwrap())), "of a type"),
        _ => {}
    }
    if let Some(constant) = schema.get("const") {
        wants(value == constant, "the constant");
    }
    if let Some(choices) = schema["enum"].as_array() {
        wants(choices.contains(value), "one");
    }
    let number = value.as_f64();
    let bound = |name: &str| schema[name].as_f64().zip(number);
    wants(bound("minimum").is_none_or(|(bound, x)| x >= bound), "above the minimum");
    wants(bound("maximum").is_none_or(|(bound, x)| x <= bound), "below the maximum");
    wants(bound("exclusiveMinimum").is_none_or(|(bound, x)| x > bound), "above the minimum");
    let length = value.as_str().map(|text| text.chars().count() as f64);
    wants(schema["minLength"].as_f64().zip(length).is_none_or(|(b, n)| n >= b), "long enough");
    wants(schema["maxLength"].as_f64().zip(length).is_none_or(|(b, n)| n <= b), "short enough");
    let count = value.as_array().map(|all| all.len() as f64);
    wants(schema["minItems"].as_f64().zip(count).is_none_or(|(b, n)| n >= b), "long enough");
    wants(schema["maxItems"].as_f64().zip(count).is_none_or(|(b, n)| n <= b), "short enough");
    if let Some(object) = value.as_object() {
        for name in schema["required"].as_array().into_iter().flatten() {
            wants(object.contains_key(name.as_str().unwrap()), &format!("whole, without {name},"));
        }
        for (name, value) in object {
            match schema["properties"].get(name) {
                Some(schema) => lacking.extend(lacks(document, schema, value, &format!("{at}.{name}"))),
                None if schema["additionalProperties"] == json!(false) => {
                    lacking.push(format!("{at}: {name} is not in {schema}"));
                }
                None => {}
            }
        }
    }
    for value in value.as_array().into_iter().flatten() {
        if let Some(items) = schema.get("items") {
            lacking.extend(lacks(document, items, value, &format!("{at}[]")));
        }
    }
    lacking
}
