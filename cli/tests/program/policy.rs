//! Tests of `train --schedule-policy`: a policy sets the learning rate, with the same results on the device and on the CPU path. Files that are no
//! policy are refused.

use std::path::Path;

use wgpu_optim::{PolicyScale, SchedulePolicy};

use crate::command::{assert_refused, json_of, wgpu_optim, words};

/// Returns a policy with one unit in each layer, whose output depends on the loss.
fn policy() -> SchedulePolicy {
    let gates = [2.0, 0.5, -1.5, 1.0];
    let tensors: [(&str, &[usize], &[f32]); 10] = [
        ("layer1.fc_i2h.0.weight", &[1, 1], &[1.0]),
        ("layer1.fc_i2h.0.bias", &[1], &[0.1]),
        ("layer1.fc_i2h.2.weight", &[4, 1], &gates),
        ("layer1.fc_i2h.2.bias", &[4], &gates),
        ("layer1.fc_h2h.0.weight", &[1, 1], &[-1.0]),
        ("layer1.fc_h2h.0.bias", &[1], &[0.2]),
        ("layer1.fc_h2h.2.weight", &[4, 1], &gates),
        ("layer1.fc_h2h.2.bias", &[4], &gates),
        ("layer3.weight", &[1, 1], &[2.0]),
        ("layer3.bias", &[1], &[0.5]),
    ];
    SchedulePolicy::new(PolicyScale::Given(1.0), tensors).expect("a policy")
}

fn train(line: &str, path: &Path) -> std::process::Output {
    let mut command = wgpu_optim();
    command.args(words(line)).arg("--schedule-policy").arg(path).output().expect("the binary runs")
}

#[test]
fn a_policy_sets_the_rate_on_both_paths() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("policy.safetensors");
    std::fs::write(&path, policy().to_safetensors().expect("writes")).expect("written");
    let runs = ["cpu", "vulkan"].map(|backend| {
        let line = format!("train --json --model softmax --last --regime fixed --lr 1 --epochs 3 --backend {backend}");
        let output = train(&line, &path);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        json_of(&output)["runs"][0].clone()
    });
    // γ for the first loss, ln 10. The sigmoid keeps the rates below it.
    let scale = 10f64.ln().sqrt() * (10.0 * 10f64.ln()).ln() / 10f64.powf(0.25) / 4.0;
    for key in ["lr_first", "lr_last", "lr_min", "lr_max"] {
        let [host, device] = runs.each_ref().map(|run| run[key].as_f64().expect("a number"));
        assert!((host - device).abs() <= 1e-5 && host > 0.0 && host < scale, "{key}: {host} and {device}, γ {scale}");
    }
    let rates = ["lr_min", "lr_max"].map(|key| runs[0][key].as_f64().expect("a number"));
    assert!(rates[1] > 1.05 * rates[0], "the policy has not moved: {rates:?}");
    assert!(runs[0]["test_accuracy"].as_f64().expect("a number") > 0.9, "{}", runs[0]);
}

#[test]
fn what_is_no_policy_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("policy.safetensors");
    let line = "train --regime fixed --lr 1 --backend cpu";
    assert_refused(&train(line, &path), &["--schedule-policy", "policy.safetensors", "No such file"]);
    std::fs::write(&path, "not a policy").expect("written");
    assert_refused(&train(line, &path), &["--schedule-policy", "cannot be read as safetensors"]);
    // The policy's file is read, so that it is not overwritten.
    std::fs::write(&path, policy().to_safetensors().expect("writes")).expect("written");
    let trace = format!("{line} --trace {}", path.display());
    assert_refused(&train(&trace, &path), &["overwrite"]);
    let line = "train --checkpoint run.safetensors";
    assert_refused(&train(line, &path), &["--schedule-policy", "--checkpoint"]);
}

/// The row of a learned schedule is the run that uses it, beside rows that do not.
#[test]
fn a_learned_schedule_has_a_row_of_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("policy.safetensors");
    let of = "--json --model softmax --data digits --epochs 2 --backend cpu";
    let compare = format!("train {of} --compare --rules sgd --regimes seesaw --lrs 0.1,1 --seeds 0");
    assert_refused(&train(&compare, &path), &["--schedule-policy", "No such file"]);
    std::fs::write(&path, policy().to_safetensors().expect("writes")).expect("written");
    let output = train(&compare, &path);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let summary = json_of(&output)["summary"].as_array().expect("a list").clone();
    let row = |regime: &str| {
        let mut rows = summary.iter().filter(|row| row["regime"] == regime);
        rows.next().expect("a row").clone()
    };
    let single = |line: String| json_of(&train(&line, &path))["runs"][0].clone();
    let learned = single(format!("train {of} --regime fixed --lr 1 --seed 0"));
    assert_eq!(row("learned-schedule")["train_loss"], learned["train_loss"]);
    assert!(row("learned-schedule")["lr"].is_null());
    // The policy changes no other row.
    let mut without = wgpu_optim();
    let without = without.args(words(&format!("train {of} --seed 0"))).output().expect("the binary runs");
    assert_eq!(row("seesaw")["train_loss"], json_of(&without)["runs"][0]["train_loss"]);
    assert_eq!(summary.len(), 2 * 2 + 2);
}
