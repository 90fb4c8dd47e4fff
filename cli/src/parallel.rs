//! Work on several threads.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::{CliError, signals};

/// Calls `run_at` for every index on this many threads. Returns the results by index, or the error of the lowest index
/// that failed. After a signal no further call begins, and there are fewer results.
pub fn in_parallel<T: Send>(
    count: usize,
    threads: usize,
    run_at: impl Fn(usize) -> Result<T, CliError> + Sync,
) -> Result<Vec<T>, CliError> {
    let is_stopped = || signals::received().is_some();
    if threads < 2 {
        return (0..count).take_while(|_| !is_stopped()).map(run_at).collect();
    }
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || {
        let mut done = Vec::new();
        while !failed.load(Ordering::Relaxed) && !is_stopped() {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            let result = run_at(index);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            done.push((index, result));
        }
        done
    };
    let mut done: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let done =
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        done.flatten().collect()
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}
