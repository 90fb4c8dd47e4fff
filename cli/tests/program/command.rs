//! Helpers that run the binary as a user would.

use std::process::{Command, Output};

/// Returns `wgpu-optim` without the user's settings: no backend or adapter is chosen, and there are no tunings.
pub fn wgpu_optim() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wgpu-optim"));
    command.env_remove("WGPU_BACKEND").env_remove("WGPU_ADAPTER_NAME").env("WGPU_OPTIM_TUNING_CACHE", "");
    command
}

/// Returns `wgpu-optim` without a driver: its loader finds nothing to load, and no other backend is allowed.
pub fn without_drivers() -> Command {
    let mut command = wgpu_optim();
    command.env("VK_DRIVER_FILES", "/nonexistent.json").env("VK_ICD_FILENAMES", "/nonexistent.json");
    command.env("WGPU_BACKEND", "vulkan");
    command
}

/// Returns the words of a command line.
pub fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// Returns the object that a command with `--json` prints.
#[track_caller]
pub fn json_of(output: &Output) -> serde_json::Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("not one JSON object: {error}; {stderr}"))
}

/// Asserts that the output is a refusal: exit code 2, nothing on standard output, and one line on standard error that contains all of these words.
#[track_caller]
pub fn assert_refused(output: &Output, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    // Mesa may print its own line where no user is logged in.
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.contains("XDG_RUNTIME_DIR")).collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    for word in words {
        assert!(lines[0].contains(word), "no {word:?} in: {stderr}");
    }
    assert!(output.stdout.is_empty());
}
