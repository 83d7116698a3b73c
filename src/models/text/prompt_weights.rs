//! Weights within a prompt, by ComfyUI's rules: `a (red:1.3) circle`.
//!
//! Source of the rules: ComfyUI, `comfy/sd1_clip.py`, `token_weights` and `SDTokenizer.tokenize_with_weights`.

/// A prompt in parts with weights, as ComfyUI reads it. Each part is tokenised by itself, so a part begins with a new word.
///
/// - `(text:1.3)` weighs 1.3, whatever is around it. The weight follows the last colon. It counts where
///   Python's `float` reads it as a number and the colon is not the first character of the group.
/// - Any other group weighs 1.1 times what is around it: `((text))` weighs 1.21.
/// - `\(` and `\)` are parentheses of the text. Any other backslash is text.
/// - A group that is never closed is text, parentheses and all, unless the prompt ends with a parenthesis: then it ends
///   there. A parenthesis that closes nothing is text, as is the next one that opens.
/// - `embedding:NAME` at the beginning of a part or after whitespace is an embedding of textual inversion. There are none
///   for FLUX.1: it is left out of the text, as ComfyUI leaves out one that it does not find.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedPrompt {
    /// The parts that have a text, in the order of the prompt.
    pub parts: Vec<WeightedPart>,
    /// The names of the embeddings that were left out.
    pub embeddings: Vec<String>,
}

/// A part of a prompt with its weight.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedPart {
    /// What is tokenised. It is not empty, but may consist of whitespace.
    pub text: String,
    /// The weight of each of its tokens. It may be negative, infinite or NaN.
    pub weight: f64,
}

impl WeightedPrompt {
    /// Reads a prompt by the rules of [`WeightedPrompt`]. Returns `None` for a prompt in which no group has a number behind its
    /// last colon: such a prompt is plain text.
    pub fn parse(prompt: &str) -> Option<Self> {
        let prompt = prompt.replace(r"\)", ESCAPED_CLOSE).replace(r"\(", ESCAPED_OPEN);
        let (segments, has_number) = segments(&prompt);
        if !has_number {
            return None;
        }
        let mut read = Self { parts: Vec::new(), embeddings: Vec::new() };
        for (text, weight) in segments {
            let text = text.replace(ESCAPED_CLOSE, ")").replace(ESCAPED_OPEN, "(");
            for text in split_embeddings(&text) {
                let (text, embedding) = without_embedding(text);
                read.embeddings.extend(embedding);
                if !text.is_empty() {
                    read.parts.push(WeightedPart { text, weight });
                }
            }
        }
        Some(read)
    }

    /// Returns the first part whose weight is no finite number of 32 bits, with which no picture can be computed.
    pub fn not_finite(&self) -> Option<&WeightedPart> {
        self.parts.iter().find(|part| !(part.weight as f32).is_finite())
    }

    /// Returns the parts whose weights are above [`Self::USUAL`] or below its negative.
    pub fn unusual(&self) -> impl Iterator<Item = &WeightedPart> {
        self.parts.iter().filter(|part| part.weight.abs() > Self::USUAL)
    }

    /// The largest weight in common use. With larger weights the states of T5 are so far from those of the training that
    /// pictures break. Most often such a number was not meant as a weight, as in `(aspect ratio 16:9)`.
    pub const USUAL: f64 = 2.0;
}

/// The factor of a group without a number.
const GROUP_FACTOR: f64 = 1.1;
/// The marks that ComfyUI uses for escaped parentheses.
const ESCAPED_CLOSE: &str = "\0\u{1}";
const ESCAPED_OPEN: &str = "\0\u{2}";

/// Returns the texts between the parentheses with their weights, and whether any group has a number.
fn segments(prompt: &str) -> (Vec<(&str, f64)>, bool) {
    let closes = matching(prompt);
    let (mut segments, mut has_number) = (Vec::new(), false);
    // The ranges that are left to read, each within the range before it: begin, end, and weight.
    let mut open = vec![(0, prompt.len(), 1.0)];
    while let Some((begin, end, weight)) = open.pop() {
        if begin == end {
            continue;
        }
        match next_item(prompt, &closes, begin, end) {
            Item::Text { next } => {
                segments.push((&prompt[begin..next], weight));
                open.push((next, end, weight));
            }
            Item::Group { inside_end, next } => {
                open.push((next, end, weight));
                let inside = begin + 1;
                let colon = prompt[inside..inside_end].rfind(':').map(|colon| inside + colon);
                let number = colon.and_then(|colon| python_float(&prompt[colon + 1..inside_end]));
                has_number |= number.is_some();
                match (colon, number) {
                    (Some(colon), Some(number)) if colon > inside => open.push((inside, colon, number)),
                    _ => open.push((inside, inside_end, weight * GROUP_FACTOR)),
                }
            }
        }
    }
    (segments, has_number)
}

/// The first item of a range, and where the next item begins.
enum Item {
    Text { next: usize },
    Group { inside_end: usize, next: usize },
}

fn next_item(prompt: &str, closes: &[usize], begin: usize, end: usize) -> Item {
    let bytes = &prompt.as_bytes()[..end];
    // The level is below 0 after a parenthesis that closes nothing.
    let mut level = 0;
    for (place, byte) in bytes.iter().enumerate().skip(begin) {
        match byte {
            b'(' if level == 0 && place > begin => return Item::Text { next: place },
            b'(' if level == 0 => {
                return match closes[place] {
                    close if close < end => Item::Group { inside_end: close, next: close + 1 },
                    _ if bytes.ends_with(b")") => Item::Group { inside_end: end - 1, next: end },
                    _ => Item::Text { next: end },
                };
            }
            b'(' => level += 1,
            b')' => level -= 1,
            _ => {}
        }
    }
    Item::Text { next: end }
}

/// Returns for each opening parenthesis the place of its closing parenthesis, and `usize::MAX` for those that stay open and
/// for all other bytes.
fn matching(prompt: &str) -> Vec<usize> {
    let (mut closes, mut open) = (vec![usize::MAX; prompt.len()], Vec::new());
    for (place, byte) in prompt.bytes().enumerate() {
        match byte {
            b'(' => open.push(place),
            b')' => {
                if let Some(begin) = open.pop() {
                    closes[begin] = place;
                }
            }
            _ => {}
        }
    }
    closes
}

const EMBEDDING: &str = "embedding:";

/// Splits the text before each embedding that follows whitespace.
fn split_embeddings(text: &str) -> Vec<&str> {
    let (mut parts, mut begin) = (Vec::new(), 0);
    for (place, _) in text.match_indices(EMBEDDING) {
        if text[..place].ends_with(is_python_space) {
            parts.push(&text[begin..place]);
            begin = place;
        }
    }
    parts.push(&text[begin..]);
    parts
}

/// Returns the text without the embedding at its beginning, and the name of that embedding, if there is one.
fn without_embedding(text: &str) -> (String, Option<String>) {
    let mut words = text.strip_prefix(EMBEDDING).into_iter().flat_map(|rest| rest.split(is_python_space));
    let mut words = words.by_ref().filter(|word| !word.is_empty());
    let Some(name) = words.next() else { return (text.to_string(), None) };
    let mut rest = words.collect::<Vec<_>>().join(" ");
    // A tag in brackets and commas are no part of the name and stay text.
    let (name, tag) = name.split_at(name.find(['<', '[']).unwrap_or(name.len()));
    if !tag.is_empty() {
        rest = if rest.is_empty() { tag.to_string() } else { format!("{tag} {rest}") };
    }
    let plain = name.trim_matches(',');
    if plain.len() < name.len() {
        rest = format!("{} {rest}", &name[plain.len()..]);
    }
    (rest, Some(plain.to_string()))
}

/// Returns what Python's `str.isspace` does: Unicode's whitespace and the four separators of ASCII count.
fn is_python_space(letter: char) -> bool {
    letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter)
}

/// Parses a number as Python's `float` does: also `1_000`, `.5`, `1.`, `inf`, `nan`, and the decimal digits of all scripts.
fn python_float(text: &str) -> Option<f64> {
    let text = text.trim();
    let mut number = String::with_capacity(text.len());
    let mut letters = text.chars().map(|letter| decimal_digit(letter).unwrap_or(letter)).peekable();
    while let Some(letter) = letters.next() {
        if letter == '_' {
            // Underscores are allowed between two digits.
            let digits = number.ends_with(|c: char| c.is_ascii_digit())
                && letters.peek().is_some_and(char::is_ascii_digit);
            if !digits {
                return None;
            }
        } else if letter.is_ascii_alphanumeric() || matches!(letter, '+' | '-' | '.') {
            number.push(letter);
        } else {
            return None;
        }
    }
    // The grammars of Rust and Python differ only in the underscores.
    number.parse().ok()
}

/// Returns the ASCII digit for a decimal digit of any script.
fn decimal_digit(letter: char) -> Option<char> {
    let code = u32::from(letter);
    let zero = ZEROS[..ZEROS.partition_point(|&zero| zero <= code)].last()?;
    char::from_digit(code - zero, 10)
}

/// The zeros of all scripts, each followed by its other nine digits. Source: Unicode 15.1, category Nd, as in Python 3.13.
#[rustfmt::skip]
const ZEROS: [u32; 68] = [
    0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50, 0xed0,
    0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620,
    0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10, 0x104a0, 0x10d30, 0x11066, 0x110f0, 0x11136, 0x111d0,
    0x112f0, 0x11450, 0x114d0, 0x11650, 0x116c0, 0x11730, 0x118e0, 0x11950, 0x11c50, 0x11d50, 0x11da0, 0x11f50,
    0x16a60, 0x16ac0, 0x16b50, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0, 0x1e4f0, 0x1e950,
    0x1fbf0,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn read(prompt: &str) -> Option<Vec<(String, f64)>> {
        let parts = WeightedPrompt::parse(prompt)?.parts;
        Some(parts.into_iter().map(|part| (part.text, part.weight)).collect())
    }

    #[track_caller]
    fn is_read_as(prompt: &str, parts: &[(&str, f64)]) {
        let parts = parts.iter().map(|(text, weight)| (text.to_string(), *weight)).collect();
        assert_eq!(read(prompt), Some(parts), "{prompt}");
    }

    #[test]
    fn a_prompt_without_a_number_is_text() {
        let prompts = [
            "",
            "a (red) circle",
            "((red))",
            "12:30 (noon",
            r"a \(red:1.3\) circle",
            "f(x): y",
            "(a:b)",
            "()",
            "(a:)",
            "(a:1,3)",
            "(a:1.3",
            "a) (b:1.3)",
            "(a (b:1.3) c",
            "(a:0x2)",
            "(a:1__0)",
            "(a:_1)",
            "(a:1_)",
            "(a:1._5)",
            "(a:½)",
            "(a:.)",
            "(a:1 2)",
            "(a:--1)",
            "(a:1\u{1f})",
        ];
        for prompt in prompts {
            assert_eq!(read(prompt), None, "{prompt}");
        }
    }

    #[test]
    fn a_number_is_the_weight_and_other_groups_multiply() {
        is_read_as("a (red:1.3) circle", &[("a ", 1.0), ("red", 1.3), (" circle", 1.0)]);
        is_read_as("(a (red:2) circle:0.3)", &[("a ", 0.3), ("red", 2.0), (" circle", 0.3)]);
        is_read_as("(((red:1.2)))", &[("red", 1.2)]);
        is_read_as("((red):1.2)", &[("red", 1.2 * 1.1)]);
        is_read_as("((red)) (blue:1)", &[("red", 1.0 * 1.1 * 1.1), (" ", 1.0), ("blue", 1.0)]);
        is_read_as("(:1.2) red", &[(":1.2", 1.1), (" red", 1.0)]);
        is_read_as("(:1.2) (a:1)", &[(":1.2", 1.1), (" ", 1.0), ("a", 1.0)]);
        is_read_as("(a:b:1.2)(size:-1)()", &[("a:b", 1.2), ("size", -1.0)]);
    }

    #[test]
    fn escaped_and_unbalanced_parentheses_are_text() {
        is_read_as(r"(sky\):1.5) \(a\) \\(b)", &[("sky)", 1.5), (r" (a) \(b)", 1.0)]);
        is_read_as(r"(a\b:2)\", &[(r"a\b", 2.0), (r"\", 1.0)]);
        is_read_as("(a:2) (b", &[("a", 2.0), (" ", 1.0), ("(b", 1.0)]);
        is_read_as("(a:2) b) (c:3) d", &[("a", 2.0), (" b) (c:3) d", 1.0)]);
        is_read_as("((red:1.2)", &[("(red", 1.2)]);
        is_read_as("(a (b:1.2)", &[("a ", 1.2), ("(b", 1.2)]);
        is_read_as("((a:2) (b)", &[("a", 2.0), (" ", 1.1), ("(b", 1.1)]);
    }

    #[test]
    fn numbers_are_pythons() {
        let numbers = [
            ("1", 1.0),
            ("+1.2", 1.2),
            (" 1.2 ", 1.2),
            ("1.", 1.0),
            (".5", 0.5),
            ("1e1", 10.0),
            ("1E-1", 0.1),
            ("1_000", 1000.0),
            ("1_0.0_5", 10.05),
            ("1e1_0", 1e10),
            ("٢.٥", 2.5),
            ("１２", 12.0),
            ("𝟏", 1.0),
            ("\u{a0}1\u{85}", 1.0),
            ("1e999", f64::INFINITY),
            ("-inf", f64::NEG_INFINITY),
            ("Infinity", f64::INFINITY),
        ];
        for (text, number) in numbers {
            is_read_as(&format!("(a:{text})"), &[("a", number)]);
        }
        for text in ["nan", "NaN", "-nan"] {
            assert!(read(&format!("(a:{text})")).unwrap()[0].1.is_nan(), "{text}");
        }
        for zero in ZEROS {
            let digits = |i: u32| char::from_u32(zero + i).and_then(decimal_digit);
            assert_eq!((digits(0), digits(9)), (Some('0'), Some('9')), "{zero:x}");
        }
    }

    #[test]
    fn embeddings_are_left_out_and_named() {
        let embeddings = |prompt: &str| WeightedPrompt::parse(prompt).unwrap().embeddings;
        is_read_as("(embedding:dust:1.2) red", &[(" red", 1.0)]);
        assert_eq!(embeddings("(embedding:dust:1.2) red"), ["dust"]);
        is_read_as("a embedding:dust, red (b:1)", &[("a ", 1.0), (", red", 1.0), ("b", 1.0)]);
        is_read_as("a\tembedding:dust<x>\n(b:1)", &[("a\t", 1.0), ("<x>", 1.0), ("b", 1.0)]);
        is_read_as("noembedding:dust (b:1)", &[("noembedding:dust ", 1.0), ("b", 1.0)]);
        is_read_as("(b:1) embedding:", &[("b", 1.0), (" ", 1.0), ("embedding:", 1.0)]);
        assert!(embeddings("noembedding:dust (b:1)").is_empty());
    }

    #[test]
    fn weights_beyond_the_usual_and_without_a_value_are_told() {
        let prompt = WeightedPrompt::parse("(a:2)(b:-2)(c:2.1)(d:-9)").unwrap();
        let unusual: Vec<_> = prompt.unusual().map(|part| part.text.as_str()).collect();
        assert_eq!((unusual, prompt.not_finite()), (vec!["c", "d"], None));
        for number in ["nan", "-inf", "1e39"] {
            let prompt = WeightedPrompt::parse(&format!("(a:1)(b:{number})")).unwrap();
            assert_eq!(prompt.not_finite().unwrap().text, "b");
        }
    }

    #[test]
    fn a_prompt_of_parentheses_is_read_in_time() {
        let deep = format!("{}a:2{}", "(".repeat(16_000), ")".repeat(16_000));
        is_read_as(&deep, &[("a", 2.0)]);
        let open = format!("{}a:2{}", "(".repeat(16_000), ")".repeat(8_000));
        assert_eq!(read(&open).unwrap().len(), 1);
    }
}
