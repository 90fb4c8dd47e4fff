//! The rows of a comparison.

use wgpu_optim::Schedule;

use super::{COMPARE, compared, list, number, printed, single};

/// The lengths of the first step and the scales of the loss have rows. The tuned rate is that of the unscaled gradient.
#[test]
fn first_steps_and_gradient_scales_have_a_row_each() {
    let scales = "--first-steps 1e-3,0.15 --gradient-scales 1,1024";
    let report = compared(&format!("--epochs 1 --rules sgd --regimes seesaw --lrs 0.01,1 --seeds 0 {scales}"));
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
    // A given value that is the default's makes no difference.
    assert_eq!(single("--epochs 1 --rule sgd")["train_loss"], default["train_loss"]);
    // Scaling by a power of two keeps every digit of the gradient, and the length of the first step compensates for it.
    let scaled = find("seesaw", Some(0.15), 1024.0);
    assert!((number(scaled, "test_accuracy") - number(default, "test_accuracy")).abs() < 0.01);
}

/// Every schedule has the grid of fixed rates and the regime under it. Each row is a single run with this schedule.
#[test]
fn schedules_have_a_best_fixed_rate_and_a_row_per_regime_each() {
    let schedules: Vec<&str> = Schedule::all(1).iter().map(Schedule::name).collect();
    let schedules = schedules.join(",");
    let of = "--epochs 2 --rules sgd --regimes seesaw --lrs 0.3,1 --seeds 0";
    let report = compared(&format!("{of} --schedules {schedules}"));
    let summary = list(&report, "summary");
    assert_eq!(summary.len(), 11 * (2 + 1));
    let mut seen = Vec::new();
    for cell in summary {
        let [regime, schedule] = ["regime", "schedule"].map(|key| cell[key].as_str().expect("a name"));
        let lr = cell["lr"].as_f64();
        let more = lr.map(|lr| format!("--average polynomial --lr {lr}")).unwrap_or_default();
        let single = single(&format!("--epochs 2 --rule sgd --regime {regime} --schedule {schedule} {more}"));
        let losses = ["train_loss", "last_train_loss"].map(|key| &single[key]);
        // A fixed rate is judged by the better of two iterates.
        assert!(losses[..1 + usize::from(lr.is_some())].contains(&&cell["train_loss"]), "{cell}");
        assert_eq!(single["schedule"], schedule);
        // Schedules that fall end below the rate itself.
        if regime == "fixed" {
            let last = number(&single, "lr_last") / number(cell, "lr");
            assert_eq!(last > 0.999, ["constant", "warmup-constant"].contains(&schedule), "{schedule}: {last}");
        }
        // All rows are compared with the best rate without a schedule, and with the best peak rate of the cosine.
        assert_eq!(cell["best_fixed_lr"], summary[0]["best_fixed_lr"]);
        assert_eq!(cell["best_cosine_lr"], summary[0]["best_cosine_lr"]);
        seen.push(number(cell, "train_loss").to_bits());
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), summary.len(), "no two of them are the same run");
}

/// A rate that diverges has a row like any other, and is not chosen.
#[test]
fn a_run_that_diverges_is_a_result() {
    let args = "--epochs 1 --rules sgdm --regimes seesaw --lrs 1e10,0.1 --seeds 0,1";
    let report = compared(args);
    let summary = list(&report, "summary");
    assert!(number(&summary[0], "diverged") > 0.0, "{}", summary[0]);
    assert!(summary[0]["train_loss"].is_null());
    assert_eq!(number(&summary[0], "best_fixed_lr"), 0.1);
    assert!(printed("2", &format!("{COMPARE} {args}")).contains("best fixed"));
}

/// A regime that diverges counts as if it always answered with the most frequent class, and the output names it. The command succeeds.
#[test]
fn a_regime_that_diverges_is_told_of_and_counts_as_chance() {
    let args = "--epochs 2 --rules sgdm --regimes bb-long --lrs 0.1,0.01 --seeds 0";
    let report = compared(args);
    let runs = list(&report, "runs");
    let run = runs.last().expect("a run");
    assert_eq!((&run["regime"], &run["verdict"]), (&"bb-long".into(), &"diverged".into()));
    let cell = list(&report, "summary").last().expect("a cell");
    assert_eq!(number(cell, "diverged"), 1.0);
    // The most frequent of ten classes has about a tenth of the rows.
    let chance = number(cell, "test_accuracy");
    assert!((0.07..0.13).contains(&chance), "{cell}");
    assert!(number(cell, "above_best_fixed") < -50.0, "{cell}");
    assert_eq!(number(&list(&report, "overall")[0], "diverged"), 1.0);
    let table = printed("2", &format!("{COMPARE} {args}"));
    for words in ["┆ diverged ┆", "sgdm, bb-long: 1 of 1 runs diverged"] {
        assert!(table.contains(words), "{words}: {table}");
    }
    let markdown = printed("2", &format!("{COMPARE} {args} --markdown"));
    assert!(markdown.contains("| **diverged** ("), "{markdown}");
}

/// Two steps need rates beyond the grid, which is extended until the best one is inside, or three times. A given grid is not extended, and the output
/// says that it is too short.
#[test]
fn a_grid_is_made_longer_where_the_best_is_at_its_end() {
    let args = "--settings 1024x1 --rules signsgd --regimes seesaw --seeds 0";
    let rates = |args: &str, schedule: &str| -> Vec<f64> {
        let report = compared(args);
        let cells = list(&report, "summary").iter();
        let grid = cells.filter(|cell| cell["regime"] == "fixed" && cell["schedule"] == schedule);
        grid.map(|cell| number(cell, "lr")).collect()
    };
    let given = format!("{args} --lrs 1e-4,3e-4");
    assert_eq!(rates(&given, "constant"), [1e-4, 3e-4]);
    let table = printed("2", &format!("{COMPARE} {given}"));
    for best in ["signsgd, best fixed: 3e-4", "signsgd, best cosine: 3e-4"] {
        let note = format!("{best} is at the upper end of its grid");
        assert!(table.contains(&note), "{note}: {table}");
    }
    let default = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2];
    let beyond = [1e-1, 3e-1, 1.0];
    let mut longer = 0;
    for schedule in ["constant", "warmup-cosine"] {
        let rates = rates(args, schedule);
        let (given, more) = rates.split_at(default.len());
        assert_eq!(given, default);
        assert_eq!(more, &beyond[..more.len()]);
        longer += more.len();
    }
    assert!(longer > 0, "no best rate was at an end: another setting would show something");
}

/// Each set has its own number of epochs.
#[test]
fn made_and_other_sets_have_their_own_epochs() {
    let args = "--data sine,digits --rules lion --regimes seesaw --lrs 0.01 --seeds 0";
    let report = compared(args);
    for (cells, (data, epochs)) in list(&report, "summary").chunks(3).zip([("sine", 40), ("digits", 10)]) {
        for cell in cells {
            assert_eq!((&cell["data"], &cell["epochs"]), (&data.into(), &epochs.into()));
        }
    }
    let short = compared(&format!("{args} --epochs 2"));
    assert!(list(&short, "summary").iter().all(|cell| cell["epochs"] == 2));
}

/// With `--last`, a regime is judged by its last weights instead of its average, and AdamW has its momentum.
#[test]
fn last_judges_regimes_by_their_last_weights() {
    let args = "--epochs 1 --rules sgdm,adamw --regimes seesaw --lrs 0.01 --seeds 0";
    for (more, sgdm, adamw, momentum) in [("", "polynomial", "schedule-free", 0.0), ("--last", "last", "last", 0.9)] {
        let report = compared(&format!("{args} {more}"));
        let runs = list(&report, "runs");
        for (run, evaluated) in [(&runs[2], sgdm), (&runs[5], adamw)] {
            assert_eq!((&run["regime"], &run["evaluated"]), (&"seesaw".into(), &evaluated.into()));
        }
        assert!((number(&runs[5], "momentum") - momentum).abs() < 1e-6);
        // A tuned run has AdamW's usual momentum.
        assert!((number(&runs[3], "momentum") - 0.9).abs() < 1e-6);
    }
}

/// A regime that does not fit a rule is not run with it, and its place in the table is empty.
#[test]
fn what_does_not_go_together_is_left_out() {
    let args = "--settings 64x1 --rules sgd,sgdm --regimes seesaw,auto-sgd --lrs 0.01,0.3 --seeds 3";
    let report = compared(args);
    let runs: Vec<(&str, &str)> = list(&report, "summary")
        .iter()
        .filter(|cell| cell["regime"] != "fixed")
        .map(|cell| (cell["rule"].as_str(), cell["regime"].as_str()))
        .map(|(rule, regime)| (rule.expect("a rule"), regime.expect("a regime")))
        .collect();
    assert_eq!(runs, [("sgd", "seesaw"), ("sgd", "auto-sgd"), ("sgdm", "seesaw")]);
    // Each of the three streams takes a step with every full batch, of which there are 22.
    let steps: Vec<u64> = list(&report, "runs")
        .iter()
        .filter(|run| run["regime"] == "auto-sgd")
        .map(|run| run["steps"].as_u64().expect("a number"))
        .collect();
    assert_eq!(steps, [66]);
    for format in ["", "--markdown"] {
        let table = printed("2", &format!("{COMPARE} {args} {format}"));
        assert!(table.contains("auto-sgd"), "{table}");
    }
}
