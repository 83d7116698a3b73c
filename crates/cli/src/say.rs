//! What is printed. Whoever reads it may stop (`tch-flux inspect … | head`): the rest of the text is then left out, and
//! nothing else changes, neither what is drawn or written nor the exit status.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;

/// Why the standard output could not take all that was said.
static UNSAID: OnceLock<io::Error> = OnceLock::new();

/// As the standard library's, which panics where nobody reads.
macro_rules! println {
    ($($text:tt)*) => { $crate::say::out(format_args!("{}\n", format_args!($($text)*))) };
}

/// As the standard library's, which panics where nobody reads.
macro_rules! print {
    ($($text:tt)*) => { $crate::say::out(format_args!($($text)*)) };
}

/// As the standard library's, which panics where nobody reads.
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::say::err(format_args!("{}\n", format_args!($($text)*))) };
}

pub(super) fn out(text: Arguments) {
    if UNSAID.get().is_none()
        && let Err(error) = io::stdout().lock().write_fmt(text)
    {
        // Only the first matters.
        let _ = UNSAID.set(error);
    }
}

pub(super) fn err(text: Arguments) {
    // There is no other place to say it.
    let _ = io::stderr().lock().write_fmt(text);
}

/// Why the standard output could not take all that was said, but for a reader who had stopped.
pub(super) fn unsaid() -> Option<&'static io::Error> {
    let flushed = io::stdout().lock().flush();
    UNSAID
        .get()
        .or_else(|| flushed.err().map(|error| UNSAID.get_or_init(|| error)))
        .filter(|error| error.kind() != ErrorKind::BrokenPipe)
}
