//! Checkpoints of 16-bit parameters, and errors of slices whose element type is not the declared one.

use super::{gradients, kept, paths};
use half::{bf16, f16};
use wgpu_optim::{Element, Error, ErrorKind, Group, Notes, OptimizerBuilder, Parameters, Regime, Rounding, Rule, wgpu};
use wgpu_optim_conformance::run::{CpuRun, Run, Setup, Spec, bits, devices, gpu_run_with};
use wgpu_optim_conformance::stored::Stored;
use wgpu_optim_conformance::{assert_refused, download, step, storage, tensors};

use crate::helpers::raw_tensor;

#[test]
fn other_programs_read_parameters_in_their_own_elements() {
    for (element, dtype) in [(Element::F16, safetensors::Dtype::F16), (Element::Bf16, safetensors::Dtype::BF16)] {
        let specs = kept(element);
        for mut run in paths(&specs) {
            run.step(&gradients(&specs, 1));
            let checkpoint = run.checkpoint();
            let bytes = checkpoint.to_bytes();
            let names = specs.iter().flat_map(|spec| (0..spec.tensors.len()).map(|i| spec.tensor_name(i)));
            for (name, expected) in names.zip(run.params()) {
                let (found, shape, data) = raw_tensor(&bytes, &format!("parameters/{name}"));
                assert_eq!((found, shape), (dtype, vec![expected.len()]), "{name}");
                let expected = bits(&[expected]);
                assert_eq!(bits(&[Stored::from_bytes(element, &data).values()]), expected, "{name}");
                assert_eq!(bits(&[checkpoint.parameters(&name).expect("parameters")]), expected, "{name}");
            }
        }
    }
}

#[test]
fn a_checkpoint_of_other_elements_is_refused_and_nothing_changes() {
    let spec = |element| {
        let spec = Spec::new(Rule::sgdm(0.9), Regime::seesaw(), tensors(3, &[7, 66]));
        vec![spec.stored(element, Element::F32, Rounding::Masters)]
    };
    let all = [Element::F32, Element::F16, Element::Bf16];
    for (from, to) in all.into_iter().flat_map(|from| all.map(|to| (from, to))).filter(|(from, to)| from != to) {
        let mut source = CpuRun::new(&spec(from));
        source.step(&gradients(&spec(from), 1));
        let without = source.optimizer.checkpoint(None, &Notes::new()).expect("a checkpoint");
        let specs = spec(to);
        for checkpoint in [source.checkpoint(), without] {
            let assert_refused = |run: &dyn Run, told: Result<(), Error>, before: Vec<u8>| {
                let error = assert_refused(told, &["group/0", from.name(), to.name()]);
                assert_eq!(error.kind(), ErrorKind::CheckpointDiffers, "{}: {error}: it is not damaged", run.path());
                assert!(run.checkpoint().to_bytes() == before, "{}, {from:?} to {to:?}: changed", run.path());
            };
            let mut host = CpuRun::new(&specs);
            host.step(&gradients(&specs, 2));
            let before = host.checkpoint().to_bytes();
            let told = host.optimizer.restore(&checkpoint, None);
            assert_refused(&host, told, before);
            for gpu in &devices() {
                let mut run = gpu_run_with(gpu, &specs, Setup::default());
                run.step(&gradients(&specs, 2));
                let before = run.checkpoint().to_bytes();
                let told = run.optimizer.restore(&checkpoint, Parameters::Excluded);
                assert_refused(&run, told, before);
            }
        }
    }
}

/// Returns the words of the error for slices of another element type than bf16.
fn other_element(role: &str, actual: Element) -> [String; 2] {
    [format!("tensor \"w\" was built with {role}s of bf16"), format!("given {}:", actual.name())]
}

/// Fifteen elements in a buffer of sixteen.
const ODD: u64 = 15;

#[test]
fn slices_of_other_elements_are_not_bound() {
    for gpu in &devices() {
        let copies = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let [w, g, other] = [(); 3].map(|()| storage(gpu, 256, copies));
        for buffer in [&w, &g] {
            gpu.queue().write_buffer(buffer, 0, bytemuck::cast_slice(&[bf16::ONE; 16]));
        }
        let slice = |element: Element, buffer| element.of(wgpu::Buffer::slice(buffer, ..ODD * element.bytes()));
        let group = Group::new("all").tensor("w", slice(Element::Bf16, &w), slice(Element::Bf16, &g));
        let builder = OptimizerBuilder::new(Rule::sgd()).regime(Regime::fixed(0.25)).rebindable();
        let mut optimizer = builder.group(group).build(gpu).expect("builds");
        for (params, grads, role, actual) in [
            (Element::F16, Element::Bf16, "parameter", Element::F16),
            (Element::Bf16, Element::F16, "gradient", Element::F16),
            (Element::F32, Element::Bf16, "parameter", Element::F32),
            (Element::Bf16, Element::F32, "gradient", Element::F32),
        ] {
            let told = optimizer.rebind(&[(slice(params, &other), slice(grads, &g))]);
            let error = assert_refused(told, &other_element(role, actual).each_ref().map(String::as_str));
            assert_eq!(error.kind(), ErrorKind::Call);
        }
        step(gpu, &optimizer);
        let found: Vec<bf16> = bytemuck::pod_collect_to_vec::<f32, bf16>(&download(gpu, &w, 8));
        assert_eq!(found[..15], [bf16::from_f32(0.75); 15]);
        assert_eq!(found[15], bf16::ONE, "what is behind an odd tensor");
    }
}

#[test]
fn slices_of_other_elements_take_no_step_on_the_host() {
    let (mut params, grads) = (vec![bf16::ONE; 5], vec![bf16::ONE; 5]);
    let mut optimizer = OptimizerBuilder::new(Rule::sgd())
        .regime(Regime::fixed(0.25))
        .group(Group::new("all").tensor("w", &params, &grads))
        .build_cpu()
        .expect("builds");
    let refused = |told, role, actual| {
        let error = assert_refused(told, &other_element(role, actual).each_ref().map(String::as_str));
        assert_eq!(error.kind(), ErrorKind::Call);
    };
    let mut wrong = vec![f16::ONE; 5];
    let (mut floats, float_grads) = (vec![1.0f32; 5], vec![1.0f32; 5]);
    let found = optimizer.step(&mut [&mut wrong], &[&grads]);
    refused(found, "parameter", Element::F16);
    let found = optimizer.step(&mut [&mut params], &[&float_grads]);
    refused(found, "gradient", Element::F32);
    let found = optimizer.step(&mut [&mut floats], &[&float_grads]);
    refused(found, "parameter", Element::F32);
    assert_eq!((wrong, floats), (vec![f16::ONE; 5], vec![1.0; 5]));
    assert!(optimizer.drain_records().records.is_empty(), "no step");
    optimizer.step(&mut [&mut params], &[&grads]).expect("steps");
    assert_eq!(params, [bf16::from_f32(0.75); 5]);
}
