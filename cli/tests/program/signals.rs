//! Tests of signals and of broken streams. SIGINT, SIGTERM, SIGHUP and other signals that ask a process to end stop a command after the running step,
//! with all output written. A second signal ends it at once. A closed or full stream loses no run.
//!
//! Only Linux shows when a process has begun to wait for signals.
#![cfg(target_os = "linux")]

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::command::{json_of, wgpu_optim, words};

/// Starts the program with the words of this line, in a folder.
fn start(folder: &Path, line: &str) -> Child {
    let mut command = wgpu_optim();
    command.current_dir(folder).args(words(line)).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the binary runs")
}

/// Waits until the process catches SIGINT.
fn wait_for_watch(child: &mut Child) {
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        if caught.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).expect("a mask") & 2 != 0) {
            return;
        }
        assert!(child.try_wait().expect("a child").is_none(), "it ended before");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn send(child: &Child, signal: &str) {
    let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status();
    assert!(sent.expect("sh").success());
}

/// Ends a run by a signal once it has saved something. The signal is sent twice, as `timeout` does.
fn stopped(folder: &Path, line: &str, signal: &str) -> Output {
    let mut child = start(folder, line);
    wait_for_watch(&mut child);
    while !folder.join("run").exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {0} {0}", child.id())]).status();
    assert!(sent.expect("sh").success());
    child.wait_with_output().expect("ends")
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).expect("text")
}

/// Returns whether this process, and so the programs that it starts, ignore SIGHUP.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

#[test]
fn a_signal_ends_a_run_after_its_step_with_everything_written() {
    for (signal, code, backend) in [
        ("INT", 130, "cpu"),
        ("TERM", 143, "cpu"),
        ("HUP", 129, "cpu"),
        ("QUIT", 131, "cpu"),
        ("USR1", 138, "cpu"),
        ("USR2", 140, "cpu"),
        ("XCPU", 152, "cpu"),
        ("ALRM", 142, "cpu"),
        ("VTALRM", 154, "cpu"),
        ("INT", 130, "vulkan"),
    ] {
        // Under `nohup` the program has to continue, so that this test would wait forever.
        if signal == "HUP" && is_hangup_ignored() {
            continue;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        let line = format!("train --json --backend {backend} --model softmax --rule sgdm");
        let outputs = "--checkpoint run --every 3 --trace trace.csv";
        let output = stopped(folder, &format!("{line} {outputs} --report page.html --epochs 1000000"), signal);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(
            stderr.contains(&format!("error: SIG{signal}: stopped after ")) && stderr.contains("--resume"),
            "{stderr}"
        );
        let run = json_of(&output)["runs"][0].take();
        assert_eq!(run["stopped_by"], format!("SIG{signal}"));
        let steps = run["steps"].as_u64().expect("steps");
        assert!(steps > 0 && steps < 23_000_000);
        let trace = text(&folder.join("trace.csv"));
        assert!(trace.ends_with('\n'));
        assert_eq!(trace.lines().count() as u64, steps + 1);
        let page = text(&folder.join("page.html"));
        assert!(page.ends_with("</html>\n") && page.contains("stopped by"), "{page}");
        let begun = format!("in {} of 1,000,000 epochs", steps.div_ceil(23));
        assert!(page.replace(',', "").contains(&begun.replace(',', "")), "no {begun:?} in {page}");
        // The run continues from exactly this step and ends as a run that was not interrupted.
        let epochs = steps / 23 + 2;
        let rest = format!("{line} --epochs {epochs}");
        let output = start(folder, &format!("{rest} {outputs} --resume")).wait_with_output().expect("ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(&format!("going on at step {steps}")), "{stderr}");
        let whole = start(folder, &format!("{rest} --trace whole.csv")).wait_with_output().expect("ends");
        let [part, whole] = [&output, &whole].map(|output| json_of(output)["runs"][0]["train_loss"].clone());
        assert_eq!(part, whole);
        assert!(text(&folder.join("trace.csv")) == text(&folder.join("whole.csv")), "the traces differ");
    }
}

/// The report evaluates the test rows after every epoch, which takes longer than the epoch, so that the signal arrives there.
#[test]
fn a_signal_between_two_epochs_saves_the_run_too() {
    for _ in 0..5 {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        let line = "train --json --backend cpu --model softmax --batch 2000 --epochs 1000000";
        let mut child = start(folder, &format!("{line} --checkpoint run --report page.html"));
        wait_for_watch(&mut child);
        std::thread::sleep(Duration::from_millis(30));
        send(&child, "TERM");
        let output = child.wait_with_output().expect("ends");
        assert_eq!(output.status.code(), Some(143));
        let steps = json_of(&output)["runs"][0]["steps"].as_u64().expect("steps");
        let checkpoint = wgpu_optim::Checkpoint::load(folder.join("run")).expect("saved");
        assert_eq!(checkpoint.step(), steps);
    }
}

/// A comparison prints the runs that are finished. Its second setting would take hours. `tune` would spend an hour on its only size, and a second
/// signal ends it.
#[test]
fn other_commands_print_what_is_finished_and_a_second_signal_ends_them_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let compare = "train --compare --json --backend cpu --rules sgd --regimes seesaw --lrs 0.1 --seeds 0";
    let mut child = start(folder, &format!("{compare} --settings 64x1,64x1000000"));
    wait_for_watch(&mut child);
    send(&child, "INT");
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    let report = json_of(&output);
    let runs = report["runs"].as_array().expect("runs");
    assert!(runs.iter().all(|run| run["epochs"] == 1 && run["steps"] == 23), "{report}");

    let mut child = start(folder, "tune --dry-run --backend vulkan --power 16 --budget-ms 3600000");
    wait_for_watch(&mut child);
    send(&child, "INT");
    std::thread::sleep(Duration::from_secs(1));
    send(&child, "INT");
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(130));
}

/// The program ignores the signal, as under `nohup`.
#[test]
fn a_signal_that_is_ignored_stays_ignored() {
    let folder = tempfile::tempdir().expect("a folder");
    let binary = wgpu_optim().get_program().to_owned();
    let mut child = Command::new("sh")
        .current_dir(folder.path())
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\""])
        .arg(binary)
        .args(words("train --json --backend cpu --epochs 1000000"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("sh");
    wait_for_watch(&mut child);
    send(&child, "HUP");
    std::thread::sleep(Duration::from_millis(20));
    send(&child, "INT");
    let output = child.wait_with_output().expect("ends");
    assert_eq!(json_of(&output)["runs"][0]["stopped_by"], "SIGINT");
}

/// `/dev/full` accepts no bytes, like a full disk.
#[test]
fn a_stream_that_cannot_be_written_loses_no_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let full = || OpenOptions::new().write(true).open("/dev/full").expect("opens");
    let run = |command: &mut Command| {
        let line = "train --epochs 1 --checkpoint run --report page.html --force --schedule one-cycle";
        command.current_dir(folder).args(words(line)).output().expect("the binary runs")
    };
    let written = || {
        let is_there = ["run", "page.html"].map(|name| std::fs::remove_file(folder.join(name)).is_ok());
        assert_eq!(is_there, [true, true]);
    };
    // Without --backend, and with this schedule, there is output before the first step.
    let output = run(wgpu_optim().stderr(full()));
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("test accuracy"));
    written();
    let output = run(wgpu_optim().stdout(full()));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cannot write standard output") && !stderr.contains("panicked"), "{stderr}");
    written();
    let output = run(wgpu_optim().stdout(full()).stderr(full()));
    assert_eq!(output.status.code(), Some(1));
    written();
    for line in [
        "bench --backend cpu --to 10 --rule sgd --regime fixed --round-ms 1 --report page.html",
        "train --compare --backend cpu --rules sgd --regimes seesaw --lrs 0.1 --seeds 0 --epochs 1 --report page.html",
    ] {
        let output = wgpu_optim().current_dir(folder).args(words(line)).stdout(full()).output().expect("runs");
        assert_eq!(output.status.code(), Some(1), "{line}");
        std::fs::remove_file(folder.join("page.html")).expect("the page is written all the same");
    }
    let output = wgpu_optim().arg("--help").stdout(full()).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
}
