//! The binary, run as a user would.

use std::process::{Command, Output};

/// `wgpu-optim` with nothing from the user's surroundings: no choice of backend or adapter, no tunings.
pub fn wgpu_optim() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wgpu-optim"));
    command.env_remove("WGPU_BACKEND").env_remove("WGPU_ADAPTER_NAME").env("WGPU_OPTIM_TUNING_CACHE", "");
    command
}

/// As `wgpu_optim`, where there is no driver: a loader with nothing to load, and no other backend.
pub fn without_drivers() -> Command {
    let mut command = wgpu_optim();
    command.env("VK_DRIVER_FILES", "/nonexistent.json").env("VK_ICD_FILENAMES", "/nonexistent.json");
    command.env("WGPU_BACKEND", "vulkan");
    command
}

/// The words of a command line.
pub fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// The object that a command with `--json` prints.
#[track_caller]
pub fn json_of(output: &Output) -> serde_json::Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("not one JSON object: {error}; {stderr}"))
}

/// What came out must be a refusal: exit code 2, nothing printed, one line of complaint that contains every one of these words.
#[track_caller]
pub fn assert_refused(output: &Output, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    // Mesa may write a line of its own, where nobody is logged in.
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.contains("XDG_RUNTIME_DIR")).collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    for word in words {
        assert!(lines[0].contains(word), "no {word:?} in: {stderr}");
    }
    assert!(output.stdout.is_empty());
}
