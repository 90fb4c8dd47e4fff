//! Promises of parameters and gradients in 16 bits, on every adapter and on the CPU path: masters take the steps of f32, stochastic rounding
//! takes them on average, and what is stored has the same codes everywhere; checkpoints, moved buffers, ranks and averages have no part
//! in what a step comes to; gradients that are sums of micro-batches are stepped along as their mean, and cleared when that is asked.
//!
//! Faults tried once by hand, each failed its test: random bits that are the same in every step, and on every rank; ties away from zero; the half
//! word behind an odd tensor written; the last gradient kept undivided; gradients of a skipped step left; a checkpoint whose kind of
//! 16 bits is not compared.

use std::ops::Range;
use wgpu_optim_conformance as conformance;

use half::{bf16, f16};
use wgpu_optim::gpu::Tuning;
use wgpu_optim::{
    Averaging, Checkpoint, CpuOptimizer, Element, Error, Gpu, Group, LossScaler, NonFinitePolicy, Notes,
    OptimizerBuilder, Parameters, Record, Regime, Rounding, Rule, SecantForm, ShardSums, WeightDecay, cpu, wgpu,
};
use wgpu_optim_conformance::run::{
    CpuRun, GpuRun, Place, Run, Setup, Spec, alone, bits, devices, gpu_run_with, lengths, packed,
};
use wgpu_optim_conformance::stored::{Stored, half_ulp, rounded};
use wgpu_optim_conformance::{Numbers, kinds_of_partials, step, ulps};

const HALVES: [Element; 2] = [Element::F16, Element::Bf16];
const ROUNDINGS: [Rounding; 3] = [Rounding::Masters, Rounding::Nearest, Rounding::Stochastic { seed: 7 }];

/// Around the boundaries of words, quads and blocks.
const LENGTHS: [usize; 6] = [1, 2, 3, 4, 7, 4099];

fn tensors(seed: u64, lengths: &[usize]) -> Vec<Vec<f32>> {
    let mut numbers = Numbers(seed);
    lengths.iter().map(|&len| numbers.vec(len)).collect()
}

/// Gradients of seven bits, which every element holds, and a thousand times which f32 does.
fn gradients(specs: &[Spec], step: usize) -> Vec<Vec<f32>> {
    let mut numbers = Numbers(1000 + step as u64);
    let mut tensor = |len| {
        let own = numbers.vec(len).into_iter();
        own.map(|g| (g * 63.0).round() / 64.0).collect()
    };
    lengths(specs).map(&mut tensor).collect()
}

/// The same in f32, beginning at the same numbers.
fn in_floats(specs: &[Spec]) -> Vec<Spec> {
    let specs = specs.iter().cloned();
    specs.map(|spec| Spec { params: Element::F32, grads: Element::F32, ..spec }).collect()
}

/// The CPU path, and every adapter, with tensors that lie the same way whatever they are stored as.
fn paths(specs: &[Spec], like: &[Spec], setup: Setup) -> Vec<Box<dyn Run>> {
    let mut runs: Vec<Box<dyn Run>> = vec![Box::new(CpuRun::with(specs, setup))];
    for gpu in &devices() {
        let places = packed(like, 2, 1);
        let run = GpuRun::with(gpu, specs, places, |builder| setup.tell(builder));
        runs.push(Box::new(run));
    }
    runs
}

/// Runs on every path, each beside one in f32 that begins at the same numbers.
fn beside_floats(specs: &[Spec]) -> impl Iterator<Item = (Box<dyn Run>, Box<dyn Run>)> {
    let floats = paths(&in_floats(specs), specs, Setup::default());
    paths(specs, specs, Setup::default()).into_iter().zip(floats)
}

/// A tensor of a checkpoint as another program reads it.
fn raw(checkpoint: &[u8], name: &str) -> (safetensors::Dtype, Vec<usize>, Vec<u8>) {
    let file = safetensors::SafeTensors::deserialize(checkpoint).expect("safetensors");
    let tensor = file.tensor(name).expect("a tensor of this name");
    (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec())
}

/// The masters of a tensor, from what a checkpoint says of them.
fn masters(checkpoint: &[u8], element: Element, tensor: &str) -> Vec<f32> {
    let codes: Vec<u16> = bytemuck::pod_collect_to_vec(&raw(checkpoint, &format!("parameters/{tensor}")).2);
    let kept: Vec<i16> = bytemuck::pod_collect_to_vec(&raw(checkpoint, &format!("remainders/{tensor}")).2);
    let pairs = codes.into_iter().zip(kept);
    pairs
        .map(|(code, kept)| {
            let (magnitude, kept) = (code & 0x7fff, i32::from(kept));
            let value = match element {
                Element::F16 if magnitude < 0x400 => {
                    let units = (i32::from(magnitude) << 14) + kept;
                    (f64::from(units) * 2f64.powi(-38)) as f32
                }
                Element::F16 => {
                    let bits = f16::from_bits(magnitude).to_f32().to_bits() as i32;
                    f32::from_bits((bits + kept) as u32)
                }
                _ => f32::from_bits(((i32::from(magnitude) << 16) + kept) as u32),
            };
            if code & 0x8000 == 0 { value } else { -value }
        })
        .collect()
}

/// How far a master may be from the parameter of the same run in f32.
fn drift(value: f32) -> f32 {
    16.0 * value.abs() * f32::EPSILON + 200.0 * 2f32.powi(-38)
}

/// Whether it is the nearest to the number, or to one that is as good as that.
fn is_nearest(element: Element, stored: f32, value: f32) -> bool {
    let near = [value - drift(value), value + drift(value)];
    let near = rounded(element, &near);
    (near[0]..=near[1]).contains(&stored)
}

#[test]
fn masters_take_the_steps_of_f32() {
    let _alone = alone();
    for element in HALVES {
        let specs: Vec<Spec> = [
            Spec::new(Rule::sgdm(0.9), Regime::seesaw(), tensors(1, &LENGTHS)).named("sgdm"),
            Spec {
                decay: WeightDecay::Decoupled(0.1),
                ..Spec::new(Rule::adamw(), Regime::seesaw(), tensors(2, &LENGTHS)).named("adamw")
            },
        ]
        .into_iter()
        .map(|spec| spec.stored(element, element, Rounding::Masters))
        .collect();
        for (mut half, mut float) in beside_floats(&specs) {
            let (mut others, mut all) = (0, 0);
            for t in 1..=200 {
                let grads = gradients(&specs, t);
                half.step(&grads);
                float.step(&grads);
                let what = format!("{}, {element:?}, step {t}", half.path());
                assert_eq!(bits(&[half.rates()]), bits(&[float.rates()]), "{what}");
                for (stored, values) in half.params().iter().zip(float.params()) {
                    for (&stored, value) in stored.iter().zip(values) {
                        all += 1;
                        others += usize::from(rounded(element, &[value]) != [stored]);
                        assert!(
                            is_nearest(element, stored, value),
                            "{what}: {stored:e} is not the nearest to {value:e}"
                        );
                    }
                }
            }
            assert!(1000 * others <= all, "{others} of {all} codes differ");
            let checkpoint = half.checkpoint().to_bytes();
            let names = specs.iter().flat_map(|spec| (0..spec.tensors.len()).map(|i| spec.tensor_name(i)));
            for (name, values) in names.zip(float.params()) {
                for (master, value) in masters(&checkpoint, element, &name).iter().zip(values) {
                    assert!(
                        (master - value).abs() <= drift(value),
                        "{}, {element:?}: {master:e}, not {value:e}",
                        half.path()
                    );
                }
            }
        }
    }
}

const SMALL: f32 = 1.0 / 16384.0;
const SMALL_STEPS: usize = 1000;

/// A thousand steps that 16 bits cannot tell, each exact in f32.
fn small_steps(element: Element, rounding: Rounding, lengths: &[usize]) -> Vec<Spec> {
    let tensors = lengths.iter().map(|&len| (0..len).map(|i| 1.25 + (i % 64) as f32 / 128.0).collect()).collect();
    vec![Spec::new(Rule::sgd(), Regime::fixed(SMALL), tensors).stored(element, element, rounding)]
}

fn ones(specs: &[Spec]) -> Vec<Vec<f32>> {
    lengths(specs).map(|len| vec![1.0; len]).collect()
}

/// So many steps along the same gradients.
fn after(mut run: Box<dyn Run>, specs: &[Spec], steps: usize) -> Vec<Vec<f32>> {
    for _ in 0..steps {
        run.step(&ones(specs));
    }
    run.params()
}

#[test]
fn small_steps_arrive_or_stay() {
    let _alone = alone();
    for element in HALVES {
        let arrived = |w: &f32| w - SMALL_STEPS as f32 * SMALL;
        for rounding in [Rounding::Masters, Rounding::Nearest] {
            let specs = small_steps(element, rounding, &LENGTHS);
            for run in paths(&specs, &specs, Setup::default()) {
                let what = format!("{}, {element:?}, {rounding:?}", run.path());
                let found = after(run, &specs, SMALL_STEPS);
                let expected: Vec<Vec<f32>> = match rounding {
                    Rounding::Nearest => specs[0].tensors.clone(),
                    _ => specs[0]
                        .tensors
                        .iter()
                        .map(|w| rounded(element, &w.iter().map(arrived).collect::<Vec<_>>()))
                        .collect(),
                };
                assert_eq!(bits(&found), bits(&expected), "{what}");
            }
        }
        let by_seed = [1, 1, 2].map(|seed| {
            let specs = small_steps(element, Rounding::Stochastic { seed }, &LENGTHS);
            let runs = paths(&specs, &specs, Setup::default());
            runs.into_iter().map(|run| after(run, &specs, SMALL_STEPS)).collect::<Vec<_>>()
        });
        for found in &by_seed[0] {
            // Exact steps: the same codes on every path.
            assert_eq!(bits(found), bits(&by_seed[0][0]), "{element:?}");
        }
        assert_eq!(by_seed[0], by_seed[1], "a seed is reproducible");
        let values = &by_seed[0][0][5];
        let agree = values.iter().zip(&by_seed[2][0][5]);
        let agree = agree.filter(|(a, b)| a == b).count();
        assert!(2 * agree <= values.len(), "{agree} agree beyond the seed");
        // Each element goes down by a unit with probability p in each step.
        let unit = 2.0 * half_ulp(element, 1.5);
        let p = f64::from(SMALL) / unit;
        let variance = SMALL_STEPS as f64 * p * (1.0 - p);
        let starts = small_steps(element, Rounding::Nearest, &LENGTHS)[0].tensors[5].clone();
        let errors: Vec<f64> =
            values.iter().zip(&starts).map(|(&value, w)| f64::from(value - arrived(w)) / unit).collect();
        let count = errors.len() as f64;
        let mean = errors.iter().sum::<f64>() / count;
        assert!(mean.abs() <= 5.0 * (variance / count).sqrt(), "{element:?}: mean error {mean} units");
        // Draws of one element in different steps, and of neighbours, have nothing to do with each other.
        let spread = errors.iter().map(|error| error * error).sum::<f64>() / count;
        assert!(
            (spread / variance - 1.0).abs() <= 5.0 * (2.5 / count).sqrt(),
            "{element:?}: variance {spread}, not {variance}"
        );
        let together = errors.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>() / count;
        assert!(
            together.abs() <= 5.0 * variance / count.sqrt(),
            "{element:?}: neighbours vary together by {together} of {variance}"
        );
    }
}

/// Other geometries, with every kind of partials that the device can have.
fn geometries(gpu: &Gpu) -> Vec<Gpu> {
    let tunings = kinds_of_partials(gpu).zip([(64, 1), (32, 8), (128, 2)].into_iter().cycle()).map(
        |(partials, (workgroup_size, quads_per_invocation))| Tuning {
            workgroup_size,
            quads_per_invocation,
            partials,
            finish_workgroup_size: 64,
        },
    );
    tunings.filter_map(|tuning| gpu.clone().with_tuning(tuning).ok()).collect()
}

#[test]
fn codes_are_the_same_in_every_geometry() {
    let _alone = alone();
    for element in HALVES {
        for rounding in ROUNDINGS {
            let specs = small_steps(element, rounding, &LENGTHS);
            let expected = after(Box::new(CpuRun::new(&specs)), &specs, 60);
            for gpu in &devices() {
                let geometries = geometries(gpu);
                assert!(geometries.len() >= 2, "{}", gpu.describe());
                for (start, gpu) in (0..).map(|i| 2 * (i % 2)).zip(&geometries) {
                    let mut run = GpuRun::new(gpu, &specs, packed(&specs, start, 1));
                    run.write_grads(&ones(&specs));
                    for _ in 0..60 {
                        step(&run.gpu, &run.optimizer);
                    }
                    let what = format!("{}, {element:?}, {rounding:?}", run.path());
                    assert_eq!(bits(&run.params()), bits(&expected), "{what}");
                    run.assert_surroundings_untouched();
                }
            }
        }
    }
}

/// Rules and regimes with every kind of memory, some with masters and some with random bits.
fn kept(element: Element) -> Vec<Spec> {
    let lengths = [1, 0, 7, 4099];
    let mut specs = vec![
        Spec::new(Rule::sgdm(0.9), Regime::seesaw(), tensors(3, &lengths)).named("masters").stored(
            element,
            element,
            Rounding::Masters,
        ),
        Spec::new(Rule::adamw(), Regime::seesaw(), tensors(4, &lengths)).named("stochastic").stored(
            element,
            element,
            Rounding::Stochastic { seed: 3 },
        ),
        Spec::new(Rule::sgd(), Regime::seesaw(), tensors(5, &lengths)).named("nearest").stored(
            element,
            element,
            Rounding::Nearest,
        ),
        Spec::new(Rule::sgd(), Regime::dog(), tensors(6, &lengths)).named("averaged").stored(
            element,
            element,
            Rounding::Masters,
        ),
    ];
    specs[3].averaging = Averaging::Running { start: 2 };
    specs
}

/// That a run can be restored there, and what it then goes on to.
fn restored(mut run: Box<dyn Run>, checkpoint: &[u8]) -> Box<dyn Run> {
    let checkpoint = Checkpoint::from_bytes(checkpoint).expect("a checkpoint");
    run.restore(&checkpoint).expect("restores");
    run
}

#[test]
fn a_resumed_run_has_the_bits_of_one_that_was_not_interrupted() {
    let _alone = alone();
    for element in HALVES {
        let specs = kept(element);
        let fresh = || paths(&specs, &specs, Setup::default());
        let mut saved = Vec::new();
        for (mut run, again) in fresh().into_iter().zip(fresh()) {
            for t in 1..=4 {
                run.step(&gradients(&specs, t));
            }
            let checkpoint = run.checkpoint().to_bytes();
            let mut again = restored(again, &checkpoint);
            for t in 5..=8 {
                run.step(&gradients(&specs, t));
                again.step(&gradients(&specs, t));
            }
            let what = format!("{}, {element:?}", run.path());
            assert_eq!(bits(&again.params()), bits(&run.params()), "{what}");
            // All that is remembered, too.
            let (found, expected) = (again.checkpoint().to_bytes(), run.checkpoint().to_bytes());
            assert!(found == expected, "{what}: checkpoints differ");
            saved.push((run, checkpoint));
        }
        // From each path to each: what comes back is what was saved, and it goes on within a unit of 16 bits.
        for (from, checkpoint) in &saved {
            for to in fresh() {
                let mut to = restored(to, checkpoint);
                let what = format!("{} to {}, {element:?}", from.path(), to.path());
                assert!(to.checkpoint().to_bytes() == *checkpoint, "{what}");
                for t in 5..=8 {
                    to.step(&gradients(&specs, t));
                }
                for (found, expected) in to.params().iter().zip(from.params()) {
                    for (&found, expected) in found.iter().zip(expected) {
                        let unit = 2.0 * half_ulp(element, f64::from(expected));
                        let error = f64::from(found) - f64::from(expected);
                        assert!(error.abs() <= 2.0 * unit, "{what}: {found}, not {expected}");
                    }
                }
            }
        }
    }
}

#[test]
fn other_programs_read_parameters_in_their_own_elements() {
    for (element, dtype) in [(Element::F16, safetensors::Dtype::F16), (Element::Bf16, safetensors::Dtype::BF16)] {
        let specs = kept(element);
        for mut run in paths(&specs, &specs, Setup::default()) {
            run.step(&gradients(&specs, 1));
            let checkpoint = run.checkpoint();
            let bytes = checkpoint.to_bytes();
            let mut params = run.params().into_iter();
            for spec in &specs {
                for i in 0..spec.tensors.len() {
                    let (name, expected) = (spec.tensor_name(i), params.next().expect("params"));
                    let (found, shape, data) = raw(&bytes, &format!("parameters/{name}"));
                    assert_eq!((found, shape), (dtype, vec![expected.len()]), "{name}");
                    let values = Stored::from_bytes(element, &data).values();
                    assert_eq!(bits(&[values]), bits(std::slice::from_ref(&expected)), "{name}");
                    let values = checkpoint.parameters(&name).expect("parameters");
                    assert_eq!(bits(&[values]), bits(&[expected]), "{name}");
                }
            }
        }
    }
}

#[test]
fn a_checkpoint_of_other_elements_is_refused_and_nothing_changes() {
    let spec = |element| {
        vec![Spec::new(Rule::sgdm(0.9), Regime::seesaw(), tensors(3, &[7, 66])).stored(
            element,
            Element::F32,
            Rounding::Masters,
        )]
    };
    let all = [Element::F32, Element::F16, Element::Bf16];
    for from in all {
        let specs = spec(from);
        let mut source = CpuRun::new(&specs);
        source.step(&gradients(&specs, 1));
        let with = source.checkpoint();
        let without = source.optimizer.checkpoint_values(None, &Notes::new()).expect("a checkpoint");
        for to in all.into_iter().filter(|&to| to != from) {
            let specs = spec(to);
            for checkpoint in [&with, &without] {
                let assert_refused = |run: &mut dyn Run, refused: Result<(), Error>, before| {
                    let error = refused.expect_err("other elements");
                    let what = format!("{}, {from:?} to {to:?}: {error}", run.path());
                    assert!(matches!(error, Error::CheckpointDiffers { .. }), "{what}: it is not damaged");
                    let message = error.to_string();
                    for word in ["group/0", from.name(), to.name()] {
                        assert!(message.contains(word), "no {word:?} in: {what}");
                    }
                    assert!(run.checkpoint().to_bytes() == before, "{what}: changed");
                };
                let mut host = CpuRun::new(&specs);
                host.step(&gradients(&specs, 2));
                let before = host.checkpoint().to_bytes();
                let refused = host.optimizer.restore_values(checkpoint, None);
                assert_refused(&mut host, refused, before);
                for gpu in &devices() {
                    let mut run = gpu_run_with(gpu, &specs, Setup::default());
                    run.step(&gradients(&specs, 2));
                    let before = run.checkpoint().to_bytes();
                    let refused = run.optimizer.restore(checkpoint, Parameters::Excluded);
                    assert_refused(&mut run, refused, before);
                }
            }
        }
    }
}

/// Where a tensor must start on this device to be bound alone, in elements of 16 bits.
fn alignment(gpu: &Gpu) -> usize {
    let limit = gpu.device().limits().min_storage_buffer_offset_alignment;
    limit.max(16) as usize / 2
}

/// Places of their own for parameters and gradients, in another order each time.
fn moved(gpu: &Gpu, specs: &[Spec], turn: usize) -> Vec<Place> {
    let alignment = alignment(gpu);
    let mut ends = [turn * alignment, 0, 2 * alignment, 0];
    let mut place = |buffer: usize, len: usize| {
        let start = ends[buffer];
        ends[buffer] += (len + 1).next_multiple_of(alignment);
        (buffer, start)
    };
    let lengths = lengths(specs).enumerate();
    lengths
        .map(|(i, len)| Place { params: place((i + turn) % 2, len), grads: place(2 + (i + turn / 2) % 2, len) })
        .collect()
}

#[test]
fn buffers_that_move_have_the_bits_of_buffers_that_stay() {
    let _alone = alone();
    for (params, grads) in [(Element::Bf16, Element::Bf16), (Element::F16, Element::F16), (Element::Bf16, Element::F32)]
    {
        let mut specs = kept(params);
        for spec in &mut specs {
            spec.grads = grads;
        }
        for gpu in &devices() {
            let room = lengths(&specs).map(|len| len + 2 * alignment(gpu)).sum::<usize>();
            let run = || {
                let places = moved(gpu, &specs, 0);
                GpuRun::with_room(gpu, &specs, places, &[room; 4], |b| b.rebindable(true))
            };
            let (mut moving, mut staying) = (run(), run());
            for t in 1..=8 {
                moving.move_to(moved(gpu, &specs, t % 4)).expect("moves");
                moving.step(&gradients(&specs, t));
                staying.step(&gradients(&specs, t));
                let what = format!("{}, {params:?}, step {t}", moving.path());
                assert_eq!(bits(&moving.params()), bits(&staying.params()), "{what}");
                moving.assert_surroundings_untouched();
            }
            assert!(moving.checkpoint().to_bytes() == staying.checkpoint().to_bytes());
        }
    }
}

#[test]
fn slices_of_other_elements_are_not_bound() {
    for gpu in &devices() {
        let buffer = |label| {
            gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: 256,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        };
        let (w, g, other) = (buffer("w"), buffer("g"), buffer("other"));
        let ones = [bf16::ONE; 16];
        gpu.queue().write_buffer(&w, 0, bytemuck::cast_slice(&ones));
        gpu.queue().write_buffer(&g, 0, bytemuck::cast_slice(&ones));
        let halves = |buffer: &wgpu::Buffer, element: Element| {
            // The element's slices live as long as their buffer.
            (element, buffer.clone(), 15 * element.bytes())
        };
        let mut optimizer = OptimizerBuilder::new(Rule::sgd())
            .regime(Regime::fixed(0.25))
            .rebindable(true)
            .group(Group::new("all").tensor("w", Element::Bf16.of(w.slice(..30)), Element::Bf16.of(g.slice(..30))))
            .build(gpu)
            .expect("builds");
        for (params, grads, role, actual) in [
            (Element::F16, Element::Bf16, "parameter", Element::F16),
            (Element::Bf16, Element::F16, "gradient", Element::F16),
            (Element::F32, Element::Bf16, "parameter", Element::F32),
            (Element::Bf16, Element::F32, "gradient", Element::F32),
        ] {
            let (p, q) = (halves(&other, params), halves(&g, grads));
            let error =
                optimizer.rebind(&[(p.0.of(p.1.slice(..p.2)), q.0.of(q.1.slice(..q.2)))]).expect_err("other elements");
            assert_eq!(error, Error::StepElement { tensor: "w".to_owned(), role, expected: Element::Bf16, actual });
            let message = error.to_string();
            for word in ["\"w\"", role, "bf16", actual.name()] {
                assert!(message.contains(word), "no {word:?} in: {message}");
            }
        }
        step(gpu, &optimizer);
        let found = conformance::download(gpu, &w, 8);
        let found: Vec<bf16> = bytemuck::pod_collect_to_vec::<f32, bf16>(&found);
        assert_eq!(found[..15], [bf16::from_f32(0.75); 15]);
        assert_eq!(found[15], bf16::ONE, "what is behind an odd tensor");
    }
}

#[test]
fn slices_of_other_elements_take_no_step_on_the_host() {
    let mut params = vec![bf16::ONE; 5];
    let grads = vec![bf16::ONE; 5];
    let mut optimizer = OptimizerBuilder::new(Rule::sgd())
        .regime(Regime::fixed(0.25))
        .group(Group::new("all").tensor("w", &params, &grads))
        .build_cpu()
        .expect("builds");
    let expected = |role, actual| Error::StepElement { tensor: "w".to_owned(), role, expected: Element::Bf16, actual };
    let mut wrong = vec![f16::ONE; 5];
    let (mut floats, float_grads) = (vec![1.0f32; 5], vec![1.0f32; 5]);
    let found = optimizer.step_values(&mut [(&mut wrong).into()], &[(&grads).into()]);
    assert_eq!(found, Err(expected("parameter", Element::F16)));
    let found = optimizer.step_values(&mut [(&mut params).into()], &[(&float_grads).into()]);
    assert_eq!(found, Err(expected("gradient", Element::F32)));
    let found = optimizer.step(&mut [&mut floats], &[&float_grads]);
    assert_eq!(found, Err(expected("parameter", Element::F32)));
    assert_eq!((wrong, floats), (vec![f16::ONE; 5], vec![1.0; 5]));
    assert!(optimizer.drain_records().records.is_empty(), "no step");
    optimizer.step_values(&mut [(&mut params).into()], &[(&grads).into()]).expect("steps");
    assert_eq!(params, [bf16::from_f32(0.75); 5]);
}

/// What of a tensor belongs to a rank.
fn piece(len: usize, rank: usize, ranks: usize) -> Range<usize> {
    len * rank / ranks..len * (rank + 1) / ranks
}

fn pieces(tensors: &[Vec<f32>], rank: usize, ranks: usize) -> Vec<Vec<f32>> {
    let tensors = tensors.iter();
    tensors.map(|tensor| tensor[piece(tensor.len(), rank, ranks)].to_vec()).collect()
}

/// A step of several ranks.
fn step_together(ranks: &mut [Box<dyn Run>], parts: &[Vec<Vec<f32>>]) {
    let pairs = ranks.iter_mut().zip(parts);
    let sums: Vec<ShardSums> = pairs.map(|(rank, grads)| rank.measure(grads)).collect();
    let combined = ShardSums::combine(&sums).expect("combine");
    for (rank, grads) in ranks.iter_mut().zip(parts) {
        rank.try_apply(grads, &combined).expect("applies");
    }
}

/// What every rank must come to alike.
fn in_common(record: &Record) -> [u32; 4] {
    [
        record.norm.to_bits(),
        record.learning_rate.to_bits(),
        record.smoothed_norm.to_bits(),
        record.slow_alignment.to_bits(),
    ]
}

fn rank_of(kind: usize, specs: &[Spec], shard: (usize, usize)) -> Box<dyn Run> {
    let setup = Setup { shard: Some((shard.0 as u32, shard.1 as u32)), ..Setup::default() };
    match kind.checked_sub(1) {
        None => Box::new(CpuRun::with(specs, setup)),
        Some(device) => Box::new(gpu_run_with(&devices()[device], specs, setup)),
    }
}

#[test]
fn ranks_together_take_the_step_of_one() {
    let _alone = alone();
    for element in HALVES {
        let specs: Vec<Spec> = kept(element).into_iter().filter(|spec| spec.rounding == Rounding::Masters).collect();
        for count in [2, 3] {
            let own = |rank| -> Vec<Spec> {
                let specs = specs.iter().cloned();
                specs.map(|spec| Spec { tensors: pieces(&spec.tensors, rank, count), ..spec }).collect()
            };
            // All on the host, all on the first device, or on whatever there is.
            for kinds in [[0, 0, 0], [1, 1, 1], [0, 1, devices().len()]] {
                let mut ranks: Vec<Box<dyn Run>> =
                    (0..count).map(|rank| rank_of(kinds[rank], &own(rank), (rank, count))).collect();
                let mut one = CpuRun::new(&specs);
                for t in 1..=12 {
                    let grads = gradients(&specs, t);
                    let parts: Vec<_> = (0..count).map(|rank| pieces(&grads, rank, count)).collect();
                    step_together(&mut ranks, &parts);
                    one.step(&grads);
                    let records: Vec<Vec<_>> =
                        ranks.iter_mut().map(|rank| rank.records().records.iter().map(in_common).collect()).collect();
                    let what = format!("{element:?}, ranks {kinds:?}, step {t}");
                    for other in &records {
                        assert_eq!(*other, records[0], "{what}");
                    }
                    for (rank, run) in ranks.iter().enumerate() {
                        let expected = pieces(&one.params(), rank, count);
                        for (found, expected) in run.params().iter().zip(expected) {
                            for (&found, expected) in found.iter().zip(expected) {
                                let unit = 2.0 * half_ulp(element, f64::from(expected));
                                // The rates are within rounding, and so are the masters.
                                let unit = unit + 1e-6;
                                let error = f64::from(found) - f64::from(expected);
                                assert!(error.abs() <= unit, "{what}: {found}, not {expected}");
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn ranks_draw_their_own_random_bits() {
    let specs = small_steps(Element::Bf16, Rounding::Stochastic { seed: 5 }, &[4099]);
    for kind in 0..=devices().len() {
        let mut ranks: Vec<Box<dyn Run>> = (0..3).map(|rank| rank_of(kind, &specs, (rank, 3))).collect();
        let parts = vec![ones(&specs); 3];
        for _ in 0..50 {
            step_together(&mut ranks, &parts);
        }
        let params: Vec<_> = ranks.iter().map(|rank| rank.params()).collect();
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            let pairs = params[a][0].iter().zip(&params[b][0]);
            let apart = pairs.filter(|(a, b)| a != b).count();
            assert!(apart >= 1000, "ranks {a} and {b}: {apart} codes differ");
        }
    }
}

#[test]
fn averages_beside_masters_are_of_f32_and_come_and_go() {
    let _alone = alone();
    for element in HALVES {
        let mut specs = vec![
            Spec::new(Rule::sgdm(0.9), Regime::seesaw(), tensors(8, &LENGTHS)).named("running"),
            Spec::new(Rule::sgd(), Regime::norm_ratio(), tensors(9, &LENGTHS)).named("polynomial"),
            Spec::new(Rule::sgd(), Regime::norm_ratio(), tensors(9, &LENGTHS)).named("late"),
        ];
        specs[0].averaging = Averaging::Running { start: 0 };
        specs[1].averaging = Averaging::polynomial_decay();
        specs[2].averaging = Averaging::Running { start: 100 };
        let specs: Vec<Spec> = specs.into_iter().map(|spec| spec.stored(element, element, Rounding::Masters)).collect();
        for (mut half, mut float) in beside_floats(&specs) {
            for t in 1..=10 {
                half.step(&gradients(&specs, t));
                float.step(&gradients(&specs, t));
            }
            let what = format!("{}, {element:?}", half.path());
            let (averages, expected) = (half.averages(), float.averages());
            for (index, (found, expected)) in averages.iter().zip(&expected).enumerate() {
                let stored = half.params();
                let mut stored = stored[index].iter();
                for (&found, &expected) in found.iter().zip(expected) {
                    let error = (found - expected).abs();
                    // On the CPU path what is stored stands in for an average that has not started.
                    let stands_in = found == *stored.next().expect("as many")
                        && index >= 2 * LENGTHS.len()
                        && is_nearest(element, found, expected);
                    assert!(error <= drift(expected) || stands_in, "{what}: {found:e}, not {expected:e}");
                }
            }
            let before = half.params();
            half.swap_averages();
            for (stored, averages) in half.params().iter().zip(&averages) {
                let expected = rounded(element, averages);
                assert_eq!(bits(std::slice::from_ref(stored)), bits(&[expected]), "{what}");
            }
            half.swap_averages();
            assert_eq!(bits(&half.params()), bits(&before), "{what}");
            // To go on is to go on from the masters.
            for t in 11..=20 {
                half.step(&gradients(&specs, t));
                float.step(&gradients(&specs, t));
            }
            for (stored, values) in half.params().iter().zip(float.params()) {
                for (&stored, value) in stored.iter().zip(values) {
                    assert!(is_nearest(element, stored, value), "{what}: {stored:e}, not the nearest to {value:e}");
                }
            }
        }
        for gpu in &devices() {
            let mut run = gpu_run_with(gpu, &specs, Setup::default());
            run.step(&gradients(&specs, 1));
            for (tensor, expected) in run.averages().into_iter().enumerate() {
                let read = pollster::block_on(run.optimizer.read_averages(tensor));
                assert_eq!(bits(&[read.expect("averages")]), bits(&[expected]));
            }
        }
    }
}

/// The gradients of k micro-batches whose mean these are.
fn sums_of(grads: &[Vec<f32>], micro_batches: u32) -> Vec<Vec<f32>> {
    let sum = |g: &f32| g * micro_batches as f32;
    grads.iter().map(|g| g.iter().map(sum).collect()).collect()
}

/// Whatever goes by the gradient in a way of its own.
fn gradient_users() -> Vec<Spec> {
    let new = |rule, regime, name: &str| Spec::new(rule, regime, tensors(11, &LENGTHS)).named(name);
    vec![
        new(Rule::sgd(), Regime::seesaw(), "counters"),
        new(Rule::sgdm(0.9), Regime::seesaw(), "momentum"),
        new(Rule::adamw(), Regime::seesaw(), "adamw"),
        Spec { clip: 2.0, ..new(Rule::sgd(), Regime::norm_ratio(), "clip") },
        Spec {
            clip: 2.0,
            decay: WeightDecay::Coupled(0.1),
            maximize: true,
            ..new(Rule::nesterov(0.5), Regime::norm_ratio(), "clip and decay")
        },
        new(Rule::sgd(), Regime::barzilai_borwein(SecantForm::Long), "secant"),
        Spec {
            decay: WeightDecay::Coupled(0.1),
            ..new(Rule::sgdm(0.9), Regime::barzilai_borwein(SecantForm::Geometric), "secant and decay")
        },
        new(Rule::sgd(), Regime::adgd(), "adgd"),
    ]
}

#[test]
fn a_sum_of_micro_batches_is_a_step_along_their_mean() {
    let _alone = alone();
    let scaler = Some(LossScaler { initial_scale: 16.0, growth_interval: 3, ..LossScaler::default() });
    let modes = [Setup::default(), Setup { scaler, ..Setup::default() }];
    for setup in modes {
        let specs = gradient_users();
        for micro_batches in [1, 3, 4] {
            let of_sums = Setup { micro_batches: Some(micro_batches), ..setup };
            let sums = paths(&specs, &specs, of_sums);
            for (mut sum, mut mean) in sums.into_iter().zip(paths(&specs, &specs, setup)) {
                let what = format!("{}, {micro_batches} in {:?}", sum.path(), setup);
                for t in 1..=9 {
                    let grads = gradients(&specs, t);
                    let scaled = |scale: f32| -> Vec<Vec<f32>> {
                        let of = |g: &Vec<f32>| g.iter().map(|g| scale * g).collect();
                        grads.iter().map(of).collect()
                    };
                    assert_eq!(sum.loss_scale(), mean.loss_scale(), "{what}");
                    let scale = if setup.scaler.is_some() { mean.loss_scale() } else { 1.0 };
                    sum.step(&sums_of(&scaled(scale), micro_batches));
                    mean.step(&scaled(scale));
                    let (found, expected) = (sum.records().records, mean.records().records);
                    for (found, expected) in found.iter().zip(&expected) {
                        if micro_batches.is_power_of_two() {
                            assert_eq!(found, expected, "{what}, step {t}");
                        } else {
                            let expected = f64::from(expected.norm);
                            assert!(ulps(found.norm, expected) <= 4.0, "{what}, step {t}");
                        }
                    }
                }
                let (found, expected) = (sum.params(), mean.params());
                if micro_batches.is_power_of_two() {
                    assert_eq!(bits(&found), bits(&expected), "{what}");
                    continue;
                }
                let mut names = specs.iter().flat_map(|spec| spec.tensors.iter().map(|_| &spec.name));
                for (found, expected) in found.iter().zip(&expected) {
                    let name = names.next().expect("a name");
                    for (&found, &expected) in found.iter().zip(expected) {
                        let error = (found - expected).abs();
                        assert!(error <= 1e-4 * expected.abs().max(1.0), "{what}, {name}: {found}, not {expected}");
                    }
                }
            }
        }
    }
}

#[test]
fn micro_batches_of_halves_are_summed_in_halves() {
    // Four times 16 bits are 16 bits: the same steps.
    for element in HALVES {
        let specs: Vec<Spec> =
            gradient_users().into_iter().map(|spec| spec.stored(element, element, Rounding::Masters)).collect();
        let of_sums = Setup { micro_batches: Some(4), ..Setup::default() };
        let sums = paths(&specs, &specs, of_sums);
        for (mut sum, mut mean) in sums.into_iter().zip(paths(&specs, &specs, Setup::default())) {
            for t in 1..=5 {
                let grads = gradients(&specs, t);
                sum.step(&sums_of(&grads, 4));
                mean.step(&grads);
            }
            let what = format!("{}, {element:?}", sum.path());
            assert_eq!(bits(&sum.params()), bits(&mean.params()), "{what}");
        }
    }
}

/// Settings under which a kernel reads the gradients in a way of its own before it clears them.
fn cleared(element: Element) -> Vec<Spec> {
    let mut specs = gradient_users();
    specs[0].telemetry = true;
    specs[1].trust = Some(0.1);
    for spec in &mut specs {
        spec.tensors.push(vec![]);
        spec.grads = element;
    }
    specs
}

#[test]
fn gradients_are_cleared_whatever_became_of_the_step() {
    let _alone = alone();
    for element in [Element::F32, Element::F16, Element::Bf16] {
        let specs = cleared(element);
        for gpu in &devices() {
            // Parameters and gradients in two buffers, or, of f32, in one.
            let mut layouts = vec![packed(&specs, 2, 1)];
            if element == Element::F32 {
                let end: usize = lengths(&specs).map(|len| len + 3).sum();
                let mut one = packed(&specs, 1, 2);
                for place in &mut one {
                    place.grads = (0, place.grads.1 + end);
                }
                layouts.push(one);
            }
            for places in layouts {
                let policy = NonFinitePolicy::Error { after: 2 };
                let run = |clears| {
                    GpuRun::with(gpu, &specs, places.clone(), |builder| {
                        builder.clear_gradients(clears).nonfinite_policy(policy)
                    })
                };
                let (mut run, mut staying) = (run(true), run(false));
                let path = format!("{}, {element:?}", run.path());
                let zeros: Vec<Vec<f32>> = lengths(&specs).map(|len| vec![0.0; len]).collect();
                for (t, what) in (1..).zip([
                    "a step",
                    "a second step",
                    "a skipped step",
                    "a step after it",
                    "a skipped step",
                    "the one that halts",
                    "a halted one",
                ]) {
                    let mut grads = gradients(&specs, t);
                    if t == 3 || t >= 5 {
                        grads[5][4098] = if t == 5 { f32::INFINITY } else { f32::NAN };
                    }
                    run.step(&grads);
                    staying.step(&grads);
                    run.expect_cleared();
                    assert_eq!(bits(&run.grads()), bits(&zeros), "{path}, {what}");
                    run.assert_surroundings_untouched();
                    staying.assert_surroundings_untouched();
                    assert_eq!(bits(&run.params()), bits(&staying.params()), "{path}, {what}");
                }
                assert!(matches!(run.try_records(), Err(Error::Halted { .. })));
            }
        }
    }
}

#[test]
fn streams_and_ranks_clear_gradients_too() {
    let _alone = alone();
    for gpu in &devices() {
        let specs = vec![Spec::new(Rule::sgd(), Regime::auto_sgd(), tensors(12, &LENGTHS)).stored(
            Element::Bf16,
            Element::Bf16,
            Rounding::Masters,
        )];
        let zeros: Vec<Vec<f32>> = lengths(&specs).map(|len| vec![0.0; len]).collect();
        let mut run = GpuRun::with(gpu, &specs, packed(&specs, 2, 1), |builder| builder.clear_gradients(true));
        for t in 1..=9 {
            let mut grads = gradients(&specs, t);
            if t == 5 {
                grads[2][1] = f32::NAN;
            }
            run.step(&grads);
            run.expect_cleared();
            assert_eq!(bits(&run.grads()), bits(&zeros), "{}, {t}", run.path());
            run.assert_surroundings_untouched();
        }
        let specs = kept(Element::F16);
        let zeros: Vec<Vec<f32>> = lengths(&specs).map(|len| vec![0.0; len]).collect();
        let mut run =
            GpuRun::with(gpu, &specs, packed(&specs, 2, 1), |builder| builder.clear_gradients(true).sharded(0, 1));
        for t in 1..=3 {
            let mut grads = gradients(&specs, t);
            if t == 2 {
                grads[2][1] = f32::NAN;
            }
            let sums = run.measure(&grads);
            assert_ne!(bits(&run.grads()), bits(&zeros), "they are read again");
            let combined = ShardSums::combine(&[sums]).expect("combine");
            run.try_apply(&grads, &combined).expect("applies");
            run.expect_cleared();
            assert_eq!(bits(&run.grads()), bits(&zeros), "{}, {t}", run.path());
            run.assert_surroundings_untouched();
        }
    }
}

#[test]
fn gradients_that_are_not_finite_skip_the_step_and_are_named() {
    let _alone = alone();
    for element in HALVES {
        for rounding in ROUNDINGS {
            let specs = vec![
                Spec::new(Rule::sgdm(0.9), Regime::seesaw(), tensors(13, &LENGTHS)).stored(element, element, rounding),
            ];
            for mut run in paths(&specs, &specs, Setup::default()) {
                run.step(&gradients(&specs, 1));
                run.records();
                for (t, tensor, at, bad) in [
                    (2, 5, 4098, f32::NAN),
                    (3, 0, 0, f32::INFINITY),
                    (4, 2, 2, f32::NEG_INFINITY),
                    (5, 4, 5, -f32::NAN),
                ] {
                    let mut grads = gradients(&specs, t);
                    grads[tensor][at] = bad;
                    let before = run.params();
                    run.step(&grads);
                    let what = format!("{}, {element:?}, {rounding:?}, {bad}", run.path());
                    assert_eq!(bits(&run.params()), bits(&before), "{what}");
                    let record = &run.records().records[0];
                    assert!(record.flags.skipped(), "{what}");
                    let found = record.nonfinite.expect("named");
                    let found = (found.count, found.tensor, found.element);
                    assert_eq!(found, (1, tensor, at as u64), "{what}");
                }
                // And then it goes on.
                let before = run.params();
                run.step(&gradients(&specs, 6));
                assert_ne!(bits(&run.params()), bits(&before), "{}", run.path());
            }
        }
    }
}

#[test]
fn the_largest_and_the_smallest_gradients_have_the_right_norm() {
    let denormal = |code: u16| f16::from_bits(code).to_f32();
    for (what, element, value) in [
        ("the largest f16", Element::F16, 65504.0),
        ("the least f16", Element::F16, denormal(1)),
        ("a denormal f16", Element::F16, denormal(0x2a5)),
        ("the largest denormal f16", Element::F16, denormal(0x3ff)),
        ("the least normal f16", Element::F16, denormal(0x400)),
        ("a large bf16", Element::Bf16, bf16::MAX.to_f32() / 128.0),
        ("the least normal bf16", Element::Bf16, f32::MIN_POSITIVE),
    ] {
        let specs = vec![Spec::new(Rule::sgd(), Regime::norm_ratio(), vec![vec![1.0; 3], vec![1.0; 4099]]).stored(
            element,
            element,
            Rounding::Masters,
        )];
        for mut run in paths(&specs, &specs, Setup::default()) {
            let grads: Vec<Vec<f32>> = lengths(&specs)
                .map(|len| (0..len).map(|i| if i % 2 == 0 { value } else { -value }).collect())
                .collect();
            run.step(&grads);
            let record = &run.records().records[0];
            let expected = f64::from(value) * (4102f64).sqrt();
            assert!(ulps(record.norm, expected) <= 8.0, "{}, {what}: {:e}, not {expected:e}", run.path(), record.norm);
            assert!(!record.flags.skipped(), "{what}");
        }
    }
}

/// Pixels from 0 to 1, and the digit.
fn digits() -> (Vec<[f32; 64]>, Vec<usize>) {
    use std::io::Read;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/data/digits.csv.gz");
    let file = std::fs::File::open(path).expect("the digits");
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("text");
    let rows = text.lines().map(|line| {
        let row: Vec<f32> = line.split(',').map(|field| field.trim().parse().expect("a number")).collect();
        let mut pixels = [0.0; 64];
        for (pixel, value) in pixels.iter_mut().zip(&row) {
            *pixel = value / 16.0;
        }
        (pixels, row[64] as usize)
    });
    rows.unzip()
}

/// The scores of the ten digits, by weights of 64 rows and a bias.
fn scores(params: &[Vec<f32>], pixels: &[f32; 64]) -> [f32; 10] {
    let mut scores = [0.0; 10];
    for (digit, score) in scores.iter_mut().enumerate() {
        let weighted = pixels.iter().enumerate();
        *score = params[1][digit] + weighted.map(|(i, x)| params[0][10 * i + digit] * x).sum::<f32>();
    }
    scores
}

/// The gradients of the mean cross-entropy of a batch.
fn softmax_gradients(
    params: &[Vec<f32>],
    batch: impl Iterator<Item = usize> + Clone,
    (images, labels): &(Vec<[f32; 64]>, Vec<usize>),
) -> Vec<Vec<f32>> {
    let mut grads = vec![vec![0.0; 640], vec![0.0; 10]];
    let count = batch.clone().count() as f32;
    for index in batch {
        let scores = scores(params, &images[index]);
        let most = scores.iter().copied().fold(f32::MIN, f32::max);
        let powers = scores.map(|score| (score - most).exp());
        let total: f32 = powers.iter().sum();
        for digit in 0..10 {
            let is = f32::from(labels[index] == digit);
            let error = (powers[digit] / total - is) / count;
            grads[1][digit] += error;
            for (i, x) in images[index].iter().enumerate() {
                grads[0][10 * i + digit] += error * x;
            }
        }
    }
    grads
}

fn percent_right(params: &[Vec<f32>], data: &(Vec<[f32; 64]>, Vec<usize>), range: Range<usize>) -> f64 {
    let count = range.len() as f64;
    let right = range.filter(|&index| {
        let scores = scores(params, &data.0[index]);
        let best = (0..10).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        best == Some(data.1[index])
    });
    100.0 * right.count() as f64 / count
}

#[test]
fn digits_are_learned_in_halves_as_in_f32() {
    const TRAINED: usize = 1400;
    const BATCH: usize = 35;
    let _alone = alone();
    let data = digits();
    assert_eq!(data.0.len(), 1797);
    let specs = |params, grads, rounding| {
        vec![
            Spec::new(Rule::sgdm(0.9), Regime::seesaw(), vec![vec![0.0; 640], vec![0.0; 10]])
                .stored(params, grads, rounding),
        ]
    };
    let accuracies = |specs: &[Spec]| -> Vec<f64> {
        let runs = paths(specs, specs, Setup::default());
        let train = |mut run: Box<dyn Run>| {
            for t in 0..6 * TRAINED / BATCH {
                // A stride that has no part in common with the number of images: every image once an epoch.
                let batch = (0..BATCH).map(|i| (t * BATCH + i) * 1101 % TRAINED);
                let grads = softmax_gradients(&run.params(), batch, &data);
                run.step(&grads);
            }
            percent_right(&run.params(), &data, TRAINED..1797)
        };
        runs.into_iter().map(train).collect()
    };
    let in_f32 = accuracies(&specs(Element::F32, Element::F32, Rounding::Masters));
    assert!(in_f32.iter().all(|&right| right >= 85.0), "{in_f32:?}");
    for (params, grads, rounding) in [
        (Element::Bf16, Element::Bf16, Rounding::Masters),
        (Element::Bf16, Element::F32, Rounding::Stochastic { seed: 1 }),
        (Element::F16, Element::F16, Rounding::Masters),
        (Element::F16, Element::F16, Rounding::Stochastic { seed: 2 }),
        (Element::F32, Element::Bf16, Rounding::Masters),
    ] {
        let found = accuracies(&specs(params, grads, rounding));
        for (found, expected) in found.iter().zip(&in_f32) {
            assert!((found - expected).abs() <= 3.0, "{params:?}, {grads:?}, {rounding:?}: {found} %, not {expected}");
        }
    }
}

/// What must hold of parameters that the caller writes between steps, with masters of others beneath.
#[test]
fn masters_follow_parameters_that_are_written() {
    for element in HALVES {
        let specs = vec![Spec::new(Rule::sgd(), Regime::fixed(2f32.powi(-20)), tensors(14, &[4099])).stored(
            element,
            element,
            Rounding::Masters,
        )];
        // So small that in f16 they have the coarsest remainders.
        let mut tiny = specs.clone();
        for w in &mut tiny[0].tensors[0] {
            *w = (*w * 900.0).round() * 2f32.powi(-24);
        }
        for (specs, is_tiny) in [(specs, false), (tiny, true)] {
            // In halves of a unit.
            let reach = if is_tiny && element == Element::F16 { 2.0 } else { 1.0 };
            for gpu in &devices() {
                let mut run = gpu_run_with(gpu, &specs, Setup::default());
                for t in 1..=3 {
                    run.step(&gradients(&specs, t));
                }
                let written: Vec<Vec<f32>> = specs[0]
                    .tensors
                    .iter()
                    .map(|w| rounded(element, &w.iter().map(|w| 1.5 - w).collect::<Vec<_>>()))
                    .collect();
                run.write_params(&written);
                run.step(&[vec![0.0; 4099]]);
                for (&found, &expected) in run.params()[0].iter().zip(&written[0]) {
                    let half = half_ulp(element, f64::from(expected));
                    let error = (f64::from(found) - f64::from(expected)).abs();
                    // Half a unit of the master's, and half a one of what is stored of it.
                    assert!(error <= (1.0 + reach) * half, "{element:?}: {found}, not {expected}");
                }
                let checkpoint = run.checkpoint().to_bytes();
                let masters = masters(&checkpoint, element, "group/0");
                for (master, &expected) in masters.iter().zip(&written[0]) {
                    let half = half_ulp(element, f64::from(expected));
                    let error = (f64::from(*master) - f64::from(expected)).abs();
                    assert!(
                        error <= reach * half,
                        "{}, {element:?}: {master:e} is beyond {reach} half units from {expected:e}",
                        run.path()
                    );
                }
            }
        }
    }
}

#[test]
fn numbers_of_micro_batches_and_paths_that_are_refused() {
    let values = [0f32; 4];
    let builder =
        |name: &str| OptimizerBuilder::new(Rule::sgd()).group(Group::new(name).tensor("w", &values[..], &values[..]));
    let refused = |builder: OptimizerBuilder<cpu::Tensor>, words: &[&str]| {
        let error = builder.build_cpu().map(|_: CpuOptimizer| ());
        let message = error.expect_err("refused").to_string();
        for word in words {
            assert!(message.contains(word), "no {word:?} in: {message}");
        }
    };
    refused(builder("all").micro_batches(0), &["micro_batches", "0", "at least 1"]);
    refused(builder("all").clear_gradients(true), &["clear_gradients", "CPU path"]);
    for gpu in &devices() {
        let w = conformance::upload(gpu, &values);
        let g = conformance::upload(gpu, &values);
        let device =
            || OptimizerBuilder::new(Rule::sgd()).group(Group::new("all").tensor("w", w.slice(..16), g.slice(..16)));
        let error = device().micro_batches(0).build(gpu).expect_err("refused");
        for word in ["micro_batches", "at least 1"] {
            assert!(error.to_string().contains(word), "no {word:?} in: {error}");
        }
    }
}

/// Every regime, and a rule of each kind of memory.
#[test]
fn every_regime_goes_by_masters_as_by_parameters_of_f32() {
    let _alone = alone();
    let regimes = [
        Regime::seesaw(),
        Regime::norm_ratio(),
        Regime::hypergradient(),
        Regime::fixed(0.01),
        Regime::adagrad_norm(),
        Regime::barzilai_borwein(SecantForm::Geometric),
        Regime::adgd(),
        Regime::dog(),
        Regime::dowg(),
        Regime::polyak(),
        Regime::ngn(),
    ];
    let rules = [Rule::sgd(), Rule::nesterov(0.5), Rule::lion()];
    let mut cases = vec![
        // Streams, which all groups have or none.
        vec![Spec::new(Rule::sgd(), Regime::auto_sgd(), tensors(21, &[7, 66]))],
        Vec::new(),
    ];
    for (regime, rule) in regimes.into_iter().zip(rules.into_iter().cycle()) {
        let spec = Spec::new(rule, regime, tensors(22, &[7, 66])).named(regime.name());
        cases[1].push(Spec { decay: WeightDecay::Coupled(0.01), clip: 3.0, ..spec });
    }
    for element in HALVES {
        for specs in &cases {
            let specs: Vec<Spec> =
                specs.iter().map(|spec| spec.clone().stored(element, element, Rounding::Masters)).collect();
            let floats = in_floats(&specs);
            let halves = paths(&specs, &specs, Setup::default());
            for (mut half, mut float) in halves.into_iter().zip(paths(&floats, &specs, Setup::default())) {
                for t in 1..=16 {
                    for run in [&mut half, &mut float] {
                        run.set_loss(3.0 + (t as f32).sin());
                        run.step(&gradients(&specs, t));
                    }
                    let what = format!("{}, {element:?}, step {t}", half.path());
                    for (group, (found, expected)) in half.rates().iter().zip(float.rates()).enumerate() {
                        let error = (found - expected).abs();
                        assert!(error <= 1e-4 * expected, "{what}, group {group}: rate {found:e}, not {expected:e}");
                    }
                    for (stored, values) in half.params().iter().zip(float.params()) {
                        for (&stored, value) in stored.iter().zip(values) {
                            let near = [value - 1e-4 * value.abs(), value + 1e-4 * value.abs()];
                            let near = near.map(|near| rounded(element, &[near])[0]);
                            let (least, most) = (near[0].min(near[1]), near[0].max(near[1]));
                            let unit = 2.0 * half_ulp(element, f64::from(value)) as f32 * 1e-2;
                            assert!(
                                (least - unit..=most + unit).contains(&stored),
                                "{what}: {stored:e}, not {value:e}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_nearest_is_that_of_the_half_crate() {
    let rate = 2f32.powi(-6);
    for element in HALVES {
        let specs = vec![Spec::new(Rule::sgd(), Regime::fixed(rate), tensors(23, &LENGTHS)).stored(
            element,
            element,
            Rounding::Nearest,
        )];
        for mut run in paths(&specs, &specs, Setup::default()) {
            let mut expected = specs[0].tensors.clone();
            for t in 1..=20 {
                let grads = gradients(&specs, t);
                run.step(&grads);
                for (w, g) in expected.iter_mut().zip(&grads) {
                    let next: Vec<f32> = w.iter().zip(g).map(|(w, g)| w - rate * g).collect();
                    *w = rounded(element, &next);
                }
                let what = format!("{}, {element:?}, step {t}", run.path());
                assert_eq!(bits(&run.params()), bits(&expected), "{what}");
            }
        }
    }
}

/// Longer than a binding, and than what one thread of the CPU path takes.
#[test]
fn long_tensors_have_the_codes_of_short_ones() {
    let _alone = alone();
    const LEN: usize = 300_001;
    for element in HALVES {
        for rounding in ROUNDINGS {
            let specs = small_steps(element, rounding, &[3, LEN]);
            let expected = after(Box::new(CpuRun::new(&specs)), &specs, 20);
            // Element by element, from pieces that one thread takes.
            if !matches!(rounding, Rounding::Stochastic { .. }) {
                let pieces: Vec<usize> = (0..LEN).step_by(1000).map(|at| 1000.min(LEN - at)).collect();
                let mut short = small_steps(element, rounding, &pieces);
                for (at, tensor) in short[0].tensors.iter_mut().enumerate() {
                    tensor.copy_from_slice(&specs[0].tensors[1][1000 * at..][..pieces[at]]);
                }
                let found = after(Box::new(CpuRun::new(&short)), &short, 20);
                assert_eq!(bits(&[found.concat()]), bits(&expected[1..]), "{element:?}");
            }
            for gpu in conformance::small_bindings(1 << 18) {
                for start in [0, 2] {
                    let places = packed(&specs, start, 1);
                    let mut run = GpuRun::with(&gpu, &specs, places, |builder| builder.clear_gradients(true));
                    for _ in 0..20 {
                        run.step(&ones(&specs));
                    }
                    run.expect_cleared();
                    let what = format!("{}, {element:?}, {rounding:?}", run.path());
                    assert!(bits(&run.params()) == bits(&expected), "{what}");
                    run.assert_surroundings_untouched();
                }
            }
        }
    }
}

#[test]
fn parameters_and_gradients_may_share_a_buffer() {
    let _alone = alone();
    for element in HALVES {
        let specs = kept(element);
        let end: usize = lengths(&specs).map(|len| len + 4).sum::<usize>() / 2 * 2 + 2;
        let mut one = packed(&specs, 2, 1);
        for place in &mut one {
            place.grads = (0, place.grads.1 + end);
        }
        for gpu in &devices() {
            let run = |places, clears| GpuRun::with(gpu, &specs, places, |b| b.clear_gradients(clears));
            let mut runs = [run(packed(&specs, 2, 1), false), run(one.clone(), false), run(one.clone(), true)];
            for t in 1..=4 {
                for run in &mut runs {
                    run.step(&gradients(&specs, t));
                }
            }
            runs[2].expect_cleared();
            for run in &runs {
                let what = format!("{}, {element:?}", run.path());
                assert_eq!(bits(&run.params()), bits(&runs[0].params()), "{what}");
                run.assert_surroundings_untouched();
            }
        }
    }
}

#[test]
fn groups_of_different_elements_share_a_norm() {
    let _alone = alone();
    let spec =
        |rule, seed, name: &str| Spec::new(rule, Regime::seesaw(), tensors(seed, &LENGTHS)).named(name).sharing("all");
    let specs = vec![
        spec(Rule::sgdm(0.9), 31, "bf16").stored(Element::Bf16, Element::Bf16, Rounding::Masters),
        spec(Rule::sgdm(0.9), 32, "f16").stored(Element::F16, Element::F32, Rounding::Stochastic { seed: 1 }),
        spec(Rule::adamw(), 33, "f32").stored(Element::F32, Element::F16, Rounding::Masters),
    ];
    // Where they lie must not tell the two runs apart.
    let floats = in_floats(&specs);
    let mut pairs: Vec<(Box<dyn Run>, Box<dyn Run>)> =
        vec![(Box::new(CpuRun::new(&specs)), Box::new(CpuRun::new(&floats)))];
    for gpu in &devices() {
        let run = |specs: &[Spec]| GpuRun::new(gpu, specs, conformance::run::separate(specs));
        pairs.push((Box::new(run(&specs)), Box::new(run(&floats))));
    }
    for (mut half, mut float) in pairs {
        for t in 1..=20 {
            half.step(&gradients(&specs, t));
            float.step(&gradients(&specs, t));
            let what = format!("{}, step {t}", half.path());
            assert_eq!(bits(&[half.rates()]), bits(&[float.rates()]), "{what}");
        }
    }
}

/// Tensors of every element in one group, on the device and on the host, and from one to the other.
#[test]
fn a_group_may_have_tensors_of_different_elements() {
    let _alone = alone();
    let kinds = [
        (Element::Bf16, Element::F16, 7),
        (Element::F32, Element::F32, 6),
        (Element::F16, Element::F16, 4099),
        (Element::F32, Element::Bf16, 5),
    ];
    let stored = |which: fn(&(Element, Element, usize)) -> Element, seed: u64| -> Vec<Stored> {
        let all = tensors(seed, &kinds.map(|kind| kind.2));
        let dyadic = all.iter().map(|tensor| tensor.iter().map(|x| (x * 63.0).round() / 64.0).collect());
        let dyadic: Vec<Vec<f32>> = dyadic.collect();
        let pairs = kinds.iter().zip(&dyadic);
        pairs.map(|(kind, tensor)| Stored::new(which(kind), tensor)).collect()
    };
    let (params, grads) = (stored(|kind| kind.0, 41), stored(|kind| kind.1, 42));
    let on_host = || {
        let mut group = Group::new("mixed");
        for (index, (params, grads)) in params.iter().zip(&grads).enumerate() {
            group = group.tensor(index.to_string(), params.slice(), grads.slice());
        }
        OptimizerBuilder::new(Rule::sgdm(0.9)).regime(Regime::seesaw()).group(group).build_cpu().expect("builds")
    };
    let (mut host, mut values) = (on_host(), params.clone());
    let step_on_host = |host: &mut CpuOptimizer, values: &mut [Stored]| {
        let mut values: Vec<cpu::SliceMut> = values.iter_mut().map(Stored::slice_mut).collect();
        let grads: Vec<cpu::Slice> = grads.iter().map(Stored::slice).collect();
        host.step_values(&mut values, &grads).expect("steps");
    };
    for _ in 0..3 {
        step_on_host(&mut host, &mut values);
    }
    let slices: Vec<cpu::Slice> = values.iter().map(Stored::slice).collect();
    let saved = host.checkpoint_values(Some(&slices), &Notes::new()).expect("a checkpoint");
    for gpu in &devices() {
        let upload = |tensors: &[Stored]| -> Vec<wgpu::Buffer> {
            let words = tensors.iter().map(|tensor| {
                let mut bytes = tensor.bytes().to_vec();
                bytes.resize(bytes.len().next_multiple_of(4), 0);
                bytemuck::pod_collect_to_vec::<u8, f32>(&bytes)
            });
            words.map(|words| conformance::upload(gpu, &words)).collect()
        };
        let build = |w: &[wgpu::Buffer], g: &[wgpu::Buffer]| {
            let mut group = Group::new("mixed");
            for (index, &(params, grads, len)) in kinds.iter().enumerate() {
                let slice =
                    |element: Element, buffer: &wgpu::Buffer| (element, buffer.clone(), element.bytes() * len as u64);
                let ((p, w, a), (q, g, b)) = (slice(params, &w[index]), slice(grads, &g[index]));
                let name = index.to_string();
                group = group.tensor(name, p.of(w.slice(..a)), q.of(g.slice(..b)));
            }
            OptimizerBuilder::new(Rule::sgdm(0.9)).regime(Regime::seesaw()).group(group).build(gpu).expect("builds")
        };
        let (w, g) = (upload(&params), upload(&grads));
        let optimizer = build(&w, &g);
        for _ in 0..3 {
            step(gpu, &optimizer);
        }
        let save = |optimizer: &wgpu_optim::Optimizer| {
            let notes = Notes::new();
            let checkpoint = optimizer.checkpoint(Parameters::Included, &notes);
            pollster::block_on(checkpoint).expect("a checkpoint")
        };
        // What the device comes to is what the host comes to, within rounding.
        let here = save(&optimizer);
        for (index, kind) in kinds.iter().enumerate() {
            let name = index.to_string();
            let (found, expected) = (here.parameters(&name), saved.parameters(&name));
            let pairs = found.expect("there").into_iter().zip(expected.expect("there"));
            for (found, expected) in pairs {
                let unit = 2.0 * half_ulp(kind.0, f64::from(expected)) + 1e-6;
                let error = (f64::from(found) - f64::from(expected)).abs();
                assert!(error <= unit, "tensor {index}: {found}, not {expected}");
            }
        }
        // And what the host saved goes on there, and comes back as it was.
        let (w, g) = (upload(&params), upload(&grads));
        let mut again = build(&w, &g);
        again.restore(&saved, Parameters::Included).expect("restores");
        assert!(save(&again).to_bytes() == saved.to_bytes());
        let (mut host, mut values) = (on_host(), params.clone());
        let mut slices: Vec<cpu::SliceMut> = values.iter_mut().map(Stored::slice_mut).collect();
        host.restore_values(&here, Some(&mut slices)).expect("restores");
        let slices: Vec<cpu::Slice> = values.iter().map(Stored::slice).collect();
        let back = host.checkpoint_values(Some(&slices), &Notes::new());
        assert!(back.expect("a checkpoint").to_bytes() == here.to_bytes());
    }
}
