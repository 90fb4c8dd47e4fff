//! Tests of `wgpu-optim train`: it learns, the device and the CPU path agree over a whole run, and its trace adds up. Bad input ends in one line and
//! exit code 2.

use std::path::Path;
use std::process::{Output, Stdio};

use crate::command::{self, assert_refused, json_of, words};

fn wgpu_optim(args: &[&str]) -> Output {
    command::wgpu_optim().args(args).output().expect("the binary runs")
}

fn run(args: &[&str]) -> serde_json::Value {
    run_to(0, args)
}

/// Trains and asserts this exit code.
fn run_to(code: i32, args: &[&str]) -> serde_json::Value {
    let mut all = vec!["train", "--json"];
    all.extend(args);
    let output = wgpu_optim(&all);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let report = json_of(&output);
    let runs = report["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 1);
    runs[0].clone()
}

fn without_seconds(mut run: serde_json::Value) -> serde_json::Value {
    run["seconds"] = 0.into();
    run
}

fn number(run: &serde_json::Value, key: &str) -> f64 {
    run[key].as_f64().unwrap_or_else(|| panic!("{key} in {run}"))
}

const MODELS: [&str; 3] = ["mlp", "softmax", "svm"];
const RULES: [&str; 7] = ["sgd", "sgdm", "nesterov", "signsgd", "signum", "adamw", "lion"];

#[test]
fn without_arguments_it_reaches_95_percent_on_digits() {
    let run = run(&[]);
    assert_eq!(run["data"], "digits");
    assert_eq!(run["model"], "mlp");
    assert_eq!(run["rule"], "sgd");
    assert_eq!(run["regime"], "seesaw");
    assert!(number(&run, "test_accuracy") > 0.95, "{run}");
    assert!(number(&run, "seconds") < 60.0);
}

/// A watchdog that accepts every epoch changes nothing. One that does not rescues a run whose rate is a thousand times too high, on the host and on
/// the device.
#[test]
fn a_watchdog_leaves_good_epochs_alone_and_takes_bad_ones_back() {
    for backend in ["cpu", "auto"] {
        let train =
            |line: &str| run(&[&["--backend", backend, "--regime", "fixed", "--last"], &words(line)[..]].concat());
        let [plain, mut watched] = ["--lr 0.05", "--lr 0.05 --watchdog"].map(|line| without_seconds(train(line)));
        assert_eq!(watched["watchdog"]["accepted"], 10, "{backend}");
        assert!(watched["watchdog"]["sentences"].as_array().is_some_and(Vec::is_empty), "{backend}");
        watched.as_object_mut().expect("an object").remove("watchdog");
        assert_eq!(plain, watched, "{backend}");
        for test in ["light", "nonmonotone"] {
            let saved = train(&format!("--lr 50 --epochs 20 --watchdog {test}"));
            assert!(number(&saved, "test_accuracy") > 0.95, "{backend}, {test}: {saved}");
            assert!(number(&saved["watchdog"], "taken_back") >= 3.0, "{backend}, {test}: {saved}");
            assert!(number(&saved, "lr_last") < 5.0, "{backend}, {test}: {saved}");
            let first = saved["watchdog"]["sentences"][0].as_str().expect("a sentence");
            assert!(first.starts_with("epoch 0 taken back: "), "{backend}: {first}");
        }
    }
}

#[test]
fn json_has_every_key_that_is_promised() {
    let run = run(&["--epochs", "1"]);
    let keys = words(
        "data model rule momentum regime schedule backend adapter tuning epochs batch seed steps gradients verdict evaluated \
         start_loss train_loss test_accuracy last_train_loss last_test_accuracy averaged_test_accuracy \
         nonfinite_test_rows lr_first lr_last lr_min lr_max skipped_steps seconds",
    );
    for key in &keys {
        assert!(!run[key].is_null(), "{key}");
    }
    assert_eq!(run.as_object().expect("an object").len(), keys.len());
    assert_eq!(number(&run, "steps"), 23.0);
    assert_eq!((&run["verdict"], &run["nonfinite_test_rows"]), (&"ok".into(), &0.into()));
    // With `--last` nothing else is evaluated.
    let last = self::run(&["--epochs", "1", "--last"]);
    assert_eq!(last.as_object().expect("an object").len(), keys.len() - 3);
}

/// With every average and on both paths, the output has both accuracies. The run is judged by the averaged one, which differs from the last one.
#[test]
fn averaged_weights_are_evaluated_beside_the_last() {
    for average in ["running", "exponential", "polynomial"] {
        // With seed 0 the rate is so close to its limit that rounding decides some rows of the test set after some 50 steps. With this seed the paths
        // stay within 2e-6 of each other.
        let args = ["--average", average, "--rule", "sgd", "--epochs", "4", "--seed", "2"];
        let on = |backend: &str| run(&[&args[..], &["--backend", backend]].concat());
        let (host, device) = (on("cpu"), on("vulkan"));
        let plain = run(&[&args[2..], &["--backend", "cpu", "--last"]].concat());
        for run in [&host, &device] {
            assert_eq!(run["evaluated"], average);
            let averaged = number(run, "averaged_test_accuracy");
            assert!((0.7..1.0).contains(&averaged), "{run}");
            assert_eq!(averaged, number(run, "test_accuracy"));
        }
        // Averages do not change the run itself.
        assert_eq!(host["last_test_accuracy"], plain["test_accuracy"]);
        assert_eq!(host["last_train_loss"], plain["train_loss"]);
        assert_ne!(host["train_loss"], plain["train_loss"]);
        assert_eq!(plain["evaluated"], "last");
        for key in ["test_accuracy", "last_test_accuracy"] {
            let apart = (number(&host, key) - number(&device, key)).abs();
            assert!(apart <= 0.005, "{average}: {key} is {apart} apart");
        }
    }
    refused(&["train", "--average", "median"], &["--average", "median"]);
    refused(&["train", "--average", "running", "--compare"], &["--average", "--compare"]);
    refused(&["train", "--average", "running", "--last"], &["--average", "--last"]);
}

/// By default, schedule-free training is evaluated where the rule supports it, and AdamW then has no momentum. The polynomial average is used where
/// it does not, and where there is a schedule. Nothing is averaged where streams take turns.
#[test]
fn what_is_evaluated_follows_from_the_rule() {
    for (args, evaluated, momentum) in [
        (&["--rule", "sgd"][..], "schedule-free", 0.0),
        (&["--rule", "signsgd"], "schedule-free", 0.0),
        (&["--rule", "adamw"], "schedule-free", 0.0),
        (&["--rule", "adamw", "--last"], "last", 0.9),
        (&["--rule", "adamw", "--average", "polynomial"], "polynomial", 0.9),
        (&["--rule", "adamw", "--average", "schedule-free"], "schedule-free", 0.0),
        (&["--rule", "adamw", "--schedule", "warmup-cosine"], "polynomial", 0.9),
        (&["--rule", "sgd", "--schedule", "step"], "polynomial", 0.0),
        (&["--rule", "sgdm"], "polynomial", 0.9),
        (&["--rule", "nesterov", "--last"], "last", 0.9),
        (&["--rule", "signum"], "polynomial", 0.9),
        (&["--rule", "lion"], "polynomial", 0.99),
        (&["--rule", "sgd", "--regime", "auto-sgd"], "last", 0.0),
    ] {
        let run = run(&[args, &["--backend", "cpu", "--epochs", "1"]].concat());
        assert_eq!(run["evaluated"], evaluated, "{args:?}");
        let apart = number(&run, "momentum") - momentum;
        assert!(apart.abs() < 1e-6, "{args:?}: {run}");
        let others = ["last_test_accuracy", "averaged_test_accuracy"];
        for key in others {
            assert_eq!(run[key].is_null(), evaluated == "last", "{args:?}, {key}");
        }
    }
    let output = wgpu_optim(&["train", "--rule", "adamw", "--backend", "cpu", "--epochs", "1"]);
    let table = String::from_utf8_lossy(&output.stdout);
    for words in [
        "adamw with beta1 = 0, seesaw, schedule-free average",
        "1 epoch: 23 steps of 64 rows",
        "test accuracy, schedule-free average",
        "test accuracy, last iterate",
    ] {
        assert!(table.contains(words), "{words}: {table}");
    }
    refused(&["train", "--rule", "sgdm", "--average", "schedule-free"], &["schedule-free", "sgdm"]);
}

/// Generated sets need no file. Forty epochs, the default, and a tuned rate solve them, which no linear model does.
#[test]
fn sets_that_are_made_train_without_a_file() {
    for (data, steps) in [("spirals", 760), ("parity", 1000), ("sine", 1000), ("board", 1520)] {
        let args = ["--data", data, "--backend", "cpu", "--rule", "lion"];
        let tuned = ["--regime", "fixed", "--lr", "0.01"];
        let solved = run(&[&args[..], &tuned].concat());
        assert_eq!((&solved["data"], &solved["epochs"]), (&data.into(), &40.into()));
        assert_eq!(solved["steps"], steps);
        assert!(number(&solved, "test_accuracy") > 0.93, "{solved}");
        let linear = run(&[&args[..], &tuned, &["--model", "softmax"]].concat());
        assert!(number(&linear, "test_accuracy") < 0.75, "{linear}");
        let short = run(&[&args[..], &["--epochs", "1"]].concat());
        assert_eq!(short["epochs"], 1);
    }
    let output = wgpu_optim(&["train", "--data", "sine", "--backend", "cpu"]);
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("40 epochs: 1000 steps of 64 rows"), "{table}");
}

/// A run that diverged is reported by a line, the table, `--json`, the page and the exit code. If a combination is known to fail, a warning comes
/// before the run.
#[test]
fn a_run_that_diverges_is_never_a_success() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = folder.path().join("page.html");
    let page = page.to_str().expect("UTF-8");
    for (args, words, is_warned) in [
        (&["--regime", "bb-long"][..], "bb-long is known to fail", true),
        (&["--regime", "dog"], "dog is known to fail", true),
        (&["--regime", "fixed", "--lr", "1e10"], "a smaller --lr", false),
    ] {
        let common = ["train", "--backend", "cpu", "--rule", "sgdm", "--report", page];
        let args = [&common[..], args].concat();
        let output = wgpu_optim(&args);
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        let lines: Vec<&str> = stderr.lines().collect();
        let told = lines.last().expect("a line");
        assert!(told.starts_with("error: the run diverged: ") && told.contains(words), "{stderr}");
        let warned = lines.iter().filter(|line| line.starts_with("warning: ")).count();
        assert_eq!(warned, usize::from(is_warned), "{stderr}");
        assert!(stdout.contains("DIVERGED"), "{stdout}");
        let page = std::fs::read_to_string(page).expect("a page");
        assert_eq!(page.matches("class=\"failure\"").count(), 1);
        let run = run_to(1, &args[1..]);
        assert_eq!(run["verdict"], "diverged");
    }
    let output = wgpu_optim(&["train", "--backend", "cpu", "--epochs", "1", "--report", page]);
    assert!(output.status.success());
    let page = std::fs::read_to_string(page).expect("a page");
    assert!(!page.contains("class=\"failure\""));
}

/// Outputs that are not finite are wrong answers, not answers of class 0, on either path.
#[test]
fn what_is_not_finite_is_no_answer() {
    for backend in ["cpu", "vulkan"] {
        let args = ["--backend", backend, "--epochs", "1", "--rule", "sgd", "--last"];
        let run = run_to(1, &[&args[..], &["--regime", "fixed", "--lr", "1e30"]].concat());
        assert_eq!(run["verdict"], "diverged", "{run}");
        // A row that activates no hidden unit has the bias as its answer, right or wrong.
        let without_answer = number(&run, "nonfinite_test_rows");
        assert!(without_answer > 0.0, "{run}");
        let right = 359.0 * number(&run, "test_accuracy");
        assert!(right <= 359.0 - without_answer + 1e-9, "{run}");
    }
}

/// With a rising schedule and a regime that uses the alignment, the rate does not end far above that without a schedule.
#[test]
fn a_schedule_that_rises_does_not_overshoot() {
    for schedule in ["warmup-cosine", "warmup-constant", "one-cycle"] {
        for rule in ["sgd", "sgdm", "adamw"] {
            let of = |schedule| {
                run(&["--rule", rule, "--average", "polynomial", "--backend", "cpu", "--schedule", schedule])
            };
            let [plain, risen] = ["constant", schedule].map(of);
            let [plain_rate, risen_rate] = [&plain, &risen].map(|run| number(run, "lr_max"));
            assert!(risen_rate <= 1.5 * plain_rate, "{rule}, {schedule}: {risen_rate} and {plain_rate}");
            assert!(number(&risen, "test_accuracy") >= 0.95, "{risen}");
        }
    }
}

/// With every rule, and over all models, Vulkan and the CPU path have the same accuracy within half a percent, and the same loss.
#[test]
fn device_and_cpu_path_agree_over_a_whole_run() {
    for (index, rule) in RULES.iter().enumerate() {
        let model = MODELS[index % MODELS.len()];
        let args = ["--rule", rule, "--model", model, "--epochs", "4"];
        let host = run(&[&args[..], &["--backend", "cpu"]].concat());
        let device = run(&[&args[..], &["--backend", "vulkan"]].concat());
        assert_eq!(device["backend"], "vulkan");
        let accuracy = number(&host, "test_accuracy") - number(&device, "test_accuracy");
        assert!(accuracy.abs() <= 0.005, "{host}\n{device}");
        let loss = number(&host, "train_loss") / number(&device, "train_loss") - 1.0;
        // The sums differ by rounding in the last place, and a sign may depend on it.
        let signs = ["signsgd", "signum", "adamw", "lion"].contains(rule);
        let tolerance = if signs { 0.05 } else { 2e-3 };
        assert!(loss.abs() <= tolerance, "{host}\n{device}");
    }
}

#[test]
fn runs_repeat_bit_for_bit() {
    for backend in ["cpu", "vulkan"] {
        let args = ["--backend", backend, "--epochs", "2", "--rule", "sgd"];
        let [first, second] = [run(&args), run(&args)].map(without_seconds);
        assert_eq!(first, second);
        let other = run(&[&args[..], &["--seed", "1"]].concat());
        assert_ne!(first["train_loss"], other["train_loss"]);
    }
}

/// Without tuning, each rule reaches the accuracy of the best of seven fixed rates to within 1 %. (docs/results.md has the table, MNIST included.)
#[test]
fn seesaw_reaches_the_best_of_a_grid_of_fixed_rates() {
    let grids: [(&str, [&str; 7]); 3] = [
        ("sgd", ["0.01", "0.03", "0.1", "0.3", "1", "3", "10"]),
        ("sgdm", ["0.001", "0.003", "0.01", "0.03", "0.1", "0.3", "1"]),
        ("signsgd", ["1e-5", "1e-4", "3e-4", "1e-3", "3e-3", "1e-2", "3e-2"]),
    ];
    for data in ["digits", "mushrooms"] {
        for (rule, rates) in grids {
            let args = ["--backend", "cpu", "--data", data, "--rule", rule];
            let accuracy = |extra: &[&str]| {
                let output = wgpu_optim(&[&["train", "--json"], &args[..], extra].concat());
                // The largest rates of a grid may diverge, and are then not chosen.
                let of = json_of(&output);
                match output.status.code() {
                    Some(0) => number(&of["runs"][0], "test_accuracy"),
                    _ => 0.0,
                }
            };
            let best = rates
                .iter()
                // A user who tunes would run it like this. `--compare` is stricter.
                .map(|rate| accuracy(&["--last", "--regime", "fixed", "--lr", rate]))
                .fold(0.0, f64::max);
            let untuned = accuracy(&[]);
            assert!(best > 0.9, "{data}, {rule}: {best}");
            assert!(untuned >= best - 0.01, "{data}, {rule}: {untuned} against {best}");
        }
    }
}

fn trace_of(path: &Path, extra: &[&str]) -> Vec<csv::StringRecord> {
    let path = path.to_str().expect("UTF-8");
    run(&[&["--trace", path, "--epochs", "3"], extra].concat());
    let mut reader = csv::Reader::from_path(path).expect("opens");
    let header = "step loss norm smoothed_norm ln_lr norm_term alignment_term brake_term held_term curvature_term \
                  distance_term history_term loss_term gate_term episode_term clamp_term schedule_term trust_term control_term flags";
    assert_eq!(reader.headers().expect("a header"), words(header));
    reader.records().map(|row| row.expect("a row")).collect()
}

#[test]
fn the_terms_of_each_row_add_up_to_the_change_of_ln_lr() {
    let folder = tempfile::tempdir().expect("a folder");
    for backend in ["cpu", "vulkan"] {
        for rule in ["sgd", "sgdm", "signsgd"] {
            let path = folder.path().join(format!("{backend}-{rule}.csv"));
            let rows = trace_of(&path, &["--backend", backend, "--rule", rule]);
            assert_eq!(rows.len(), 3 * 23);
            let value = |row: &csv::StringRecord, column: usize| -> f64 { row[column].parse().expect("a number") };
            assert_eq!(&rows[0][19], "first");
            let mut moved = 0;
            for (index, pair) in rows.windows(2).enumerate() {
                assert_eq!(value(&pair[1], 0), (index + 1) as f64);
                let terms: f64 = (5..19).map(|column| value(&pair[1], column)).sum();
                let change = value(&pair[1], 4) - value(&pair[0], 4);
                assert!((terms - change).abs() <= 1e-6, "{pair:?}");
                moved += usize::from(change.abs() > 1e-3);
            }
            assert!(moved > 30, "the rate hardly moves: {moved}");
        }
    }
}

/// Trains with `--report`, asserts this exit code, and returns the page and the object of `--json`.
fn report_to(code: i32, path: &Path, extra: &[&str]) -> (String, serde_json::Value) {
    let name = path.to_str().expect("UTF-8");
    let run = run_to(code, &[&["--report", name], extra].concat());
    (std::fs::read_to_string(path).expect("a page"), run)
}

/// Returns the items of the page's lists that start with this text.
fn sentences<'a>(page: &'a str, beginning: &str) -> Vec<&'a str> {
    page.lines()
        .filter_map(|line| line.strip_prefix("<li>")?.strip_suffix("</li>"))
        .filter(|sentence| sentence.starts_with(beginning))
        .collect()
}

/// The page needs no other file and explains both changed steps. Writing it does not change the run.
#[test]
fn a_report_explains_what_happened_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    for backend in ["cpu", "vulkan"] {
        // On the device both steps are in the middle of a submit. In the second run one directly follows the other.
        for (nan, spike) in [("40", "120"), ("24", "25")] {
            let args = ["--backend", backend, "--inject-nan", nan, "--inject-spike", spike];
            let path = folder.path().join(format!("{backend}-{nan}.html"));
            let (page, with) = report_to(0, &path, &args);
            let own = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
            for foreign in ["http://", "https://", "<script", "<link", "<img"] {
                assert!(!own.contains(foreign), "{foreign}");
            }
            assert_eq!(own.matches("<figure>").count(), 5);
            let of_nan = sentences(&page, &format!("step {nan}: "));
            let words = "skipped: 9610 gradients not finite, the first in hidden.weights at 0";
            assert_eq!(of_nan, [format!("step {nan}: {words}")]);
            let of_spike = sentences(&page, &format!("step {spike}: "));
            assert_eq!(of_spike.len(), 1, "{page}");
            let beginning = format!("step {spike}: LR -");
            assert!(of_spike[0].starts_with(&beginning), "{of_spike:?}");
            assert!(of_spike[0].contains("norm jumped"), "{of_spike:?}");
            assert_eq!(number(&with, "skipped_steps"), 1.0);
            assert_eq!(without_seconds(with), without_seconds(run(&args)));
        }
    }
}

/// With many steps, without any rate, and with names that look like markup, the page stays small and complete.
#[test]
fn a_report_copes_with_any_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("page.html");
    let (page, _) = report_to(0, &path, &["--backend", "cpu", "--epochs", "400", "--rule", "sgdm"]);
    assert!(page.len() < 500_000, "{}", page.len());
    let data = folder.path().join("<i>.svm");
    for (rows, epochs, code) in [("1:3e38 2:3e38", "2000", 1), ("1:0 2:0", "1", 0), ("1:1 2:1", "3", 0)] {
        let rows: String = (0..40).map(|i| format!("{} {rows}\n", i % 2)).collect();
        std::fs::write(&data, rows).expect("writes");
        let data = data.to_str().expect("UTF-8");
        let (page, run) =
            report_to(code, &path, &["--data", data, "--backend", "cpu", "--epochs", epochs, "--rule", "sgdm"]);
        assert!(page.contains("&lt;i&gt;") && !page.contains("<i>"));
        assert!(page.len() < 2_000_000, "{}", page.len());
        if number(&run, "skipped_steps") > 20.0 {
            assert_eq!(sentences(&page, "step ").len(), 20);
            assert_eq!(sentences(&page, "and ").len(), 1);
        }
    }
}

/// Asserts that the command is refused in one line that contains all of these words.
fn refused(args: &[&str], words: &[&str]) {
    assert_refused(&wgpu_optim(args), words);
}

/// Every command refuses a number of threads that would keep the machine busy starting them.
#[test]
fn threads_beyond_reason_are_refused() {
    for line in ["train --backend cpu --epochs 1", "devices"] {
        let mut command = command::wgpu_optim();
        let output =
            command.args(words(line)).env("RAYON_NUM_THREADS", "1000000000").output().expect("the binary runs");
        assert_refused(&output, &["RAYON_NUM_THREADS", "1000000000", "1024"]);
    }
    for (threads, is_number) in [("abc", false), ("-1", false), (" 4", false), ("", true), ("0", true), ("1", true)] {
        let mut command = command::wgpu_optim();
        let output = command.args(["devices", "--json"]).env("RAYON_NUM_THREADS", threads).output().expect("runs");
        if is_number {
            assert!(output.status.success(), "{threads}");
        } else {
            assert_refused(&output, &["RAYON_NUM_THREADS", threads, "1024"]);
        }
    }
}

/// An option without an effect is an error, in a run and in a comparison.
#[test]
fn options_that_would_not_be_heeded_are_refused() {
    for (line, words) in [
        ("--rule sgd --momentum 0.5", &["--momentum", "sgdm", "sgd would not"][..]),
        ("--rule signsgd --momentum 0.9", &["--momentum", "signsgd"]),
        ("--rule adamw --momentum nan", &["--momentum", "adamw"]),
        ("--rule lion --momentum 0.5", &["--momentum", "lion"]),
        ("--model softmax --hidden 8", &["--hidden", "softmax"]),
        ("--telemetry", &["--telemetry", "--trace"]),
        ("--watchdog --checkpoint run.safetensors", &["--watchdog", "--checkpoint"]),
        ("--watchdog --regime auto-sgd", &["a watchdog", "auto-sgd"]),
        ("--compare --data spirals --label nonsense", &["--label", "spirals"]),
        ("--compare --rules adamw --momentum .2", &["--momentum", "adamw"]),
        ("--compare --model softmax --hidden 3", &["--hidden", "softmax"]),
    ] {
        refused(&[&["train", "--backend", "cpu"], &crate::command::words(line)[..]].concat(), words);
    }
}

/// Messages do not use the names of the library's interface.
#[test]
fn advice_is_in_the_words_of_the_command_line() {
    for (line, words) in [
        ("--rule sgdm --average schedule-free", &["--average polynomial"][..]),
        ("--clip-norm 1e-45", &["leave --clip-norm out"]),
        #[cfg(target_os = "linux")]
        ("--backend metal", &["--backend metal", "Apple"]),
        #[cfg(target_os = "linux")]
        ("--backend dx12", &["--backend dx12", "Windows"]),
    ] {
        let output = wgpu_optim(&[&["train"], &crate::command::words(line)[..]].concat());
        assert_refused(&output, words);
        assert!(!String::from_utf8_lossy(&output.stderr).contains("::"));
    }
    for line in ["train --epochs 1", "train --compare --rules sgd --regimes seesaw --lrs 1e30 --seeds 0 --epochs 1"] {
        let output = wgpu_optim(&crate::command::words(line));
        let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        assert!(
            !err.contains("::") && err.lines().filter(|line| line.contains("CPU path")).all(|line| line.len() < 160),
            "{err}"
        );
        // If every rate diverged, none is called the best.
        assert!(output.status.success() && !out.contains("end of its grid"), "{out}{err}");
    }
}

/// The summary uses the rates of this run, and the losses of the same rows before and after.
#[test]
fn a_run_that_does_not_move_is_told_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = folder.path().join("page.html");
    let line = "train --backend cpu --epochs 3 --regime fixed --lr 1e-30 --last --report";
    let output = wgpu_optim(&[&crate::command::words(line)[..], &[page.to_str().expect("UTF-8")]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = std::fs::read_to_string(page).expect("reads");
    let losses = page.split("took the training loss from ").nth(1).and_then(|rest| rest.split(" and ").next());
    let (from, to) = losses.and_then(|losses| losses.split_once(" to ")).expect("two losses");
    assert_eq!(from, to);
    assert!(page.contains("1e-30") && !page.contains("0.0000000"));
}

#[test]
fn bad_input_ends_in_one_line_and_exit_code_2() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| -> String {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("writes");
        path.to_str().expect("UTF-8").to_owned()
    };
    let ragged = file("ragged.csv", "1,2,0\n3,4,1\n5,1\n");
    let empty = file("empty.csv", "");
    let nan = file("nan.csv", "1,2,0\n3,nan,1\n5,6,0\n");
    let fraction = file("fraction.csv", "1,2,0.25\n3,4,1\n");
    file("a.train", "0 1:1\n1 1:2\n");
    file("a.test", "5 1:1\n");
    let range = folder.path().join("a.train");
    let range = range.to_str().expect("UTF-8");
    refused(&["train", "--data", "nowhere.csv"], &["nowhere.csv", "no such file", "digits", "spirals", "board"]);
    refused(&["train", "--data", &ragged], &["ragged.csv", "line 3", "2 fields"]);
    refused(&["train", "--data", &empty], &["empty.csv", "not one row"]);
    refused(&["train", "--data", &nan], &["nan.csv", "line 2, column 2", "not finite"]);
    refused(&["train", "--data", &fraction], &["0.25", "not a class"]);
    refused(&["train", "--data", range], &["label \"5\"", "out of range"]);
    refused(&["train", "--batch", "0"], &["--batch", "0"]);
    refused(&["train", "--epochs", "0"], &["--epochs"]);
    refused(&["train", "--hidden", "0"], &["--hidden"]);
    refused(&["train", "--rule", "adadelta"], &["adadelta", "sgdm"]);
    refused(&["train", "--adapter", "Voodoo 2"], &["Voodoo 2", "there is"]);
    for command in ["train", "devices", "check", "bench"] {
        let output = command::wgpu_optim().arg(command).env("WGPU_BACKEND", "vulkan,foo").output();
        assert_refused(&output.expect("the binary runs"), &["WGPU_BACKEND", "\"foo\"", "vulkan"]);
    }
    refused(&["train", "--adapter", "x", "--backend", "cpu"], &["--backend cpu"]);
    refused(&["train", "--regime", "fixed"], &["--lr"]);
    refused(&["train", "--lr", "0.1"], &["--lr", "seesaw"]);
    refused(&["train", "--regime", "fixed", "--lr", "-1"], &["learning rate", "-1"]);
    refused(&["train", "--rule", "sgdm", "--momentum", "1.5"], &["momentum", "1.5"]);
    refused(&["train", "--weight-decay", "nan"], &["weight_decay", "NaN"]);
    refused(&["train", "--trace", "/no/such/folder/x.csv"], &["/no/such/folder/x.csv"]);
    refused(&["train", "--report", "/no/such/folder/x.html"], &["/no/such/folder/x.html", "--report"]);
    let twice = folder.path().join("twice");
    let twice = twice.to_str().expect("UTF-8");
    refused(&["train", "--trace", twice, "--report", twice], &["twice", "--trace and --report both name"]);
    refused(&["train", "--epochs", "1", "--inject-nan", "23"], &["--inject-nan 23", "23 steps"]);
    // The file that would have been overwritten is unchanged.
    let data = file("data.csv", "1,2,0\n3,4,1\n5,6,0\n");
    refused(&["train", "--data", &data, "--trace", &data], &["data.csv", "overwrite"]);
    refused(&["train", "--data", &data, "--report", &data], &["data.csv", "--report", "overwrite"]);
    assert!(std::fs::read_to_string(&data).expect("reads").starts_with("1,2,0"));
    let wide: String = (0..40).map(|i| format!("{} {}:1\n", i % 2, 1 + i * 8000)).collect();
    let wide = file("wide.svm", &wide);
    let wide = ["train", "--data", &wide, "--backend", "vulkan", "--model", "softmax"];
    refused(&wide, &["312001 terms", "--backend cpu"]);
}

/// The advice in the library's errors names options instead of the library's methods.
#[test]
fn what_the_library_refuses_has_its_way_out_in_options() {
    for (line, way_out) in [
        ("train --clip-norm 0", "leave --clip-norm out"),
        ("train --rule lion --average schedule-free", "--average polynomial"),
        ("train --rule amsgrad --state 8bit", "leave --state out"),
        ("train --regime schedule-free-plus --last", "--average schedule-free"),
        ("train --regime schedule-free-plus --rule lion", "--rule sgd, signsgd or adamw"),
        ("train --rule adamw --regime mechanic --average schedule-free", "--regime schedule-free-plus"),
        ("train --regime look-long --average schedule-free", "--average polynomial"),
        ("train --regime prodigy", "--regime mechanic"),
        ("train --rule muon --regime look-newton", "regimes bb, adgd and look"),
        ("train --rule muon --regime adgd", "--regime seesaw"),
    ] {
        let output = wgpu_optim(&words(line));
        assert_refused(&output, &[way_out]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!stderr.contains("::"), "{line}: {stderr}");
    }
}

/// Without a driver, training uses the CPU path and says why. A request for Vulkan is refused with what to install.
#[test]
fn without_a_driver_it_trains_on_the_cpu_path_and_says_why() {
    let without_drivers = |line| command::without_drivers().args(words(line)).output().expect("the binary runs");
    let output = without_drivers("train --epochs 1");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("running on the CPU path: "), "{stderr}");
    assert!(stderr.contains("no graphics driver"), "{stderr}");
    assert_refused(&without_drivers("train --backend vulkan"), &["mesa-vulkan-drivers"]);
}

/// A reader that closes the pipe early, as `head` does, is no error.
#[test]
fn a_closed_pipe_is_no_accident() {
    let mut command = command::wgpu_optim();
    command.args(["train", "--backend", "cpu", "--epochs", "1"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !stderr.contains("panicked"), "{stderr}");
}

/// With infinite gradients nothing is learned, and the output says so and where it started.
#[test]
fn a_run_that_skips_every_step_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("huge.svm");
    let rows: String = (0..40).map(|i| format!("{} 1:3e38 2:3e38\n", i % 2)).collect();
    std::fs::write(&path, rows).expect("writes");
    let output = wgpu_optim(&["train", "--data", path.to_str().expect("UTF-8"), "--backend", "cpu"]);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(stderr.contains("every step was skipped"), "{stderr}");
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout.contains("first skipped") && stdout.contains("weights at"), "{stdout}");
}

/// The last row of the trace has the values of the object for each tensor.
#[test]
fn telemetry_is_in_the_trace_the_page_and_the_object() {
    let folder = tempfile::tempdir().expect("a folder");
    let [trace, page] = ["t.csv", "t.html"].map(|name| folder.path().join(name));
    let paths = [&trace, &page].map(|path| path.to_str().expect("UTF-8"));
    let line = format!("train --telemetry --json --backend cpu --epochs 1 --trace {} --report {}", paths[0], paths[1]);
    let output = wgpu_optim(&words(&line));
    assert!(output.status.success());
    let report = json_of(&output);
    let tensors = report["runs"][0]["tensors"].as_array().expect("tensors");
    assert_eq!(tensors.len(), 4);
    let mut rows = csv::Reader::from_path(&trace).expect("a trace");
    let header = rows.headers().expect("a header").clone();
    let rows: Vec<csv::StringRecord> = rows.records().map(|row| row.expect("a row")).collect();
    let last = rows.last().expect("a last row");
    for tensor in tensors {
        let name = tensor["name"].as_str().expect("a name");
        for column in ["parameter_norm", "step_norm", "relative_step", "effective_lr"] {
            let at = header.iter().position(|field| field == format!("{name}.{column}"));
            let traced: f64 = last[at.expect("a column")].parse().expect("a number");
            let said = tensor[column].as_f64().expect("a number");
            assert!(said > 0.0 && (traced / said - 1.0).abs() <= 1e-6, "{name}, {column}: {traced}, {said}");
        }
    }
    let page = std::fs::read_to_string(&page).expect("reads");
    assert_eq!(page.matches("Length of the step").count(), 1);
}

/// A line summarizes what was read, and the column of the label can be chosen by name. `data/tests.rs` tests numbers, quotes and classes.
#[test]
fn what_was_read_is_told_in_a_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("my.csv");
    let rows: String = (0..1000).map(|i| format!("{},{},{}\n", i % 2, i % 7, i % 5)).collect();
    std::fs::write(&path, format!("kind,a,b\n{rows}")).expect("writes");
    let path = path.to_str().expect("UTF-8");
    let told = |args: &[&str]| {
        let common = ["train", "--json", "--backend", "cpu", "--epochs", "1"];
        let output = wgpu_optim(&[&common[..], args].concat());
        assert!(output.status.success());
        json_of(&output);
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = told(&["--data", path, "--label", "kind"]);
    let line = "my: 1,000 rows, 2 features, 2 classes, 200 held out; header seen, the label is \"kind\" (column 1)";
    assert_eq!(said.lines().filter(|said| said.starts_with(line)).count(), 1, "{said}");
    assert!(told(&[]).contains("digits: 1,797 rows, 64 features, 10 classes, 359 held out\n"));
    let said =
        told(&["--compare", "--data", &format!("digits,{path}"), "--rules", "sgd", "--seeds", "0", "--lrs", "0.1"]);
    assert!(said.contains("digits: 1,797 rows") && said.contains("my: 1,000 rows"), "{said}");
}

/// Data or options that need more memory than there is are refused in one line before the memory is allocated, even if the text has only a few bytes.
#[cfg(target_os = "linux")]
#[test]
fn what_does_not_fit_in_memory_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let few = path("few.svm");
    std::fs::write(&few, "1 1000000:1\n0 1:1\n").expect("writes");
    refused(&["train", "--backend", "cpu", "--data", &few, "--hidden", "65536"], &["MLP", "of memory", "--hidden"]);
    refused(&["train", "--backend", "vulkan", "--data", &few, "--hidden", "65536"], &["--hidden"]);
    let many = path("many.svm");
    let rows: String = (0..2147).map(|i| format!("{} 1000000:1\n", i % 2)).collect();
    std::fs::write(&many, rows).expect("writes");
    let bomb = path("bomb.csv.gz");
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..300 {
        std::io::Write::write_all(&mut packed, &b"1,".repeat(1 << 19)).expect("packs");
    }
    std::fs::write(&bomb, packed.finish().expect("packs")).expect("writes");
    let binary = command::wgpu_optim().get_program().to_owned();
    for (limit, data, words) in
        [("6000000", &many, "of memory"), ("2000000", &bomb, "bomb.csv.gz"), ("6000000", &bomb, "a line may have")]
    {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &format!("ulimit -v {limit}; exec \"$0\" \"$@\"")]).arg(&binary);
        command.args(["train", "--backend", "cpu", "--data", data, "--hidden", "8"]);
        assert_refused(&command.output().expect("sh"), &[words]);
    }
}

#[test]
fn names_and_quotes_cannot_command_a_terminal_or_fill_it() {
    let folder = tempfile::tempdir().expect("a folder");
    refused(&["train", "--data", "no\u{1b}[31m\nfile"], &["no\\u{1b}[31m\\nfile: no such file"]);
    let long = folder.path().join("long.csv");
    std::fs::write(&long, format!("{},1\n1,0\n", "7".repeat(50_000))).expect("writes");
    let output = wgpu_optim(&["train", "--data", long.to_str().expect("UTF-8")]);
    assert_refused(&output, &["long.csv, line 1, column 1", "\"777", "50,000 bytes"]);
    assert!(output.stderr.len() < 500);
}

/// In a model that overfits within a few epochs, a spike costs much for a long time, and a NaN costs nothing.
#[test]
fn the_terminal_and_the_page_tell_what_a_changed_step_did() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("page.html");
    let args = ["train", "--backend", "cpu", "--rule", "sgdm", "--inject-nan", "60", "--inject-spike", "100"];
    let output = wgpu_optim(&[&args[..], &["--report", path.to_str().expect("UTF-8")]].concat());
    let stdout = String::from_utf8_lossy(&output.stdout);
    let line = |beginning: &str| {
        let line = stdout.lines().find(|line| line.starts_with(beginning));
        line.unwrap_or_else(|| panic!("no {beginning}: {stdout}")).to_owned()
    };
    let nan = line("step 60, gradients made NaN: ");
    assert!(nan.contains("the step was skipped, the loss took no harm"), "{nan}");
    let spike = line("step 100, gradients times 100: ");
    for words in
        ["the loss of a batch rose from ", " at step 10", ", and was back after ", "the learning rate fell from "]
    {
        assert!(spike.contains(words), "{words}: {spike}");
    }
    let page = std::fs::read_to_string(&path).expect("a page");
    let story = page.lines().find_map(|line| line.strip_prefix("<p class=\"story\">")).expect("a story");
    for words in [
        "230 steps of 64 rows in 10 epochs took the training loss from 2.40 to ",
        "and the test accuracy from ",
        "The learning rate was found by the optimizer: it began at ",
        "these factors multiply",
        "1 step was skipped",
        &nan[1..],
        &spike[1..],
    ] {
        assert!(story.contains(words), "{words}: {story}");
    }
    // The summary is the first element of the page.
    assert!(page.find("class=\"story\"") < page.find("<h2>"));
    assert!(page.contains("Percentages multiply"), "{page}");
    // Every chart labels its axis.
    assert_eq!(page.matches(">\nstep\n<").count(), page.matches("<figure>").count());
}

/// The short help has fewer than 100 lines, and no table has more than 80 columns.
#[test]
fn help_and_tables_fit_a_terminal() {
    let help = |args: &[&str]| {
        let output = wgpu_optim(args);
        assert!(output.status.success());
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let short = help(&["train", "-h"]);
    assert!(short.lines().count() < 100, "{} lines: {short}", short.lines().count());
    for words in ["Examples:", "Data and model:", "Optimizer:", "Outputs:", "Device:", "Compare:"] {
        assert!(short.contains(words), "{words}: {short}");
    }
    assert!(help(&["train", "--help"]).contains("Exit code:"));
    let compare =
        ["train", "--compare", "--backend", "cpu", "--settings", "64x1", "--seeds", "0", "--regimes", "seesaw,dog"];
    let bench = words("bench --backend cpu --to 10 --round-ms 1 --rule sgd --mode f32,bf16-stochastic");
    let check = words("check --family nonfinite --sample 1000");
    for args in [&["train", "--backend", "cpu", "--inject-nan", "3"][..], &["devices"], &compare, &bench, &check] {
        let output = wgpu_optim(args);
        let stdout = String::from_utf8_lossy(&output.stdout);
        let tables: Vec<&str> = stdout.lines().filter(|line| line.starts_with(['┌', '│', '╞', '└'])).collect();
        assert!(tables.len() > 5, "{stdout}");
        assert!(tables.iter().all(|line| line.chars().count() <= 80), "{stdout}");
        assert!(!stdout.contains(" 1 steps") && !stdout.contains(" 1 epochs"), "{stdout}");
    }
}

#[test]
fn a_comparison_refuses_what_it_would_ignore() {
    for option in [
        "--inject-nan 0",
        "--inject-spike 0",
        "--lose-device 0",
        "--telemetry",
        "--checkpoint x --resume",
        "--checkpoint x --every 3",
        "--trace x",
    ] {
        let line = format!("train --compare {option}");
        refused(&words(&line), &["--compare"]);
    }
}
