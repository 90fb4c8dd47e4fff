//! Signals: SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM and SIGXCPU. The first one ends a
//! command after the step, case or size that is running, so that outputs are written. The second one ends it at once.
//! SIGXFSZ has no effect: the write that caused it fails and is reported like any other failed write.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

use crate::CliError;

#[cfg(unix)]
const HANGUP: Option<i32> = Some(signal_hook::consts::SIGHUP);
#[cfg(not(unix))]
const HANGUP: Option<i32> = None;

/// Other signals by which a batch system or a user asks a program to end.
#[cfg(unix)]
const OTHERS: &[i32] = {
    use signal_hook::consts::{SIGALRM, SIGQUIT, SIGUSR1, SIGUSR2, SIGVTALRM, SIGXCPU};
    &[SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGXCPU]
};
#[cfg(not(unix))]
const OTHERS: &[i32] = &[];

/// Signals within this time count as one, because `timeout` sends the signal to the process and to its group.
const AT_ONCE: Duration = Duration::from_millis(100);

/// Number of the received signal, 0 before.
static RECEIVED: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);

/// Signal that asks the command to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(i32);

impl Signal {
    pub fn name(self) -> &'static str {
        low_level::signal_name(self.0).unwrap_or("a signal")
    }

    /// Returns the exit code that shells use, such as 130 for SIGINT.
    pub fn exit_code(self) -> u8 {
        (128 + self.0) as u8
    }

    /// Returns the error of a stopped command. `where_it_stands` follows "SIGINT: " in the message.
    pub fn stopped(self, where_it_stands: impl std::fmt::Display) -> CliError {
        CliError::Stopped { signal: self, words: format!("{}: {where_it_stands}", self.name()) }
    }
}

/// Begins to watch for signals. Before that each has its usual effect, because nothing is lost while data are read and
/// devices are searched.
pub fn watch() {
    let is_second = Arc::new(AtomicBool::new(false));
    let hangup = HANGUP.filter(|_| !is_hangup_ignored());
    // If the signal is caught, a file that exceeds the limit causes an error of the write. Otherwise it would end the
    // process.
    #[cfg(unix)]
    let _ = flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
    // SIGINT comes last, so that once it is caught all signals are caught.
    for signal in OTHERS.iter().copied().chain([SIGTERM]).chain(hangup).chain([SIGINT]) {
        let status = i32::from(Signal(signal).exit_code());
        // The actions run in this order. A signal that cannot be watched keeps its usual effect.
        let _ = flag::register_conditional_shutdown(signal, status, is_second.clone());
        let _ = flag::register_usize(signal, RECEIVED.clone(), signal as usize);
    }
    std::thread::spawn(move || {
        while received().is_none() {
            std::thread::sleep(AT_ONCE);
        }
        std::thread::sleep(AT_ONCE);
        is_second.store(true, Ordering::Relaxed);
    });
}

/// Returns the received signal, if there is one.
pub fn received() -> Option<Signal> {
    match RECEIVED.load(Ordering::Relaxed) {
        0 => None,
        number => Some(Signal(number as i32)),
    }
}

/// Returns true if the program was started with SIGHUP ignored, as with `nohup`, on systems that report it. An ignored
/// SIGINT is not respected: shells let the background jobs of scripts ignore it, but whoever sends it wants the job to
/// end.
fn is_hangup_ignored() -> bool {
    let mask = std::fs::read_to_string("/proc/self/status").ok().and_then(|status| {
        let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
        u64::from_str_radix(line.trim(), 16).ok()
    });
    mask.is_some_and(|mask| mask & 1 == 1)
}
