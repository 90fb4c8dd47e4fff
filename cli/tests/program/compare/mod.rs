//! Tests of `wgpu-optim train --compare`: it has the numbers of all single runs, and the same ones every time. It chooses the best fixed rate as
//! documented, and refuses bad input before anything runs.

mod rows;
mod tables;

use std::process::Output;

use crate::command::{self, assert_refused, json_of, words};
use serde_json::Value;

/// Runs `wgpu-optim train` with the words of this line.
fn train(threads: &str, line: &str) -> Output {
    command::wgpu_optim().arg("train").args(words(line)).env("RAYON_NUM_THREADS", threads).output().expect("it runs")
}

#[track_caller]
fn printed(threads: &str, line: &str) -> String {
    let output = train(threads, line);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {stderr}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

const COMPARE: &str = "--compare --backend cpu";

/// Returns the report of a comparison on the CPU path.
#[track_caller]
fn compared(line: &str) -> Value {
    json("2", &format!("{COMPARE} {line}"))
}

#[track_caller]
fn json(threads: &str, line: &str) -> Value {
    let output = train(threads, &format!("--json {line}"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    json_of(&output)
}

/// Returns a single run on the CPU path.
#[track_caller]
fn single(line: &str) -> Value {
    json("2", &format!("--backend cpu {line}"))["runs"][0].take()
}

/// Asserts that the command is refused in one line that contains all of these words.
#[track_caller]
fn refused(line: &str, words: &[&str]) {
    assert_refused(&train("2", line), words);
}

fn list<'a>(report: &'a Value, key: &str) -> &'a [Value] {
    report[key].as_array().unwrap_or_else(|| panic!("{key} in {report}"))
}

fn number(object: &Value, key: &str) -> f64 {
    object[key].as_f64().unwrap_or_else(|| panic!("{key} in {object}"))
}

/// Two regimes, two rates, two seeds, one epoch, two rules.
const SMALL: &str =
    "--data digits --settings 64x1 --rules sgd,signsgd --regimes seesaw,norm-ratio --lrs 0.01,0.3 --seeds 3,4";

/// The fields that differ between two runs with the same settings.
const CLOCK: [&str; 5] = ["seconds", "adapter", "lr", "first_step", "gradient_scale"];

/// The fields of iterates that a run evaluates besides the one that it is judged by.
const UNJUDGED: [&str; 3] = ["last_train_loss", "last_test_accuracy", "averaged_test_accuracy"];

fn without(run: &Value, keys: &[&str]) -> Value {
    let mut run = run.clone();
    let fields = run.as_object_mut().expect("an object");
    fields.retain(|key, _| !keys.contains(&key.as_str()));
    run
}

#[test]
fn every_run_is_there_and_is_what_a_single_run_gives() {
    let report = compared(SMALL);
    let mut runs = list(&report, "runs").iter();
    for rule in ["sgd", "signsgd"] {
        for from in [
            "--regime fixed --lr 0.01",
            "--regime fixed --lr 0.3",
            "--regime fixed --lr 0.01 --schedule warmup-cosine",
            "--regime fixed --lr 0.3 --schedule warmup-cosine",
            "--regime seesaw",
            "--regime norm-ratio",
        ] {
            for seed in ["3", "4"] {
                let single =
                    |average: &str| single(&format!("--epochs 1 --rule {rule} --seed {seed} {from} {average}"));
                let run = runs.next().expect("a run");
                // A tuned run is judged by the better of two iterates, any other run by its own.
                let rate = words(from).get(3).map(|rate| rate.parse::<f64>().expect("a rate"));
                let single = if rate.is_some() {
                    let [last, averaged] = ["--last", "--average polynomial"].map(single);
                    let accuracies = [&last, &averaged].map(|run| number(run, "test_accuracy"));
                    assert_eq!(number(run, "last_test_accuracy"), accuracies[0]);
                    assert_eq!(number(run, "averaged_test_accuracy"), accuracies[1]);
                    if accuracies[0] > accuracies[1] { last } else { averaged }
                } else {
                    single("")
                };
                let judged = |run: &Value| without(&without(run, &CLOCK), &UNJUDGED);
                assert_eq!(judged(run), judged(&single));
                assert_eq!(run["lr"].as_f64(), rate, "{run}");
            }
        }
    }
    assert!(runs.next().is_none());
}

#[test]
fn means_and_gaps_follow_from_the_runs() {
    let report = compared(SMALL);
    let (runs, summary) = (list(&report, "runs"), list(&report, "summary"));
    assert_eq!((runs.len(), summary.len()), (24, 12));
    for (cell, pair) in summary.iter().zip(runs.chunks(2)) {
        let [a, b] = [0, 1].map(|at| number(&pair[at], "test_accuracy"));
        let accuracy = number(cell, "test_accuracy");
        assert!((accuracy - (a + b) / 2.0).abs() < 1e-12);
        let deviation = (a - b).abs() / 2f64.sqrt();
        assert!((number(cell, "test_accuracy_deviation") - deviation).abs() < 1e-12);
        let loss = (number(&pair[0], "train_loss") + number(&pair[1], "train_loss")) / 2.0;
        assert!((number(cell, "train_loss") - loss).abs() < 1e-12);
    }
    for rule in summary.chunks(6) {
        let accuracies: Vec<f64> = rule.iter().map(|cell| number(cell, "test_accuracy")).collect();
        for (at, lr, above) in [(0, "best_fixed_lr", "above_best_fixed"), (2, "best_cosine_lr", "above_best_cosine")] {
            let tuned = &accuracies[at..at + 2];
            let best = tuned[0].max(tuned[1]);
            assert_ne!(tuned[0], tuned[1], "a tie shows nothing");
            for (cell, accuracy) in rule.iter().zip(&accuracies) {
                let rate = if tuned[0] == best { 0.01 } else { 0.3 };
                assert_eq!(number(cell, lr), rate);
                assert!((number(cell, above) - 100.0 * (accuracy - best)).abs() < 1e-9);
            }
        }
    }
    // Without averages, the best rate is that of the last iterates.
    for rule in summary.chunks(6) {
        let runs = list(&report, "runs");
        let last = |lr: f64| {
            let is = |run: &Value, key: &str, value: &Value| run[key] == *value;
            let of_rate = runs.iter().filter(|run| is(run, "rule", &rule[0]["rule"]) && is(run, "lr", &lr.into()));
            let of_rate = of_rate.filter(|run| is(run, "schedule", &"constant".into()));
            let accuracies: Vec<f64> = of_rate.map(|run| number(run, "last_test_accuracy")).collect();
            assert_eq!(accuracies.len(), 2);
            accuracies.iter().sum::<f64>() / 2.0
        };
        let best = last(0.01).max(last(0.3));
        for cell in rule {
            let above = 100.0 * (number(cell, "test_accuracy") - best);
            assert!((number(cell, "above_best_last") - above).abs() < 1e-9);
        }
    }
    // The lines at the end compare every rule and regime with both references, and all rules together.
    let overall = list(&report, "overall");
    assert_eq!(overall.len(), 2 * (2 + 1) * 3);
    for line in overall {
        let key = match line["against"].as_str() {
            Some("best fixed") => "above_best_fixed",
            Some("best cosine") => "above_best_cosine",
            Some("best fixed, last") => "above_best_last",
            _ => panic!("{line}"),
        };
        let cells = summary.iter().filter(|cell| cell["regime"] == line["rate_from"]);
        let cells = cells.filter(|cell| line["rule"] == "all" || cell["rule"] == line["rule"]);
        let points: Vec<f64> = cells.map(|cell| number(cell, key)).collect();
        let count = points.len() as f64;
        assert_eq!(number(line, "compared"), count);
        assert_eq!(points.len(), if line["rule"] == "all" { 2 } else { 1 });
        let mean = points.iter().sum::<f64>() / count;
        assert!((number(line, "mean") - mean).abs() < 1e-9, "{line}");
        let worst = points.iter().copied().fold(f64::INFINITY, f64::min);
        assert_eq!(number(line, "worst"), worst, "{line}");
        let place = line["worst_at"].as_str().expect("a place");
        assert!(place.starts_with("digits 64x1, s"), "{line}");
        for (key, limit) in [("more_than_half_a_point_below", -0.5), ("more_than_two_points_below", -2.0)] {
            let below = points.iter().filter(|&&points| points < limit).count();
            assert_eq!(number(line, key), below as f64 / count, "{line}");
        }
    }
}

#[test]
fn output_repeats_for_any_number_of_threads() {
    let markdown = format!("{COMPARE} {SMALL} --markdown");
    let text = format!("{COMPARE} {SMALL}");
    assert_eq!(printed("2", &text), printed("2", &text));
    assert_eq!(printed("1", &markdown), printed("3", &markdown));
    let (one, three) = (json("1", &text), json("3", &text));
    assert_eq!(one["summary"], three["summary"]);
    for (a, b) in list(&one, "runs").iter().zip(list(&three, "runs")) {
        assert_eq!(without(a, &CLOCK), without(b, &CLOCK));
    }
}
