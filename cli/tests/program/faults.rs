//! Tests of failing system calls while a run checks, reads, saves or writes its files. Whichever call fails, no file is lost or half written, and
//! nothing is left beside them. A run that has started ends with its figures and with an error that names the file.
//!
//! `strace` fails the calls, one in each run. Where it is not installed or may not trace, the test does nothing. `tests/run` installs it.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::command::{wgpu_optim, words};

const OUTPUTS: [&str; 3] = ["saved", "trace", "page"];

/// The command of a run of three steps, or of the rest of one.
const TRAIN: &str = "train --json --backend cpu --batch 2 --hidden 4";

/// Runs the command under `strace`, without a fault or with this one, and returns the log of its main thread's calls.
fn traced(folder: &Path, options: &str, fault: Option<&str>) -> (Output, String) {
    let log = folder.with_extension("strace");
    let mut strace = Command::new("strace");
    strace.arg("-y").arg("-o").arg(&log).args(["-s", "8"]).args(fault.map(|fault| format!("--inject={fault}")));
    let run = wgpu_optim();
    strace.arg(run.get_program()).args(words(&format!("{TRAIN} {options}")));
    for (option, name) in
        [("--data", "data.csv"), ("--checkpoint", "saved"), ("--trace", "trace"), ("--report", "page")]
    {
        // The page of a resumed run would lack its beginning.
        if option != "--report" || !options.contains("--resume") {
            strace.arg(option).arg(folder.join(name));
        }
    }
    // The calls have the same order in each run.
    strace.env("RAYON_NUM_THREADS", "1").env("WGPU_OPTIM_TUNING_CACHE", "").env_remove("WGPU_BACKEND");
    let output = strace.output().expect("strace runs");
    let calls = std::fs::read_to_string(&log).expect("a log");
    std::fs::remove_file(log).expect("removed");
    (output, calls)
}

fn can_trace() -> bool {
    let tried = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    let can = tried.is_ok_and(|output| output.status.success());
    if !can {
        #[expect(clippy::print_stderr)]
        {
            eprintln!("strace is not installed or may not trace: no call is failed");
        }
    }
    can
}

/// The name and content of every file in a folder.
type Files = BTreeMap<String, Vec<u8>>;

fn contents(folder: &Path) -> Files {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
    let name = |entry: &std::fs::DirEntry| entry.file_name().into_string().expect("UTF-8");
    entries.map(|entry| (name(&entry), std::fs::read(entry.path()).expect("reads"))).collect()
}

/// Restores these files in a folder, readable only by their owner.
fn restore(folder: &Path, files: &Files) {
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir(folder).expect("made");
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).expect("written");
        std::fs::set_permissions(folder.join(name), Permissions::from_mode(0o600)).expect("set");
    }
}

/// The result of a run.
struct Outcome<'a> {
    output: Output,
    before: &'a Files,
    found: Files,
    /// The files of a run without a fault.
    after: &'a Files,
}

impl Outcome<'_> {
    fn is_old(&self, name: &str) -> bool {
        self.found.get(name) == self.before.get(name)
    }

    fn is_new(&self, name: &str) -> bool {
        self.found.get(name).is_some_and(|found| {
            *found == self.after[name]
                || match name {
                    // The page contains times.
                    "page" => !self.is_old(name) && found.starts_with(b"<!doctype") && found.ends_with(b"</html>\n"),
                    _ => false,
                }
        })
    }

    /// Returns whether a file is a trace that ends early, after a whole row.
    fn is_cut(&self, name: &str) -> bool {
        let found = self.found.get(name).map_or(&[][..], |found| found);
        name == "trace" && self.after[name].starts_with(found) && (found.is_empty() || found.ends_with(b"\n"))
    }

    /// Returns what is wrong after a run in which one call failed.
    fn wrong(&self, folder: &Path, call: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        for name in self.found.keys().chain(self.before.keys()) {
            // A file may be left only if the failed call is the one that looks at it or removes it.
            if !self.after.contains_key(name) && !call.contains(name) {
                wrong.push(format!("{name} is left"));
            }
            if self.after.contains_key(name) && !(self.is_old(name) || self.is_new(name) || self.is_cut(name)) {
                wrong.push(format!("{name} is neither old nor new"));
            }
            let mode = |about: std::fs::Metadata| about.permissions().mode() & 0o777;
            if self.before.contains_key(name) && folder.join(name).metadata().is_ok_and(|about| mode(about) != 0o600) {
                wrong.push(format!("others may read {name}"));
            }
        }
        let stderr = String::from_utf8_lossy(&self.output.stderr);
        let last = stderr.lines().last().unwrap_or_default();
        let is_told = last.starts_with("error: ") && last.contains(&*folder.to_string_lossy());
        let is_as_promised = match self.output.status.code() {
            Some(0) => OUTPUTS.iter().all(|name| self.is_new(name)),
            Some(1) => is_told && !self.output.stdout.is_empty(),
            // The run was refused before it started.
            Some(2) => is_told && self.output.stdout.is_empty() && OUTPUTS.iter().all(|name| self.is_old(name)),
            _ => false,
        };
        if !is_as_promised {
            wrong.push(format!("{}: {stderr}", self.output.status));
        }
        wrong
    }
}

#[test]
fn whichever_call_fails_no_file_is_lost_and_the_run_says_so() {
    if !can_trace() {
        return;
    }
    let room = tempfile::tempdir().expect("a folder");
    let folder = &room.path().join("run");
    let data = Files::from([("data.csv".to_owned(), b"1,2,0\n3,4,1\n5,6,0\n7,7,1\n2,2,0\n".to_vec())]);
    restore(folder, &data);
    assert!(traced(folder, "--epochs 1", None).0.status.success());
    let half = contents(folder);
    let (mut faults, mut failures) = (0, Vec::new());
    for (options, before) in [("--epochs 3", &data), ("--epochs 3 --force", &half), ("--epochs 3 --resume", &half)] {
        restore(folder, before);
        let (output, calls) = traced(folder, options, None);
        assert!(output.status.success(), "{options}: {}", String::from_utf8_lossy(&output.stderr));
        let after = &contents(folder);
        // Every call that has a file of the folder in its arguments, by its name and its place among the calls of that name.
        let mut places = BTreeMap::new();
        for call in calls.lines() {
            let Some((name, arguments)) = call.split_once('(') else { continue };
            let place = places.entry(name).or_insert(0);
            *place += 1;
            // `execve` has to start the binary, and a file whose `close` fails is closed nevertheless.
            if !arguments.contains(&*folder.to_string_lossy()) || ["execve", "close"].contains(&name) {
                continue;
            }
            restore(folder, before);
            let (output, calls) = traced(folder, options, Some(&format!("{name}:error=EIO:when={place}")));
            let failed = calls.lines().find(|call| call.ends_with("(INJECTED)")).expect("a call that failed");
            faults += 1;
            let wrong = Outcome { output, before, found: contents(folder), after }.wrong(folder, failed);
            if !wrong.is_empty() {
                failures.push(format!("{options}, {failed}: {}", wrong.join(", ")));
            }
        }
    }
    assert!(failures.is_empty(), "{} of {faults}\n{}", failures.len(), failures.join("\n"));
    assert!(faults > 200, "{faults}");
}
