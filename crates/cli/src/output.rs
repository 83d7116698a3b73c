//! What is printed. Whoever reads it may stop (`tch-flux inspect … | head`): the rest of the text is then left out, and
//! nothing else changes, neither what is drawn or written nor the exit status.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;

use anyhow::Context;

/// Why the standard output could not take all that was printed.
static STDOUT_ERROR: OnceLock<io::Error> = OnceLock::new();

/// Prints as the standard library's macro does, but does not panic where nobody reads.
macro_rules! println {
    ($($text:tt)*) => { $crate::output::write_stdout(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints as the standard library's macro does, but does not panic where nobody reads.
macro_rules! print {
    ($($text:tt)*) => { $crate::output::write_stdout(format_args!($($text)*)) };
}

/// Prints as the standard library's macro does, but does not panic where nobody reads.
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::output::write_stderr(format_args!("{}\n", format_args!($($text)*))) };
}

pub(super) fn write_stdout(text: Arguments) {
    if STDOUT_ERROR.get().is_none()
        && let Err(error) = io::stdout().lock().write_fmt(text)
    {
        // Only the first matters.
        let _ = STDOUT_ERROR.set(error);
    }
}

pub(super) fn write_stderr(text: Arguments) {
    // There is no other place to say it.
    let _ = io::stderr().lock().write_fmt(text);
}

/// Returns why the standard output could not take all that was printed; a reader who has stopped is no reason.
pub(super) fn stdout_error() -> Option<&'static io::Error> {
    let flushed = io::stdout().lock().flush();
    STDOUT_ERROR
        .get()
        .or_else(|| flushed.err().map(|error| STDOUT_ERROR.get_or_init(|| error)))
        .filter(|error| error.kind() != ErrorKind::BrokenPipe)
}

/// Prints a value as JSON on one line.
pub(super) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value).context("writing JSON")?);
    Ok(())
}
