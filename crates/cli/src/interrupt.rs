//! Ctrl-C, SIGTERM, and a terminal that is closed (SIGHUP): the first lets what is nearly done be finished, the second ends
//! the process at once.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// Whether the process was asked to end.
#[derive(Clone, Default)]
pub(super) struct Interrupt {
    /// What stops a drawing.
    pub(super) stop: Arc<AtomicBool>,
    signal: Arc<AtomicI32>,
}

impl Interrupt {
    /// From now on the first of these signals is only noted. With `says`, what it does is said.
    #[cfg(unix)]
    pub(super) fn listen(says: bool) -> io::Result<Self> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        use signal_hook::iterator::Signals;

        let interrupt = Self::default();
        // `nohup` starts a process so that it outlives its terminal.
        let heard =
            [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|&signal| signal != SIGHUP || !is_ignored(signal));
        let mut signals = Signals::new(heard)?;
        let noted = interrupt.clone();
        let listen = move || {
            for signal in signals.forever() {
                if noted.stop.load(Ordering::SeqCst) {
                    super::targets::remove_unfinished();
                    signal_hook::low_level::exit(128 + signal);
                }
                noted.signal.store(signal, Ordering::SeqCst);
                noted.stop.store(true, Ordering::SeqCst);
                if says {
                    eprintln!("\nstopping: what is nearly done is finished; once more ends at once");
                }
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(listen)?;
        Ok(interrupt)
    }

    /// Elsewhere a process ends at once.
    #[cfg(not(unix))]
    pub(super) fn listen(_says: bool) -> io::Result<Self> {
        Ok(Self::default())
    }

    /// Returns the exit status of a process that was interrupted, as shells have it: 130 after Ctrl-C.
    pub(super) fn status(&self) -> Option<ExitCode> {
        let signal = self.signal.load(Ordering::SeqCst);
        (signal != 0).then(|| ExitCode::from(128 + u8::try_from(signal).unwrap_or(2)))
    }
}

/// Whether the process was started with a signal ignored, where the system says it.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}
