//! The public interface, as rustdoc sees it.

use std::process::Command;

use anyhow::ensure;
use public_api::Builder;

use crate::root;

/// One line per item, sorted.
pub fn list() -> anyhow::Result<String> {
    // In a folder of its own: with the variable below cargo takes whatever is in another for stale.
    let target = root().join("target/hygiene");
    let status = Command::new("cargo")
        .current_dir(root())
        .args(["rustdoc", "--quiet", "--release", "--locked", "--target-dir"])
        .arg(&target)
        .args(["--package", "wgpu-optim", "--lib", "--all-features"])
        .args(["--", "-Zunstable-options", "--output-format", "json"])
        // The form that programs can read is not stable yet.
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
