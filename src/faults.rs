//! Test support: memory requests that fail.

use std::cell::Cell;

thread_local! {
    /// Number of this thread's requests before the one that fails.
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Runs `work` with one of its requests failing, counted from 0. Returns `None` if it makes fewer requests.
pub(crate) fn with_failing<T>(request: usize, work: impl FnOnce() -> T) -> Option<T> {
    LEFT.set(Some(request));
    let result = work();
    LEFT.take().is_none().then_some(result)
}

/// Returns `items`, or an impossible number for the request that fails.
pub(crate) fn asked_for(items: u64) -> u64 {
    let left = LEFT.get();
    LEFT.set(left.and_then(|left| left.checked_sub(1)));
    if left == Some(0) { 1 << 54 } else { items }
}
