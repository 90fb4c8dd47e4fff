//! Memory checks before allocation. A file or an option that needs too much memory causes an error, and neither an
//! abort nor the end of other programs on the machine.

use crate::words;

/// Fraction of the available memory that one allocation may take. Drivers, threads and copies need the rest.
const SHARE: f64 = 0.8;

/// Returns the memory in bytes that is available without swapping, if the system reports it. The limits of the machine,
/// of the container and of `ulimit -v` are respected.
pub fn available() -> Option<f64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let kib = |path: &str, name: &str| -> Option<f64> {
        let text = read(path)?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(1024.0 * kib)
    };
    let machine = kib("/proc/meminfo", "MemAvailable:");
    let number = |path: &str| -> Option<f64> { read(path)?.trim().parse().ok() };
    let in_use = number("/sys/fs/cgroup/memory.current");
    let container = number("/sys/fs/cgroup/memory.max").zip(in_use).map(|(most, in_use)| most - in_use);
    let process = read("/proc/self/limits").and_then(|limits| {
        let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
        let most: f64 = line.split_whitespace().next()?.parse().ok()?;
        Some(most - kib("/proc/self/status", "VmSize:")?)
    });
    [machine, container, process].into_iter().flatten().reduce(f64::min).map(|bytes| bytes.max(0.0))
}

/// Returns an error if there is not enough memory: `needs 52.4 GiB of memory, 18.7 GiB are available`.
pub fn check(bytes: f64) -> Result<(), String> {
    match available() {
        Some(available) if bytes > SHARE * available => {
            let [needed, available] = [bytes, available].map(words::bytes);
            Err(format!("needs {needed} of memory, of which {available} are available"))
        }
        _ => Ok(()),
    }
}

/// Returns an empty list with capacity for this many values, or the reason why that is not possible.
pub fn list<T>(len: usize) -> Result<Vec<T>, String> {
    let bytes = len as f64 * size_of::<T>() as f64;
    check(bytes)?;
    let mut list = Vec::new();
    match list.try_reserve_exact(len) {
        Ok(()) => Ok(list),
        Err(_) => Err(format!("needs {} of memory, which cannot be allocated", words::bytes(bytes))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_machine_has_is_refused_in_words() {
        let message = list::<f64>(1 << 55).expect_err("256 PiB");
        assert!(message.contains("262144.0 TiB"), "{message}");
        assert!(list::<f64>(1 << 60).is_err());
        assert!(list::<u8>(1000).is_ok());
    }
}
