//! Tests of outputs: no output replaces a file that was read, that another option names, or that this program did not write. An output that cannot be
//! written loses neither the run nor its figures.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::command::{assert_refused, json_of, wgpu_optim, words};

fn run(folder: &Path, line: &str) -> Output {
    wgpu_optim().current_dir(folder).args(words(line)).output().expect("the binary runs")
}

fn succeeds(folder: &Path, line: &str) -> Output {
    let output = run(folder, line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

const TRAIN: &str = "train --json --backend cpu --epochs 1";
const OPTIONS: [&str; 3] = ["--trace", "--report", "--checkpoint"];

/// Returns every file below a folder, with its content.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else {
            all.push((path.display().to_string(), std::fs::read(&path).expect("reads")));
        }
    }
    all.sort();
    all
}

fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    std::fs::write(path, bytes).expect("written");
}

/// Writes data files of every kind to a folder.
fn data(folder: &Path) {
    let idx = |dimensions: &[u8], data: &[u8]| {
        let sizes = dimensions.iter().flat_map(|&size| [0, 0, 0, size]);
        [0, 0, 8, dimensions.len() as u8].into_iter().chain(sizes).chain(data.iter().copied()).collect::<Vec<u8>>()
    };
    for (part, rows) in [("train", 6), ("t10k", 2)] {
        let pixels: Vec<u8> = (0..rows * 4).map(|i| i * 9).collect();
        let labels: Vec<u8> = (0..rows).map(|i| i % 2).collect();
        write(folder, &format!("idx/{part}-images-idx3-ubyte"), idx(&[rows, 2, 2], &pixels));
        write(folder, &format!("idx/{part}-labels-idx1-ubyte"), idx(&[rows], &labels));
    }
    write(folder, "svm/a.train", "0 1:1\n1 1:2\n0 1:1\n");
    write(folder, "svm/a.test", "0 1:1\n");
    write(folder, "my.csv", "1,2,0\n3,4,1\n5,6,0\n");
}

#[test]
fn no_output_replaces_what_is_read_by_whatever_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    data(folder);
    std::fs::hard_link(folder.join("svm/a.test"), folder.join("hard")).expect("linked");
    #[cfg(unix)]
    std::os::unix::fs::symlink("idx/t10k-labels-idx1-ubyte", folder.join("soft")).expect("linked");
    let before = contents(folder);
    for (data, output) in [
        ("my.csv", "my.csv"),
        ("./my.csv", "svm/../my.csv"),
        ("idx", "idx/train-images-idx3-ubyte"),
        ("idx", "idx/train-labels-idx1-ubyte"),
        ("idx", "idx/t10k-images-idx3-ubyte"),
        ("idx/train-images-idx3-ubyte", "idx/t10k-labels-idx1-ubyte"),
        ("idx", "soft"),
        ("svm/a.train", "svm/a.train"),
        ("svm/a.train", "svm/a.test"),
        ("svm/a.train", "hard"),
    ] {
        for option in OPTIONS {
            // `--force` does not change this.
            for force in ["", "--force"] {
                let line = format!("{TRAIN} --data {data} {option} {output} {force}");
                assert_refused(&run(folder, &line), &[option, "would overwrite"]);
            }
        }
    }
    assert!(contents(folder) == before, "something was written");
}

#[test]
fn two_outputs_never_share_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    std::fs::create_dir(folder.join("sub")).expect("made");
    #[cfg(unix)]
    std::os::unix::fs::symlink("one", folder.join("link")).expect("linked");
    for (index, first) in OPTIONS.iter().enumerate() {
        for second in &OPTIONS[index + 1..] {
            for (one, other) in [("one", "one"), ("one", "./one"), ("one", "sub/../one"), ("one", "link")] {
                let line = format!("{TRAIN} {first} {one} {second} {other}");
                assert_refused(&run(folder, &line), &[first, second, "one"]);
            }
        }
    }
    assert!(contents(&folder.join("sub")).is_empty() && !folder.join("one").exists());
}

/// Notes of the user, an output of another kind, and a checkpoint of other settings are kept, except with `--force`. Outputs of the same kind, and
/// empty files, are replaced.
#[test]
fn what_is_no_output_of_ours_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    succeeds(folder, &format!("{TRAIN} --trace trace --report page --checkpoint saved"));
    write(folder, "notes", "precious");
    write(folder, "notes.html", "precious");
    write(folder, "my.html", "1,2,0\n3,4,1\n5,6,0\n");
    let kinds = [("--trace", "trace"), ("--report", "page"), ("--checkpoint", "saved")];
    let before = contents(folder);
    for (option, own) in kinds {
        for file in ["notes", "trace", "page", "saved"].iter().filter(|file| **file != own) {
            assert_refused(&run(folder, &format!("{TRAIN} {option} {file}")), &[option, file, "--force"]);
        }
    }
    assert_refused(&run(folder, "train --compare --report notes.html"), &["--report", "notes", "--force"]);
    assert_refused(&run(folder, "train --compare --data my.html --report my.html"), &["--report", "would overwrite"]);
    assert_refused(&run(folder, "bench --backend cpu --report notes.html"), &["--report", "notes", "--force"]);
    for (args, words) in
        [("--seed 1", "--seed was 0"), ("--batch 32", "--batch was 64"), ("--data mushrooms", "the data")]
    {
        let output = run(folder, &format!("{TRAIN} --checkpoint saved {args}"));
        assert_refused(&output, &["--checkpoint saved", "another run", words, "--force"]);
    }
    assert!(contents(folder) == before, "something was written");
    let longer = succeeds(folder, "train --json --backend cpu --epochs 3 --checkpoint saved");
    assert_eq!(json_of(&longer)["runs"][0]["steps"], 69);
    assert_refused(&run(folder, &format!("{TRAIN} --checkpoint saved")), &["at step 69", "--force"]);
    for (option, own) in kinds {
        write(folder, "empty", "");
        succeeds(folder, &format!("{TRAIN} {option} empty"));
        let seed = if own == "saved" { "--force" } else { "--seed 1" };
        succeeds(folder, &format!("{TRAIN} {option} {own} {seed}"));
        write(folder, "notes", "precious");
        succeeds(folder, &format!("{TRAIN} {option} notes --force"));
        assert_ne!(std::fs::read(folder.join("notes")).expect("reads"), b"precious");
    }
    let tune = || {
        let mut command = wgpu_optim();
        command.current_dir(folder).env("WGPU_OPTIM_TUNING_CACHE", "notes");
        command.args(words("tune --backend vulkan --power 8 --budget-ms 1"));
        command
    };
    write(folder, "notes", "precious");
    assert_refused(&tune().output().expect("runs"), &["WGPU_OPTIM_TUNING_CACHE", "notes", "--force"]);
    assert!(tune().arg("--force").status().expect("runs").success());
    assert!(tune().status().expect("runs").success(), "its own file");
}

/// Each line has an old file for one output and a mistake in another option.
#[test]
fn all_outputs_are_looked_at_before_one_is_touched() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    succeeds(folder, &format!("{TRAIN} --trace trace --report page --checkpoint saved"));
    let wide: String = (0..40).map(|i| format!("{} {}:1\n", i % 2, 1 + i * 8000)).collect();
    write(folder, "wide.svm", wide);
    let before = contents(folder);
    for line in [
        "--trace trace --report nodir/page",
        "--report page --trace nodir/trace",
        "--trace trace --report page --checkpoint nodir/saved",
        "--checkpoint saved --trace trace --seed 1",
        "--trace trace --report page --checkpoint wide.svm",
        // The model exceeds the limits of the device.
        "--trace trace --report page --data wide.svm --model softmax --backend vulkan",
    ] {
        let train = if line.contains("--backend") { "train" } else { TRAIN };
        let output = run(folder, &format!("{train} {line}"));
        assert_eq!(output.status.code(), Some(2), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(contents(folder) == before, "{line}: something was written");
    }
}

#[cfg(unix)]
#[test]
fn a_run_survives_what_cannot_be_written_and_fails_at_its_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let output = run(folder, &format!("{TRAIN} --report /dev/full"));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(json_of(&output)["runs"][0]["steps"], 23);
    assert!(stderr.contains("cannot write /dev/full") && stderr.contains("make room"), "{stderr}");
    // No file may exceed two kilobytes, which has the effect of a full disk.
    let binary = wgpu_optim().get_program().to_owned();
    let line = format!("{TRAIN} --epochs 3 --trace trace --report page --checkpoint saved --every 7");
    let output = Command::new("sh")
        .current_dir(folder)
        .args(["-c", "ulimit -f 4; exec \"$0\" \"$@\""])
        .arg(&binary)
        .args(words(&line.replace("--epochs 1 ", "")))
        .output()
        .expect("sh");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(json_of(&output)["runs"][0]["steps"], 69);
    for (what, name) in [
        ("warning: ", "trace"),
        ("warning: ", "saved"),
        ("error: ", "trace"),
        ("error: ", "page"),
        ("error: ", "saved"),
    ] {
        let is_told = stderr.lines().any(|line| line.starts_with(what) && line.contains(name));
        assert!(is_told, "{what}{name}: {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
    let trace = std::fs::read_to_string(folder.join("trace")).expect("reads");
    assert!(trace.is_empty() || trace.ends_with('\n'), "{trace}");
    // No part of the unwritten files is left.
    assert_eq!(contents(folder).len(), 1, "{:?}", contents(folder));
}

/// The folder is removed while the run saves to it after every step.
#[test]
fn a_save_that_fails_does_not_end_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    std::fs::create_dir(folder.join("gone")).expect("made");
    let line = "train --json --backend cpu --model softmax --epochs 100 --checkpoint gone/saved --every 1";
    let mut command = wgpu_optim();
    command.current_dir(folder).args(words(line)).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("the binary runs");
    while !folder.join("gone/saved").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    // A file that is being written may reappear once or twice.
    while folder.join("gone").exists() {
        let _ = std::fs::remove_dir_all(folder.join("gone"));
    }
    let output = child.wait_with_output().expect("ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(json_of(&output)["runs"][0]["steps"], 2300);
    assert!(stderr.lines().any(|line| line.starts_with("warning: the checkpoint gone/saved")), "{stderr}");
    assert!(stderr.lines().last().expect("a line").starts_with("error: the checkpoint gone/saved"), "{stderr}");
}

#[test]
fn two_processes_do_not_write_one_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    for (option, name) in [("--checkpoint", "saved"), ("--trace", "trace"), ("--report", "page")] {
        let mut command = wgpu_optim();
        let line = format!("train --json --backend cpu --epochs 1000000 {option} {name}");
        let mut child = command.current_dir(folder).args(words(&line)).stdout(Stdio::null()).spawn().expect("runs");
        let lock = folder.join(format!(".{name}.lock"));
        while !lock.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // The lock is taken right after its file is created.
        std::thread::sleep(Duration::from_millis(50));
        for seed in ["0", "1"] {
            let line = format!("{TRAIN} --seed {seed} {option} ./{name}");
            assert_refused(&run(folder, &line), &["another process", name]);
        }
        child.kill().expect("killed");
        child.wait().expect("gone");
        // The file of a killed process is no lock, and the next run removes it.
        assert!(lock.exists());
        succeeds(folder, &format!("{TRAIN} {option} {name}"));
        assert!(!lock.exists());
        // A file that has this name by chance is not removed.
        write(folder, &format!(".{name}.lock"), "mine");
        succeeds(folder, &format!("{TRAIN} {option} {name}"));
        assert_eq!(std::fs::read(&lock).expect("there"), b"mine");
    }
}

/// A named pipe has no other end, so that opening it would block forever.
#[cfg(unix)]
#[test]
fn what_cannot_be_an_output_is_refused_before_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    data(folder);
    assert!(Command::new("mkfifo").current_dir(folder).arg("pipe").status().expect("mkfifo").success());
    std::os::unix::fs::symlink("loop", folder.join("loop")).expect("linked");
    let too_long = "x".repeat(250);
    for (output, options, words) in [
        ("pipe", &OPTIONS[..], "it is a pipe"),
        ("new/", &OPTIONS, "the name of a folder"),
        ("new/.", &OPTIONS, "the name of a folder"),
        ("loop", &OPTIONS, "name another file"),
        (&too_long, &OPTIONS, "a shorter name"),
        ("/dev/null", &OPTIONS[2..], "it is a device"),
        ("/dev/full", &OPTIONS[2..], "it is a device"),
    ] {
        for option in options {
            let line = format!("{TRAIN} --data my.csv {option} {output}");
            assert_refused(&run(folder, &line), &[output, words]);
        }
    }
    // Standard output is a pipe here.
    assert_refused(&run(folder, &format!("{TRAIN} --data my.csv --trace /dev/stdout")), &["/dev/stdout: it is a pipe"]);
    for option in OPTIONS {
        let name = "x".repeat(249);
        for force in ["", "--force"] {
            succeeds(folder, &format!("{TRAIN} --data my.csv {option} {name} {force}"));
        }
        std::fs::remove_file(folder.join(name)).expect("written");
    }
}

#[cfg(unix)]
#[test]
fn no_output_is_where_a_standard_stream_goes() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    for option in OPTIONS {
        for (stream, words) in [("out", "standard output goes to"), ("err", "standard error goes to")] {
            for name in [stream.to_owned(), format!("/dev/std{stream}")] {
                let [out, err] = ["out", "err"].map(|name| std::fs::File::create(folder.join(name)).expect("made"));
                let line = format!("{TRAIN} {option} {name} --force");
                let status = wgpu_optim()
                    .current_dir(folder)
                    .args(crate::command::words(&line))
                    .stdout(out)
                    .stderr(err)
                    .status();
                assert_eq!(status.expect("runs").code(), Some(2), "{line}");
                let said = std::fs::read_to_string(folder.join("err")).expect("reads");
                assert!(said.contains(words) && said.contains(option), "{line}: {said}");
                assert!(std::fs::read(folder.join("out")).expect("reads").is_empty());
            }
        }
    }
}

/// Starts an endless run and waits until its trace has rows.
#[cfg(unix)]
fn tracing(folder: &Path, name: &str) -> std::process::Child {
    let mut command = wgpu_optim();
    let line = format!("train --json --backend cpu --model softmax --epochs 1000000 --trace {name}");
    command.current_dir(folder).args(words(&line)).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("the binary runs");
    while folder.join(name).metadata().map_or(0, |about| about.len()) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

#[cfg(unix)]
#[test]
fn a_file_of_two_names_is_written_by_one_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    for is_there_before in [true, false] {
        if is_there_before {
            write(folder, "one", "");
        }
        let mut child = tracing(folder, "one");
        std::fs::hard_link(folder.join("one"), folder.join("other")).expect("linked");
        assert_refused(&run(folder, &format!("{TRAIN} --trace other")), &["another process", "other"]);
        child.kill().expect("killed");
        child.wait().expect("gone");
        succeeds(folder, &format!("{TRAIN} --trace other"));
        for name in ["one", "other"] {
            std::fs::remove_file(folder.join(name)).expect("removed");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_trace_that_is_lost_is_told() {
    type Change = fn(&Path);
    let changes: [(Change, &str); 5] = [
        (|folder| write(folder, "trace", "mine"), "cut short"),
        (|folder| std::fs::remove_dir_all(folder).expect("removed"), "removed or replaced"),
        (|folder| std::fs::remove_file(folder.join("trace")).expect("removed"), "removed or replaced"),
        (|folder| std::fs::rename(folder.join("trace"), folder.join("other")).expect("moved"), "removed or replaced"),
        (
            |folder| {
                std::fs::remove_file(folder.join("trace")).expect("removed");
                write(folder, "trace", "mine");
            },
            "removed or replaced",
        ),
    ];
    for (change, words) in changes {
        let folder = tempfile::tempdir().expect("a folder");
        let sub = folder.path().join("sub");
        std::fs::create_dir(&sub).expect("made");
        let child = tracing(folder.path(), "sub/trace");
        change(&sub);
        let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
        assert!(killed.expect("kill").success());
        let output = child.wait_with_output().expect("ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        for start in ["warning: ", "error: "] {
            let is_told = |line: &str| line.starts_with(start) && line.contains("sub/trace") && line.contains(words);
            assert!(stderr.lines().any(is_told), "{stderr}");
        }
        assert!(json_of(&output)["runs"][0]["steps"].as_u64().expect("steps") > 0);
        let mine = std::fs::read(sub.join("trace")).ok();
        assert!(mine.is_none_or(|mine| mine.starts_with(b"mine")));
    }
}

/// A file at a later step of the same run is kept, also while the run saves in between.
#[cfg(unix)]
#[test]
fn no_earlier_step_of_a_run_replaces_a_later_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let train = "train --json --backend cpu --model softmax --checkpoint saved";
    succeeds(folder, &format!("{train} --epochs 40"));
    let before = std::fs::read(folder.join("saved")).expect("saved");
    let stopped = run(folder, &format!("{train} --epochs 40 --every 100"));
    assert_eq!(String::from_utf8_lossy(&stopped.stderr).matches("not replaced before that").count(), 1);
    assert!(std::fs::read(folder.join("saved")).expect("saved") == before, "the same run has other bits");
    // The device is lost before the first save that could replace a file that is far ahead.
    let lost =
        "train --json --backend vulkan --model softmax --checkpoint saved --epochs 40 --every 100 --lose-device 250";
    let output = succeeds(folder, lost);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("from the checkpoint of step 200"), "{stderr}");
}
