//! Checkpoints that do not fit an optimizer, and the contents of checkpoints and files.

use super::{plain, saved};
use wgpu_optim::cpu::Values;
use wgpu_optim::{
    Averaging, Checkpoint, Differences, ErrorKind, Group, LossScaler, NonFinitePolicy, Notes, Optimizer,
    OptimizerBuilder, Parameters, Regime, Rule, Schedule, Seesaw, WeightDecay, wgpu,
};
use wgpu_optim_conformance::run::{CpuRun, Run, Setup, Spec, devices};
use wgpu_optim_conformance::{assert_refused, noise, step, storage, upload};

use crate::helpers::raw_tensor;

/// A change of the specs, the words that name it, and the setter that accepts it with the words for its consequences.
type Change = (fn(&mut Vec<Spec>), &'static [&'static str], Option<(Setter, &'static [&'static str])>);

type Setter = fn(Differences) -> Differences;

const SETTERS: [(Setter, &str); 3] = [
    (Differences::settings, "Differences::settings()"),
    (Differences::rules, "Differences::rules()"),
    (Differences::tensors, "Differences::tensors()"),
];
const SETTINGS: Setter = Differences::settings;
const RULES: Setter = Differences::rules;
const TENSORS: Setter = Differences::tensors;

/// A difference is refused with the name of the setter that accepts it, and nothing changes. No other setter accepts it. With this setter the
/// difference and its consequences are listed, and the optimizer continues.
#[test]
fn what_differs_is_named_and_nothing_changes() {
    let (_, checkpoint) = saved(&plain());
    const NEW_RATE: &str = "group \"biases\": the learning rate starts anew";
    let changes: [Change; 21] = [
        (
            |s| s[0].rule = Rule::nesterov(0.9),
            &["rule.nesterov of group \"weights\"", "false", "true"],
            Some((SETTINGS, &[])),
        ),
        (
            |s| s[0].rule = Rule::sgdm(0.8),
            &["rule.momentum of group \"weights\"", "0.9 there", "0.8 here"],
            Some((SETTINGS, &[])),
        ),
        (
            |s| s[0].rule = Rule::signum(0.9),
            &["rule of group \"weights\"", "Sgdm", "Signum"],
            Some((
                RULES,
                &[
                    "group \"weights\": the learning rate starts anew",
                    "group \"weights\": what is kept of momentum starts anew",
                ],
            )),
        ),
        (
            |s| s[0].rule = Rule::sgd(),
            &["rule of group \"weights\"", "Sgdm", "Sgd"],
            Some((RULES, &["group \"weights\": what is kept of momentum is dropped"])),
        ),
        (
            |s| s[1].regime = Regime::norm_ratio(),
            &["regime of group \"biases\"", "Seesaw", "NormRatio"],
            Some((RULES, &[NEW_RATE, "what is kept of direction counters is dropped"])),
        ),
        (
            |s| s[1].regime = Regime::dog(),
            &["regime of group \"biases\"", "Seesaw", "DoG"],
            Some((RULES, &[NEW_RATE, "what is kept of first parameters starts anew"])),
        ),
        (
            |s| s[1].regime = Regime::Seesaw(Seesaw { gain: 0.2, ..Default::default() }),
            &["regime.gain of group \"biases\"", "0.1 there", "0.2 here"],
            Some((SETTINGS, &[])),
        ),
        (|s| s[1].clip = 3.0, &["clip_norm of group \"biases\"", "none", "3"], Some((SETTINGS, &[]))),
        (
            |s| s[1].averaging = Averaging::Exponential { decay: 0.5, start: 0 },
            &["averaging of group \"biases\"", "Off", "Exponential"],
            Some((SETTINGS, &["what is kept of averages starts from the parameters"])),
        ),
        (
            |s| s[1].averaging = Averaging::ScheduleFree,
            &["averaging of group \"biases\"", "Off", "ScheduleFree"],
            Some((SETTINGS, &["what is kept of base iterates starts anew", "direction counters is dropped"])),
        ),
        (
            |s| s[1].trust = Some(0.1),
            &["trust_ratio of group \"biases\"", "none", "coefficient 0.1"],
            Some((SETTINGS, &[NEW_RATE])),
        ),
        (|s| s[1].maximize = true, &["maximize of group \"biases\"", "false", "true"], Some((SETTINGS, &[]))),
        (
            |s| s[1].decay = WeightDecay::Decoupled(0.0),
            &["weight_decay of group \"biases\"", "Coupled", "Decoupled"],
            Some((SETTINGS, &[])),
        ),
        (
            |s| s[1].schedule = Schedule::InverseSqrt { warmup: 3 },
            &["schedule of group \"biases\"", "Constant", "InverseSqrt"],
            Some((SETTINGS, &[])),
        ),
        (
            |s| s[1].norm = Some("all".to_owned()),
            &["the norm of group \"biases\"", "its own", "\"all\""],
            Some((SETTINGS, &[NEW_RATE])),
        ),
        (
            |s| s[1].telemetry = true,
            &["telemetry of group \"biases\"", "false there", "true here"],
            Some((SETTINGS, &[])),
        ),
        (
            |s| s.truncate(1),
            &["group \"biases\"", "group 1 there", "nothing here"],
            Some((TENSORS, &["tensor \"biases/1\": tensor 3 in the checkpoint, nothing here"])),
        ),
        (
            |s| s.swap(0, 1),
            &["the first group in another order is \"weights\" there, \"biases\" here"],
            Some((TENSORS, &[])),
        ),
        (|s| s[1].tensors[0].push(0.0), &["the length of tensor \"biases/0\"", "5 elements", "6 elements"], None),
        (
            |s| s[1].tensors.push(vec![]),
            &["tensor \"biases/2\"", "nothing there", "tensor 4 here"],
            Some((TENSORS, &[])),
        ),
        (
            |s| s[1].tensors.truncate(1),
            &["tensor \"biases/1\"", "tensor 3 there", "nothing here"],
            Some((TENSORS, &[])),
        ),
    ];
    for (change, words, accepted) in changes {
        let mut specs = plain();
        change(&mut specs);
        let mut run = CpuRun::new(&specs);
        let before = run.checkpoint().to_bytes();
        let others = SETTERS
            .into_iter()
            .filter(|(setter, _)| accepted.is_none_or(|(own, _)| !std::ptr::fn_addr_eq(*setter, own)));
        let others = others.fold(Differences::none(), |differences, (setter, _)| setter(differences));
        for refusing in [Differences::none(), others] {
            let error = assert_refused(run.restore_with(&checkpoint, refusing), words);
            assert_eq!(error.kind(), ErrorKind::CheckpointDiffers, "{error}");
            let named = SETTERS.into_iter().filter(|(_, name)| error.to_string().contains(name));
            let named: Vec<Setter> = named.map(|(setter, _)| setter).collect();
            assert_eq!(named.len(), usize::from(accepted.is_some()), "{error}");
            assert!(accepted.is_none_or(|(own, _)| std::ptr::fn_addr_eq(named[0], own)), "{error}");
            assert!(run.checkpoint().to_bytes() == before, "{words:?}");
        }
        let Some((setter, consequences)) = accepted else { continue };
        let listed = run.restore_with(&checkpoint, setter(Differences::none())).expect("accepted");
        let listed: Vec<String> = listed.iter().map(ToString::to_string).collect();
        assert!(listed[0].starts_with(words[0].split(" is ").next().expect("words")), "{listed:?}");
        for words in consequences {
            assert!(listed.iter().any(|line| line.contains(words)), "{words}: {listed:?}");
        }
        let steps = 3..6;
        steps.for_each(|step| run.step(&noise(&specs, step)));
        assert!(run.params().concat().iter().all(|w| w.is_finite()), "{words:?}");
        assert_eq!(run.states()[0].steps_low, 6, "{words:?}");
    }
    let policy = NonFinitePolicy::Error { after: 3 };
    let scaler = Some(LossScaler::default());
    for (setup, words) in [
        (Setup { policy, ..Setup::default() }, "nonfinite of the optimizer is Skip there, Error here"),
        (Setup { scaler, ..Setup::default() }, "loss_scaler of the optimizer is none there"),
        (Setup { micro_batches: Some(2), ..Setup::default() }, "micro_batches of the optimizer is 1 there, 2 here"),
    ] {
        let mut run = CpuRun::with(&plain(), setup);
        assert_refused(run.restore(&checkpoint), &[words, "Differences::settings()"]);
        run.restore_with(&checkpoint, Differences::none().settings()).expect("accepted");
        assert_eq!(
            run.loss_scale(),
            scaler.filter(|_| setup.scaler.is_some()).map_or(1.0, |scaler| scaler.initial_scale)
        );
        assert_eq!(run.controls("weights").micro_batches, setup.micro_batches.unwrap_or(1));
    }
}

/// A message gives the factors of a table by number and hash, so that it stays short.
#[test]
fn a_table_with_another_factor_is_named() {
    let with = |factors: [f32; 3], every| {
        let schedule = Schedule::Table { factors: factors.into(), every };
        [Spec { schedule, ..Spec::new(Rule::sgd(), Regime::fixed(0.1), vec![vec![0.5; 5]]) }]
    };
    let (_, checkpoint) = saved(&with([1.0, 0.5, 0.25], 10));
    CpuRun::new(&with([1.0, 0.5, 0.25], 10)).restore(&checkpoint).expect("the same factors");
    for (specs, words) in [
        (with([1.0, 0.5, 0.125], 10), ["schedule.factors of group \"group\"", "3 factors with hash"]),
        (with([1.0, 0.5, 0.25], 11), ["schedule.every of group \"group\"", "10 there"]),
    ] {
        assert_refused(CpuRun::new(&specs).restore(&checkpoint), &words);
    }
}

/// The tensors have another name, or the same names in another order.
#[test]
fn a_tensor_of_another_name_or_place_is_named() {
    let build = |names: [&str; 2]| {
        let with = |group: Group<_>, name: &str| group.tensor(name, &[0.0; 3][..], &[0.0; 3][..]);
        let group = names.into_iter().fold(Group::new("all"), with);
        OptimizerBuilder::new(Rule::sgd()).group(group).build_cpu().expect("builds")
    };
    let checkpoint = build(["a", "b"]).checkpoint(None, &Notes::new()).expect("a checkpoint");
    for (names, words) in [
        (["a", "c"], "tensor \"b\" is tensor 1 there, nothing here"),
        (["b", "a"], "the first tensor in another order is \"a\" there, \"b\" here"),
    ] {
        assert_refused(build(names).restore(&checkpoint, None), &[words]);
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
    assert_refused(resumed.restore(&without), &["without the parameters"]);
    for checkpoint in [&with, &without] {
        let mut resumed = CpuRun::new(&plain());
        resumed.optimizer.restore(checkpoint, None).expect("it fits");
        assert_eq!(resumed.states(), run.states());
        assert_eq!(resumed.params(), CpuRun::new(&plain()).params());
    }

    let mut slices: Vec<Vec<f32>> = resumed.params();
    slices[2].pop();
    let slices: Vec<&dyn Values> = slices.iter().map(|values| values as _).collect();
    for (given, words) in
        [(&slices[..], "elements, but this call was given"), (&slices[..2], "given 2 parameter slices")]
    {
        let error = assert_refused(resumed.optimizer.checkpoint(Some(given), &Notes::new()), &[words]);
        assert_eq!(error.kind(), ErrorKind::Call, "{error}");
    }
}

/// Without the parameters, a schedule-free checkpoint has z and no average, since that is computed from them.
#[test]
fn a_schedule_free_checkpoint_without_parameters_has_no_average() {
    let spec = Spec::new(Rule::sgd(), Regime::seesaw(), vec![vec![0.5; 5]]);
    let (run, _) = saved(&[Spec { averaging: Averaging::ScheduleFree, ..spec }]);
    let names = run.optimizer.checkpoint(None, &Notes::new()).expect("a checkpoint").names();
    assert!(names.contains(&"base_iterates/group/0".to_owned()));
    assert!(!names.contains(&"averages/group/0".to_owned()), "{names:?}");
}

#[test]
fn a_checkpoint_tells_what_it_is() {
    let (run, _) = saved(&plain());
    let notes = Notes::from([("seed \"1\"\n".to_owned(), "ünicode {}".to_owned())]);
    let params = run.params();
    let slices: Vec<&dyn Values> = params.iter().map(|values| values as _).collect();
    let bytes = run.optimizer.checkpoint(Some(&slices), &notes).expect("a checkpoint").to_bytes();
    let read = Checkpoint::from_bytes(&bytes[..]).expect("whole");
    assert_eq!((read.notes(), read.step()), (&notes, 3));
    assert_eq!(read.groups().collect::<Vec<_>>(), ["weights", "biases"]);
    assert_eq!(read.tensors().last(), Some(("biases/1", 9)));
    let words = "checkpoint of step 3: groups \"weights\", \"biases\"; 4 tensors of 28 elements, with parameters";
    assert_eq!(read.to_string(), words);
    // Other readers of the format read the same numbers.
    let (.., data) = raw_tensor(&bytes, "parameters/weights/0");
    assert_eq!(data, bytemuck::cast_slice::<f32, u8>(&params[0]));
    assert_eq!(bytes, read.to_bytes());
}

#[test]
fn files_that_cannot_be_read_or_written_are_named() {
    let (run, checkpoint) = saved(&plain());
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("missing.safetensors");
    let mut fresh = CpuRun::new(&plain());
    assert_refused(fresh.optimizer.load(&missing, None), &["missing.safetensors cannot be read"]);
    assert_refused(fresh.optimizer.load(folder.path(), None), &["not a file"]);
    let nowhere = folder.path().join("nowhere").join("file");
    assert_refused(run.optimizer.save(nowhere, None), &["cannot be written"]);
    assert_refused(checkpoint.save(folder.path()), &["not a file"]);

    let path = folder.path().join("file.safetensors");
    checkpoint.save(&path).expect("saved");
    let loaded = fresh.optimizer.load(&path, None).expect("it fits");
    assert_eq!(loaded.to_bytes(), checkpoint.to_bytes());
    assert_eq!(fresh.states(), run.states());
    // Messages name the file.
    let mut other = CpuRun::new(&plain()[..1]);
    assert_refused(other.optimizer.load(&path, None), &["file.safetensors is of another optimizer"]);
    // The file is truncated at several places, and read as a file and from memory.
    let bytes = std::fs::read(&path).expect("read");
    for len in [0, 7, 8, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..len]).expect("written");
        let error = fresh.optimizer.load(&path, None).expect_err("cut off");
        assert_eq!(error.kind(), ErrorKind::CheckpointDamaged, "{error}");
        let from_bytes = Checkpoint::from_bytes(&bytes[..len]).expect_err("cut off");
        let named = from_bytes.to_string().replace("the checkpoint", &format!("the checkpoint {}", path.display()));
        assert_eq!(error.to_string(), named);
    }
}

/// On the device, errors name what is missing from the caller's buffers or calls.
#[test]
fn a_device_says_what_keeps_it_from_saving_and_loading() {
    for gpu in &devices() {
        let gradients = upload(gpu, &[1.0; 16]);
        let build = |params: &wgpu::Buffer, rule| {
            let group = Group::new("all").tensor("w", params.slice(..), gradients.slice(..));
            OptimizerBuilder::new(rule).group(group).build(gpu).expect("builds")
        };
        let save =
            |optimizer: &Optimizer, parameters| pollster::block_on(optimizer.checkpoint(parameters, &Notes::new()));
        let neither = storage(gpu, 64, wgpu::BufferUsages::empty());
        let mut optimizer = build(&neither, Rule::sgdm(0.9));
        step(gpu, &optimizer);
        let words = "tensor \"w\": the parameter buffer was created without BufferUsages::COPY_SRC";
        assert_refused(save(&optimizer, Parameters::Included), &[words]);
        let without = save(&optimizer, Parameters::Excluded).expect("needs no usage");
        optimizer.restore(&without, Parameters::Excluded).expect("needs no usage");
        let both = storage(gpu, 64, wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST);
        let with = save(&build(&both, Rule::sgdm(0.9)), Parameters::Included).expect("saved");
        assert_refused(optimizer.restore(&with, Parameters::Included), &["without BufferUsages::COPY_DST"]);
        assert_eq!(save(&optimizer, Parameters::Excluded).expect("saved").step(), 1);

        // Another rule is refused on the device too, and from a file.
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("w.safetensors");
        let other = build(&both, Rule::signum(0.9));
        step(gpu, &other);
        pollster::block_on(other.save(&path, Parameters::Included)).expect("saved");
        assert_refused(optimizer.load(&path, Parameters::Excluded), &["Signum"]);
        let mut resumed = build(&both, Rule::signum(0.9));
        let loaded = resumed.load(&path, Parameters::Included).expect("it fits");
        assert_eq!(loaded.step(), 1);
    }
}
