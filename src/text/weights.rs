//! Weights within a prompt: `a (red:1.3) circle`.

use std::ops::Range;

/// A prompt without its marks, and how much its parts weigh.
#[derive(Debug, Clone, PartialEq)]
pub struct Weighted {
    /// What is read.
    pub text: String,
    /// Bytes of the text, and the weight of each; all others weigh 1.
    pub weights: Vec<(Range<usize>, f64)>,
}

impl Weighted {
    /// Reads `(part:weight)`, which may stand within one another: their weights are multiplied, and a group within a group
    /// needs no weight of its own (1.1, then). A parenthesis after a backslash is text.
    ///
    /// A prompt in which no group has a weight is text to the letter: `None`.
    pub fn parse(prompt: &str) -> Option<Self> {
        let groups = groups(prompt);
        let weighted: Vec<_> = groups.iter().filter(|group| group.weight.is_some()).collect();
        if weighted.is_empty() {
            return None;
        }
        let counts = |group: &Group| weighted.iter().any(|outer| outer.holds(group));
        let groups: Vec<_> = groups.iter().filter(|group| counts(group)).collect();
        let is_mark = |at: usize| {
            groups.iter().any(|group| group.open == at || (group.end..group.close + 1).contains(&at))
        };

        let mut read = Self { text: String::new(), weights: Vec::new() };
        let mut escaped = false;
        for (at, letter) in prompt.char_indices() {
            let escapes = letter == '\\' && !escaped && prompt[at + 1..].starts_with(['(', ')', '\\']);
            if !escapes && (escaped || !is_mark(at)) {
                let start = read.text.len();
                read.text.push(letter);
                let around = groups.iter().filter(|group| (group.open..group.close).contains(&at));
                let weight: f64 = around.map(|group| group.weight.unwrap_or(Self::PLAIN)).product();
                match read.weights.last_mut() {
                    Some((range, last)) if range.end == start && *last == weight => {
                        range.end = read.text.len()
                    }
                    _ => read.weights.push((start..read.text.len(), weight)),
                }
            }
            escaped = escapes;
        }
        read.weights.retain(|(_, weight)| *weight != 1.0);
        Some(read)
    }

    /// Of a group without a number, within one that has one.
    const PLAIN: f64 = 1.1;

    /// The weight of the byte at this place.
    pub fn at(&self, byte: usize) -> f64 {
        self.weights.iter().find(|(range, _)| range.contains(&byte)).map_or(1.0, |(_, weight)| *weight)
    }
}

/// Two parentheses that belong together, by their places.
struct Group {
    open: usize,
    /// Where its text ends: at the colon before the weight, else at `close`.
    end: usize,
    close: usize,
    weight: Option<f64>,
}

impl Group {
    fn holds(&self, other: &Self) -> bool {
        self.open <= other.open && other.close <= self.close
    }
}

fn groups(prompt: &str) -> Vec<Group> {
    let (mut open, mut groups, mut escaped) = (Vec::new(), Vec::new(), false);
    for (at, letter) in prompt.char_indices() {
        let is_text = escaped;
        escaped = letter == '\\' && !escaped;
        match letter {
            _ if is_text => {}
            '(' => open.push(at),
            ')' => {
                let Some(open) = open.pop() else { continue };
                let inside = &prompt[open + 1..at];
                let number = inside.rsplit_once(':').and_then(|(text, number)| {
                    let weight = number.trim().parse::<f64>().ok().filter(|weight| weight.is_finite())?;
                    Some((open + 1 + text.len(), weight))
                });
                let (end, weight) = number.map_or((at, None), |(end, weight)| (end, Some(weight)));
                groups.push(Group { open, end, close: at, weight });
            }
            _ => {}
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(prompt: &str) -> Option<(String, Vec<(String, f64)>)> {
        let Weighted { text, weights } = Weighted::parse(prompt)?;
        let parts = weights.into_iter().map(|(range, weight)| (text[range].to_string(), weight)).collect();
        Some((text, parts))
    }

    fn parts(parts: &[(&str, f64)]) -> Vec<(String, f64)> {
        parts.iter().map(|(text, weight)| (text.to_string(), *weight)).collect()
    }

    #[test]
    fn a_prompt_without_a_weight_is_text() {
        for prompt in ["a (red) circle", "12:30 (noon", r"a \(red:1.3\) circle", "f(x): y", "(a:b)", ""] {
            assert_eq!(read(prompt), None, "{prompt}");
        }
    }

    #[test]
    fn groups_weigh_what_they_say_times_what_is_around_them() {
        let (text, weights) = read("a (red:1.3) circle").unwrap();
        assert_eq!((text.as_str(), weights), ("a red circle", parts(&[("red", 1.3)])));
        let (text, weights) = read("(a (very (dark:0.5)) sky:2), sea").unwrap();
        assert_eq!(text, "a very dark sky, sea");
        let expected = [("a ", 2.0), ("very ", 2.2), ("dark", 1.1), (" sky", 2.0)];
        assert_eq!(weights, parts(&expected));
        let (text, weights) = read(r"(sky\):1.5) and (sea) at 12:30 (").unwrap();
        assert_eq!((text.as_str(), weights), ("sky) and (sea) at 12:30 (", parts(&[("sky)", 1.5)])));
        let (text, weights) = read("(größe: 1.2)(a:1)(b:-1)").unwrap();
        assert_eq!((text.as_str(), weights), ("größeab", parts(&[("größe", 1.2), ("b", -1.0)])));
    }
}
