//! Tests of `Optimizer::rebind`: steps, averages, records and checkpoints have the same bits for buffers that move and for buffers that stay,
//! wherever parameters and gradients are placed. Tensors that cannot be bound are refused without any change. The bind groups of a repeated place are
//! reused.
//!
//! Each of these faults was introduced by hand once, when each tensor still had its own windows, and made a test fail: a checkpoint of the
//! parameters' first place; places compared by their parameters alone; a kernel that only reads the gradients; no check for overlaps.

use wgpu_optim::gpu::Tensor;
use wgpu_optim::internals::PassName;
use wgpu_optim::{
    Averaging, CurvatureForm, Element, Error, Gpu, Group, Optimizer, OptimizerBuilder, Regime, Rule, SecantForm, wgpu,
};
use wgpu_optim_conformance::run::{GpuRun, Place, Run, Spec, bits, devices, lengths, separate};
use wgpu_optim_conformance::{Numbers, assert_says, download, noise, small_bindings, storage, submit, tensors, upload};

use crate::halves::kept;
use crate::helpers::assert_same_bits;
use crate::schedule_free;

/// Returns rules and regimes with every kind of state, and with every other setting that affects a step.
fn cases() -> Vec<Spec> {
    let rules = [Rule::sgd(), Rule::sgdm(0.9), Rule::nesterov(0.8), Rule::sign_sgd(), Rule::signum(0.9), Rule::muon()];
    let mut numbers = Numbers(1);
    let mut specs = Vec::new();
    for rule in rules {
        for regime in [Regime::seesaw(), Regime::norm_ratio()] {
            let tensors = vec![numbers.vec(7), numbers.vec(68)];
            let name = format!("{}, {}", rule.name(), regime.name());
            specs.push(Spec::new(rule, regime, tensors).named(name));
        }
    }
    let secant = Regime::barzilai_borwein(SecantForm::Geometric);
    for (rule, regime) in [
        (Rule::sgdm(0.9), secant),
        (Rule::sgd(), Regime::dowg()),
        (Rule::signum(0.9), Regime::prodigy()),
        (Rule::adamw(), Regime::mechanic()),
    ] {
        let tensors = vec![numbers.vec(1), vec![], numbers.vec(5003)];
        specs.push(Spec::new(rule, regime, tensors).named(regime.name()));
    }
    let shapes = vec![vec![7, 1], vec![4, 17]];
    let tensors = vec![numbers.vec(7), numbers.vec(68)];
    let adafactor = Spec::new(Rule::adafactor(), Regime::seesaw(), tensors).named("adafactor");
    specs.push(Spec { shapes: shapes.clone(), ..adafactor });
    let lazy = Spec::new(Rule::adamw(), Regime::seesaw(), vec![numbers.vec(7), numbers.vec(68)]).named("lazy");
    specs.push(Spec { shapes, lazy_rows: true, ..lazy });
    let averages = [Averaging::Running { start: 2 }, Averaging::Off, Averaging::polynomial_decay()];
    for (spec, averaging) in specs.iter_mut().zip(averages.into_iter().cycle()) {
        spec.averaging = averaging;
    }
    specs[1].per_tensor = true;
    specs[2].telemetry = true;
    specs[3].trust = Some(0.1);
    specs[4].clip = 0.5;
    specs[0].norm = Some("shared".to_owned());
    specs[6].norm = Some("shared".to_owned());
    specs
}

/// Returns groups with 16-bit parameters and gradients of these types.
fn halves(params: Element, grads: Element) -> Vec<Spec> {
    kept(params).into_iter().map(|spec| Spec { grads, ..spec }).collect()
}

/// Returns the alignment of a place, in bytes.
fn alignment(gpu: &Gpu) -> usize {
    gpu.device().limits().min_storage_buffer_offset_alignment.max(16) as usize
}

const BUFFERS: usize = 3;

/// Returns random places in a few buffers. The parameters and the gradients of a tensor are often in one buffer.
fn scattered(gpu: &Gpu, specs: &[Spec], seed: u64) -> Vec<Place> {
    let alignment = alignment(gpu);
    let mut numbers = Numbers(seed);
    let mut ends = [0; BUFFERS];
    let mut place = |len: usize, element: Element| {
        let buffer = ((numbers.next() + 1.0) / 2.0 * BUFFERS as f32) as usize;
        // Some places have a gap before them.
        let start = ends[buffer] + usize::from(numbers.next() > 0.0) * alignment;
        let bytes = element.bytes() as usize;
        ends[buffer] = start + (bytes * len).next_multiple_of(alignment).max(alignment);
        (buffer, start / bytes)
    };
    let mut places = Vec::new();
    for spec in specs {
        for (index, len) in spec.tensors.iter().map(Vec::len).enumerate() {
            // Some tensors have their gradients before their parameters.
            let (params, grads) = match index % 3 {
                0 => {
                    let grads = place(len, spec.grads);
                    (place(len, spec.params), grads)
                }
                _ => (place(len, spec.params), place(len, spec.grads)),
            };
            places.push(Place { params, grads });
        }
    }
    places
}

fn movable(gpu: &Gpu, specs: &[Spec]) -> GpuRun {
    let room = 4 * lengths(specs).map(|len| len + alignment(gpu)).sum::<usize>();
    let places = scattered(gpu, specs, 0);
    GpuRun::with_room(gpu, specs, places, &[room; BUFFERS], |builder| builder.rebindable())
}

fn gradients(specs: &[Spec], step: u64) -> Vec<Vec<f32>> {
    noise(specs, 100 + step)
}

/// Asserts that two runs have the same parameters, averages, records and checkpoints, bit for bit.
#[track_caller]
fn assert_same(moving: &mut GpuRun, staying: &mut GpuRun, when: &str) {
    assert_same_bits(moving, staying, when);
    let path = format!("{}, {when}", moving.path());
    // The records are compared as text, in which a NaN equals a NaN.
    let [moved, stayed] = [&mut *moving, staying].map(|run| format!("{:?}", run.records()));
    assert!(moved == stayed, "{path}: records");
    assert!(moving.checkpoint().to_bytes() == staying.checkpoint().to_bytes(), "{path}: checkpoints");
}

#[test]
fn buffers_that_move_have_the_bits_of_buffers_that_stay() {
    let (f32, f16, bf16) = (Element::F32, Element::F16, Element::Bf16);
    for (what, specs) in [
        ("every rule", cases()),
        ("schedule-free", schedule_free::every_rule(&[64, 67])),
        ("bf16", halves(bf16, bf16)),
        ("f16", halves(f16, f16)),
        ("bf16 along f32", halves(bf16, f32)),
    ] {
        for gpu in &devices() {
            assert_moving_changes_nothing(gpu, what, &specs);
        }
    }
}

fn assert_moving_changes_nothing(gpu: &Gpu, what: &str, specs: &[Spec]) {
    let mut staying = GpuRun::new(gpu, specs, separate(specs));
    let mut moving = movable(gpu, specs);
    for step in 0..8 {
        let mut grads = gradients(specs, step);
        if step == 4 {
            // This step is skipped.
            *grads.last_mut().and_then(|g| g.last_mut()).expect("some") = f32::NAN;
        }
        moving.move_to(scattered(gpu, specs, step)).expect("rebinds");
        moving.step(&grads);
        moving.assert_surroundings_untouched();
        staying.step(&grads);
        if step % 3 == 1 {
            assert_same(&mut moving, &mut staying, &format!("{what}, step {step}"));
        }
    }
    assert_same(&mut moving, &mut staying, &format!("{what}, at the end"));

    // Restore an earlier checkpoint into places that it does not know.
    let checkpoint = staying.checkpoint();
    for run in [&mut moving, &mut staying] {
        run.step(&gradients(specs, 20));
        run.restore(&checkpoint).expect("it fits");
    }
    moving.move_to(scattered(gpu, specs, 30)).expect("rebinds");
    moving.restore(&checkpoint).expect("it fits");
    for run in [&mut moving, &mut staying] {
        run.step(&gradients(specs, 21));
    }
    assert_same(&mut moving, &mut staying, &format!("{what}, after a restore"));

    // A swap writes the averages to the parameters' current place.
    moving.move_to(scattered(gpu, specs, 31)).expect("rebinds");
    let params = bits(&moving.params());
    for run in [&mut moving, &mut staying] {
        run.swap_averages();
    }
    assert!(bits(&moving.params()) == bits(&staying.params()), "{what}");
    assert!(bits(&moving.params()) != params, "{what}");
    let refused = moving.move_to(scattered(gpu, specs, 32));
    assert_says(refused.expect_err("swapped"), &["a place for the parameters", "swapped in"]);
    for run in [&mut moving, &mut staying] {
        run.swap_averages();
        run.step(&gradients(specs, 22));
    }
    assert_same(&mut moving, &mut staying, &format!("{what}, after an exchange"));
}

/// Returns places in which `pair` chooses the buffers of each tensor's parameters and gradients. The tensors are one after another in a buffer.
fn placed_by(gpu: &Gpu, specs: &[Spec], pair: impl Fn(usize) -> [usize; 2]) -> Vec<Place> {
    let alignment = alignment(gpu) / 4;
    let mut ends = [0; BUFFERS];
    let tensors = lengths(specs).enumerate();
    let places = tensors.map(|(tensor, len)| {
        let [params, grads] = pair(tensor).map(|buffer| {
            let start = ends[buffer];
            ends[buffer] += len.next_multiple_of(alignment).max(alignment);
            (buffer, start)
        });
        Place { params, grads }
    });
    places.collect()
}

/// Tensors that share a pair of buffers share a dispatch in each pass, and each can be left out of a step.
#[test]
fn tensors_share_the_dispatches_of_their_buffers() {
    let mut numbers = Numbers(3);
    let lengths = [4, 64, 0, 5000, 12, 8, 40, 2048, 4, 16];
    let mut spec = |rule, regime, telemetry, averaging| Spec {
        telemetry,
        averaging,
        ..Spec::new(rule, regime, lengths.iter().map(|&len| numbers.vec(len)).collect())
    };
    let curvature = Regime::curvature(CurvatureForm::Newton);
    for specs in [
        [spec(Rule::sgdm(0.9), Regime::seesaw(), true, Averaging::Off)],
        [spec(Rule::adamw(), Regime::seesaw(), false, Averaging::Running { start: 1 })],
        [spec(Rule::sgd(), Regime::seesaw(), false, Averaging::ScheduleFree)],
        [spec(Rule::sgd(), curvature, false, Averaging::Off)],
        [spec(Rule::sgdm(0.9), curvature, true, Averaging::Off)],
    ] {
        for gpu in &devices() {
            let absent_gradients = |builder: OptimizerBuilder<Tensor>| builder.absent_gradients();
            let mut staying = GpuRun::with(gpu, &specs, separate(&specs), absent_gradients);
            let mut moving = movable(gpu, &specs);
            for step in 0..9 {
                // The tensors share one pair of buffers, then use two pairs, then one buffer for everything, then the first pair again.
                let (pairs, places) = match step % 4 {
                    1 => (2, placed_by(gpu, &specs, |tensor| [tensor % 2, 2])),
                    2 => (1, placed_by(gpu, &specs, |_| [1, 1])),
                    _ => (1, placed_by(gpu, &specs, |_| [0, 1])),
                };
                moving.move_to(places).expect("rebinds");
                let of_pass = |pass| moving.optimizer.dispatches().iter().filter(|one| one.pass == pass).count();
                assert_eq!(of_pass(PassName::UpdateParameters), pairs, "{}", moving.path());
                assert_eq!(of_pass(PassName::ReduceGradient), pairs, "{}", moving.path());
                let absent: &[usize] = if step % 3 == 2 { &[1, 3, 9] } else { &[] };
                let mut grads = gradients(&specs, step);
                absent.iter().for_each(|&tensor| grads[tensor].fill(f32::NAN));
                for run in [&mut moving, &mut staying] {
                    run.step_without(&grads, absent);
                    if specs[0].regime.needs_looks() {
                        run.try_look_without(&grads, absent).expect("looks");
                    }
                }
                moving.assert_surroundings_untouched();
                assert_same(&mut moving, &mut staying, &format!("step {step}"));
            }
        }
    }
}

/// A tensor in several windows moves with all of them.
#[test]
fn tensors_longer_than_a_binding_move() {
    let specs = [Spec::new(Rule::sgdm(0.9), Regime::seesaw(), tensors(3, &[40_001, 6]))];
    for gpu in &small_bindings(1 << 16) {
        let mut staying = GpuRun::new(gpu, &specs, separate(&specs));
        let mut moving = movable(gpu, &specs);
        assert!(moving.optimizer.dispatches().len() >= 2 * 4 + 2, "one window");
        for step in 0..4 {
            let grads = gradients(&specs, step);
            moving.move_to(scattered(gpu, &specs, 40 + step)).expect("rebinds");
            moving.step(&grads);
            staying.step(&grads);
            moving.assert_surroundings_untouched();
        }
        assert_same(&mut moving, &mut staying, "in windows");
    }
}

/// Builds an optimizer with one tensor of eight elements in these buffers.
fn one_tensor(gpu: &Gpu, builder: OptimizerBuilder<Tensor>, buffers: [&wgpu::Buffer; 2]) -> Result<Optimizer, Error> {
    let [params, grads] = buffers.map(|buffer| buffer.slice(..32));
    let group = Group::new("all").tensor("w", params, grads);
    builder.group(group).build(gpu)
}

fn own_groups(optimizer: &Optimizer) -> Vec<wgpu::BindGroup> {
    let sweeps = optimizer.dispatches().iter();
    sweeps.filter_map(|dispatch| dispatch.bind_groups.get(1)).map(|group| (**group).clone()).collect()
}

/// A recorded step keeps its places, also when a rebind and further steps follow within the same submit.
#[test]
fn recorded_steps_keep_their_places() {
    for gpu in &devices() {
        let [first, second] = [1.0, 2.0].map(|w| upload(gpu, &[w; 8]));
        let ones = upload(gpu, &[1.0; 8]);
        let builder = OptimizerBuilder::new(Rule::sgd()).regime(Regime::fixed(0.25)).rebindable();
        let mut optimizer = one_tensor(gpu, builder, [&first, &ones]).expect("builds");
        submit(gpu, |encoder| {
            optimizer.encode_step(encoder).expect("alive");
            optimizer.rebind(&[(second.slice(..32), ones.slice(..32))]).expect("rebinds");
            for _ in 0..2 {
                optimizer.encode_step(encoder).expect("alive");
            }
        });
        for (buffer, expected) in [(&first, 0.75), (&second, 1.5)] {
            assert_eq!(download(gpu, buffer, 8), [expected; 8], "{}", gpu.describe());
        }
    }
}

#[test]
fn a_place_that_comes_again_is_looked_up() {
    for gpu in &devices() {
        let params = upload(gpu, &[1.0; 8]);
        let grads: Vec<_> = (0..10).map(|_| upload(gpu, &[1.0; 8])).collect();
        let builder = OptimizerBuilder::new(Rule::sgd()).rebindable();
        let mut optimizer = one_tensor(gpu, builder, [&params, &grads[0]]).expect("builds");
        let mut groups_at = |index: usize| {
            optimizer.rebind(&[(params.slice(..32), grads[index].slice(..32))]).expect("rebinds");
            own_groups(&optimizer)
        };
        let first = groups_at(0);
        assert_eq!(first.len(), 2);
        let others: Vec<_> = (1..8).map(&mut groups_at).collect();
        assert!(!others.contains(&first));
        // The eight latest places are kept.
        assert!(groups_at(0) == first);
        for (index, groups) in (1..8).zip(&others) {
            assert!(groups_at(index) == *groups, "place {index}");
        }
        groups_at(8);
        assert!(groups_at(1) == others[0]);
        assert!(groups_at(0) != first, "without bound");
    }
}

/// Returns the slice of eight elements from this byte on.
fn slice(buffer: &wgpu::Buffer, start: u64) -> wgpu::BufferSlice<'_> {
    buffer.slice(start..start + 32)
}

#[test]
fn what_cannot_be_bound_is_refused_and_nothing_changes() {
    for gpu in &devices() {
        let aligned = alignment(gpu) as u64;
        let size = 3 * aligned + 64;
        let usage = wgpu::BufferUsages::COPY_DST;
        let [a, b, c, d, gone] = [(); 5].map(|()| storage(gpu, size, usage));
        let label = None;
        let wrong =
            gpu.device().create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false });
        gone.destroy();
        let builder = || {
            let group =
                Group::new("all").tensor("v", a.slice(..32), b.slice(..32)).tensor("w", c.slice(..32), d.slice(..32));
            OptimizerBuilder::new(Rule::sgd()).group(group)
        };
        let mut optimizer = builder().rebindable().build(gpu).expect("builds");
        let before = own_groups(&optimizer);
        let good = (a.slice(..32), b.slice(aligned..aligned + 32));
        let cases: Vec<(&str, Vec<_>)> = vec![
            ("StepTensors", vec![good]),
            ("StepTensors", vec![good, good, good]),
            ("StepLength", vec![good, (c.slice(..48), d.slice(..48))]),
            ("LengthMismatch", vec![good, (c.slice(..32), d.slice(..48))]),
            ("BindingAlignment", vec![good, (slice(&c, 8), slice(&d, 0))]),
            ("BindingAlignment", vec![good, (slice(&c, 0), slice(&d, 4))]),
            ("MissingUsage", vec![good, (slice(&c, 0), slice(&wrong, 0))]),
            ("Overlap", vec![good, (slice(&c, 0), slice(&c, 0))]),
            ("Overlap", vec![good, (slice(&c, 0), slice(&b, aligned))]),
            ("Failed", vec![good, (slice(&c, 0), slice(&gone, 0))]),
        ];
        for (expected, tensors) in cases {
            let error = optimizer.rebind(&tensors).expect_err(expected);
            assert!(format!("{error:?}").contains(&format!("({expected}")), "{expected}, but {error:?}");
            assert!(own_groups(&optimizer) == before, "{error}");
        }
        let error = optimizer.rebind(&[good, (slice(&c, 8), slice(&d, 0))]);
        let words = ["\"w\": the parameter slice starts at byte 8", &format!("a multiple of {aligned}")];
        assert_says(error.expect_err("misaligned"), &words);
        optimizer.rebind(&[good, (slice(&c, 0), slice(&d, 0))]).expect("rebinds");
        assert!(own_groups(&optimizer) != before);

        // A rebind without the builder's setting is refused, and so is the setting for a place that is not aligned.
        let mut fixed = builder().build(gpu).expect("builds");
        let same = (a.slice(..32), b.slice(..32));
        let error = fixed.rebind(&[same, (slice(&c, 0), slice(&d, 0))]);
        assert_says(error.expect_err("not rebindable"), &["OptimizerBuilder::rebindable"]);
        let odd = Group::new("all").tensor("w", slice(&a, 8), slice(&b, 0));
        let odd = OptimizerBuilder::new(Rule::sgd()).rebindable().group(odd);
        assert_says(odd.build(gpu).expect_err("misaligned"), &words);
    }
}
