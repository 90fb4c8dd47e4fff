//! Tests of `wgpu-optim train --resume`: a run that was interrupted and resumed prints the same numbers, and writes the same trace, as one that was
//! not. A run that loses its device continues by itself, from its checkpoint or from the start, on another adapter or on the CPU path. Settings of
//! another run are named.
//!
//! Each of these faults was introduced by hand once and made a test fail: an order of rows that starts again, rates of the first part that are lost,
//! a trace that is not truncated, and a batch size that is not compared. After a lost device: a history that is not rewound, an epoch whose end is
//! not evaluated, and an older file that is used as the run's own.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use crate::command::{assert_refused, json_of, wgpu_optim, words};
use wgpu_optim::{Gpu, wgpu};

fn train(folder: &Path, args: &[&str]) -> Output {
    let mut command = wgpu_optim();
    command.current_dir(folder).args(["train", "--json"]).args(args);
    command.output().expect("the binary runs")
}

/// Returns the numbers of a run, with the time set to 0.
#[track_caller]
fn numbers(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut report = json_of(output);
    report["runs"][0]["seconds"] = 0.into();
    report["runs"][0].take()
}

fn number(run: &serde_json::Value, key: &str) -> f64 {
    run[key].as_f64().unwrap_or_else(|| panic!("{key} in {run}"))
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).expect("text")
}

/// Returns the output of a run without the line that has its time. It includes the table of what changed the rate, which `--json` does not have.
#[track_caller]
fn table(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().filter(|line| !line.contains(" steps of "));
    lines.collect::<Vec<_>>().join("\n")
}

/// Runs are interrupted within an epoch, at the end of one, and twice, on the CPU path and on a device, with skipped and clipped steps. The first
/// process has fewer epochs, or its trace is edited as if it had been killed.
#[test]
fn a_run_that_was_interrupted_ends_as_if_it_had_not_been() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    for backend in ["cpu", "vulkan"] {
        for (rule, regime) in
            [("sgdm", "seesaw"), ("signsgd", "hypergradient"), ("sgd", "auto-sgd"), ("sgd", "ngn"), ("sgd", "dog")]
        {
            let common = format!("--backend {backend} --rule {rule} --regime {regime} --inject-nan 5 --clip-norm 0.9");
            let common = [&words(&common)[..], &["--telemetry"]].concat();
            let run = |more: &[&str]| train(folder, &[&common[..], more].concat());
            let whole = run(&["--epochs", "3", "--trace", "whole.csv"]);
            let checkpoint = ["--checkpoint", "run.safetensors", "--trace", "parts.csv"];
            let _ = std::fs::remove_file(folder.join("run.safetensors"));
            numbers(&run(&[&checkpoint[..], &["--epochs", "1", "--every", "7"]].concat()));
            // Simulates a process that was killed before its next checkpoint: one row too many, and half a row.
            let mut trace = text(&folder.join("parts.csv"));
            trace.push_str("23,1,1,1,1,1,1,1,1,1,,1,1,1,1,1,1\n24,0.5");
            std::fs::write(folder.join("parts.csv"), trace).expect("written");
            numbers(&run(&[&checkpoint[..], &["--epochs", "2", "--resume"]].concat()));
            let last = run(&[&checkpoint[..], &["--epochs", "3", "--resume", "--every", "10"]].concat());
            assert_eq!(numbers(&last), numbers(&whole), "{backend}, {rule}, {regime}");
            assert_eq!(text(&folder.join("parts.csv")), text(&folder.join("whole.csv")));

            // No step is left, and the numbers are still printed.
            let again = run(&[&checkpoint[..], &["--epochs", "3", "--resume"]].concat());
            assert_eq!(numbers(&again), numbers(&whole));
            assert_eq!(text(&folder.join("parts.csv")), text(&folder.join("whole.csv")));
        }
    }
}

/// A file of the previous version, without a checksum and with the settings and fields of that time, is resumed like a file of this version.
#[test]
fn a_checkpoint_of_the_version_before_is_resumed() {
    const OLD: &[u8] = include_bytes!("../golden/checkpoint-version-2.safetensors");
    let folder = tempfile::tempdir().expect("a folder");
    let file = "run.safetensors";
    let run = |epochs: &str| {
        let run = ["--data", "digits", "--model", "softmax", "--rule", "sgdm"];
        let to = ["--backend", "cpu", "--checkpoint", file, "--resume"];
        train(folder.path(), &[&run[..], &to, &["--epochs", epochs]].concat())
    };
    std::fs::write(folder.path().join(file), OLD).expect("written");
    let from_old = numbers(&run("4"));
    std::fs::remove_file(folder.path().join(file)).expect("saved");
    numbers(&run("2"));
    let from_new = numbers(&run("4"));
    assert_eq!(from_old["steps"], from_new["steps"]);
    // The old file comes from one machine. On another one the sums of the first epochs may be rounded differently.
    for key in ["lr_last", "last_train_loss", "train_loss"] {
        let [old, new] = [&from_old, &from_new].map(|run| number(run, key));
        assert!((old - new).abs() <= 1e-3 * new, "{key}: {old}, {new}");
    }
}

/// A process is killed several times in the middle of an epoch, on either path. The table of the run is the same as well.
#[test]
fn a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been() {
    for backend in ["cpu", "vulkan"] {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        let args = format!("train --backend {backend} --epochs 20 --rule signsgd --average exponential --seed 3");
        let args = words(&args);
        let whole = wgpu_optim().current_dir(folder).args(&args).args(["--trace", "whole.csv"]).output();
        let saved = ["--checkpoint", "run.safetensors", "--every", "5", "--resume", "--trace", "parts.csv"];
        let (mut kills, mut killed_late) = (0, 0);
        let last = loop {
            let mut child = wgpu_optim()
                .current_dir(folder)
                .args(&args)
                .args(saved)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the binary runs");
            if kills == 6 {
                break child.wait_with_output();
            }
            // Waits until there is a checkpoint to resume from, and then a little longer each time.
            let begun = std::time::Instant::now();
            let path = folder.join("run.safetensors");
            let modified = || path.metadata().and_then(|about| about.modified()).ok();
            let before = modified();
            while modified() == before && begun.elapsed() < Duration::from_secs(60) {
                if child.try_wait().expect("a child").is_some() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(kills));
            child.kill().expect("killed");
            let output = child.wait_with_output().expect("gone");
            assert!(output.status.code().is_none_or(|code| code == 0), "{}", String::from_utf8_lossy(&output.stderr));
            killed_late += u32::from(output.status.code().is_none());
            kills += 1;
        };
        assert!(killed_late > 0, "every process was done before it was killed");
        assert_eq!(table(&last.expect("ran")), table(&whole.expect("ran")));
        assert_eq!(text(&folder.join("parts.csv")), text(&folder.join("whole.csv")));
    }
}

/// A run that is resumed on another path has the same results up to rounding.
#[test]
fn a_run_goes_on_on_another_path() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let whole = numbers(&train(folder, &["--epochs", "4", "--backend", "cpu"]));
    for (first, second) in [("cpu", "vulkan"), ("vulkan", "cpu")] {
        let file = ["--checkpoint", "run.safetensors"];
        numbers(&train(folder, &[&file[..], &["--epochs", "2", "--backend", first, "--force"]].concat()));
        let end = train(folder, &[&file[..], &["--epochs", "4", "--resume", "--backend", second]].concat());
        let end = numbers(&end);
        assert_eq!(end["backend"], second);
        // Each path computes the first rate from sums in its own order.
        for (key, allowed) in [("train_loss", 2e-3), ("lr_first", 1e-6)] {
            assert!((number(&end, key) / number(&whole, key) - 1.0).abs() <= allowed, "{key}: {end} {whole}");
        }
    }
}

/// A run that loses its device says in one line what was lost and where it continues. Its results are those without the loss, up to the rounding of
/// the paths. It continues from the last checkpoint, in the middle of an epoch or at its end, or from the start. Its trace and its report are
/// complete. An older file that the run did not resume from is not used.
#[test]
fn a_run_that_loses_its_device_goes_on_without_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let run = |backends: &str, args: &[&str]| {
        let mut command = wgpu_optim();
        command.current_dir(folder).env("WGPU_BACKEND", backends);
        command.args(words("train --json --epochs 3 --backend vulkan")).args(args);
        command.output().expect("the binary runs")
    };
    let whole = run("vulkan", &["--trace", "whole.csv", "--report", "whole.html"]);
    assert_eq!(numbers(&whole)["backend"], "vulkan");
    let whole = numbers(&whole);
    // An epoch has 23 steps. This file belongs to another run.
    numbers(&run("vulkan", &["--checkpoint", "old.safetensors"]));
    let adapters = pollster::block_on(Gpu::adapters(Some(wgpu::Backends::all())));
    let is = |backend| adapters.iter().any(|a| a.get_info().backend == backend);
    for (backends, to) in [("vulkan", "cpu"), ("vulkan,gl", "gl")] {
        if to == "gl" && !is(wgpu::Backend::Gl) {
            continue;
        }
        for (file, every, lost, from) in [
            (Some("new.safetensors"), "10", "37", "from the checkpoint of step 30"),
            (Some("new.safetensors"), "23", "46", "from the checkpoint of step 46"),
            (Some("old.safetensors"), "40", "31", "from the start"),
            (None, "", "0", "from the start"),
            (None, "", "68", "from the start"),
        ] {
            let mut args = vec!["--lose-device", lost, "--trace", "parts.csv", "--report", "parts.html"];
            if let Some(file) = file {
                args.extend(["--checkpoint", file, "--every", every]);
            }
            let output = run(backends, &args);
            let said = String::from_utf8_lossy(&output.stderr);
            let what = format!("{backends}, {args:?}: {said}");
            let end = numbers(&output);
            assert_eq!(end["backend"], to, "{what}");
            let lines: Vec<&str> = said.lines().filter(|line| line.contains("lost")).collect();
            assert_eq!(lines.len(), 1, "{what}");
            let place = if to == "cpu" { "on the CPU path" } else { "(gl, software)" };
            for words in ["the device ", "(vulkan, software) is lost", from, place] {
                assert!(lines[0].contains(words), "{words}: {what}");
            }
            assert!(!said.contains("panicked"), "{what}");
            for (key, allowed) in [("train_loss", 2e-3), ("lr_first", 1e-5)] {
                let off = (number(&end, key) / number(&whole, key) - 1.0).abs();
                assert!(off <= allowed, "{key} is off by {off:e}, {what}");
            }
            let steps = |file: &str| -> Vec<String> {
                let rows = text(&folder.join(file));
                let first = rows.lines().map(|row| row.split(',').next());
                first.flatten().map(str::to_owned).collect()
            };
            assert_eq!(steps("parts.csv"), steps("whole.csv"), "{what}");
            // Every curve has the same number of points. Axes and marks have two points.
            let curves = |file: &str| -> Vec<usize> {
                let page = text(&folder.join(file));
                let lists = page.split("points=\"").skip(1);
                let lists = lists.filter_map(|rest| rest.split('"').next());
                let counts = lists.map(|points| points.split_whitespace().count());
                counts.filter(|&count| count > 2).collect()
            };
            assert_eq!(curves("whole.html"), [69, 4, 69, 69], "{what}");
            assert_eq!(curves("parts.html"), curves("whole.html"), "{what}");
        }
    }
    for (backend, step, words) in [("cpu", "5", "no device to lose"), ("vulkan", "69", "the run has 69 steps")] {
        let args = ["--epochs", "3", "--backend", backend, "--lose-device", step];
        let output = train(folder, &args);
        assert_refused(&output, &["--lose-device", words]);
    }
}

/// With `--change` a run continues with other settings and lists the consequences. Without a change it is the same run.
#[test]
fn settings_are_changed_on_purpose() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    for backend in ["cpu", "vulkan"] {
        let file = ["--checkpoint", "run.safetensors", "--backend", backend];
        let first = || numbers(&train(folder, &[&file[..], &words("--epochs 2 --rule sgdm --force")].concat()));
        let go_on = |args: &str| train(folder, &[&file[..], &words("--resume"), &words(args)].concat());
        first();
        let same = numbers(&go_on("--epochs 3 --rule sgdm --change"));
        first();
        assert_eq!(same, numbers(&go_on("--epochs 3 --rule sgdm")));
        for (args, steps, lines) in [
            (
                // An epoch has 45 steps.
                "--epochs 3 --batch 32 --rule nesterov --weight-decay 0.001",
                135,
                &[
                    "changed: --batch was 64, is 32 now",
                    "changed: --rule was sgdm, is nesterov now",
                    "changed: rule.nesterov of group \"model\": false in the checkpoint, true here",
                    "changed: weight_decay.Coupled of group \"model\": 0.0 in the checkpoint, 0.001 here",
                ][..],
            ),
            (
                "--epochs 4 --rule sgdm --regime fixed --lr 0.05 --schedule warmup-cosine --clip-norm 1",
                92,
                &[
                    "changed: --lr was not given, is 0.05 now",
                    "changed: regime of group \"model\": Seesaw in the checkpoint, Fixed here",
                    "changed: group \"model\": the learning rate starts anew",
                    "changed: schedule of group \"model\": Constant in the checkpoint, WarmupCosine here",
                ],
            ),
            ("--epochs 4 --rule adamw", 92, &["changed: --average was polynomial, is schedule-free now"]),
        ] {
            first();
            let output = go_on(&format!("{args} --change"));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let end = numbers(&output);
            for line in lines {
                assert!(said.lines().any(|said| said.starts_with(line)), "{line}: {said}");
            }
            assert_eq!(end["steps"], steps, "{args}");
            assert!(number(&end, "test_accuracy") > 0.85, "{args}: {end}");
            // The next process has nothing left to change.
            let output = go_on(args);
            assert!(!String::from_utf8_lossy(&output.stderr).contains("changed"));
            numbers(&output);
        }
    }
    assert_refused(&train(folder, &["--change"]), &["--resume"]);
}

#[test]
fn what_would_be_another_run_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let file = ["--checkpoint", "run.safetensors", "--backend", "cpu", "--epochs", "2", "--rule", "sgdm"];
    numbers(&train(folder, &file));
    let saved = std::fs::read(folder.join("run.safetensors")).expect("saved");
    let cases: [(&[&str], &[&str]); 15] = [
        (&["--batch", "32"], &["--batch was 64", "is 32 now: give the same, --change to go on with it, or start anew"]),
        (&["--seed", "1"], &["--seed was 0", "is 1 now: give the same, or start anew"]),
        (&["--seed", "1", "--change"], &["--seed was 0", "is 1 now: give the same, or start anew"]),
        (&["--rule", "signum"], &["--rule was sgdm"]),
        (&["--momentum", "0.8"], &["--momentum was 0.9", "0.8 now"]),
        (&["--regime", "fixed", "--lr", "0.1"], &["--lr was not given", "0.1 now"]),
        (&["--regime", "norm-ratio"], &["--regime was seesaw"]),
        (&["--average", "running"], &["--average was polynomial", "running over 2 epochs now"]),
        (&["--schedule", "step"], &["--schedule was constant", "step over 2 epochs now"]),
        (&["--model", "svm"], &["--model was mlp", "is svm now"]),
        (&["--hidden", "64"], &["--hidden was 128", "64 now"]),
        (&["--data", "mushrooms"], &["the data of --data was 14", "6513 + 1611 rows of 126 features"]),
        (&["--inject-nan", "3"], &["--inject-nan was not given"]),
        (&["--weight-decay", "0.1"], &["--weight-decay was 0 ", "0.1 now"]),
        (&["--report", "page.html"], &["--report would lack the first 46 steps"]),
    ];
    for (args, words) in cases {
        // An option may be given only once.
        let given = match args[0] {
            "--rule" => &file[..file.len() - 2],
            _ => &file[..],
        };
        assert_refused(&train(folder, &[given, &["--resume"], args].concat()), words);
    }
    let fewer = ["--checkpoint", "run.safetensors", "--backend", "cpu", "--epochs", "1", "--resume", "--rule", "sgdm"];
    assert_refused(&train(folder, &fewer), &["at step 46", "--epochs 1 end at step 23"]);
    assert_eq!(std::fs::read(folder.join("run.safetensors")).expect("there"), saved);
    assert!(!folder.join("page.html").exists());
}

#[test]
fn files_that_cannot_serve_are_refused_before_training() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let refused = |args: &[&str], words: &[&str]| {
        assert_refused(&train(folder, &[&["--backend", "cpu", "--epochs", "1"], args].concat()), words);
    };
    refused(&["--checkpoint", "nowhere/run.safetensors"], &["nowhere/run.safetensors", "a folder that exists"]);
    refused(&["--checkpoint", "."], &["not a file"]);
    refused(&["--checkpoint", "a", "--trace", "a"], &["--checkpoint and --trace both name a"]);
    refused(&["--every", "3"], &["--checkpoint"]);
    refused(&["--resume"], &["--checkpoint"]);
    refused(&["--checkpoint", "a", "--every", "0"], &["--every"]);

    std::fs::write(folder.join("foreign"), "1,2,a\n3,4,b\n5,6,a\n7,8,b\n1,1,a\n2,2,b\n").expect("written");
    refused(&["--checkpoint", "foreign", "--resume"], &["the checkpoint foreign is damaged, or none of wgpu-optim"]);
    refused(&["--checkpoint", "foreign", "--data", "foreign"], &["would overwrite the data"]);

    // A checkpoint that the library wrote, without a run.
    let tensor = [0.0f32; 3];
    let optimizer = wgpu_optim::OptimizerBuilder::new(wgpu_optim::Rule::sgd())
        .group(wgpu_optim::Group::new("all").tensor("w", &tensor[..], &tensor[..]))
        .build_cpu()
        .expect("builds");
    optimizer.save(folder.join("other"), None).expect("saved");
    let words = "other is a checkpoint, but was not saved by `wgpu-optim train`";
    refused(&["--checkpoint", "other", "--resume"], &[words]);

    // The trace is that of another run, or no trace of this program.
    numbers(&train(folder, &["--backend", "cpu", "--epochs", "1", "--checkpoint", "run", "--trace", "trace.csv"]));
    let whole = text(&folder.join("trace.csv"));
    let short: String = whole.split_inclusive('\n').take(20).collect();
    for (trace, words) in [
        (short.as_str(), "no row of step 19"),
        ("step,loss\n", "the header is not that"),
        ("", "the header is not that"),
    ] {
        std::fs::write(folder.join("trace.csv"), trace).expect("written");
        let args = ["--backend", "cpu", "--epochs", "2", "--checkpoint", "run", "--resume", "--trace", "trace.csv"];
        assert_refused(&train(folder, &args), &[words, "trace.csv"]);
        assert_eq!(text(&folder.join("trace.csv")), trace);
    }
    // A new trace has the rows from here on.
    let args = ["--backend", "cpu", "--epochs", "2", "--checkpoint", "run", "--resume", "--trace", "new.csv"];
    numbers(&train(folder, &args));
    let new = text(&folder.join("new.csv"));
    assert!(new.lines().nth(1).expect("a row").starts_with("23,"), "{new}");
    // The next process continues the new trace. A warning says which rows a missing trace lacks, and the output says when no step is left.
    let args = ["--backend", "cpu", "--epochs", "3", "--checkpoint", "run", "--resume", "--trace", "new.csv"];
    numbers(&train(folder, &args));
    let steps: Vec<String> = text(&folder.join("new.csv"))
        .lines()
        .skip(1)
        .map(|row| row.split(',').next().unwrap_or("").to_owned())
        .collect();
    assert_eq!(steps, (23..69).map(|step| step.to_string()).collect::<Vec<_>>());
    std::fs::remove_file(folder.join("new.csv")).expect("removed");
    let output = wgpu_optim().current_dir(folder).arg("train").args(args).output().expect("the binary runs");
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert!(err.contains("warning: new.csv is not there: the rows before step 69"), "{err}");
    assert!(out.contains("no step was left, all 69 are from a checkpoint") && !out.contains("0 steps"), "{out}");

    // Having no checkpoint to resume from is no error.
    let args = ["--backend", "cpu", "--epochs", "1", "--checkpoint", "fresh", "--resume"];
    let output = train(folder, &args);
    assert!(String::from_utf8_lossy(&output.stderr).contains("fresh is not there yet"));
    numbers(&output);
    assert!(folder.join("fresh").exists());
}
