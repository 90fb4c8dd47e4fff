//! Promise: `wgpu-optim train --compare` gives the numbers of single runs, all of them and the same every time, chooses the best
//! fixed rate as it says, and refuses bad input before anything runs.

use std::process::Output;

use crate::command::{self, assert_refused};
use serde_json::Value;

fn wgpu_optim(threads: &str, args: &[&str]) -> Output {
    command::wgpu_optim().arg("train").args(args).env("RAYON_NUM_THREADS", threads).output().expect("the binary runs")
}

fn printed(threads: &str, args: &[&str]) -> String {
    let output = wgpu_optim(threads, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn json(threads: &str, args: &[&str]) -> Value {
    serde_json::from_str(&printed(threads, args)).expect("one JSON object")
}

fn list<'a>(report: &'a Value, key: &str) -> &'a [Value] {
    report[key].as_array().unwrap_or_else(|| panic!("{key} in {report}"))
}

fn number(object: &Value, key: &str) -> f64 {
    object[key].as_f64().unwrap_or_else(|| panic!("{key} in {object}"))
}

/// Two regimes, two rates, two seeds, one epoch, two rules.
const SMALL: [&str; 15] = [
    "--compare",
    "--backend",
    "cpu",
    "--data",
    "digits",
    "--settings",
    "64x1",
    "--rules",
    "sgd,signsgd",
    "--regimes",
    "seesaw,norm-ratio",
    "--lrs",
    "0.01,0.3",
    "--seeds",
    "3,4",
];

/// What differs between two runs of one thing.
fn without_clock(run: &Value) -> Value {
    let mut run = run.clone();
    let fields = run.as_object_mut().expect("an object");
    for key in ["seconds", "adapter", "lr", "first_step", "gradient_scale"] {
        fields.remove(key);
    }
    run
}

/// What a comparison looks at; a single run looks at more.
fn judged(run: &Value) -> Value {
    let mut run = without_clock(run);
    let fields = run.as_object_mut().expect("an object");
    for key in ["last_train_loss", "last_test_accuracy", "averaged_test_accuracy"] {
        fields.remove(key);
    }
    run
}

#[test]
fn every_run_is_there_and_is_what_a_single_run_gives() {
    let report = json("2", &[&SMALL[..], &["--json"]].concat());
    let mut runs = list(&report, "runs").iter();
    for rule in ["sgd", "signsgd"] {
        let cosine = ["--schedule", "warmup-cosine"];
        for (extra, schedule) in [
            (["--regime", "fixed", "--lr", "0.01"].as_slice(), &[][..]),
            (&["--regime", "fixed", "--lr", "0.3"], &[]),
            (&["--regime", "fixed", "--lr", "0.01"], &cosine),
            (&["--regime", "fixed", "--lr", "0.3"], &cosine),
            (&["--regime", "seesaw"], &[]),
            (&["--regime", "norm-ratio"], &[]),
        ] {
            for seed in ["3", "4"] {
                let args = ["--json", "--backend", "cpu", "--epochs", "1"];
                let which = ["--rule", rule, "--seed", seed];
                let single = |average: &[&str]| {
                    json("2", &[&args[..], &which, extra, schedule, average].concat())["runs"][0].take()
                };
                let run = runs.next().expect("a run");
                // What is tuned is judged by the better of two iterates, what is not by its own.
                let single = if extra[1] == "fixed" {
                    let [last, averaged] = [&["--last"][..], &["--average", "polynomial"]].map(single);
                    let accuracies = [&last, &averaged].map(|run| number(run, "test_accuracy"));
                    assert_eq!(number(run, "last_test_accuracy"), accuracies[0]);
                    assert_eq!(number(run, "averaged_test_accuracy"), accuracies[1]);
                    if accuracies[0] > accuracies[1] { last } else { averaged }
                } else {
                    single(&[])
                };
                assert_eq!(judged(run), judged(&single));
                let rate = extra.get(3).map(|rate| rate.parse::<f64>().expect("a rate"));
                assert_eq!(run["lr"].as_f64(), rate, "{run}");
            }
        }
    }
    assert!(runs.next().is_none());
}

#[test]
fn means_and_gaps_follow_from_the_runs() {
    let report = json("2", &[&SMALL[..], &["--json"]].concat());
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
    // The same without averages: the best of the last iterates.
    for rule in summary.chunks(6) {
        let runs = list(&report, "runs");
        let last = |lr: f64| {
            let of_rate = runs.iter().filter(|run| {
                run["rule"] == rule[0]["rule"]
                    && run["regime"] == "fixed"
                    && run["schedule"] == "constant"
                    && run["lr"].as_f64() == Some(lr)
            });
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
    // The few lines at the end: every rule and regime against both references, and all rules together.
    let overall = list(&report, "overall");
    assert_eq!(overall.len(), 2 * (2 + 1) * 3);
    for line in overall {
        let key = match line["against"].as_str() {
            Some("best fixed") => "above_best_fixed",
            Some("best cosine") => "above_best_cosine",
            Some("best fixed, last") => "above_best_last",
            _ => panic!("{line}"),
        };
        let points: Vec<f64> = summary
            .iter()
            .filter(|cell| cell["regime"] == line["rate_from"])
            .filter(|cell| line["rule"] == "all" || cell["rule"] == line["rule"])
            .map(|cell| number(cell, key))
            .collect();
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
    let markdown = [&SMALL[..], &["--markdown"]].concat();
    assert_eq!(printed("2", &SMALL), printed("2", &SMALL));
    assert_eq!(printed("1", &markdown), printed("3", &markdown));
    let with_json = [&SMALL[..], &["--json"]].concat();
    let (one, three) = (json("1", &with_json), json("3", &with_json));
    assert_eq!(one["summary"], three["summary"]);
    for (a, b) in list(&one, "runs").iter().zip(list(&three, "runs")) {
        assert_eq!(without_clock(a), without_clock(b));
    }
}

#[test]
fn tables_can_be_read_at_120_columns_and_markdown_has_its_columns() {
    let every_rule = [
        "--compare",
        "--backend",
        "cpu",
        "--epochs",
        "1",
        "--lrs",
        "0.1",
        "--seeds",
        "0,1",
        "--rules",
        "sgd,sgdm,nesterov,signsgd,signum",
        "--data",
        "digits,mushrooms",
    ];
    let text = printed("2", &every_rule);
    for line in text.lines().filter(|line| line.starts_with(['┌', '│'])) {
        assert!(line.chars().count() <= 120, "{line}");
    }
    for words in ["chosen on the test rows", "hypergradient", "end of its grid", "all together"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let text = printed("2", &[&every_rule[..], &["--markdown"]].concat());
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[2].starts_with("| digits | 64, 1 | best fixed | "), "{text}");
    assert!(lines[3].starts_with("| | | best cosine | "), "{text}");
    assert!(lines[4].starts_with("| | | seesaw | "), "{text}");
    // A table of all, one of them together, and notes.
    let mut tables = lines.split(|line| line.is_empty());
    let bars = |table: &[&str], count: usize| {
        for line in table {
            assert_eq!(line.matches('|').count(), count, "{line}");
        }
    };
    bars(tables.next().expect("a table"), 3 + 5 + 1);
    let title = tables.next().expect("a title");
    assert!(title[0].starts_with("all together") && title[0].ends_with(':'));
    bars(tables.next().expect("a table"), 8 + 1);
    let notes = tables.next().expect("notes");
    assert!(notes.iter().all(|line| line.starts_with("- ")), "{notes:?}");
    assert!(tables.next().is_none());
}

/// Rows for the first step's length, and for a loss that was rescaled: the tuned rate is the one of the unscaled gradient.
#[test]
fn first_steps_and_gradient_scales_have_a_row_each() {
    let report = json(
        "2",
        &[
            "--compare",
            "--json",
            "--backend",
            "cpu",
            "--epochs",
            "1",
            "--rules",
            "sgd",
            "--regimes",
            "seesaw",
            "--lrs",
            "0.01,1",
            "--seeds",
            "0",
            "--first-steps",
            "1e-3,0.15",
            "--gradient-scales",
            "1,1024",
        ],
    );
    let summary = list(&report, "summary");
    let find = |regime: &str, first_step: Option<f64>, scale: f64| {
        let mut found = summary.iter().filter(|cell| {
            cell["regime"] == regime
                && cell["first_step"].as_f64() == first_step
                && number(cell, "gradient_scale") == scale
        });
        let cell = found.next().expect("a row");
        assert!(regime == "fixed" && scale == 1.0 || found.next().is_none());
        cell
    };
    assert_eq!(summary.len(), 2 * 2 + 4 + 1);
    let tuned = find("fixed", None, 1024.0);
    assert_eq!(number(tuned, "lr"), number(tuned, "best_fixed_lr"));
    assert!(number(tuned, "above_best_fixed") < -20.0, "{tuned}");
    let [short, default] = [1e-3, 0.15].map(|step| find("seesaw", Some(step), 1.0));
    assert_ne!(short["train_loss"], default["train_loss"]);
    // The default's value, given: what is run without it.
    let args = ["--json", "--backend", "cpu", "--epochs", "1", "--rule", "sgd"];
    let single = json("2", &args);
    assert_eq!(single["runs"][0]["train_loss"], default["train_loss"]);
    // A power of two leaves every digit of the gradient, and the first step's length makes up for it.
    let scaled = find("seesaw", Some(0.15), 1024.0);
    assert!((number(scaled, "test_accuracy") - number(default, "test_accuracy")).abs() < 0.01);
}

/// For every schedule the grid of fixed rates under it, and the regime under it; each is what a single run with that schedule gives.
#[test]
fn schedules_have_a_best_fixed_rate_and_a_row_per_regime_each() {
    let report = json(
        "2",
        &[
            "--compare",
            "--json",
            "--backend",
            "cpu",
            "--epochs",
            "2",
            "--rules",
            "sgd",
            "--regimes",
            "seesaw",
            "--lrs",
            "0.3,1",
            "--seeds",
            "0",
            "--schedules",
            "constant,warmup-cosine,inverse-sqrt,step,one-cycle",
        ],
    );
    let summary = list(&report, "summary");
    assert_eq!(summary.len(), 5 * (2 + 1));
    let mut seen = Vec::new();
    for cell in summary {
        let [regime, schedule] = ["regime", "schedule"].map(|key| cell[key].as_str().expect("a name"));
        let lr = cell["lr"].as_f64().map(|lr| lr.to_string());
        let mut args = vec!["--json", "--backend", "cpu", "--epochs", "2"];
        args.extend(["--rule", "sgd", "--regime", regime, "--schedule", schedule]);
        if let Some(lr) = &lr {
            args.extend(["--average", "polynomial", "--lr", lr]);
        }
        let single = &json("2", &args)["runs"][0];
        let losses = ["train_loss", "last_train_loss"].map(|key| &single[key]);
        // A rate that is given is judged by the better of the two.
        assert!(losses[..1 + usize::from(lr.is_some())].contains(&&cell["train_loss"]), "{cell}");
        assert_eq!(single["schedule"], schedule);
        // Every schedule but the constant ends below where a rate alone would.
        if regime == "fixed" {
            let last = number(single, "lr_last") / number(cell, "lr");
            assert_eq!(last > 0.999, schedule == "constant", "{schedule}: {last}");
        }
        // All are against the best rate without a schedule, and against the best peak of the cosine.
        assert_eq!(cell["best_fixed_lr"], summary[0]["best_fixed_lr"]);
        assert_eq!(cell["best_cosine_lr"], summary[0]["best_cosine_lr"]);
        seen.push(number(cell, "train_loss").to_bits());
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), summary.len(), "no two of them are the same run");
}

/// A rate that blows up is a row like any other, and is not chosen.
#[test]
fn a_run_that_diverges_is_a_result() {
    let args = [
        "--compare",
        "--backend",
        "cpu",
        "--epochs",
        "1",
        "--rules",
        "sgdm",
        "--regimes",
        "seesaw",
        "--lrs",
        "1e10,0.1",
        "--seeds",
        "0,1",
    ];
    let report = json("2", &[&args[..], &["--json"]].concat());
    let summary = list(&report, "summary");
    assert!(number(&summary[0], "diverged") > 0.0, "{}", summary[0]);
    assert!(summary[0]["train_loss"].is_null());
    assert_eq!(number(&summary[0], "best_fixed_lr"), 0.1);
    assert!(printed("2", &args).contains("best fixed"));
}

/// It counts as if it had answered with the most frequent class, and a regime that does it is told of; the command does not fail for it.
#[test]
fn a_regime_that_diverges_is_told_of_and_counts_as_chance() {
    let args = [
        "--compare",
        "--backend",
        "cpu",
        "--epochs",
        "2",
        "--rules",
        "sgdm",
        "--regimes",
        "bb-long",
        "--lrs",
        "0.1,0.01",
        "--seeds",
        "0",
    ];
    let report = json("2", &[&args[..], &["--json"]].concat());
    let runs = list(&report, "runs");
    let run = runs.last().expect("a run");
    assert_eq!((&run["regime"], &run["verdict"]), (&"bb-long".into(), &"diverged".into()));
    let cell = list(&report, "summary").last().expect("a cell");
    assert_eq!(number(cell, "diverged"), 1.0);
    // The most frequent of ten classes has a tenth of the rows, more or less.
    let chance = number(cell, "test_accuracy");
    assert!((0.07..0.13).contains(&chance), "{cell}");
    assert!(number(cell, "above_best_fixed") < -50.0, "{cell}");
    assert_eq!(number(&list(&report, "overall")[0], "diverged"), 1.0);
    let table = printed("2", &args);
    for words in ["┆ diverged ┆", "sgdm, bb-long: 1 of 1 runs diverged"] {
        assert!(table.contains(words), "{words}: {table}");
    }
    let markdown = printed("2", &[&args[..], &["--markdown"]].concat());
    assert!(markdown.contains("| **diverged** ("), "{markdown}");
}

/// Two steps ask for rates beyond the grid, which is made longer until the best one is within it, or three times; a grid that is given
/// is left as it is, and said to be too short.
#[test]
fn a_grid_is_made_longer_where_the_best_is_at_its_end() {
    let args = [
        "--compare",
        "--backend",
        "cpu",
        "--settings",
        "1024x1",
        "--rules",
        "signsgd",
        "--regimes",
        "seesaw",
        "--seeds",
        "0",
    ];
    let rates = |args: &[&str], schedule: &str| -> Vec<f64> {
        let report = json("2", &[args, &["--json"]].concat());
        let cells = list(&report, "summary").iter();
        let grid = cells.filter(|cell| cell["regime"] == "fixed" && cell["schedule"] == schedule);
        grid.map(|cell| number(cell, "lr")).collect()
    };
    let given = [&args[..], &["--lrs", "1e-4,3e-4"]].concat();
    assert_eq!(rates(&given, "constant"), [1e-4, 3e-4]);
    let table = printed("2", &given);
    for best in ["signsgd, best fixed: 3e-4", "signsgd, best cosine: 3e-4"] {
        let note = format!("{best} is at the upper end of its grid");
        assert!(table.contains(&note), "{note}: {table}");
    }
    let default = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2];
    let beyond = [1e-1, 3e-1, 1.0];
    let mut longer = 0;
    for schedule in ["constant", "warmup-cosine"] {
        let rates = rates(&args, schedule);
        let (given, more) = rates.split_at(default.len());
        assert_eq!(given, default);
        assert_eq!(more, &beyond[..more.len()]);
        longer += more.len();
    }
    assert!(longer > 0, "no best rate was at an end: another setting would show something");
}

/// Each set has the epochs that it asks for.
#[test]
fn made_and_other_sets_have_their_own_epochs() {
    let args = [
        "--compare",
        "--json",
        "--backend",
        "cpu",
        "--data",
        "sine,digits",
        "--rules",
        "lion",
        "--regimes",
        "seesaw",
        "--lrs",
        "0.01",
        "--seeds",
        "0",
    ];
    let report = json("2", &args);
    for (cells, (data, epochs)) in list(&report, "summary").chunks(3).zip([("sine", 40), ("digits", 10)]) {
        for cell in cells {
            assert_eq!((&cell["data"], &cell["epochs"]), (&data.into(), &epochs.into()));
        }
    }
    let short = json("2", &[&args[..], &["--epochs", "2"]].concat());
    assert!(list(&short, "summary").iter().all(|cell| cell["epochs"] == 2));
}

/// The last weights of a regime instead of its average, and AdamW with its momentum.
#[test]
fn last_judges_regimes_by_their_last_weights() {
    let args = [
        "--compare",
        "--json",
        "--backend",
        "cpu",
        "--epochs",
        "1",
        "--rules",
        "sgdm,adamw",
        "--regimes",
        "seesaw",
        "--lrs",
        "0.01",
        "--seeds",
        "0",
    ];
    for (more, sgdm, adamw, momentum) in
        [(&[][..], "polynomial", "schedule-free", 0.0), (&["--last"], "last", "last", 0.9)]
    {
        let report = json("2", &[&args[..], more].concat());
        let runs = list(&report, "runs");
        for (run, evaluated) in [(&runs[2], sgdm), (&runs[5], adamw)] {
            assert_eq!((&run["regime"], &run["evaluated"]), (&"seesaw".into(), &evaluated.into()));
        }
        assert!((number(&runs[5], "momentum") - momentum).abs() < 1e-6);
        // What is tuned has the momentum that AdamW is known for.
        assert!((number(&runs[3], "momentum") - 0.9).abs() < 1e-6);
    }
}

#[test]
fn the_report_has_a_table_and_a_chart_and_needs_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("page.html");
    let path = path.to_str().expect("UTF-8");
    printed("2", &[&SMALL[..], &["--report", path]].concat());
    let page = std::fs::read_to_string(path).expect("reads");
    for (what, count) in [("<table>", 2), ("<svg ", 1), ("src=", 0), ("href=", 0)] {
        assert_eq!(page.matches(what).count(), count, "{what}");
    }
    assert!(page.contains("norm-ratio") && page.contains("(at 0.3)"));
    for (path, word) in [("page.txt", ".html"), ("/no/such/folder/x.html", "folder")] {
        refused(&["--compare", "--report", path], &["--report", word]);
    }
}

/// Runs the command, which must be refused in one line that contains every one of these words.
fn refused(args: &[&str], words: &[&str]) {
    assert_refused(&wgpu_optim("2", args), words);
}

/// A regime that a rule cannot have is not run with it, and its place in the table stays empty.
#[test]
fn what_does_not_go_together_is_left_out() {
    let mut args = SMALL;
    args[8] = "sgd,sgdm";
    args[10] = "seesaw,auto-sgd";
    args[14] = "3";
    let report = json("2", &[&args[..], &["--json"]].concat());
    let runs: Vec<(&str, &str)> = list(&report, "summary")
        .iter()
        .filter(|cell| cell["regime"] != "fixed")
        .map(|cell| (cell["rule"].as_str(), cell["regime"].as_str()))
        .map(|(rule, regime)| (rule.expect("a rule"), regime.expect("a regime")))
        .collect();
    assert_eq!(runs, [("sgd", "seesaw"), ("sgd", "auto-sgd"), ("sgdm", "seesaw")]);
    // A run of streams ends with a whole round of three: 23 steps are 21.
    let steps: Vec<u64> = list(&report, "runs")
        .iter()
        .filter(|run| run["regime"] == "auto-sgd")
        .map(|run| run["steps"].as_u64().expect("a number"))
        .collect();
    assert_eq!(steps, [21]);
    for format in [&[][..], &["--markdown"]] {
        let table = printed("2", &[&args[..], format].concat());
        assert!(table.contains("auto-sgd"), "{table}");
    }
}

#[test]
fn bad_input_ends_in_one_line_before_anything_runs() {
    // Options that go with --compare, without it; and what it takes the place of.
    for option in [["--rules", "sgd"], ["--seeds", "1"], ["--first-steps", "1"]] {
        refused(&option, &["--compare"]);
    }
    for option in [["--rule", "sgd"], ["--regime", "seesaw"], ["--schedule", "step"], ["--seed", "1"]] {
        refused(&["--compare", option[0], option[1]], &["--compare", option[0]]);
    }
    let cases: [(&[&str], &[&str]); 15] = [
        (&["--regimes", "fixed"], &["--regimes", "--lrs"]),
        (&["--rules", "adagrad"], &["adagrad", "sgdm"]),
        (&["--settings", "64"], &["64", "64x10"]),
        (&["--settings", "0x3"], &["0x3", "at least 1"]),
        (&["--settings", "64x1", "--batch", "32"], &["--batch"]),
        (&["--lrs", "0.1,-1"], &["learning rate", "-1"]),
        (&["--lrs", "0.1,0.1"], &["--lrs", "0.1", "twice"]),
        (&["--schedules", "step,step"], &["--schedules", "twice"]),
        (&["--seeds", "1,1"], &["--seeds", "twice"]),
        (&["--data", "digits,nowhere"], &["nowhere", "no such file"]),
        (&["--data", "digits,"], &["--data", "empty name"]),
        (&["--first-steps", "0"], &["first_step", "above 0"]),
        (&["--gradient-scales", "0"], &["--gradient-scales", "above 0"]),
        (&["--json", "--markdown"], &["--json", "--markdown"]),
        (&["--regimes", "auto-sgd", "--rules", "sgdm,nesterov"], &["auto-sgd", "sgdm"]),
    ];
    for (args, words) in cases {
        refused(&[&["--compare"], args].concat(), words);
    }
    refused(&["--compare", "--gradient-scales", "10", "--backend", "vulkan"], &["--gradient-scales", "--backend cpu"]);
}
