//! Work that is cut into tasks, on all cores that may be used.

use std::sync::Mutex;
use std::thread;

use crate::error::Result;

/// Bytes that are worth another thread.
const WORTH_A_THREAD: usize = 1 << 20;

/// As many threads as there are cores, and no more than libtorch was told to take.
fn most() -> usize {
    // Linux reads files to tell.
    let cores = thread::available_parallelism().map_or(1, usize::from);
    usize::try_from(tch::get_num_threads()).map_or(cores, |threads| threads.clamp(1, cores))
}

/// Does the tasks, which write `bytes` bytes in all, on as many threads as that is worth. Each thread has memory of its
/// own, which it keeps from task to task.
///
/// # Errors
/// The first of a task; then not all of them are done.
pub(crate) fn par_for<T: Send>(
    tasks: impl Iterator<Item = T> + Send,
    bytes: usize,
    work: impl Fn(T, &mut Vec<u8>) -> Result<()> + Sync,
) -> Result<()> {
    let threads = match bytes / WORTH_A_THREAD {
        0 | 1 => 1,
        worth => worth.min(most()),
    };
    let (queue, problem) = (Mutex::new(tasks.fuse()), Mutex::new(None));
    let next = || queue.lock().unwrap_or_else(|e| e.into_inner()).next();
    let thread = || {
        let mut buffer = Vec::new();
        while let Some(task) = next() {
            if let Err(error) = work(task, &mut buffer) {
                // The others find nothing left to do.
                while next().is_some() {}
                problem.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // Without another thread this one does all the work.
            let _ = thread::Builder::new().spawn_scoped(scope, thread);
        }
        thread();
    });
    problem.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
}
