//! Several element types in one optimizer, one group and one buffer.

use super::{HALVES, LENGTHS, gradients, in_floats, kept};
use wgpu_optim::cpu::{Values, ValuesMut};
use wgpu_optim::{
    Checkpoint, CpuOptimizer, Element, Group, Notes, Optimizer, OptimizerBuilder, Parameters, Regime, Rounding, Rule,
    wgpu,
};
use wgpu_optim_conformance as conformance;
use wgpu_optim_conformance::run::{CpuRun, GpuRun, Place, Run, Spec, bits, devices, lengths, packed, separate};
use wgpu_optim_conformance::stored::{Stored, half_ulp};
use wgpu_optim_conformance::{assert_close, step, tensors};

use crate::helpers::Pair;

#[test]
fn parameters_and_gradients_may_share_a_buffer() {
    for element in HALVES {
        let specs = kept(element);
        let end: usize = lengths(&specs).map(|len| len + 4).sum::<usize>() / 2 * 2 + 2;
        let two = packed(&specs, 2, 1);
        let one: Vec<Place> =
            two.iter().map(|place| Place { grads: (0, place.grads.1 + end), params: place.params }).collect();
        for gpu in &devices() {
            let run = |places: &[Place], clears| {
                GpuRun::with(
                    gpu,
                    &specs,
                    places.to_vec(),
                    |builder| {
                        if clears { builder.clear_gradients() } else { builder }
                    },
                )
            };
            let mut runs = [run(&two, false), run(&one, false), run(&one, true)];
            for t in 1..=4 {
                for run in &mut runs {
                    run.step(&gradients(&specs, t));
                }
            }
            runs[2].expect_cleared();
            for run in &runs {
                assert_eq!(bits(&run.params()), bits(&runs[0].params()), "{}, {element:?}", run.path());
                run.assert_surroundings_untouched();
            }
        }
    }
}

#[test]
fn groups_of_different_elements_share_a_norm() {
    let spec = |rule, seed, name: &str, params, grads, rounding| {
        let spec = Spec::new(rule, Regime::seesaw(), tensors(seed, &LENGTHS)).named(name).sharing("all");
        spec.stored(params, grads, rounding)
    };
    let (f32, f16, bf16) = (Element::F32, Element::F16, Element::Bf16);
    let specs = [
        spec(Rule::sgdm(0.9), 31, "bf16", bf16, bf16, Rounding::Masters),
        spec(Rule::sgdm(0.9), 32, "f16", f16, f32, Rounding::Stochastic { seed: 1 }),
        spec(Rule::adamw(), 33, "f32", f32, f16, Rounding::Masters),
    ];
    // The tensors have separate buffers, so that their places do not differ between the two runs.
    let floats = in_floats(&specs);
    let mut pairs: Vec<Pair> = vec![(Box::new(CpuRun::new(&specs)), Box::new(CpuRun::new(&floats)))];
    for gpu in &devices() {
        let run = |specs: &[Spec]| Box::new(GpuRun::new(gpu, specs, separate(specs)));
        pairs.push((run(&specs), run(&floats)));
    }
    for (mut half, mut float) in pairs {
        for t in 1..=20 {
            half.step(&gradients(&specs, t));
            float.step(&gradients(&specs, t));
            assert_eq!(bits(&[half.rates()]), bits(&[float.rates()]), "{}, step {t}", half.path());
        }
    }
}

/// The element types of parameters and gradients, and the lengths.
const KINDS: [(Element, Element, usize); 4] = [
    (Element::Bf16, Element::F16, 7),
    (Element::F32, Element::F32, 6),
    (Element::F16, Element::F16, 4099),
    (Element::F32, Element::Bf16, 5),
];

/// Returns tensors of numbers that are exact in their element types.
fn stored(which: fn(&(Element, Element, usize)) -> Element, seed: u64) -> Vec<Stored> {
    let all = tensors(seed, &KINDS.map(|kind| kind.2));
    let dyadic = all.iter().map(|tensor| tensor.iter().map(|x| (x * 63.0).round() / 64.0).collect::<Vec<f32>>());
    KINDS.iter().zip(dyadic).map(|(kind, tensor)| Stored::new(which(kind), &tensor)).collect()
}

/// Returns a builder and its group.
fn mixed<T>() -> (OptimizerBuilder<T>, Group<T>) {
    (OptimizerBuilder::new(Rule::sgdm(0.9)).regime(Regime::seesaw()), Group::new("mixed"))
}

fn slices(tensors: &[Stored]) -> Vec<&dyn Values> {
    tensors.iter().map(Stored::slice).collect()
}

fn slices_mut(tensors: &mut [Stored]) -> Vec<&mut dyn ValuesMut> {
    tensors.iter_mut().map(Stored::slice_mut).collect()
}

fn save_host(host: &CpuOptimizer, values: &[Stored]) -> Checkpoint {
    host.checkpoint(Some(&slices(values)), &Notes::new()).expect("a checkpoint")
}

fn save_device(optimizer: &Optimizer) -> Checkpoint {
    let notes = Notes::new();
    pollster::block_on(optimizer.checkpoint(Parameters::Included, &notes)).expect("a checkpoint")
}

/// A group may have tensors of every element type, on the device and on the host, and its checkpoints can be restored on the other one.
#[test]
fn a_group_may_have_tensors_of_different_elements() {
    let (params, grads) = (stored(|kind| kind.0, 41), stored(|kind| kind.1, 42));
    let on_host = || {
        let (builder, mut group) = mixed();
        for (index, (params, grads)) in params.iter().zip(&grads).enumerate() {
            group = group.tensor(index.to_string(), params.slice(), grads.slice());
        }
        builder.group(group).build_cpu().expect("builds")
    };
    let (mut host, mut values) = (on_host(), params.clone());
    for _ in 0..3 {
        host.step(&mut slices_mut(&mut values), &slices(&grads)).expect("steps");
    }
    let saved = save_host(&host, &values);
    for gpu in &devices() {
        let upload = |tensor: &Stored| -> wgpu::Buffer {
            let mut bytes = tensor.bytes().to_vec();
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            conformance::upload(gpu, &bytemuck::pod_collect_to_vec::<u8, f32>(&bytes))
        };
        let build = || {
            let (builder, mut group) = mixed();
            let buffers: Vec<[wgpu::Buffer; 2]> =
                params.iter().zip(&grads).map(|(params, grads)| [upload(params), upload(grads)]).collect();
            for (index, ((params, grads, len), [w, g])) in KINDS.into_iter().zip(&buffers).enumerate() {
                let w = params.of(w.slice(..params.bytes() * len as u64));
                let g = grads.of(g.slice(..grads.bytes() * len as u64));
                group = group.tensor(index.to_string(), w, g);
            }
            builder.group(group).build(gpu).expect("builds")
        };
        let optimizer = build();
        for _ in 0..3 {
            step(gpu, &optimizer);
        }
        // The parameters on the device are those on the host up to rounding.
        let here = save_device(&optimizer);
        for (index, kind) in KINDS.iter().enumerate() {
            let [found, expected] = [&here, &saved].map(|of| of.parameters(&index.to_string()).expect("there"));
            for (found, expected) in found.into_iter().zip(expected) {
                let unit = 2.0 * half_ulp(kind.0, f64::from(expected)) + 1e-6;
                assert_close(format_args!("{}, tensor {index}", gpu.describe()), found, expected, unit);
            }
        }
        // A checkpoint of the host can be restored on the device, saved again without a change, and the other way round.
        let mut again = build();
        again.restore(&saved, Parameters::Included).expect("restores");
        assert!(save_device(&again).to_bytes() == saved.to_bytes());
        let (mut host, mut values) = (on_host(), params.clone());
        host.restore(&here, Some(&mut slices_mut(&mut values))).expect("restores");
        assert!(save_host(&host, &values).to_bytes() == here.to_bytes());
    }
}
