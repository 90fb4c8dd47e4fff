//! SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM and SIGXCPU. The first one ends a command after the step, case or size that is
//! running, so that outputs are written; the second one ends it at once. SIGXFSZ does nothing: the write that it is about fails, and is
//! told as any other.

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

/// Others by which a batch system or a person asks a program to end.
#[cfg(unix)]
const OTHERS: &[i32] = {
    use signal_hook::consts::{SIGALRM, SIGQUIT, SIGUSR1, SIGUSR2, SIGVTALRM, SIGXCPU};
    &[SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGXCPU]
};
#[cfg(not(unix))]
const OTHERS: &[i32] = &[];

/// What comes within this time is one signal: `timeout` sends it to the process and to its group.
const AT_ONCE: Duration = Duration::from_millis(100);

/// The number of the signal that came; 0 before.
static RECEIVED: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);

/// A signal that asks the command to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(i32);

impl Signal {
    pub fn name(self) -> &'static str {
        low_level::signal_name(self.0).unwrap_or("a signal")
    }

    /// As shells have it: 130 for SIGINT.
    pub fn exit_code(self) -> u8 {
        (128 + self.0) as u8
    }

    /// The error of a command that was stopped here: `where it stands` is what follows "SIGINT: ".
    pub fn stopped(self, where_it_stands: impl std::fmt::Display) -> CliError {
        CliError::Stopped { signal: self, words: format!("{}: {where_it_stands}", self.name()) }
    }
}

/// Begins to wait for signals. Until then each has its usual effect: nothing is lost while data are read and devices are looked for.
pub fn watch() {
    let is_second = Arc::new(AtomicBool::new(false));
    let hangup = HANGUP.filter(|_| !is_hangup_ignored());
    // Caught, a file that grows beyond the limit is an error of the write; its usual effect is the end of the process.
    #[cfg(unix)]
    let _ = flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
    // SIGINT last: who sees it caught sees all of them caught.
    for signal in OTHERS.iter().copied().chain([SIGTERM]).chain(hangup).chain([SIGINT]) {
        let status = i32::from(Signal(signal).exit_code());
        // Called in this order. A signal that cannot be watched keeps its usual effect.
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

/// The signal that came, if one did.
pub fn received() -> Option<Signal> {
    match RECEIVED.load(Ordering::Relaxed) {
        0 => None,
        number => Some(Signal(number as i32)),
    }
}

/// Whether whoever started the program had it ignore SIGHUP, as `nohup` does, where the system tells. (Shells have jobs of scripts ignore
/// SIGINT. Who sends it to one means it.)
fn is_hangup_ignored() -> bool {
    let mask = std::fs::read_to_string("/proc/self/status").ok().and_then(|status| {
        let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
        u64::from_str_radix(line.trim(), 16).ok()
    });
    mask.is_some_and(|mask| mask & 1 == 1)
}
