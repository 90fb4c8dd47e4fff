//! The public interface, as rustdoc sees it.

use std::process::Command;

use anyhow::ensure;
use public_api::Builder;

use crate::root;

/// Returns one line per item, sorted.
pub fn list() -> anyhow::Result<String> {
    // The folder is separate, since the variable below makes cargo rebuild everything in a shared one.
    let target = root().join("target/hygiene");
    let status = Command::new("cargo")
        .current_dir(root())
        .args(["rustdoc", "--quiet", "--release", "--locked", "--target-dir"])
        .arg(&target)
        .args(["--package", "wgpu-optim", "--lib", "--all-features"])
        .args(["--", "-Zunstable-options", "--output-format", "json"])
        // The JSON format is not stable yet.
        .env("RUSTC_BOOTSTRAP", "1")
        .status()?;
    ensure!(status.success(), "cargo rustdoc failed");
    let json = target.join("doc/wgpu_optim.json");
    let api = Builder::from_rustdoc_json(json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build()?;
    Ok(api.to_string())
}
