//! What is wrong with the parameters of a request.

use std::fmt;

/// What is wrong with a parameter's value, or with the values of several.
///
/// The text names parameters by the fields of [`Request`](crate::generation::Request). A program or a server, which has other
/// names for them, words it with those: see [`ParameterProblem::worded`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterProblem {
    parameter: &'static str,
    words: Vec<Word>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Text(String),
    /// The name of a parameter, by its key.
    Name(&'static str),
}

impl ParameterProblem {
    /// Of the parameter with this key. In `text`, `{KEY}` is the name of a parameter, and `{}` the next of `values`.
    pub(crate) fn new(parameter: &'static str, text: &'static str, values: &[&dyn fmt::Display]) -> Self {
        let mut values = values.iter();
        let mut words = Vec::new();
        for (i, piece) in text.split(['{', '}']).enumerate() {
            words.push(match (i % 2, piece) {
                (0, text) => Word::Text(text.into()),
                (_, "") => Word::Text(values.next().map(ToString::to_string).unwrap_or_default()),
                (_, key) => Word::Name(key),
            });
        }
        Self { parameter, words }
    }

    /// Of the parameter with this key, whose name stands before `rest`.
    pub fn of_value(parameter: &'static str, rest: impl Into<String>) -> Self {
        Self { parameter, words: vec![Word::Name(parameter), Word::Text(rest.into())] }
    }

    /// That a parameter is about pictures, of which there are none.
    pub(crate) fn about_pictures(parameter: &'static str, pictures: &'static str) -> Self {
        let words = [
            Word::Name(parameter),
            Word::Text(" is about pictures, and there is none: give one as `".into()),
            Word::Name(pictures),
            Word::Text("`".into()),
        ];
        Self { parameter, words: words.into() }
    }

    /// That there are neither one value for all pictures nor one for each.
    pub(crate) fn counts(
        parameter: &'static str,
        values: usize,
        pictures: &'static str,
        count: usize,
    ) -> Self {
        let words = [
            Word::Name(parameter),
            Word::Text(format!(" has {values} values for {count} ")),
            Word::Name(pictures),
            Word::Text(": one for all, or one for each".into()),
        ];
        Self { parameter, words: words.into() }
    }

    /// Returns the key of the parameter that is to be mended.
    pub fn parameter(&self) -> &'static str {
        self.parameter
    }

    /// Returns the text, with the names that `name` gives the keys of parameters.
    pub fn worded(&self, name: impl Fn(&'static str) -> String) -> String {
        let word = |word: &Word| match word {
            Word::Text(text) => text.clone(),
            Word::Name(key) => name(key),
        };
        self.words.iter().map(word).collect()
    }
}

impl fmt::Display for ParameterProblem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.worded(str::to_string))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_worded_with_the_names_of_a_surface() {
        let problem = ParameterProblem::new("steps", "{steps} is {}, not {sigmas}", &[&"{seed}"]);
        assert_eq!(problem.to_string(), "steps is {seed}, not sigmas");
        assert_eq!(problem.worded(|key| format!("--{key}")), "--steps is {seed}, not --sigmas");
        assert_eq!(problem.parameter(), "steps");
    }
}
