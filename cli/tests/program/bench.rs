//! Tests of `wgpu-optim bench`: it measures everything that it lists, its figures are consistent, and it writes its report. Bad input ends in one
//! line and exit code 2 before anything is measured. Speed is not tested here.

use std::path::Path;
use std::process::Output;

use crate::command::{self, assert_refused, json_of, words};
use serde_json::Value;

fn bench(args: &[&str]) -> Output {
    command::wgpu_optim().arg("bench").args(args).output().expect("the binary runs")
}

fn report(args: &[&str]) -> Value {
    let small = ["--json", "--from", "10", "--to", "12", "--round-ms", "1"];
    let output = bench(&[&small[..], args].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    json_of(&output)
}

fn rows(report: &Value) -> &[Value] {
    report["rows"].as_array().expect("rows")
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"))
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_else(|| panic!("{key} in {row}"))
}

fn count(report: &Value, what: &str) -> usize {
    rows(report).iter().filter(|row| row["what"] == what).count()
}

/// Returns the faults of the rows, each of them once.
fn faults(report: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    for row in rows(report) {
        let keys = "ns_per_param spread_low spread_high wall_ns_per_param us_per_step gb_per_s percent_of_copy";
        for key in [words(keys), vec!["percent_of_triad"]].concat() {
            let value = number(row, key);
            if !(value > 0.0 && value.is_finite()) {
                faults.push(format!("{key} is {value}"));
            }
        }
        let (low, median, high) = (number(row, "spread_low"), number(row, "ns_per_param"), number(row, "spread_high"));
        if !(low <= median && median <= high) {
            faults.push(format!("{median} is not between {low} and {high}"));
        }
        let elements = number(row, "elements");
        let us_per_step = 1e-3 * median * elements;
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b;
        if !close(number(row, "us_per_step"), us_per_step) {
            faults.push("us_per_step".to_owned());
        }
        for roof in ["copy", "triad"] {
            let of_this_size = rows(report)
                .iter()
                .find(|other| other["what"] == roof && other["elements"] == row["elements"])
                .expect("copy and triad at every size");
            // The table does not have the roof by the other clock.
            if of_this_size["clock"] == row["clock"] {
                let percent = 100.0 * number(row, "gb_per_s") / number(of_this_size, "gb_per_s");
                if !close(number(row, &format!("percent_of_{roof}")), percent) {
                    faults.push(format!("percent_of_{roof}"));
                }
            }
        }
    }
    faults
}

#[test]
fn every_rule_and_regime_on_the_cpu_path_against_copy_and_triad() {
    let report = report(&["--backend", "cpu"]);
    assert!(text(&report, "device").contains("CPU path"), "{report}");
    assert_eq!(faults(&report), Vec::<String>::new());
    for (what, rows) in [
        ("copy", 3),
        ("triad", 3),
        // Six rules under three regimes, and unchecked at a fixed rate.
        ("step", 48),
        ("step+clip", 6),
        ("many-tensors", 4),
        ("many-tensors-odd", 4),
        ("overhead-step", 2),
    ] {
        assert_eq!(count(&report, what), rows, "{what}");
    }
    for row in rows(&report) {
        assert_eq!(row["clock"], "wall");
        for key in ["what", "rule", "regime", "mode"] {
            text(row, key);
        }
    }
    let sgd = |regime: &str, mode: &str| {
        let found = rows(&report).iter().find(|row| {
            row["what"] == "step" && row["rule"] == "sgd" && row["regime"] == regime && row["mode"] == mode
        });
        found.unwrap_or_else(|| panic!("sgd, {regime}, {mode}"))
    };
    // The byte model has 16 bytes with the norm alone, and 19 with the direction memory.
    for (regime, mode, bytes) in [("norm-ratio", "f32", 16.0), ("seesaw", "f32", 19.0)] {
        let row = sgd(regime, mode);
        let moved = number(row, "gb_per_s") * number(row, "ns_per_param");
        assert!((moved - bytes).abs() <= 1e-9 * bytes, "{regime}: {moved}");
    }
}

/// In the byte model, masters add 2 bytes to w, which are read and written. Stochastic rounding does not.
#[track_caller]
fn assert_sixteen_bit_rows(report: &Value) {
    assert_eq!(faults(report), Vec::<String>::new());
    for (mode, plain, seesaw) in [("bf16", 12.0, 15.0), ("f16", 12.0, 15.0), ("bf16-stochastic", 8.0, 11.0)] {
        let of_mode: Vec<&Value> = rows(report).iter().filter(|row| row["mode"] == mode).collect();
        for (what, count) in
            [("step", 2 * 2 * 2), ("step+clip", 0), ("many-tensors", 2), ("many-tensors-odd", 2), ("overhead-step", 1)]
        {
            let found = of_mode.iter().filter(|row| row["what"] == what);
            assert_eq!(found.count(), count, "{what} in {mode}");
        }
        for row in of_mode {
            let memory = match text(row, "rule") {
                "sgd" => 0.0,
                // The momentum is read and written, and read once more for the alignment, which then needs no counters.
                _ if text(row, "regime") == "seesaw" => 16.0 + 4.0 - 3.0,
                _ => 16.0,
            };
            let model = match text(row, "regime") {
                "seesaw" => seesaw + memory,
                _ => plain + memory,
            };
            let moved = number(row, "gb_per_s") * number(row, "ns_per_param");
            assert!((moved - model).abs() <= 1e-9 * model, "{row}: {moved}");
        }
    }
    let notes = report["notes"].as_array().expect("notes");
    assert!(notes.is_empty(), "{notes:?}");
}

#[test]
fn sixteen_bits_on_the_cpu_path_and_on_a_device() {
    for backend in ["cpu", "vulkan"] {
        let modes = "--mode bf16,f16,bf16-stochastic --rule sgd,adamw --regime norm-ratio,seesaw";
        assert_sixteen_bit_rows(&report(&words(&format!("--backend {backend} {modes}"))));
    }
}

/// Seeded faults are detected.
#[test]
fn the_checks_see_a_wrong_percentage_a_zero_and_a_wrong_spread() {
    let sound = report(&["--backend", "cpu", "--rule", "sgd", "--regime", "fixed"]);
    assert_eq!(faults(&sound), Vec::<String>::new());
    for key in ["ns_per_param", "gb_per_s", "percent_of_triad", "percent_of_copy", "us_per_step"] {
        let mut spoilt = sound.clone();
        spoilt["rows"][2][key] = (1.01 * number(&sound["rows"][2], key)).into();
        assert!(!faults(&spoilt).is_empty(), "{key}");
    }
    let mut spoilt = sound.clone();
    spoilt["rows"][2]["spread_low"] = (2.0 * number(&sound["rows"][2], "spread_high")).into();
    assert!(!faults(&spoilt).is_empty(), "spread");
    spoilt["rows"][2]["ns_per_param"] = 0.0.into();
    assert!(!faults(&spoilt).is_empty(), "zero");
}

#[test]
fn a_device_has_its_recording_and_its_passes_timed() {
    let report = report(&["--backend", "vulkan", "--passes", "--rule", "sgd,signum"]);
    assert_eq!(faults(&report), Vec::<String>::new());
    assert_eq!(count(&report, "step"), 2 * 8);
    assert_eq!(count(&report, "overhead-submit-wait"), 2);
    let many = rows(&report).iter().find(|row| row["what"] == "many-tensors").expect("many tensors");
    assert_eq!(number(many, "tensors"), 200.0);
    assert!(number(many, "encode_us_per_step") > 0.0);
    assert!(number(many, "finish_us_per_step") > 0.0);
    for row in rows(&report) {
        assert!(["timestamps", "wall"].contains(&text(row, "clock")));
        if row["what"] == "step" && row["clock"] == "timestamps" {
            let passes = row["pass_ns_per_param"].as_object().expect("passes");
            // At most 2^12 parameters.
            assert_eq!(passes.keys().collect::<Vec<_>>(), ["whole_step"], "{row}");
            assert!(passes["whole_step"].as_f64().expect("a number") > 0.0, "{row}");
        }
    }
}

#[test]
fn filters_leave_only_what_is_asked_for() {
    let report = report(&words("--backend cpu --rule signsgd --regime seesaw --mode f32 --step 1"));
    assert_eq!(count(&report, "step"), 3);
    assert_eq!(count(&report, "step+clip"), 0);
    for row in rows(&report) {
        assert!(["", "signsgd"].contains(&text(row, "rule")), "{row}");
        assert!(["", "seesaw"].contains(&text(row, "regime")), "{row}");
    }
}

#[test]
fn what_no_step_has_is_told() {
    let report = report(&words("--backend cpu --rule sgd,sgdm --regime norm-ratio --mode schedule-free"));
    assert_eq!(count(&report, "step"), 2);
    assert_eq!(
        report["notes"],
        serde_json::json!(["--rule sgdm is measured nowhere: nothing else that is named goes with it"])
    );
}

fn written(folder: &Path, name: &str) -> String {
    let path = folder.join(name);
    report(&words(&format!("--backend cpu --rule sgd --regime fixed --report {}", path.display())));
    std::fs::read_to_string(path).expect("the report is written")
}

#[test]
fn reports_hold_a_plot_and_need_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let svg = written(folder.path(), "plot.svg");
    assert!(svg.starts_with("<svg"), "{}", &svg[..40]);
    assert!(svg.contains("\nsgd\n") && svg.contains("\n2^12\n"), "labels");
    let page = written(folder.path(), "page.html");
    assert!(page.starts_with("<!doctype html>"));
    for part in ["<svg", "<table>", "CPU path", "--report", "step+clip"] {
        assert!(page.contains(part), "{part}");
    }
    // Any other name is that of an HTML page.
    assert!(written(folder.path(), "plot").contains("<dt>date</dt>"));
    for foreign in ["src=", "href=", "@import", "url("] {
        assert!(!page.contains(foreign), "{foreign}");
    }
}

#[track_caller]
fn refused(args: &[&str], names: &str) {
    assert_refused(&bench(args), &[names]);
}

#[test]
fn bad_input_is_refused_before_anything_is_measured() {
    let cpu = |args: &[&str], names| refused(&[&["--backend", "cpu"], args].concat(), names);
    cpu(&["--force"], "--report");
    cpu(&["--report", "/no/such/folder/x.svg"], "/no/such/folder/x.svg");
    cpu(&["--from", "20", "--to", "10"], "--from 20");
    cpu(&["--to", "64"], "64");
    cpu(&["--step", "0"], "0");
    cpu(&["--rule", "adam"], "adam");
    cpu(&["--regime", "cosine"], "cosine");
    cpu(&["--mode", "f64"], "f64");
    cpu(&["--rule", "muon,amsgrad", "--mode", "8bit"], "--rule muon, --rule amsgrad, --mode 8bit do not go together");
    cpu(&["--mode", "unchecked", "--regime", "seesaw"], "--regime seesaw, --mode unchecked do not go together");
    refused(&["--adapter", "no such adapter"], "no such adapter");
}
