//! `cargo run --manifest-path tests/hygiene/Cargo.toml [-- --update]` compares the public interface and the dependencies of wgpu-optim with the lists
//! in this folder, so that neither changes unnoticed. It also compiles the shaders with the reference compiler of their language. `.ci/run` calls it.
//!
//! It does not look up advisories, since their database is not in the registries that it has access to. `cargo audit` does, where it is available.
#![forbid(unsafe_code)]

mod api;
mod dependencies;
mod shaders;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let update = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--update"] => true,
        _ => bail!("the only option is --update, which writes the lists anew"),
    };
    let lists =
        [("api.txt", "public interface", api::list()?), ("core.txt", "core's dependencies", dependencies::of_core()?)];
    let mut agreed = true;
    for (file, what, list) in lists {
        agreed &= agrees(file, what, &list, update)?;
    }
    let mut complaints = dependencies::complaints()?;
    let (of_shaders, compiled) = shaders::complaints();
    println!("shaders: {compiled} kernels compiled as WESL");
    complaints.extend(of_shaders);
    for complaint in &complaints {
        println!("{complaint}");
    }
    Ok(if agreed && complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Compares a list with its file, or writes the file.
fn agrees(file: &str, what: &str, list: &str, update: bool) -> anyhow::Result<bool> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if update {
        std::fs::write(&path, list)?;
        return Ok(true);
    }
    let before = std::fs::read_to_string(&path)?;
    if before == list {
        println!("{what}: {} lines, none changed", list.lines().count());
        return Ok(true);
    }
    let difference = similar::TextDiff::from_lines(before.as_str(), list);
    print!("{}", difference.unified_diff().context_radius(0));
    println!("{what}: changed; if that is meant, say so in CHANGELOG.md and add --update to this command");
    Ok(false)
}
