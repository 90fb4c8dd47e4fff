//! Tests of `wgpu-optim check`: every family passes on every adapter. Every family detects a fault in the results of a device, with the smallest case
//! that shows it, and the exit code reports it.

use crate::command::{assert_refused, json_of, wgpu_optim};
use serde_json::Value;
use wgpu_optim_conformance::run::devices;

const FAMILIES: [&str; 14] = [
    "steps",
    "passes",
    "windows",
    "magnitudes",
    "nonfinite",
    "repeats",
    "groups",
    "controls",
    "matrices",
    "averages",
    "trust",
    "shards",
    "halves",
    "state",
];

/// Returns the exit code and the report of `check --json`, on one backend or on all available ones.
fn check(backend: Option<&str>, arguments: &[&str]) -> (Option<i32>, Value) {
    let mut command = wgpu_optim();
    if let Some(backend) = backend {
        command.env("WGPU_BACKEND", backend);
    }
    let output = command.args(["check", "--json"]).args(arguments).output().expect("the binary runs");
    (output.status.code(), json_of(&output))
}

fn rows(report: &Value) -> &[Value] {
    report["rows"].as_array().expect("rows")
}

/// Runs a sample of the cases. `tests/drivers` runs all of them.
#[test]
fn every_family_passes_on_every_adapter() {
    let (code, report) = check(None, &["--sample", "16"]);
    for row in rows(&report) {
        assert_eq!(row["failed"], 0, "{row}");
        assert!(row["values"].as_u64() > Some(100), "{row}");
        assert!(row["share_of_allowed"].as_f64().expect("finite") <= 1.0);
    }
    assert_eq!((code, &report["failed"]), (Some(0), &Value::from(0)));
    for family in FAMILIES {
        let of_family = |row: &&Value| row["family"] == family && row["geometry"] == "preset";
        let count = rows(&report).iter().filter(of_family).count();
        assert_eq!(count, devices().len(), "{family}");
    }
}

/// The fault is in every parameter that is read, and grows each time. Only a sample of the cases runs: the unit tests of `check` find the smallest
/// fault that each family detects.
#[test]
fn a_seeded_fault_is_told_by_every_family_with_its_smallest_case() {
    let info = devices()[0].device().adapter_info();
    let backend = info.backend.to_string();
    let (code, report) = check(Some(&backend), &["--adapter", &info.name, "--seed-fault", "--sample", "16"]);
    assert_eq!(code, Some(1));
    for family in FAMILIES {
        let row = rows(&report).iter().find(|row| row["family"] == family);
        let row = row.expect("a row for each family");
        assert!(row["failed"].as_u64() > Some(0), "{family}: {row}");
        let smallest = &row["failures"][0]["smallest"];
        let mismatch = &smallest["mismatch"];
        assert_eq!(mismatch["path"], "device", "{family}: {smallest}");
        for value in ["got", "expected"] {
            let bits = mismatch[value]["bits"].as_str().expect("bits");
            assert_eq!(bits.len(), 8, "{family}: {smallest}");
        }
        let ulps = mismatch["ulps"].as_f64().expect("a distance");
        let allowed = mismatch["allowed_ulps"].as_f64().expect("a bound");
        assert!(ulps > allowed, "{family}: {smallest}");
        // The case is bisected in every way: it has one group, one tensor of one element, and one step.
        if ["steps", "groups"].contains(&family) {
            let case = smallest["case"].as_str().expect("a case");
            assert!(case.contains(" 1 step:") && case.ends_with(" 1 elements"), "{case}");
            assert!(!case.contains(';'), "one group: {case}");
        }
    }
}

#[test]
fn one_family_runs_alone_and_an_unknown_one_is_refused() {
    let (code, report) = check(None, &["--family", "repeats"]);
    assert_eq!(code, Some(0));
    assert!(rows(&report).iter().all(|row| row["family"] == "repeats"));
    assert!(rows(&report).len() >= devices().len());
    let cases = |arguments: &[&str]| {
        let arguments = [&["--family", "magnitudes"], arguments].concat();
        let (code, report) = check(None, &arguments);
        assert_eq!(code, Some(0));
        rows(&report)[0]["cases"].as_u64().expect("a number")
    };
    assert_eq!(cases(&["--sample", "2"]), cases(&[]).div_ceil(2));
    let output = wgpu_optim().args(["check", "--family", "nothing"]).output();
    assert_refused(&output.expect("the binary runs"), &["nothing", "windows"]);
    let output = wgpu_optim().args(["check", "--adapter", "nobody"]).output();
    assert_refused(&output.expect("the binary runs"), &["nobody"]);
}
