//! A process that is killed while it saves loses nothing.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use wgpu_optim::{CpuOptimizer, Group, OptimizerBuilder, Regime, Rule};
use wgpu_optim_conformance::Numbers;

use crate::helpers::raw_tensor;

/// The variable with the file that a child process saves to repeatedly.
const CHILD: &str = "WGPU_OPTIM_TEST_SAVES_TO";

/// Large enough that the child spends most of its time saving.
const CHILD_ELEMENTS: usize = 100_000;

fn childs_optimizer() -> CpuOptimizer {
    let w = vec![0.0f32; CHILD_ELEMENTS];
    let group = Group::new("all").tensor("w", &w, &w);
    let builder = OptimizerBuilder::new(Rule::sgdm(0.5)).regime(Regime::fixed(1.0));
    builder.group(group).build_cpu().expect("builds")
}

/// The child process of the next test, and no test itself. It continues from the file and prints after each save which step is safe.
#[test]
#[ignore = "a child process of the kill test"]
fn child_that_saves() {
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    let mut optimizer = childs_optimizer();
    let mut w = vec![0.0f32; CHILD_ELEMENTS];
    if Path::new(&path).exists() {
        optimizer.load(&path, Some(&mut [&mut w])).expect("a whole file");
    }
    let gradient = vec![1.0f32; CHILD_ELEMENTS];
    loop {
        optimizer.step(&mut [&mut w], &[&gradient]).expect("steps");
        optimizer.save(&path, Some(&[&w])).expect("saved");
        println!("saved {}", optimizer.states()[0].steps_low);
    }
}

/// A process is killed at random times while it saves. The file is always complete, and at least as recent as the last step that the process reported
/// as safe. The next process continues from it. `WGPU_OPTIM_TEST_KILLS` sets the number of kills, which is 25 by default.
#[test]
fn a_process_killed_while_it_saves_loses_nothing() {
    let kills = std::env::var("WGPU_OPTIM_TEST_KILLS").map_or(25, |kills| kills.parse().expect("a number"));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("run.safetensors");
    let mut numbers = Numbers(7);
    let (mut safe, mut killed_while_writing) = (0, 0);
    for kill in 0..kills {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "checkpoint::killed::child_that_saves", "--ignored", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the child runs");
        // Waits for one complete save, however slow the machine is, and kills the process at some time during the next ones.
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut said = String::new();
        while !said.contains("saved ") && stdout.read_line(&mut said).expect("read") > 0 {}
        std::thread::sleep(Duration::from_micros((10_000.0 + 10_000.0 * numbers.next()) as u64));
        child.kill().expect("killed");
        stdout.read_to_string(&mut said).expect("read");
        let output = child.wait_with_output().expect("gone");
        assert!(output.status.code().is_none_or(|code| code != 101), "{}", String::from_utf8_lossy(&output.stderr));
        let saved = said.lines().filter_map(|line| line.split_once("saved ")?.1.parse().ok());
        safe = saved.fold(safe, |_, step: u64| step);
        let entries = || folder.path().read_dir().expect("a folder").count();
        killed_while_writing += usize::from(entries() > usize::from(path.exists()));
        if !path.exists() {
            assert_eq!(safe, 0, "kill {kill}: the file is gone");
            continue;
        }
        let mut optimizer = childs_optimizer();
        let mut w = vec![0.0f32; CHILD_ELEMENTS];
        let loaded = optimizer.load(&path, Some(&mut [&mut w]));
        let step = loaded.unwrap_or_else(|error| panic!("kill {kill}: {error}")).step();
        assert!(step >= safe, "kill {kill}: step {safe} was safe, but this is step {step}");
        // m = 2 - 2 ½^t and w = -Σ m, in every element.
        let (.., momentum) = raw_tensor(&std::fs::read(&path).expect("read"), "momentum/w");
        let momentum: Vec<f32> = bytemuck::pod_collect_to_vec(&momentum);
        let expected = 2.0 - 2.0 * 0.5f64.powi(step.min(60) as i32);
        assert!(momentum.iter().all(|m| (f64::from(*m) - expected).abs() <= 1e-6), "kill {kill}, step {step}");
        assert!(w.iter().all(|x| *x == w[0]) && w[0] <= -(step as f32), "kill {kill}, step {step}: {}", w[0]);
        // The next process that saves removes the temporary files of a killed one.
        assert!(entries() <= 2, "kill {kill}: files are left");
    }
    eprintln!(
        "{kills} kills, {killed_while_writing} of them with a file half written; step {safe} was safe at the end"
    );
    assert!(safe > 0, "no child ever saved");
}
