//! Values that were given for parameters, and what they make of a request.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Number, Value};

use super::kind::as_mode;
use super::{Parameter, Request, as_integer};
use crate::error::ParameterProblem;
use crate::generation::{ControlPreprocess, Edit, ReduxMix, Role, Variation};
use crate::models::flux1::StepCache;
use crate::sampling::{FlowMatch, Sampler, Schedule};

/// A type that a parameter's value becomes.
pub(super) trait ParameterValue: Sized {
    fn from_value(value: &Value) -> Option<Self>;
    /// Null where there is none.
    fn to_value(&self) -> Value;
    /// Whether a value says that there is none.
    fn is_none(value: &Value) -> bool {
        value.is_null()
    }
}

impl<T: ParameterValue> ParameterValue for Option<T> {
    fn from_value(value: &Value) -> Option<Self> {
        if T::is_none(value) { Some(None) } else { T::from_value(value).map(Some) }
    }

    fn to_value(&self) -> Value {
        self.as_ref().map_or(Value::Null, T::to_value)
    }
}

impl ParameterValue for bool {
    fn from_value(value: &Value) -> Option<Self> {
        value.as_bool()
    }

    fn to_value(&self) -> Value {
        Value::Bool(*self)
    }
}

impl ParameterValue for u64 {
    fn from_value(value: &Value) -> Option<Self> {
        as_integer(value)
    }

    fn to_value(&self) -> Value {
        Value::from(*self)
    }
}

impl ParameterValue for usize {
    fn from_value(value: &Value) -> Option<Self> {
        as_integer(value)?.try_into().ok()
    }

    fn to_value(&self) -> Value {
        Value::from(*self)
    }
}

impl ParameterValue for i64 {
    fn from_value(value: &Value) -> Option<Self> {
        as_integer(value)?.try_into().ok()
    }

    fn to_value(&self) -> Value {
        Value::from(*self)
    }
}

impl ParameterValue for f64 {
    fn from_value(value: &Value) -> Option<Self> {
        value.as_f64()
    }

    fn to_value(&self) -> Value {
        // What JSON has no number for is none of any kind of number.
        Number::from_f64(*self).map_or_else(|| Value::String(self.to_string()), Value::Number)
    }
}

impl ParameterValue for String {
    fn from_value(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_string)
    }

    fn to_value(&self) -> Value {
        Value::String(self.clone())
    }
}

impl ParameterValue for Sampler {
    fn from_value(value: &Value) -> Option<Self> {
        Self::named(value.as_str()?)
    }

    fn to_value(&self) -> Value {
        Value::String(self.name().into())
    }
}

impl ParameterValue for StepCache {
    fn from_value(value: &Value) -> Option<Self> {
        value.as_str()?.parse().ok()
    }

    fn to_value(&self) -> Value {
        Value::String(self.to_string())
    }

    fn is_none(value: &Value) -> bool {
        value.is_null() || value == Self::NONE
    }
}

/// Values that were given for parameters, by the parameters' keys. Pictures are none of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Values(BTreeMap<&'static str, Value>);

impl Values {
    /// Sets the value of a parameter, which must be of its kind. Null sets nothing.
    ///
    /// # Errors
    /// That of [`Parameter::check`].
    pub fn insert(&mut self, parameter: &Parameter, value: Value) -> Result<(), ParameterProblem> {
        if !value.is_null() {
            parameter.check(parameter.kind, &value)?;
            self.0.insert(parameter.key, value);
        }
        Ok(())
    }

    /// Takes the value of the parameter with a key away.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key)
    }

    /// Returns the value of the parameter with a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// Whether the parameter with a key has a value.
    pub fn contains(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// Returns a value that is text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    /// Returns a value that is a whole number.
    pub fn integer(&self, key: &str) -> Option<u64> {
        as_integer(self.get(key)?)
    }

    /// Returns a value that is a number.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_f64()
    }

    /// Returns a value that is true or false.
    pub fn boolean(&self, key: &str) -> Option<bool> {
        self.get(key)?.as_bool()
    }

    /// Returns the items of a list; a value that is no list is one item.
    pub fn list(&self, key: &str) -> &[Value] {
        match self.get(key) {
            Some(Value::Array(items)) => items,
            Some(item) => std::slice::from_ref(item),
            None => &[],
        }
    }

    /// Returns the numbers of a list.
    pub fn numbers(&self, key: &str) -> Vec<f64> {
        self.list(key).iter().filter_map(Value::as_f64).collect()
    }

    /// Returns the texts of a list.
    pub fn texts(&self, key: &str) -> Vec<String> {
        self.list(key).iter().filter_map(|value| value.as_str().map(str::to_string)).collect()
    }

    /// Returns the modes of union ControlNets.
    pub fn modes(&self) -> Vec<i64> {
        self.list("control_mode").iter().filter_map(as_mode).collect()
    }

    /// Returns the scales of IP-Adapters: one list for all, or one for each.
    pub fn scales(&self) -> Vec<Vec<f64>> {
        let numbers = |value: &Value| {
            value.as_array().map(|list| list.iter().filter_map(Value::as_f64).collect::<Vec<_>>())
        };
        let flat = self.numbers("ip_adapter_scale");
        if flat.is_empty() {
            self.list("ip_adapter_scale").iter().filter_map(numbers).collect()
        } else {
            vec![flat]
        }
    }

    /// Returns how several pictures of Redux come together.
    pub fn redux_mix(&self) -> Option<ReduxMix> {
        self.text("redux_mix").and_then(ReduxMix::named)
    }

    /// Returns the value of each picture, of values that are given once for all pictures or once for each: the one for all, its
    /// own, or none. `pictures` is the key of the pictures.
    ///
    /// # Errors
    /// Another number of values.
    pub fn per_picture<T: Copy>(
        key: &'static str,
        values: &[T],
        pictures: &'static str,
        count: usize,
    ) -> Result<Vec<Option<T>>, ParameterProblem> {
        if values.len() > 1 && values.len() != count {
            return Err(ParameterProblem::counts(key, values.len(), pictures, count));
        }
        Ok((0..count).map(|i| values.get(if values.len() == 1 { 0 } else { i }).copied()).collect())
    }

    /// Returns the times of the steps.
    fn schedule(&self) -> Option<Schedule> {
        let sigmas = self.numbers("sigmas");
        match (self.text("schedule"), &self.numbers("shift")[..], &sigmas[..]) {
            (_, _, [_, ..]) => Some(Schedule::Sigmas(sigmas)),
            (_, &[base, max, ..], _) => Some(Schedule::Shifted { base, max }),
            (_, &[shift], _) => Some(FlowMatch { shift, ..FlowMatch::default() }.into()),
            (Some("linear"), ..) => Some(Schedule::Linear),
            (Some(_), ..) => Some(Schedule::SHIFTED),
            (None, ..) => None,
        }
    }

    /// Returns the settings of an edit; what the values do not say is as `before`.
    pub fn edit(&self, before: EditSettings) -> EditSettings {
        EditSettings {
            strength: self.number("strength").unwrap_or(before.strength),
            role: self.text("role").and_then(Role::named).or(before.role),
            keep_size: self.boolean("keep_size").unwrap_or(before.keep_size),
            follow: match (self.boolean("canny"), self.boolean("depth")) {
                (Some(true), _) => ControlPreprocess::Canny,
                (_, Some(true)) => ControlPreprocess::Depth,
                (Some(false), _) if before.follow == ControlPreprocess::Canny => ControlPreprocess::Picture,
                (_, Some(false)) if before.follow == ControlPreprocess::Depth => ControlPreprocess::Picture,
                _ => before.follow,
            },
        }
    }

    /// Checks that what is said of an edit's pictures is for pictures of this role.
    ///
    /// # Errors
    /// What is for another role.
    pub fn check_role(&self, role: Role) -> Result<(), ParameterProblem> {
        for (key, needed) in [
            ("strength", Role::Init),
            ("keep_size", Role::Reference),
            ("canny", Role::Control),
            ("depth", Role::Control),
        ] {
            let is_given = self.contains(key) && self.boolean(key) != Some(false);
            if is_given && role != needed {
                let text =
                    format!(" is for a picture as `{needed}`, and this model takes the picture as `{role}`");
                return Err(ParameterProblem::of_value(key, text));
            }
        }
        Ok(())
    }
}

/// What can be said of an edit beside its pictures: see [`Edit`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EditSettings {
    /// See [`Edit::strength`].
    pub strength: f64,
    /// See [`Edit::role`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// See [`Edit::keep_size`].
    #[serde(default)]
    pub keep_size: bool,
    /// See [`Edit::follow`].
    #[serde(default, alias = "canny", deserialize_with = "follow")]
    pub follow: ControlPreprocess,
}

/// As its word, or as older pictures have it: whether it is the edges.
fn follow<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<ControlPreprocess, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Canny(bool),
        ControlPreprocess(ControlPreprocess),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::Canny(true) => ControlPreprocess::Canny,
        Either::Canny(false) => ControlPreprocess::Picture,
        Either::ControlPreprocess(follow) => follow,
    })
}

impl Default for EditSettings {
    fn default() -> Self {
        Self { strength: Edit::STRENGTH, role: None, keep_size: false, follow: ControlPreprocess::Picture }
    }
}

impl Request {
    /// Sets what the values say; what they do not say stays. Values of pictures' parameters are not for it.
    pub fn apply(&mut self, values: &Values) {
        let before = self.schedule.take();
        let schedule = values.schedule();
        // Times of one's own say how many steps there are, whatever was said before.
        if let Some(steps) = schedule.as_ref().and_then(Schedule::steps) {
            self.steps = Some(steps);
        }
        for (key, value) in &values.0 {
            self.set(key, value);
        }
        let steps = values.integer("steps").map(|steps| steps as usize);
        let fits = |before: &Schedule| steps.is_none() || before.steps().is_none_or(|own| Some(own) == steps);
        self.schedule = schedule.or_else(|| before.filter(fits));
        if let Some(strength) = values.number("variation_strength") {
            let before = self.variation.map(|variation| variation.seed);
            let seed = values.integer("variation_seed").or(before).unwrap_or_else(Self::random_seed);
            self.variation = Some(Variation { seed, strength });
        }
    }

    /// Checks the fields that are parameters.
    pub(in crate::generation) fn check_rows(&self) -> Result<(), ParameterProblem> {
        for (parameter, value) in self.row_values() {
            if !value.is_null() {
                parameter.check(parameter.kind, &value)?;
            }
        }
        Ok(())
    }
}
