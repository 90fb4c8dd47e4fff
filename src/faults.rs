//! For tests: requests for memory that cannot be met.

use std::cell::Cell;

thread_local! {
    /// Requests of this thread before the one that fails.
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Runs this with one of its requests failing, counted from 0; `None` where it makes fewer.
pub(crate) fn with_failing<T>(request: usize, work: impl FnOnce() -> T) -> Option<T> {
    LEFT.set(Some(request));
    let result = work();
    LEFT.take().is_none().then_some(result)
}

/// As many as asked for, or more than there can be.
pub(crate) fn asked_for(items: u64) -> u64 {
    let left = LEFT.get();
    LEFT.set(left.and_then(|left| left.checked_sub(1)));
    if left == Some(0) { 1 << 54 } else { items }
}
