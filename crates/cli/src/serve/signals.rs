//! The signals that end a server.

use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{getpid, kill_process};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{info, warn};

/// What comes so soon after a signal is the same one once more.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

/// SIGTERM and SIGINT, which ask for an end.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on the process does not end by itself.
    pub(super) fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("signals cannot be heard");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// The first asks for an end, and a later one is one. Who sends signals may send them twice in a row (a shell and its
    /// terminal, an orchestrator and its hook), and means one end.
    pub(super) async fn handle(mut self, stop: oneshot::Sender<()>) {
        self.next().await;
        let first = Instant::now();
        // The server may have ended by itself.
        let _ = stop.send(());
        loop {
            self.next().await;
            if first.elapsed() >= SAME_SIGNAL {
                break;
            }
            info!(target: "tch_flux::serve", "stopping already; a signal that comes later ends what is left at once");
        }
        warn!(target: "tch_flux::serve", "a second signal: what is left is not finished");
        // No destructor may keep it.
        let _ = kill_process(getpid(), rustix::process::Signal::KILL);
    }
}
