//! Prompts from a file or from standard input.

use std::io::{IsTerminal, Read};
use std::path::Path;

use anyhow::Context;
use tch_flux::Error;

/// What stands for standard input in place of a prompt or of a file's name.
pub(super) const STDIN: &str = "-";

/// The prompts of a call, of which one at most can be what standard input holds.
#[derive(Default)]
pub(super) struct PromptReader {
    stdin_was_read: bool,
}

impl PromptReader {
    /// Returns the prompts as they are given; `-` becomes what standard input holds, as one prompt.
    pub(super) fn read(&mut self, prompts: &[String]) -> anyhow::Result<Vec<String>> {
        prompts
            .iter()
            .map(|prompt| match &prompt[..] {
                STDIN => self.stdin_once().and_then(|()| from_stdin()),
                _ => Ok(prompt.clone()),
            })
            .collect()
    }

    /// Does the same for a prompt that may be left out.
    pub(super) fn read_optional(&mut self, prompt: Option<&String>) -> anyhow::Result<Option<String>> {
        Ok(self.read(prompt.map(std::slice::from_ref).unwrap_or_default())?.pop())
    }

    /// Returns the prompts of a file, or of standard input where its name is `-`: one on each line.
    pub(super) fn read_file(&mut self, path: &Path) -> anyhow::Result<Vec<String>> {
        if path == Path::new(STDIN) {
            self.stdin_once()?;
        }
        from_file(path)
    }

    fn stdin_once(&mut self) -> anyhow::Result<()> {
        if std::mem::replace(&mut self.stdin_was_read, true) {
            return Err(wrong("standard input", "it can be only one of the prompts"));
        }
        Ok(())
    }
}

fn from_stdin() -> anyhow::Result<String> {
    let (bytes, name) = read(Path::new(STDIN))?;
    let text = decode(&bytes).map_err(|problem| wrong(&name, &problem))?;
    let prompt = text.trim();
    if prompt.is_empty() {
        return Err(wrong(&name, "it holds no prompt"));
    }
    Ok(prompt.to_string())
}

fn from_file(path: &Path) -> anyhow::Result<Vec<String>> {
    let (bytes, name) = read(path)?;
    let text = decode(&bytes).map_err(|problem| wrong(&name, &problem))?;
    let prompts = in_lines(&text);
    if prompts.is_empty() {
        let lines = lines(&text).filter(|line| !line.trim().is_empty()).count();
        let only = if lines > 0 { ": all its lines are comments" } else { "" };
        return Err(wrong(&name, &format!("it holds no prompt{only}")));
    }
    Ok(prompts)
}

fn wrong(name: &str, problem: &str) -> anyhow::Error {
    Error::Request(format!("{name}: {problem}")).into()
}

/// Returns the bytes of a file or of standard input, and what it is called in messages.
fn read(path: &Path) -> anyhow::Result<(Vec<u8>, String)> {
    if path != Path::new(STDIN) {
        let name = path.display().to_string();
        if path.is_dir() {
            return Err(wrong(&name, "this is a folder: name a file in it that has a prompt on each line"));
        }
        return Ok((std::fs::read(path).with_context(|| name.clone())?, name));
    }
    let mut stdin = std::io::stdin().lock();
    if stdin.is_terminal() {
        eprintln!("reading from standard input; Ctrl-D ends it");
    }
    let (mut bytes, name) = (Vec::new(), "standard input".to_string());
    stdin.read_to_end(&mut bytes).with_context(|| name.clone())?;
    Ok((bytes, name))
}

/// Decodes UTF-8, or UTF-16 with a byte order mark, without that mark.
fn decode(bytes: &[u8]) -> Result<String, String> {
    let text = match bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => {
            return Err("it is text in UTF-32, which is not read: save it as UTF-8".into());
        }
        [0xff, 0xfe, rest @ ..] => decode_utf16(rest, u16::from_le_bytes)?,
        [0xfe, 0xff, rest @ ..] => decode_utf16(rest, u16::from_be_bytes)?,
        _ => decode_utf8(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes))?,
    };
    match text.find('\0') {
        Some(place) => Err(format!("line {} holds a NUL: it is no text", line_of(&text[..place]))),
        None => Ok(text),
    }
}

fn decode_utf8(bytes: &[u8]) -> Result<String, String> {
    if is_like_utf16(bytes) {
        return Err("it seems to be text in UTF-16 without a byte order mark: save it as UTF-8".into());
    }
    std::str::from_utf8(bytes).map(str::to_string).map_err(|error| {
        let (before, after) = bytes.split_at(error.valid_up_to());
        let line = line_of(&String::from_utf8_lossy(before));
        let byte = after.first().copied().unwrap_or_default();
        format!("line {line} is not UTF-8, it has the byte 0x{byte:02X}: save the text as UTF-8")
    })
}

fn decode_utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String, String> {
    let (units, rest) = bytes.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("it is text in UTF-16 that ends within a character: it is damaged".into());
    }
    let units = units.iter().map(|bytes| unit(*bytes));
    let mut text = String::new();
    for letter in char::decode_utf16(units) {
        match letter {
            Ok(letter) => text.push(letter),
            Err(_) => {
                return Err(format!("line {} is not valid UTF-16: save the text as UTF-8", line_of(&text)));
            }
        }
    }
    Ok(text)
}

/// Whether every other byte is 0 in most of the text, as it is where Latin letters take two bytes.
fn is_like_utf16(bytes: &[u8]) -> bool {
    let zeros = |from: usize| bytes.iter().skip(from).step_by(2).filter(|byte| **byte == 0).count();
    let pairs = bytes.len() / 2;
    pairs > 0 && zeros(0).max(zeros(1)) * 2 > pairs
}

/// Returns the line in which text ends, counted from 1.
fn line_of(text: &str) -> usize {
    lines(text).count().max(1)
}

/// Returns the lines of a text, which end with LF, CRLF or CR.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.find(['\r', '\n']) else {
            rest = None;
            return Some(text);
        };
        let ending = if text[end..].starts_with("\r\n") { 2 } else { 1 };
        rest = Some(&text[end + ending..]);
        Some(&text[..end])
    })
}

/// The prompts on the lines of a text. Lines that are blank or begin with `#` are none; `\#` begins a prompt with `#`.
fn in_lines(text: &str) -> Vec<String> {
    // Files that were put together have a mark at the beginning of each.
    let lines = lines(text).map(|line| line.trim_start_matches('\u{feff}').trim());
    let prompts = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    prompts.map(|line| if line.starts_with(r"\#") { &line[1..] } else { line }.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(bytes: &[u8]) -> Vec<String> {
        in_lines(&decode(bytes).unwrap())
    }

    fn utf16(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn prompts_are_lines_however_they_end() {
        let expected = ["a red circle", "a blue ring"];
        for text in [
            "a red circle\na blue ring\n",
            "a red circle\r\na blue ring\r\n",
            "a red circle\ra blue ring\r",
            "a red circle  \n\n \t \n  a blue ring",
            "\u{feff}a red circle\n\u{feff}a blue ring\n",
            "# two prompts\na red circle\n  # a comment\n#\na blue ring",
        ] {
            assert_eq!(prompts(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(prompts(b"\\#1 in red\n#1 in blue\n\\\\# a \\# b"), ["#1 in red", "\\\\# a \\# b"]);
        assert_eq!(prompts("größe\u{2028}日本語🙂\n".as_bytes()), ["größe\u{2028}日本語🙂"]);
        assert_eq!(prompts(b"a # b"), ["a # b"]);
    }

    #[test]
    fn text_in_utf_8_and_utf_16_is_read_and_other_text_refused() {
        let text = "a red circle\r\ngröße 日本語 🙂\r\n";
        let expected = ["a red circle", "größe 日本語 🙂"];
        let marked = format!("\u{feff}{text}");
        assert_eq!(prompts(text.as_bytes()), expected);
        assert_eq!(prompts(marked.as_bytes()), expected);
        assert_eq!(prompts(&utf16(&marked, u16::to_le_bytes)), expected);
        assert_eq!(prompts(&utf16(&marked, u16::to_be_bytes)), expected);
        let refused = |bytes: &[u8], word: &str| {
            let problem = decode(bytes).unwrap_err();
            assert!(problem.contains(word), "{problem}");
        };
        refused(&utf16("a red circle\n", u16::to_le_bytes), "UTF-16 without a byte order mark");
        refused(&utf16("a red circle\n", u16::to_be_bytes), "UTF-16 without a byte order mark");
        refused(&utf16(&marked, u16::to_le_bytes)[..9], "ends within a character");
        refused(b"\xff\xfea\0\n\0\0\xd8b\0", "line 2 is not valid UTF-16");
        refused(b"\xff\xfe\0\0a\0\0\0", "UTF-32");
        refused(b"\0\0\xfe\xff\0\0\0a", "UTF-32");
        refused(b"a red circle\ncaf\xe9\n", "line 2 is not UTF-8, it has the byte 0xE9");
        refused(b"a red\rcircle\r\nab\0c on blue", "line 3 holds a NUL");
        refused(b"\xff\xfea\0\0\0", "line 1 holds a NUL");
        assert_eq!(decode(b""), Ok(String::new()));
    }
}
