//! The dependencies of the crate: licences, sources, Rust versions, and the few of the core.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use anyhow::Context;
use cargo_metadata::{
    CargoOpt, DepKindInfo, Dependency, DependencyKind, Metadata, MetadataCommand, Node, NodeDep, Package, PackageId,
};
use spdx::{Expression, LicenseReq};

use crate::root;

/// Licences that require only their text to be shipped with a program.
const LICENCES: [&str; 9] =
    ["MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "ISC", "Unicode-3.0", "Unlicense", "Zlib"];

/// Crates that are allowed in two versions, since some dependents still use the older one.
const TWICE: [&str; 4] = ["hashbrown", "jni-sys", "miniz_oxide", "syn"];

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn metadata(features: CargoOpt) -> anyhow::Result<Metadata> {
    MetadataCommand::new()
        .current_dir(root())
        .features(features)
        .other_options(["--locked".to_owned()])
        .exec()
        .context("cargo metadata")
}

fn own(metadata: &Metadata) -> anyhow::Result<&Package> {
    metadata.root_package().context("the package itself")
}

/// Returns the dependencies of the library without its features, with their features, one on each line.
pub fn of_core() -> anyhow::Result<String> {
    let metadata = metadata(CargoOpt::NoDefaultFeatures)?;
    let lines: Vec<String> = own(&metadata)?
        .dependencies
        .iter()
        .filter(|dependency| dependency.kind == DependencyKind::Normal && !dependency.optional)
        .map(|dependency| {
            let defaults = if dependency.uses_default_features { "default " } else { "" };
            format!("{}: {defaults}{}\n", dependency.name, dependency.features.join(" "))
        })
        .collect();
    Ok(lines.concat().replace(" \n", "\n"))
}

/// Returns everything that is wrong with the dependencies, one complaint on each line.
pub fn complaints() -> anyhow::Result<Vec<String>> {
    let metadata = metadata(CargoOpt::AllFeatures)?;
    let own = own(&metadata)?;
    let mut complaints = Vec::new();
    // The library, the program, and the crates for their tests.
    let members = &metadata.workspace_members;
    let built = reached(&metadata, members, |_| true)?;
    let shipped = reached(&metadata, members, |kind| kind.kind == DependencyKind::Normal)?;
    let packages = || metadata.packages.iter().filter(|package| built.contains(&package.id));
    for package in packages() {
        let name = format!("{} {}", package.name, package.version);
        if !members.contains(&package.id) && package.source.as_ref().map(|s| s.repr.as_str()) != Some(CRATES_IO) {
            complaints.push(format!("{name}: does not come from crates.io"));
        }
        if let (Some(theirs), Some(ours)) = (&package.rust_version, &own.rust_version)
            && theirs > ours
        {
            complaints.push(format!("{name}: needs Rust {theirs}, and Cargo.toml promises {ours}"));
        }
        if shipped.contains(&package.id) && !may_be_shipped(package) {
            let licence = package.license.as_deref().unwrap_or("none given");
            complaints.push(format!("{name}: licence {licence}"));
        }
    }
    let mut versions: BTreeMap<&str, usize> = BTreeMap::new();
    for package in packages() {
        *versions.entry(&package.name).or_default() += 1;
    }
    for (name, count) in versions.into_iter().filter(|(_, count)| *count > 1) {
        if !TWICE.contains(&name) || count > 2 {
            complaints.push(format!("{name}: {count} versions of one crate"));
        }
    }
    println!(
        "dependencies: {} crates for all platforms, {} of them shipped",
        built.len() - members.len(),
        shipped.len() - members.len()
    );
    Ok(complaints)
}

fn may_be_shipped(package: &Package) -> bool {
    let allowed = |requirement: &LicenseReq| requirement.license.id().is_some_and(|id| LICENCES.contains(&id.name));
    // Cargo used to accept a slash for "or".
    package
        .license
        .as_ref()
        .and_then(|text| Expression::parse(&text.replace('/', " OR ")).ok())
        .is_some_and(|expression| expression.evaluate(allowed))
}

/// Returns every package that the members depend on, through dependencies of the wanted kinds.
fn reached(
    metadata: &Metadata,
    members: &[PackageId],
    wanted: impl Fn(&DepKindInfo) -> bool,
) -> anyhow::Result<HashSet<PackageId>> {
    let resolve = metadata.resolve.as_ref().context("the dependency graph")?;
    let nodes: HashMap<&PackageId, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let mut seen: HashSet<PackageId> = members.iter().cloned().collect();
    let mut next: VecDeque<&PackageId> = members.iter().collect();
    while let Some(id) = next.pop_front() {
        for dependency in nodes[id].deps.iter().filter(|dependency| is_enabled(&metadata[id], nodes[id], dependency)) {
            if dependency.dep_kinds.iter().any(&wanted) && seen.insert(dependency.pkg.clone()) {
                next.push_back(&dependency.pkg);
            }
        }
    }
    Ok(seen)
}

/// Returns false for an optional dependency that no enabled feature of the package enables. Cargo's metadata includes those that a feature names with
/// a question mark, such as the 18 versions of `glam` to which `nalgebra` can convert.
fn is_enabled(package: &Package, node: &Node, dependency: &NodeDep) -> bool {
    let name_of = |one: &Dependency| one.rename.clone().unwrap_or_else(|| one.name.clone());
    let mut declared =
        package.dependencies.iter().filter(|one| name_of(one).replace('-', "_") == dependency.name).peekable();
    let Some(first) = declared.peek() else {
        // The library has another name than its package.
        return true;
    };
    let name = name_of(first);
    let asks = |item: &String| *item == name || *item == format!("dep:{name}") || item.starts_with(&format!("{name}/"));
    let mut features = node.features.iter().map(|feature| feature.to_string());
    declared.any(|one| !one.optional)
        || features.any(|feature| {
            feature == name || package.features.get(&feature).is_some_and(|items| items.iter().any(asks))
        })
}
