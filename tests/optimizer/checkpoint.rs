//! Promise: a run that goes on from a checkpoint has the same bits as one that was never interrupted; a checkpoint has one form on every
//! path; what does not fit is named and changes nothing; a process that is killed while it saves loses nothing; and bytes that are no
//! checkpoint are refused, whatever they are.
//!
//! Tried once by hand, each with the test that then failed: a file that is written in place, a row of states that is left out, one
//! element of momentum exchanged with another, roles that are not restored, a regime that is not compared, a header's length that is
//! believed, records that are not cleared.

use std::io::{BufRead, BufReader, Read};
use std::mem::offset_of;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use proptest::prelude::*;
use wgpu_optim::gpu::Tuning;
use wgpu_optim::layout::GroupState;
use wgpu_optim::{
    Averaging, Checkpoint, CpuOptimizer, Error, Group, LossScaler, NonFinitePolicy, Notes, OptimizerBuilder,
    Parameters, Regime, Rule, Schedule, SecantForm, wgpu,
};
use wgpu_optim_conformance::run::{
    CpuRun, GpuRun, Place, Run, Setup, Spec, alone, bits, devices, gpu_run_with, packed,
};
use wgpu_optim_conformance::{Numbers, step, upload};

/// Every rule, and regimes of every kind of memory, with averages, telemetry and trust ratios here and there; and a group of odd tensors whose norm is shared.
fn cases() -> Vec<Spec> {
    let regimes = [
        Regime::seesaw(),
        Regime::norm_ratio(),
        Regime::fixed(0.01),
        Regime::adagrad_norm(),
        Regime::barzilai_borwein(SecantForm::Geometric),
        Regime::dowg(),
        Regime::polyak(),
    ];
    let mut numbers = Numbers(1);
    let mut specs = Vec::new();
    for (row, rule) in Rule::all().into_iter().enumerate() {
        // Every other pair: kernels take their time to compile.
        for regime in regimes.iter().skip((row + 1) % 2).step_by(2) {
            let tensors = vec![numbers.vec(7), numbers.vec(66)];
            let name = format!("{}, {}", rule.name(), regime.name());
            specs.push(Spec::new(rule, *regime, tensors).named(name));
        }
    }
    let averages = [
        Averaging::Off,
        Averaging::Running { start: 2 },
        Averaging::Exponential { decay: 0.5, start: 0 },
        Averaging::polynomial_decay(),
        // It has not started when the run is interrupted.
        Averaging::Running { start: 8 },
    ];
    for (spec, averaging) in specs.iter_mut().zip(averages.into_iter().cycle()) {
        spec.averaging = averaging;
        spec.telemetry = spec.name.starts_with("nesterov");
        spec.trust = spec.name.ends_with("fixed").then_some(0.1);
    }
    specs[1].schedule = Schedule::WarmupCosine { warmup: 3, steps: 20, last: 0.1 };
    for rule in [Rule::sgd(), Rule::sign_sgd()] {
        let tensors = vec![numbers.vec(1), vec![], numbers.vec(5003)];
        let name = format!("shared, {}", rule.name());
        let mut spec = Spec::new(rule, Regime::seesaw(), tensors).named(name).sharing("both");
        spec.per_tensor = rule == Rule::sgd();
        specs.push(spec);
    }
    specs
}

/// Streams that take turns, which all groups have or none.
fn streams() -> Vec<Spec> {
    let mut numbers = Numbers(2);
    [Rule::sgd(), Rule::sign_sgd()]
        .into_iter()
        .map(|rule| {
            let tensors = vec![numbers.vec(7), numbers.vec(66)];
            Spec::new(rule, Regime::auto_sgd(), tensors).named(rule.name())
        })
        .collect()
}

/// A few groups that between them have every kind of memory.
fn few() -> Vec<Spec> {
    let all = cases();
    let wanted = |spec: &Spec| {
        [
            "shared",
            "sgdm, seesaw",
            "sgd, dowg",
            "sgdm, bb-geometric",
            "signum, norm-ratio",
            "nesterov, dowg",
            "signsgd, fixed",
        ]
        .iter()
        .any(|name| spec.name.starts_with(name))
    };
    all.into_iter().filter(wanted).collect()
}

/// The gradients of a step. One step in five has a NaN.
fn gradients(specs: &[Spec], step: u64) -> Vec<Vec<f32>> {
    let mut numbers = Numbers(100 + step);
    let mut grads: Vec<Vec<f32>> =
        specs.iter().flat_map(|spec| &spec.tensors).map(|tensor| numbers.vec(tensor.len())).collect();
    if step % 5 == 2 {
        grads[1][3] = f32::NAN;
    }
    grads
}

fn advance(run: &mut dyn Run, specs: &[Spec], steps: std::ops::Range<u64>) {
    for step in steps {
        run.set_loss(1.0 + step as f32);
        run.step(&gradients(specs, step));
    }
}

/// The same groups with other parameters: what a new process has before it loads.
fn elsewhere(specs: &[Spec]) -> Vec<Spec> {
    let mut specs = specs.to_vec();
    for tensor in specs.iter_mut().flat_map(|spec| &mut spec.tensors) {
        tensor.fill(0.5);
    }
    specs
}

type Maker = Box<dyn Fn(&[Spec]) -> Box<dyn Run>>;

/// With a scale of the loss that changes.
fn setup() -> Setup {
    Setup {
        scaler: Some(LossScaler { initial_scale: 8.0, growth_interval: 2, ..LossScaler::default() }),
        ..Setup::default()
    }
}

/// The same run on every path, as often as it is asked for: the CPU path, and each adapter with tensors side by side.
fn makers(setup: Setup) -> Vec<Maker> {
    let mut makers: Vec<Maker> = vec![Box::new(move |specs| Box::new(CpuRun::with(specs, setup)))];
    for gpu in devices() {
        makers.push(Box::new(move |specs| Box::new(gpu_run_with(&gpu, specs, setup))));
    }
    makers
}

/// After an even and an odd number of steps.
#[test]
fn a_resumed_run_has_the_bits_of_one_that_was_not_interrupted() {
    let _alone = alone();
    for specs in [cases(), streams()] {
        for make in makers(setup()) {
            let mut whole = make(&specs);
            advance(&mut *whole, &specs, 0..4);
            let even = whole.checkpoint();
            advance(&mut *whole, &specs, 4..7);
            let odd = whole.checkpoint();
            whole.records();
            advance(&mut *whole, &specs, 7..12);
            let expected = whole.records();
            let telemetry = specs.iter().any(|spec| spec.telemetry);
            assert_eq!(expected.tensors.is_empty(), !telemetry);
            assert_eq!((even.step(), odd.step()), (4, 7));

            // A new optimizer, then the same one again: back in time.
            let mut resumed = make(&elsewhere(&specs));
            for checkpoint in [&odd, &even] {
                resumed.restore(checkpoint).expect("it fits");
                assert!(resumed.records().records.is_empty(), "{}", resumed.path());
                advance(&mut *resumed, &specs, checkpoint.step()..12);
                let path = format!("{}, from {}", resumed.path(), checkpoint.step());
                assert!(bits(&resumed.params()) == bits(&whole.params()), "{path}");
                assert_eq!(resumed.states(), whole.states(), "{path}");
                assert_eq!(bits(&[resumed.rates()]), bits(&[whole.rates()]), "{path}");
                assert!(bits(&resumed.averages()) == bits(&whole.averages()), "{path}");
                assert_eq!(resumed.loss_scale(), whole.loss_scale(), "{path}");
                let mut records = resumed.records();
                assert_eq!(records.lost_steps, 0, "{path}");
                records.records.retain(|record| record.step >= 7);
                records.tensors.retain(|record| record.step >= 7);
                records.lost_steps = expected.lost_steps;
                // The norm of a skipped step is NaN.
                assert!(format!("{records:?}") == format!("{expected:?}"), "{path}");
            }
            assert_eq!(whole.states()[0].skipped, 2);
        }
    }
}

/// A device in another geometry than its preset: scattered tensors, small blocks.
fn scattered(specs: &[Spec], index: usize) -> GpuRun {
    let gpu = &devices()[index];
    let tuning = Tuning { workgroup_size: 16, quads_per_invocation: 4, ..gpu.tuning() };
    let gpu = gpu.clone().with_tuning(tuning).expect("it can");
    let places: Vec<Place> = packed(specs, 3, 1)
        .into_iter()
        .enumerate()
        .map(|(index, place)| Place {
            // Every third tensor's gradient is in one buffer with the parameters.
            params: (0, place.params.1),
            grads: match index % 3 {
                0 => (0, 100_000 + place.params.1),
                _ => (1, place.grads.1),
            },
        })
        .collect();
    GpuRun::with(&gpu, specs, places, |builder| setup().tell(builder).record_steps(5))
}

/// From each path to each other, in any geometry: the bytes are the same, and the run goes on as on the first within rounding.
#[test]
fn a_checkpoint_is_the_same_on_every_path_and_in_every_geometry() {
    let _alone = alone();
    for specs in [few(), streams()] {
        for steps in [3, 4] {
            let mut first = CpuRun::with(&specs, setup());
            advance(&mut first, &specs, 0..steps);
            let bytes = first.checkpoint().to_bytes();
            let mut paths: Vec<Box<dyn Run>> = makers(setup()).iter().map(|make| make(&elsewhere(&specs))).collect();
            for index in 0..devices().len() {
                paths.push(Box::new(scattered(&elsewhere(&specs), index)));
            }
            paths.push(Box::new(CpuRun::with(&elsewhere(&specs), setup())));
            let mut checkpoint = Checkpoint::from_bytes(&bytes[..]).expect("whole");
            for path in &mut paths {
                path.restore(&checkpoint).expect("it fits");
                checkpoint = path.checkpoint();
                assert!(checkpoint.to_bytes() == bytes, "{}", path.path());
            }
            advance(&mut first, &specs, steps..steps + 4);
            for path in &mut paths {
                advance(&mut **path, &specs, steps..steps + 4);
                let names = specs.iter().flat_map(|spec| std::iter::repeat_n(spec.name.as_str(), spec.tensors.len()));
                let tensors = first.params().into_iter().zip(path.params()).zip(names);
                for ((expected, got), name) in tensors {
                    for (a, b) in expected.into_iter().zip(got) {
                        // A sign rule turns rounding into a whole step where a gradient is almost zero; here none is.
                        assert!(
                            (a - b).abs() <= 2e-4 * (1.0 + a.abs()),
                            "{}, {name}, from {steps}: {a}, {b}",
                            path.path()
                        );
                    }
                }
            }
        }
    }
}

/// A halt is kept, and so is what it takes to go on; on every path.
#[test]
fn a_halted_run_is_halted_until_it_is_resumed() {
    let _alone = alone();
    let halting = Setup { policy: NonFinitePolicy::Error { after: 2 }, ..Setup::default() };
    let specs = plain();
    let ones = |value: f32| {
        let tensors = specs.iter().flat_map(|spec| &spec.tensors);
        tensors.map(|tensor| vec![value; tensor.len()]).collect()
    };
    let (good, bad): (Vec<Vec<f32>>, Vec<Vec<f32>>) = (ones(1.0), ones(f32::NAN));
    for make in makers(halting) {
        let mut run = make(&specs);
        run.step(&good);
        run.step(&good);
        let params = run.params();
        for _ in 0..3 {
            let _ = run.try_step(&bad);
        }
        let checkpoint = run.checkpoint();
        let mut resumed = make(&specs);
        resumed.restore(&checkpoint).expect("it fits");
        let stepped = resumed.try_step(&good).and_then(|()| resumed.try_records());
        assert!(matches!(stepped, Err(Error::Halted { .. })), "{stepped:?}");
        assert!(bits(&resumed.params()) == bits(&params), "{}", resumed.path());
        resumed.resume();
        resumed.step(&good);
        resumed.step(&good);
        assert!(bits(&resumed.params()) != bits(&params), "{}", resumed.path());
    }
}

/// While averages are swapped in, the parameters are elsewhere.
#[test]
fn swapped_averages_are_neither_saved_nor_restored() {
    let _alone = alone();
    let mut specs = plain();
    specs[0].averaging = Averaging::Running { start: 0 };
    for gpu in &devices() {
        let mut run = gpu_run_with(gpu, &specs, Setup::default());
        let before = run.checkpoint();
        run.swap_averages();
        let notes = Notes::new();
        let saved = run.optimizer.checkpoint(Parameters::Included, &notes);
        let refused = pollster::block_on(saved).expect_err("swapped");
        assert!(refused.to_string().contains("a checkpoint"), "{refused}");
        let refused = run.restore(&before).expect_err("swapped");
        assert!(matches!(refused, Error::AveragesSwapped { .. }), "{refused}");
        run.swap_averages();
        run.restore(&before).expect("in place");
    }
    let mut run = CpuRun::new(&specs);
    let before = run.checkpoint();
    run.swap_averages();
    let refused = run.optimizer.checkpoint(None, &Notes::new()).expect_err("swapped");
    assert!(matches!(refused, Error::AveragesSwapped { .. }), "{refused}");
    let refused = run.restore(&before).expect_err("swapped");
    assert!(refused.to_string().contains("a checkpoint"), "{refused}");
}

/// Two groups of plain tensors.
fn plain() -> Vec<Spec> {
    let spec = |rule, name| Spec::new(rule, Regime::seesaw(), vec![vec![1.0; 5], vec![2.0; 9]]).named(name);
    vec![spec(Rule::sgdm(0.9), "weights"), spec(Rule::sgd(), "biases")]
}

/// Saved after three steps.
fn saved(specs: &[Spec]) -> (CpuRun, Checkpoint) {
    let mut run = CpuRun::new(specs);
    for step in 0..3 {
        let mut numbers = Numbers(step);
        let tensors = specs.iter().flat_map(|spec| &spec.tensors);
        let grads: Vec<Vec<f32>> = tensors.map(|tensor| numbers.vec(tensor.len())).collect();
        run.step(&grads);
    }
    let checkpoint = run.checkpoint();
    (run, checkpoint)
}

/// A change of what is built, and the words that name it.
type Change = (fn(&mut Vec<Spec>), &'static [&'static str]);

#[test]
fn what_differs_is_named_and_nothing_changes() {
    let (_, checkpoint) = saved(&plain());
    let changes: [Change; 18] = [
        (|s| s[0].rule = Rule::nesterov(0.9), &["rule.nesterov of group \"weights\"", "false", "true"]),
        (|s| s[0].rule = Rule::sgdm(0.8), &["rule.momentum of group \"weights\"", "0.9 there", "0.8 here"]),
        (|s| s[0].rule = Rule::signum(0.9), &["rule of group \"weights\"", "Sgdm", "Signum"]),
        (|s| s[1].regime = Regime::norm_ratio(), &["regime of group \"biases\"", "Seesaw", "NormRatio"]),
        (
            |s| {
                s[1].regime = Regime::Seesaw(wgpu_optim::Seesaw { gain: 0.2, ..Default::default() });
            },
            &["regime.gain of group \"biases\"", "0.1 there", "0.2 here"],
        ),
        (|s| s[1].clip = 3.0, &["clip_norm of group \"biases\"", "none", "3"]),
        (|s| s[1].averaging = Averaging::Running { start: 3 }, &["averaging of group \"biases\"", "Off", "Running"]),
        (|s| s[1].trust = Some(0.1), &["trust_ratio of group \"biases\"", "none", "nothing"]),
        (|s| s[1].maximize = true, &["maximize of group \"biases\"", "false", "true"]),
        (
            |s| s[1].decay = wgpu_optim::WeightDecay::Decoupled(0.0),
            &["weight_decay of group \"biases\"", "Coupled", "Decoupled"],
        ),
        (
            |s| s[1].schedule = Schedule::InverseSqrt { warmup: 3 },
            &["schedule of group \"biases\"", "Constant", "InverseSqrt"],
        ),
        (|s| s[1].norm = Some("all".to_owned()), &["the norm of group \"biases\"", "its own", "\"all\""]),
        (|s| s[1].name = "bias".to_owned(), &["group 1", "\"biases\"", "\"bias\""]),
        (|s| s.truncate(1), &["group 1", "\"biases\" there", "nothing here"]),
        (|s| s.swap(0, 1), &["group 0", "\"weights\" there", "\"biases\" here"]),
        (|s| s[1].tensors[0].push(0.0), &["the length of tensor \"biases/0\"", "5 elements", "6 elements"]),
        (|s| s[1].tensors.push(vec![]), &["tensor 4", "nothing there", "\"biases/2\" here"]),
        (
            |s| {
                s[1].tensors.truncate(1);
            },
            &["tensor 3", "\"biases/1\" there", "nothing here"],
        ),
    ];
    for (change, words) in changes {
        let mut specs = plain();
        change(&mut specs);
        let mut run = CpuRun::new(&specs);
        let before = run.checkpoint().to_bytes();
        let error = run.restore(&checkpoint).expect_err(words[0]);
        assert!(matches!(error, Error::CheckpointDiffers { .. }), "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "no {word:?} in: {error}");
        }
        assert!(run.checkpoint().to_bytes() == before, "{words:?}");
    }
    let others = [
        (
            Setup { policy: NonFinitePolicy::Error { after: 3 }, ..Setup::default() },
            "nonfinite of the optimizer is Skip there, Error here",
        ),
        (
            Setup { scaler: Some(LossScaler::default()), ..Setup::default() },
            "loss_scaler of the optimizer is none there",
        ),
    ];
    for (setup, words) in others {
        let mut run = CpuRun::with(&plain(), setup);
        let error = run.restore(&checkpoint).expect_err(words);
        assert!(error.to_string().contains(words), "{error}");
    }
}

/// The same tensors under other names, and in another order.
#[test]
fn a_tensor_of_another_name_or_place_is_named() {
    let build = |names: [&str; 2]| {
        let mut group = Group::new("all");
        for name in names {
            group = group.tensor(name, &[0.0; 3][..], &[0.0; 3][..]);
        }
        let builder = OptimizerBuilder::new(Rule::sgd()).group(group);
        builder.build_cpu().expect("builds")
    };
    let checkpoint = build(["a", "b"]).checkpoint(None, &Notes::new());
    let checkpoint = checkpoint.expect("a checkpoint");
    for (names, found, expected) in [(["a", "c"], "\"b\"", "\"c\""), (["b", "a"], "\"a\"", "\"b\"")] {
        let error = build(names).restore(&checkpoint, None).expect_err("differs");
        let words = format!("is {found} there, {expected} here");
        assert!(error.to_string().contains(&words), "{error}");
    }
}

#[test]
fn parameters_are_optional_both_ways() {
    let (run, with) = saved(&plain());
    let without = run.optimizer.checkpoint(None, &Notes::new()).expect("a checkpoint");
    assert!(with.has_parameters() && !without.has_parameters());
    assert_eq!(with.parameters("weights/1"), Some(run.params()[1].clone()));
    assert_eq!(without.parameters("weights/1"), None);
    assert!(with.names().contains(&"parameters/biases/0".to_owned()));
    assert!(!without.names().iter().any(|name| name.starts_with("parameters")));

    let mut resumed = CpuRun::new(&plain());
    let error = resumed.restore(&without).expect_err("no parameters");
    assert!(error.to_string().contains("without the parameters"), "{error}");
    for checkpoint in [&with, &without] {
        let mut resumed = CpuRun::new(&plain());
        resumed.optimizer.restore(checkpoint, None).expect("it fits");
        assert_eq!(resumed.states(), run.states());
        assert_eq!(resumed.params(), CpuRun::new(&plain()).params());
    }

    let mut slices: Vec<Vec<f32>> = resumed.params();
    slices[2].pop();
    let slices: Vec<&[f32]> = slices.iter().map(Vec::as_slice).collect();
    let short = resumed.optimizer.checkpoint(Some(&slices), &Notes::new());
    assert!(matches!(short, Err(Error::StepLength { .. })), "{short:?}");
    let few = resumed.optimizer.checkpoint(Some(&slices[..2]), &Notes::new());
    assert!(matches!(few, Err(Error::StepTensors { .. })), "{few:?}");
}

#[test]
fn a_checkpoint_tells_what_it_is() {
    let (run, _) = saved(&plain());
    let notes = Notes::from([("seed \"1\"\n".to_owned(), "ünicode {}".to_owned())]);
    let params = run.params();
    let slices: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
    let checkpoint = run.optimizer.checkpoint(Some(&slices), &notes).expect("a checkpoint");
    let read = Checkpoint::from_bytes(checkpoint.to_bytes()).expect("whole");
    assert_eq!((read.notes(), read.step()), (&notes, 3));
    assert_eq!(read.groups().collect::<Vec<_>>(), ["weights", "biases"]);
    assert_eq!(read.tensors().last(), Some(("biases/1", 9)));
    assert_eq!(
        read.to_string(),
        "checkpoint of step 3: groups \"weights\", \"biases\"; 4 tensors of 28 elements, with parameters"
    );
    // Other readers of the format see the numbers as they are.
    let bytes = checkpoint.to_bytes();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let view = tensors.tensor("parameters/weights/0").expect("there");
    assert_eq!(view.data(), bytemuck::cast_slice::<f32, u8>(&params[0]));
    assert_eq!(bytes, read.to_bytes());
}

#[test]
fn files_that_cannot_be_read_or_written_are_named() {
    let (run, checkpoint) = saved(&plain());
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("missing.safetensors");
    let mut fresh = CpuRun::new(&plain());
    let error = fresh.optimizer.load(&missing, None).expect_err("no file");
    assert!(error.to_string().contains("missing.safetensors cannot be read"), "{error}");
    let error = fresh.optimizer.load(folder.path(), None).expect_err("a folder");
    assert!(error.to_string().contains("not a file"), "{error}");
    let nowhere = folder.path().join("nowhere").join("file");
    let error = run.optimizer.save(nowhere, None).expect_err("no folder");
    assert!(error.to_string().contains("cannot be written"), "{error}");
    let error = checkpoint.save(folder.path()).expect_err("a folder");
    assert!(error.to_string().contains("not a file"), "{error}");

    let path = folder.path().join("file.safetensors");
    checkpoint.save(&path).expect("saved");
    let loaded = fresh.optimizer.load(&path, None).expect("it fits");
    assert_eq!(loaded.to_bytes(), checkpoint.to_bytes());
    assert_eq!(fresh.states(), run.states());
    // Messages say which file.
    let mut other = CpuRun::new(&plain()[..1]);
    let error = other.optimizer.load(&path, None).expect_err("differs");
    assert!(error.to_string().contains("file.safetensors is of another optimizer"), "{error}");
    // Cut off at any place, read from a file as from memory.
    let bytes = std::fs::read(&path).expect("read");
    for len in [0, 7, 8, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..len]).expect("written");
        let error = fresh.optimizer.load(&path, None).expect_err("cut off");
        let from_bytes = Checkpoint::from_bytes(&bytes[..len]).expect_err("cut off");
        assert!(matches!(error, Error::CheckpointDamaged { .. }), "{error}");
        let named = from_bytes.to_string().replace("the checkpoint", &format!("the checkpoint {}", path.display()));
        assert_eq!(error.to_string(), named);
    }
}

/// A file of safetensors with these tensors, all of one f32, and this metadata.
fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// A checkpoint as version 2 had it, without a checksum, whose bytes can be changed.
fn without_checksum(checkpoint: &Checkpoint) -> Vec<u8> {
    let bytes = checkpoint.to_bytes();
    let header_end = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight")) as usize;
    let header = std::str::from_utf8(&bytes[8..header_end]).expect("text");
    let (before, after) = header.split_once(r#","wgpu-optim crc32":""#).expect("a checksum");
    let header = [before, &after["01234567\"".len()..]].concat();
    let header = header.replacen(r#"\"version\":3"#, r#"\"version\":2"#, 1);
    let padded = header.len().next_multiple_of(8);
    with_header(&format!("{header:padded$}"), &bytes[header_end..])
}

/// A checkpoint whose description, and whose rows of the groups' states, are changed; as version 2 had it.
fn edited(
    checkpoint: &Checkpoint,
    describe: impl FnOnce(&mut serde_json::Value),
    change_row: impl Fn(&mut Vec<u32>),
) -> Vec<u8> {
    use safetensors::tensor::{Dtype, TensorView};
    const ABOUT: &str = "wgpu-optim checkpoint";
    const STATES: &str = "groups/state";
    let bytes = without_checksum(checkpoint);
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let texts = header.metadata().as_ref().expect("texts");
    let mut about = serde_json::from_str(&texts[ABOUT]).expect("a description");
    describe(&mut about);
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("whole");
    let groups = tensors.tensor(STATES).expect("states").shape()[0];
    let states: Vec<u32> = bytemuck::pod_collect_to_vec(tensors.tensor(STATES).expect("states").data());
    let rows = states.chunks_exact(states.len() / groups).map(|row| {
        let mut row = row.to_vec();
        change_row(&mut row);
        row
    });
    let rows: Vec<u32> = rows.flatten().collect();
    let shape = vec![groups, rows.len() / groups];
    let states = TensorView::new(Dtype::U32, shape, bytemuck::cast_slice(&rows)).expect("fits");
    let views = tensors.tensors().into_iter().map(|(name, view)| match name.as_str() {
        STATES => (name, states.clone()),
        _ => (name, view),
    });
    let texts = [(ABOUT.to_owned(), about.to_string())];
    safetensors::serialize(views, Some(texts.into_iter().collect())).expect("a file")
}

/// Changes the list of the fields of the groups' states.
fn edit_fields(about: &mut serde_json::Value, edit: impl FnOnce(&str) -> String) {
    let fields = &mut about["tables"]["groups/state"];
    *fields = edit(fields.as_str().expect("a list")).into();
}

/// An added field or setting breaks no file of before; one that is not known is named.
#[test]
fn fields_and_settings_go_by_their_names() {
    let (run, checkpoint) = saved(&plain());
    let at = offset_of!(GroupState, mean_norm) / 4;
    let restored = |bytes: Vec<u8>| {
        let mut fresh = CpuRun::new(&plain());
        let checkpoint = Checkpoint::from_bytes(bytes)?;
        fresh.restore(&checkpoint)?;
        Ok::<_, Error>(fresh)
    };
    // A field that the file does not have has its first value, and the others are where they belong.
    let older = edited(
        &checkpoint,
        |about| edit_fields(about, |fields| fields.replacen("mean_norm.mantissa: f32, ", "", 1)),
        |row| {
            row.remove(at);
        },
    );
    let fresh = restored(older).expect("an older file");
    let mut expected = run.states();
    for state in &mut expected {
        assert_ne!(state.mean_norm.mantissa, 0.0);
        state.mean_norm.mantissa = 0.0;
    }
    assert_eq!(fresh.states(), expected);
    assert_eq!(fresh.params(), run.params());
    // So it is with fields in another order.
    let turned = edited(
        &checkpoint,
        |about| {
            edit_fields(about, |fields| {
                fields.replacen("steps_low: u32, steps_high: u32", "steps_high: u32, steps_low: u32", 1)
            });
        },
        |row| row.swap(0, 1),
    );
    assert_eq!(restored(turned).expect("the same").states(), run.states());
    // A setting that is younger than the file.
    let older = edited(
        &checkpoint,
        |about| {
            let settings = about["groups"][0]["settings"].as_object_mut().expect("settings");
            settings.remove("clip_norm").expect("a setting");
        },
        |_| {},
    );
    assert_eq!(restored(older).expect("the same").states(), run.states());

    for (bytes, reason) in [
        (
            edited(
                &checkpoint,
                |about| edit_fields(about, |fields| format!("{fields}, warmth: f32")),
                |row| row.push(0),
            ),
            "the field \"warmth\" of \"groups/state\" is f32 there",
        ),
        (
            edited(
                &checkpoint,
                |about| edit_fields(about, |fields| format!("{fields}, started: u32")),
                |row| row.push(0),
            ),
            "the field \"started\" of \"groups/state\" is there twice",
        ),
        (
            edited(
                &checkpoint,
                |about| edit_fields(about, |fields| fields.replacen("learning_rate: f32", "learning_rate: i32", 1)),
                |_| {},
            ),
            "the field \"learning_rate\" of \"groups/state\" is i32 there",
        ),
        (
            edited(&checkpoint, |about| about["groups"][1]["settings"]["warmth"] = "hot".into(), |_| {}),
            "warmth of group \"biases\" is hot there",
        ),
        (edited(&checkpoint, |about| about["warmth"] = 1.into(), |_| {}), "unknown field `warmth`"),
        (edited(&checkpoint, |about| about["version"] = 1.into(), |_| {}), "version 1"),
        (edited(&checkpoint, |about| about["version"] = 3.into(), |_| {}), "has no \"wgpu-optim crc32\""),
    ] {
        let error = restored(bytes).err().expect(reason);
        assert!(error.to_string().contains(reason), "no {reason:?} in: {error}");
    }
}

#[test]
fn foreign_and_hostile_bytes_are_refused_with_a_reason() {
    let (_, checkpoint) = saved(&plain());
    let good = without_checksum(&checkpoint);
    let header_end = 8 + u64::from_le_bytes(good[..8].try_into().expect("eight")) as usize;
    let header = std::str::from_utf8(&good[8..header_end]).expect("text").trim_end().to_owned();
    let data = &good[header_end..];
    let changed = |from: &str, to: &str| {
        assert!(header.contains(from), "no {from} in {header}");
        with_header(&header.replacen(from, to, 1), data)
    };
    let mut longer = good.clone();
    longer.push(0);
    let mut huge = good.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let dimensions = format!(r#"{{"a":{{"dtype":"F32","shape":[{}1],"data_offsets":[0,4]}}}}"#, "1,".repeat(10_000));
    let nested = "[".repeat(100_000);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "0 bytes are too few"),
        (b"{}".to_vec(), "2 bytes are too few"),
        (huge, "header would have 18446744073709551615 bytes"),
        (longer, "longer than it should be"),
        (good[..good.len() - 4].to_vec(), "cut off"),
        (b"\x7fELF is not a checkpoint, is it?".to_vec(), "not in the safetensors format"),
        (with_header("{}", &[]), "no \"wgpu-optim checkpoint\" in its metadata"),
        (with_header("[]", &[]), "cannot be read"),
        (with_header(&nested, &[]), "cannot be read"),
        (with_header(&dimensions, &[0; 4]), "at most 2 dimensions"),
        (with_header(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, &[0; 8]), "invalid offset"),
        (with_header(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, &[0; 4]), "contradicts itself"),
        (
            with_header(
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
                &[0; 4],
            ),
            "invalid offset",
        ),
        (
            with_header(
                r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#,
                &[],
            ),
            "names \"a\" twice",
        ),
        (
            with_header(r#"{"a":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,4]}}"#, &[0; 4]),
            "overflow",
        ),
        (changed(r#"\"version\":2"#, r#"\"version\":4"#), "has version 4, but this wgpu-optim reads versions 2 to 3"),
        (changed(r#"\"step\":3"#, r#"\"step\":true"#), "description cannot be read"),
    ];
    for (bytes, reason) in cases {
        let error = Checkpoint::from_bytes(bytes).expect_err(reason);
        assert!(error.to_string().contains(reason), "no {reason:?} in: {error}");
    }

    // These have to be held against an optimizer.
    let last = "parameters/weights/1";
    let words = size_of::<GroupState>() / 4;
    let (shape, turned) = (format!("[2,{words}]"), format!("[{words},2]"));
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (changed(last, "parameters/weights/2"), "\"parameters/weights/1\" is missing"),
        (changed("\"U32\"", "\"F32\""), "\"groups/state\" is F32"),
        (changed(&shape, &turned), "\"groups/state\" is U32 of shape ["),
        (changed(r#"\"step\":3"#, r#"\"step\":4"#), "it is of step 4, but group \"weights\" is at step 3"),
        (changed(r#"\"parameters\":true"#, r#"\"parameters\":false"#), "does not belong in it"),
        (changed("steps_low: u32, ", ""), "\"groups/state\" is U32 of shape ["),
        (
            changed(r#"\"tensors\":["#, r#"\"tensors\":[{\"name\":\"x\",\"group\":9,\"elements\":1},"#),
            "tensor 0 is \"x\"",
        ),
        (changed(r#"\"group\":1"#, r#"\"group\":9"#), "the group of tensor \"biases/0\" is nothing there"),
    ];
    for (bytes, reason) in cases {
        let mut run = CpuRun::new(&plain());
        let before = run.checkpoint().to_bytes();
        let error = Checkpoint::from_bytes(bytes).and_then(|checkpoint| run.restore(&checkpoint));
        let error = error.expect_err(reason);
        assert!(error.to_string().contains(reason), "no {reason:?} in: {error}");
        assert!(run.checkpoint().to_bytes() == before);
    }

    // Words of a state that no step leaves: of the group's own field, by its place in the row.
    let states = safetensors::SafeTensors::deserialize(&good).expect("whole");
    let states = states.tensor("groups/state").expect("there").data().as_ptr() as usize;
    let states = states - good.as_ptr() as usize;
    for (field, word, reason) in [
        (offset_of!(GroupState, started), 2u32, "started of group \"weights\" is 2, above 1"),
        (offset_of!(GroupState, learning_rate), f32::NAN.to_bits(), "learning_rate of group \"weights\" is NaN"),
        (offset_of!(GroupState, mean_steps), u32::MAX, "mean_steps of group \"weights\" is 4294967295"),
        (
            offset_of!(GroupState, gradient_exponent),
            0x8000_0000,
            "gradient_exponent of group \"weights\" is -2147483648",
        ),
    ] {
        let mut bytes = good.clone();
        bytes[states + field..][..4].copy_from_slice(&word.to_le_bytes());
        let checkpoint = Checkpoint::from_bytes(bytes).expect("its form is right");
        let error = CpuRun::new(&plain()).restore(&checkpoint).expect_err(reason);
        assert!(error.to_string().contains(reason), "no {reason:?} in: {error}");
    }
}

/// Bytes of any kind, and checkpoints with any bits changed or any part missing: an error, or, where what was changed means nothing, the
/// same state. Never a panic, and never memory out of proportion to the bytes.
fn is_refused_or_harmless(good: &[u8], bytes: Vec<u8>) -> Result<(), TestCaseError> {
    let len = bytes.len();
    let mut read = Err(Error::NoGroups);
    let used = allocation_counter::measure(|| read = Checkpoint::from_bytes(bytes));
    prop_assert!(used.bytes_max <= 16 * len as u64 + 65_536, "{used:?} for {len} bytes");
    let Ok(checkpoint) = read else { return Ok(()) };
    let mut run = CpuRun::new(&plain());
    if run.restore(&checkpoint).is_ok() {
        prop_assert!(run.checkpoint().to_bytes() == good);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_checkpoint_cut_off_anywhere_is_refused(share in 0.0..1.0f64) {
        let (_, checkpoint) = saved(&plain());
        let bytes = checkpoint.to_bytes();
        let cut = (share * bytes.len() as f64) as usize;
        prop_assert!(Checkpoint::from_bytes(&bytes[..cut]).is_err());
    }

    #[test]
    fn changed_bits_of_a_header_are_refused_or_harmless(
        flips in prop::collection::vec((0.0..1.0f64, 0..8u32), 1..4),
    ) {
        let (_, checkpoint) = saved(&plain());
        let good = checkpoint.to_bytes();
        let header = 8 + u64::from_le_bytes(good[..8].try_into().expect("eight")) as usize;
        let mut bytes = good.clone();
        for (share, bit) in flips {
            bytes[(share * header as f64) as usize] ^= 1 << bit;
        }
        is_refused_or_harmless(&good, bytes)?;
    }

    #[test]
    fn a_changed_bit_of_the_data_is_told(share in 0.0..1.0f64, bit in 0..8u32) {
        let (_, checkpoint) = saved(&plain());
        let mut bytes = checkpoint.to_bytes();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight")) as usize;
        let data = bytes.len() - header;
        bytes[header + (share * data as f64) as usize] ^= 1 << bit;
        let error = Checkpoint::from_bytes(bytes).expect_err("changed");
        prop_assert!(error.to_string().contains("checksum"), "{}", error);
    }

    #[test]
    fn pieces_of_a_header_in_any_order_are_refused(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"__metadata__\"", "\"wgpu-optim checkpoint\"", "\"a\"", "\"dtype\"", "\"F32\"", "\"shape\"",
            "\"data_offsets\"", "0", "4", "18446744073709551615", "-1", "1e999", "null", "true", "\"{\\\"version\\\":2}\"", "\u{fffd}",
            "{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}",
        ]), 0..40),
        data in 0..9usize,
    ) {
        let bytes = with_header(&pieces.concat(), &[0; 8][..data.min(8)]);
        let len = bytes.len() as u64;
        let mut read = Err(Error::NoGroups);
        let used = allocation_counter::measure(|| read = Checkpoint::from_bytes(bytes));
        prop_assert!(read.is_err());
        prop_assert!(used.bytes_max <= 16 * len + 65_536);
    }

    #[test]
    fn any_bytes_with_any_length_are_refused(length in any::<u64>(), rest in prop::collection::vec(any::<u8>(), 0..300)) {
        for length in [length, length % 400] {
            let mut bytes = length.to_le_bytes().to_vec();
            bytes.extend_from_slice(&rest);
            prop_assert!(Checkpoint::from_bytes(bytes).is_err());
        }
    }

    /// Whatever the state holds, if it is taken, steps can be made from it.
    #[test]
    fn changed_states_are_refused_or_can_go_on(flips in prop::collection::vec((0..size_of::<GroupState>() / 2, any::<u32>()), 1..4)) {
        let (_, checkpoint) = saved(&plain());
        let mut bytes = without_checksum(&checkpoint);
        let states = safetensors::SafeTensors::deserialize(&bytes).expect("whole");
        let states = states.tensor("groups/state").expect("there").data().as_ptr() as usize - bytes.as_ptr() as usize;
        for (word, value) in flips {
            bytes[states + 4 * word..][..4].copy_from_slice(&value.to_le_bytes());
        }
        let checkpoint = Checkpoint::from_bytes(bytes).expect("its form is right");
        let mut run = CpuRun::new(&plain());
        if run.restore(&checkpoint).is_ok() {
            for _ in 0..3 {
                run.step(&[vec![1.0; 5], vec![1e-20; 9], vec![1e20; 5], vec![0.5; 9]]);
            }
        }
    }
}

/// Headers alone, as large as they come for their bytes.
#[test]
fn memory_is_in_proportion_to_the_bytes() {
    let entry = |index: usize| format!(r#""{index:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let entries: Vec<String> = (0..20_000).map(entry).collect();
    let notes: Vec<String> = (0..50_000).map(|index| format!(r#""{index:x}":"""#)).collect();
    let about = r#"{\"version\":2,\"written_by\":\"\",\"step\":0,\"settings\":{},\"parameters\":false,\"groups\":[GROUPS],\"tensors\":[],\"tables\":{},\"notes\":{}}"#;
    let groups = vec![r#"{\"name\":\"\",\"settings\":{}}"#; 20_000].join(",");
    // And how many times their bytes they may take: strings are small, and a dimension must not become a word of memory.
    for (header, times) in [
        (format!("{{{}}}", entries.join(",")), 6),
        (format!(r#"{{"__metadata__":{{{}}}}}"#, notes.join(",")), 12),
        (format!(r#"{{"__metadata__":{{"wgpu-optim checkpoint":"{}"}}}}"#, about.replace("GROUPS", &groups)), 6),
        (format!(r#"{{"a":{{"dtype":"U8","shape":[{}0],"data_offsets":[0,0]}}}}"#, "0,".repeat(500_000)), 1),
        (format!(r#"{{"a":{}"#, "[".repeat(500_000)), 1),
    ] {
        let bytes = with_header(&header, &[]);
        let len = bytes.len() as u64;
        let used = allocation_counter::measure(|| drop(Checkpoint::from_bytes(bytes)));
        assert!(used.bytes_max <= times * len, "{} for {len} of {}…", used.bytes_max, &header[..40]);
    }
}

/// On the device: what a step needs of the caller's buffers and of the caller.
#[test]
fn a_device_says_what_keeps_it_from_saving_and_loading() {
    let _alone = alone();
    for gpu in &devices() {
        let buffer = |usage| {
            gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: 64,
                usage: wgpu::BufferUsages::STORAGE | usage,
                mapped_at_creation: false,
            })
        };
        let gradients = upload(gpu, &[1.0; 16]);
        let build = |params: &wgpu::Buffer, rule| {
            OptimizerBuilder::new(rule)
                .group(Group::new("all").tensor("w", params.slice(..), gradients.slice(..)))
                .build(gpu)
                .expect("builds")
        };
        let neither = buffer(wgpu::BufferUsages::empty());
        let mut optimizer = build(&neither, Rule::sgdm(0.9));
        step(gpu, &optimizer);
        let save = |optimizer: &wgpu_optim::Optimizer, parameters| {
            pollster::block_on(optimizer.checkpoint(parameters, &Notes::new()))
        };
        let error = save(&optimizer, Parameters::Included).expect_err("cannot be read");
        assert!(
            error.to_string().contains("tensor \"w\": the parameter buffer was created without BufferUsages::COPY_SRC"),
            "{error}"
        );
        let without = save(&optimizer, Parameters::Excluded).expect("needs no usage");
        optimizer.restore(&without, Parameters::Excluded).expect("needs no usage");
        let both = buffer(wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST);
        let with = save(&build(&both, Rule::sgdm(0.9)), Parameters::Included).expect("saved");
        let error = optimizer.restore(&with, Parameters::Included).expect_err("cannot be written");
        assert!(error.to_string().contains("without BufferUsages::COPY_DST"), "{error}");
        assert_eq!(save(&optimizer, Parameters::Excluded).expect("saved").step(), 1);

        // Another rule, on the device too, and through a file.
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("w.safetensors");
        let other = build(&both, Rule::signum(0.9));
        step(gpu, &other);
        pollster::block_on(other.save(&path, Parameters::Included)).expect("saved");
        let error = optimizer.load(&path, Parameters::Excluded).expect_err("another rule");
        assert!(error.to_string().contains("Signum"), "{error}");
        let mut resumed = build(&both, Rule::signum(0.9));
        let loaded = resumed.load(&path, Parameters::Included).expect("it fits");
        assert_eq!(loaded.step(), 1);
    }
}

/// Records from before do not come back, not even those that are on their way.
#[test]
fn records_of_another_time_are_gone() {
    let _alone = alone();
    let specs = plain();
    for gpu in &devices() {
        let mut run = GpuRun::new(gpu, &specs, packed(&specs, 0, 0));
        let early = run.checkpoint();
        let grads: Vec<Vec<f32>> = specs.iter().flat_map(|spec| spec.tensors.clone()).collect();
        run.step(&grads);
        run.step(&grads);
        run.optimizer.try_drain_records().expect("alive");
        run.restore(&early).expect("it fits");
        run.step(&grads);
        let records = run.records();
        let steps: Vec<u64> = records.records.iter().map(|record| record.step).collect();
        assert_eq!((steps, records.lost_steps), (vec![0, 0], 0), "{}", run.path());
    }
}

/// Names the file that a child process saves to, again and again.
const CHILD: &str = "WGPU_OPTIM_TEST_SAVES_TO";

/// Large enough that most of the child's time goes into saving.
const CHILD_ELEMENTS: usize = 100_000;

fn childs_optimizer() -> CpuOptimizer {
    let w = vec![0.0f32; CHILD_ELEMENTS];
    let group = Group::new("all").tensor("w", &w, &w);
    let builder = OptimizerBuilder::new(Rule::sgdm(0.5)).regime(Regime::fixed(1.0));
    builder.group(group).build_cpu().expect("builds")
}

/// Not a test: what the next one runs and kills. Goes on from the file, and says after each save which step is safe.
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

/// A process is killed at random instants while it saves. There is always a whole file, of a step no earlier than the last that the
/// process knew was safe; the next process goes on from it. `WGPU_OPTIM_TEST_KILLS` says how often, 25 times without.
#[test]
fn a_process_killed_while_it_saves_loses_nothing() {
    let kills = std::env::var("WGPU_OPTIM_TEST_KILLS").map_or(25, |kills| kills.parse().expect("a number"));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("run.safetensors");
    let mut numbers = Numbers(7);
    let (mut safe, mut killed_while_writing) = (0, 0);
    for kill in 0..kills {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "checkpoint::child_that_saves", "--ignored", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the child runs");
        // However slow the machine is: once a save is done, at some instant of the next ones.
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
        let mut file = Vec::new();
        std::fs::File::open(&path).expect("there").read_to_end(&mut file).expect("read");
        let tensors = safetensors::SafeTensors::deserialize(&file).expect("whole");
        let momentum = tensors.tensor("momentum/w").expect("there").data();
        let momentum: Vec<f32> = bytemuck::pod_collect_to_vec(momentum);
        let expected = 2.0 - 2.0 * 0.5f64.powi(step.min(60) as i32);
        assert!(momentum.iter().all(|m| (f64::from(*m) - expected).abs() <= 1e-6), "kill {kill}, step {step}");
        assert!(w.iter().all(|x| *x == w[0]) && w[0] <= -(step as f32), "kill {kill}, step {step}: {}", w[0]);
        // What a killed process left is cleared away by the next that saves.
        assert!(entries() <= 2, "kill {kill}: files are left");
    }
    eprintln!(
        "{kills} kills, {killed_while_writing} of them with a file half written; step {safe} was safe at the end"
    );
    assert!(safe > 0, "no child ever saved");
}
