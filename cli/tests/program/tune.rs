//! Tests of `tune` and its cache: `tune` finds a valid tuning with right results and stores it. The cache applies only to this adapter, driver and
//! set of kernels. Whatever is wrong with it, runs continue with the preset.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use crate::command::{self, assert_refused as refused, words};
use serde_json::{Value, json};
use wgpu_optim::gpu::{Partials, TuneOptions, Tuning, TuningCache};
use wgpu_optim::internals::CACHE_VARIABLE;
use wgpu_optim::{ErrorKind, Gpu, Regime, Rule};
use wgpu_optim_conformance::Numbers;
use wgpu_optim_conformance::run::{GpuRun, Place, Run, Spec, devices};

fn options(elements: u64, budget_ms: u64) -> TuneOptions {
    TuneOptions { elements, budget: Duration::from_millis(budget_ms), ..TuneOptions::default() }
}

/// Returns the relative error of ‖g‖ in one step over `len` elements with this tuning, compared with f64.
fn norm_error(gpu: &Gpu, len: usize) -> f64 {
    let mut numbers = Numbers(41);
    let spec = Spec::new(Rule::sgdm(0.9), Regime::seesaw(), vec![numbers.vec(len)]);
    let grads = numbers.vec(len);
    let exact: f64 = grads.iter().map(|&g| f64::from(g).powi(2)).sum();
    let place = Place { params: (0, 0), grads: (1, 0) };
    let mut run = GpuRun::new(gpu, &[spec], vec![place]);
    run.step(&[grads]);
    (f64::from(run.records().records[0].norm) / exact.sqrt() - 1.0).abs()
}

#[test]
fn what_it_finds_is_valid_and_its_norm_is_right() {
    let len = 40_003;
    for gpu in &devices() {
        for (rule, regime) in [(Rule::sgdm(0.9), Regime::seesaw()), (Rule::sgd(), Regime::hypergradient())] {
            // On a busy machine a short search measures only the preset.
            let searches =
                [1500, 6000, 24_000].map(|budget_ms| TuneOptions { rule, regime, ..options(len as u64, budget_ms) });
            let mut reports = searches.iter().map(|search| gpu.tune(search).expect("tunes"));
            let report = reports.find(|report| report.candidates.len() > 1);
            let report = report.expect("something beside the preset was measured");
            let what = format!("{}: {report:?}", gpu.describe());
            assert_eq!(report.preset, gpu.tuning(), "{what}");
            assert_eq!(report.candidates[0].tuning, report.preset, "{what}");
            for (index, candidate) in report.candidates.iter().enumerate() {
                let others = &report.candidates[index + 1..];
                assert!(others.iter().all(|other| other.tuning != candidate.tuning));
                let ns = *candidate.ns_per_param.as_ref().expect("measured");
                assert!(ns > 0.0 && ns.is_finite(), "{what}");
            }
            let preset_ns = report.preset_ns_per_param.expect("the preset works");
            if report.best == report.preset {
                assert_eq!(report.best_ns_per_param, preset_ns, "{what}");
            } else {
                assert!(report.best_ns_per_param < 0.97 * preset_ns, "{what}");
            }
            let best = gpu.clone().with_tuning(report.best).expect("valid");
            assert!(norm_error(&best, len) <= 1e-5, "{what}");
        }
    }
}

#[test]
fn without_time_the_preset_is_measured_and_stays() {
    for gpu in &devices() {
        for elements in [1, 5, 1000] {
            let report = gpu.tune(&options(elements, 0)).expect("tunes");
            assert_eq!(report.candidates.len(), 1);
            assert_eq!((report.best, report.preset), (gpu.tuning(), gpu.tuning()));
            assert!(report.best_ns_per_param > 0.0);
        }
    }
}

#[test]
fn what_cannot_be_tuned_is_refused_by_its_number() {
    let gpu = &devices()[0];
    let refusal = |options: TuneOptions| gpu.tune(&options).expect_err("refused");
    let none = refusal(options(0, 100));
    assert!(none.kind() == ErrorKind::Build && none.to_string().contains("elements is 0"), "{none}");
    assert_eq!(refusal(options(u64::MAX / 8, 100)).kind(), ErrorKind::Limit);
    let steep = refusal(TuneOptions { rule: Rule::sgdm(1.5), ..options(100, 100) });
    assert!(steep.kind() == ErrorKind::Build && steep.to_string().contains("momentum is 1.5"), "{steep}");
}

/// A tuning that is no preset, and that every device supports.
const ODD: Tuning =
    Tuning { workgroup_size: 16, quads_per_invocation: 3, partials: Partials::PerWorkgroup, finish_workgroup_size: 32 };

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// Returns a cache with `ODD` for 1000 elements, and its file as JSON.
fn filled(folder: &Path, gpu: &Gpu) -> (TuningCache, Value) {
    let cache = TuningCache::at(folder.join("deep").join("tuning.json"));
    cache.put(gpu, 1000, ODD).expect("writes");
    let text = std::fs::read_to_string(cache.path()).expect("reads");
    (cache, serde_json::from_str(&text).expect("JSON"))
}

fn write(cache: &TuningCache, value: &Value) {
    std::fs::write(cache.path(), value.to_string()).expect("writes");
}

#[test]
fn what_is_put_is_got_by_the_nearest_size() {
    for gpu in &devices() {
        let folder = folder();
        let cache = TuningCache::at(folder.path().join("tuning.json"));
        assert_eq!(cache.get(gpu, 1000), None);
        assert_eq!(cache.entries(gpu), []);
        let other = Tuning { partials: Partials::PerInvocation, ..ODD };
        cache.put(gpu, 1 << 16, other).expect("writes");
        cache.put(gpu, 1 << 12, ODD).expect("writes");
        assert_eq!(cache.entries(gpu), [(1 << 12, ODD), (1 << 16, other)]);
        for (elements, expected) in [
            (1 << 12, Some(ODD)),
            ((1 << 14) - 1, Some(ODD)),
            ((1 << 14) + 1, Some(other)),
            (1 << 16, Some(other)),
            (1 << 19, Some(other)),
            ((1 << 19) + 1, None),
            (1 << 9, Some(ODD)),
            ((1 << 9) - 1, None),
            (0, None),
            (u64::MAX, None),
        ] {
            assert_eq!(cache.get(gpu, elements), expected, "{elements}");
        }
        // This replaces the first entry.
        cache.put(gpu, 1 << 12, other).expect("writes");
        assert_eq!(cache.entries(gpu), [(1 << 12, other), (1 << 16, other)]);
        if Partials::Subgroup.is_supported(gpu.device().features()) {
            let subgroup = Tuning { partials: Partials::Subgroup, ..ODD };
            cache.put(gpu, 1, subgroup).expect("writes");
            assert_eq!(cache.get(gpu, 1), Some(subgroup));
        }
        // This tuning is valid, but no optimizer of this size can be built with it: its norm would have more partials than a loop may add up.
        let partials = Partials::PerInvocation;
        let tiny = Tuning { workgroup_size: 1, quads_per_invocation: 1, partials, finish_workgroup_size: 1 };
        cache.put(gpu, 1 << 24, tiny).expect("writes");
        assert_eq!(cache.entries(gpu).last(), Some(&(1 << 24, tiny)));
        assert_eq!(cache.get(gpu, 1 << 24), None);
        let never = Tuning { workgroup_size: 3, ..ODD };
        let error = cache.put(gpu, 1, never).expect_err("no device has it");
        assert_eq!(error.kind(), ErrorKind::Build, "{error}");
    }
}

#[test]
fn a_changed_adapter_driver_or_kernel_has_no_entry() {
    for gpu in &devices() {
        let folder = folder();
        let (cache, file) = filled(folder.path(), gpu);
        for (field, other) in [
            ("backend", json!("metal")),
            ("adapter", json!("Voodoo 2")),
            ("vendor", json!(0x121a)),
            ("device", json!(2)),
            ("driver", json!("glide")),
            ("driver_info", json!("Mesa 1.0")),
            ("kernels", json!("0.0.0-0")),
        ] {
            let mut changed = file.clone();
            assert!(!changed["entries"][0][field].is_null(), "{field}");
            changed["entries"][0][field] = other;
            write(&cache, &changed);
            assert_eq!(cache.get(gpu, 1000), None, "{field}");
        }
        write(&cache, &file);
        assert_eq!(cache.get(gpu, 1000), Some(ODD), "as it was");
    }
}

/// Returns file contents that are no cache or a wrong one, with a description of each fault.
fn rubbish(file: &Value) -> Vec<(String, Vec<u8>)> {
    let right = file.to_string();
    let mut cases: Vec<(String, Vec<u8>)> = vec![
        ("empty".into(), Vec::new()),
        ("rubbish".into(), b"\x7fELF tuning".to_vec()),
        ("not UTF-8".into(), [&[0xff, 0xfe], right.as_bytes()].concat()),
        ("half".into(), right.as_bytes()[..right.len() / 2].to_vec()),
        ("nested".into(), b"[".repeat(100_000)),
        ("null".into(), b"null".to_vec()),
        ("a list".into(), b"[]".to_vec()),
        ("no entries".into(), br#"{"version": 1}"#.to_vec()),
        ("padded".into(), [right.as_bytes(), &b" ".repeat(2 << 20)].concat()),
    ];
    let mut changed = |what: &str, change: &dyn Fn(&mut Value)| {
        let mut file = file.clone();
        change(&mut file);
        cases.push((what.to_owned(), file.to_string().into_bytes()));
    };
    changed("other version", &|file| file["version"] = json!(2));
    changed("version in words", &|file| file["version"] = json!("1"));
    changed("entries in words", &|file| file["entries"] = json!("none"));
    changed("an entry in words", &|file| file["entries"][0] = json!("first"));
    changed("three wrong entries", &|file| {
        let mut wrong = file["entries"][0].clone();
        wrong["workgroup_size"] = json!(0);
        file["entries"] = json!([wrong, "second", 3]);
    });
    for (field, values) in [
        ("workgroup_size", vec![json!(0), json!(12), json!(1 << 20), json!(-8), json!(8.5)]),
        ("quads_per_invocation", vec![json!(0), json!(4097), json!(u64::MAX), json!("4")]),
        ("finish_workgroup_size", vec![json!(0), json!(3), json!(1u64 << 31), json!(1e300)]),
        ("partials", vec![json!("per-galaxy"), json!(1), Value::Null]),
        ("elements", vec![json!(-1), json!("many"), json!(1e30)]),
    ] {
        for value in values {
            changed(&format!("{field} {value}"), &|file| {
                file["entries"][0][field] = value.clone();
            });
        }
        changed(&format!("no {field}"), &|file| {
            file["entries"][0].as_object_mut().expect("an object").remove(field);
        });
    }
    let endless = right.replace("\"workgroup_size\":16", "\"workgroup_size\":1e999");
    assert_ne!(endless, right);
    cases.push(("1e999".into(), endless.into_bytes()));
    cases
}

#[test]
fn rubbish_is_no_tuning_and_is_replaced() {
    let gpu = &devices()[0];
    let folder = folder();
    let (cache, file) = filled(folder.path(), gpu);
    let cases = rubbish(&file);
    assert!(cases.len() > 30);
    for (what, bytes) in cases {
        std::fs::write(cache.path(), bytes).expect("writes");
        assert_eq!(cache.get(gpu, 1000), None, "{what}");
        cache.put(gpu, 1000, ODD).expect("replaces it");
        assert_eq!(cache.get(gpu, 1000), Some(ODD), "{what}");
    }
    // A folder, and a path below a file, cannot be read, and an error when writing names the path.
    let folder_path = folder.path().join("deep");
    for path in [folder_path.clone(), cache.path().join("tuning.json")] {
        let cache = TuningCache::at(&path);
        assert_eq!(cache.get(gpu, 1000), None);
        let error = cache.put(gpu, 1000, ODD).expect_err("not a file");
        assert_eq!(error.kind(), ErrorKind::TuningCache, "{error}");
        for word in [path.to_str().expect("UTF-8"), CACHE_VARIABLE] {
            assert!(error.to_string().contains(word), "{error}");
        }
    }
    assert!(folder_path.is_dir(), "still a folder");
    assert_eq!(cache.get(gpu, 1000), Some(ODD), "still a file");
    let left: Vec<_> = std::fs::read_dir(folder_path).expect("reads").collect();
    assert_eq!(left.len(), 1, "no temporary files are left: {left:?}");
}

#[test]
fn put_keeps_what_is_not_its_own() {
    let gpu = &devices()[0];
    let folder = folder();
    let (cache, mut file) = filled(folder.path(), gpu);
    let mut foreign = file["entries"][0].clone();
    foreign["adapter"] = json!("Voodoo 2");
    foreign["workgroup_size"] = json!(4096);
    file["entries"] = json!([foreign, "a wrong one", file["entries"][0]]);
    write(&cache, &file);
    let other = Tuning { quads_per_invocation: 5, ..ODD };
    cache.put(gpu, 1000, other).expect("writes");
    let text = std::fs::read_to_string(cache.path()).expect("reads");
    let now: Value = serde_json::from_str(&text).expect("JSON");
    let entries = now["entries"].as_array().expect("entries");
    assert_eq!(entries.len(), 2, "{now}");
    assert_eq!(entries[0], foreign);
    assert_eq!(cache.get(gpu, 1000), Some(other));
}

#[test]
fn puts_at_the_same_time_lose_and_spoil_nothing() {
    let gpu = &devices()[0];
    let folder = folder();
    let (cache, _) = filled(folder.path(), gpu);
    const WRITERS: u64 = 8;
    const PUTS: u64 = 8;
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let cache = cache.clone();
            scope.spawn(move || {
                for put in 0..PUTS {
                    cache.put(gpu, 1 + writer * PUTS + put, ODD).expect("writes");
                }
            });
        }
        for _ in 0..200 {
            let text = std::fs::read_to_string(cache.path()).expect("always there");
            let file: Value = serde_json::from_str(&text).expect("always whole");
            assert!(!file["entries"].as_array().expect("entries").is_empty());
        }
    });
    assert_eq!(cache.entries(gpu).len() as u64, WRITERS * PUTS + 1);
}

/// Environment variables belong to a process, so that this test runs itself again in a new one.
#[test]
fn with_cached_tuning_takes_the_file_that_the_variable_names() {
    const CHILD: &str = "WGPU_OPTIM_TEST_CHILD";
    let gpu = &devices()[0];
    if let Ok(expected) = std::env::var(CHILD) {
        let preset = gpu.tuning();
        let tuning = gpu.clone().with_cached_tuning(1000).tuning();
        match expected.as_str() {
            "cached" => assert_eq!(tuning, ODD),
            _ => assert_eq!(tuning, preset),
        }
        assert_eq!(gpu.clone().with_cached_tuning(1 << 30).tuning(), preset);
        return;
    }
    let folder = folder();
    let (cache, _) = filled(folder.path(), gpu);
    let missing = folder.path().join("missing.json");
    for (path, expected) in
        [(cache.path(), "cached"), (missing.as_path(), "preset"), (folder.path(), "preset"), (Path::new(""), "preset")]
    {
        let output = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "tune::with_cached_tuning_takes_the_file_that_the_variable_names"])
            .env(CHILD, expected)
            .env(CACHE_VARIABLE, path)
            .output()
            .expect("runs");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}: {said}", path.display());
        assert!(said.contains("1 passed"), "{said}");
    }
    assert!(!missing.exists());
}

fn run_cli(line: &str, cache: &Path) -> Output {
    command::wgpu_optim().args(words(line)).env(CACHE_VARIABLE, cache).output().expect("the binary runs")
}

fn json_of(line: &str, cache: &Path) -> Value {
    let output = run_cli(line, cache);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    command::json_of(&output)
}

/// Returns a command that tunes Vulkan at these powers of two.
fn tune(powers: &str, budget_ms: u32) -> String {
    format!("tune --json --backend vulkan --power {powers} --budget-ms {budget_ms}")
}

const TRAIN: &str = "train --json --epochs 1 --backend vulkan";

/// Other commands use the results of `tune`. 2^13 parameters are near the 9610 of the default model.
#[test]
fn the_commands_use_what_tune_has_found_and_say_so() {
    let folder = folder();
    let path = folder.path().join("tuning.json");
    let tune = tune("13,20", 300);
    let report = json_of(&format!("{tune} --dry-run"), &path);
    assert!(report["written"].is_null() && !path.exists(), "a dry run");
    assert_eq!(json_of(TRAIN, &path)["runs"][0]["tuning"], "preset");

    let report = json_of(&tune, &path);
    assert_eq!(report["written"], path.to_str().expect("UTF-8"));
    let sizes = report["sizes"].as_array().expect("sizes");
    assert_eq!(sizes.len(), 2);
    for (size, elements) in sizes.iter().zip([1 << 13, 1 << 20]) {
        assert_eq!(size["elements"], elements);
        for which in ["preset", "best"] {
            assert!(size[which]["ns_per_param"].as_f64().expect("a time") > 0.0, "{size}");
            assert!(size[which]["workgroup_size"].as_u64().expect("a size") > 0);
        }
        assert_eq!(size["candidates"][0]["partials"], size["preset"]["partials"]);
    }

    let output = run_cli(TRAIN, &path);
    let said = String::from_utf8_lossy(&output.stderr);
    let run: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(run["runs"][0]["tuning"], "cached");
    assert!(said.contains(path.to_str().expect("UTF-8")), "{said}");
    let host = json_of("train --json --epochs 1 --backend cpu", &path);
    assert_eq!(host["runs"][0]["tuning"], "none");

    let bench = "bench --json --backend vulkan --from 9 --to 13 --step 4 --rule sgd --regime fixed --round-ms 1";
    let report = json_of(bench, &path);
    let source = |elements: u64| {
        let sizes = report["tuning"].as_array().expect("sizes");
        let size = sizes.iter().find(|size| size["elements"] == elements);
        size.expect("the size")["source"].clone()
    };
    assert_eq!(source(1 << 13), "cached");
    assert_eq!(source(1 << 9), "preset");

    let report = json_of("devices --json", &path);
    let devices = report["devices"].as_array().expect("devices");
    let tuned: usize = devices.iter().map(|device| device["tuned"].as_array().expect("a list").len()).sum();
    assert_eq!(tuned, 2);
}

/// `check` runs every tuning: the preset, sums by subgroup where the adapter supports them, and the cached ones.
#[test]
fn check_covers_the_cached_geometry_and_subgroups() {
    let gpu = &devices()[0];
    let folder = folder();
    let (cache, _) = filled(folder.path(), gpu);
    let report = json_of("check --json --family passes", cache.path());
    let rows = report["rows"].as_array().expect("rows");
    let count = |geometry: &str| rows.iter().filter(|row| row["geometry"] == geometry).count();
    assert_eq!(count("preset"), devices().len());
    assert_eq!(count("cached for 1000"), 1);
    let can = |gpu: &Gpu| Partials::Subgroup.is_supported(gpu.device().features());
    let by_subgroup = devices().into_iter().filter(|gpu| gpu.tuning().partials != Partials::Subgroup && can(gpu));
    assert_eq!(count("preset, but by subgroup"), by_subgroup.count());
    assert!(rows.iter().all(|row| row["failed"] == 0));
}

/// The run has the bits of a run without a cache, and a line names the file.
#[test]
fn a_wrong_cache_never_breaks_a_run() {
    let folder = folder();
    let path = folder.path().join("tuning.json");
    json_of(&tune("13", 1), &path);
    let text = std::fs::read_to_string(&path).expect("reads");
    let file: Value = serde_json::from_str(&text).expect("JSON");
    let mut expected = json_of(TRAIN, Path::new(""));
    expected["runs"][0]["seconds"] = 0.into();
    let check = |what: &str, path: &Path| {
        let output = run_cli(TRAIN, path);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{what}: {said}");
        // There is one warning, however much is wrong.
        let path = path.to_str().expect("UTF-8");
        let lines = said.lines().filter(|line| line.contains(path)).count();
        assert_eq!(lines, 1, "{what}: {said}");
        assert!(!said.contains("panicked"), "{what}: {said}");
        let mut run: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        run["runs"][0]["seconds"] = 0.into();
        assert_eq!(run, expected, "{what}");
    };
    for (what, bytes) in rubbish_of_all_entries(&file) {
        std::fs::write(&path, bytes).expect("writes");
        check(&what, &path);
    }
    check("a folder", folder.path());
    // Not even root can read these.
    #[cfg(unix)]
    {
        let endless = folder.path().join("endless.json");
        std::os::unix::fs::symlink(&endless, &endless).expect("links");
        check("a link to itself", &endless);
        let pipe = folder.path().join("pipe.json");
        let made = Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
        assert!(made.success());
        check("a pipe that nobody writes to", &pipe);
    }
}

/// Returns some cases of `rubbish`, since each takes a process.
fn rubbish_of_all_entries(file: &Value) -> Vec<(String, Vec<u8>)> {
    let mut file = file.clone();
    // The entry that `rubbish` changes.
    file["entries"][0]["workgroup_size"] = json!(16);
    let wanted =
        ["empty", "not UTF-8", "half", "other version", "three wrong entries", "workgroup_size 1048576", "1e999"];
    let mut cases = rubbish(&file);
    cases.retain(|(what, _)| wanted.contains(&what.as_str()));
    assert_eq!(cases.len(), wanted.len());
    cases
}

#[test]
fn processes_that_write_at_once_leave_a_whole_file() {
    let folder = folder();
    let path = folder.path().join("tuning.json");
    std::thread::scope(|scope| {
        for power in ["4", "6", "8"] {
            let path = &path;
            scope.spawn(move || json_of(&tune(power, 1), path));
        }
    });
    let text = std::fs::read_to_string(&path).expect("reads");
    let file: Value = serde_json::from_str(&text).expect("whole");
    assert!((1..=3).contains(&file["entries"].as_array().expect("entries").len()));
    assert_eq!(std::fs::read_dir(folder.path()).expect("reads").count(), 1);
}

#[test]
fn tune_says_what_it_cannot_do() {
    let folder = folder();
    let path = folder.path().join("tuning.json");
    let refuse = |line, words: &[&str]| refused(&run_cli(line, &path), words);
    refuse("tune --backend cpu", &["nothing to tune on the CPU path", "--backend", "--adapter"]);
    refuse("tune --power 31", &["--power", "31"]);
    refuse("tune --budget-ms 0", &["--budget-ms"]);
    let without_drivers = command::without_drivers().arg("tune").env(CACHE_VARIABLE, &path).output();
    refused(&without_drivers.expect("the binary runs"), &["nothing to tune", "no graphics driver"]);
    refused(&run_cli("tune --backend vulkan", Path::new("")), &[CACHE_VARIABLE, "--dry-run"]);
    assert!(!path.exists());

    // The results are measured and shown, but not stored.
    std::fs::write(&path, "a file").expect("writes");
    let below = path.join("tuning.json");
    let output = run_cli("tune --backend vulkan --power 8 --budget-ms 1", &below);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("preset") && shown.contains("nothing written"), "{shown}");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("cannot write the tuning cache") && said.contains(below.to_str().expect("UTF-8")), "{said}");
    let help = run_cli("tune --help", &path);
    assert!(String::from_utf8_lossy(&help.stdout).contains(CACHE_VARIABLE));
}
