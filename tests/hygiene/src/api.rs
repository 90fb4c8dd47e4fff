//! The public interface, as rustdoc sees it.

use std::process::Command;

use anyhow::ensure;
use public_api::Builder;

use crate::root;

/// One line per item, sorted.
pub fn list() -> anyhow::Result<String> {
    let status = Command::new("cargo")
        .current_dir(root())
        .args(["rustdoc", "--quiet", "--release", "--locked"])
        .args(["--package", "wgpu-optim", "--lib", "--all-features"])
        .args(["--", "-Zunstable-options", "--output-format", "json"])
        // The form that programs can read is not stable yet.
        .env("RUSTC_BOOTSTRAP", "1")
        .status()?;
    ensure!(status.success(), "cargo rustdoc failed");
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root()).no_deps().exec()?;
    let json = metadata.target_directory.join("doc/wgpu_optim.json");
    let api = Builder::from_rustdoc_json(json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build()?;
    Ok(api.to_string())
}
