//! Errors of devices: missing features, limits, and what a device itself refuses.

use super::{Device, assert_nine_of_eight, build_error, on_device};
use wgpu_optim::gpu::{Partials, Tuning};
use wgpu_optim::internals::layout::RawRecord;
use wgpu_optim::{
    Averaging, Element, ErrorKind, Gpu, GpuOptions, Group, OptimizerBuilder, Regime, Rounding, Rule, wgpu,
};
use wgpu_optim_conformance::run::{GpuRun, Run, Spec, devices, separate};
use wgpu_optim_conformance::{assert_refused, assert_says, download, filled, limited_devices, upload};

#[test]
fn adapters_that_are_not_there() {
    let request = |options: GpuOptions| pollster::block_on(Gpu::request(&options));
    let there = devices()[0].describe();
    let any = || GpuOptions { allow_software: true, ..GpuOptions::default() };
    let named = GpuOptions { adapter_name: Some("no such adapter".to_owned()), ..any() };
    assert_refused(request(named), &["no adapter's name contains", "\"no such adapter\"", &there]);
    let nowhere = GpuOptions { backends: Some(wgpu::Backends::BROWSER_WEBGPU), ..GpuOptions::default() };
    assert_refused(request(nowhere), &["no usable adapter", "browser_webgpu"]);
    // Where all adapters are software, asking for hardware is refused with their names. Otherwise the hardware is found.
    match request(GpuOptions::default()) {
        Ok(gpu) => assert!(!gpu.describe().contains("software")),
        Err(error) => assert_says(&error, &["software", &there]),
    }
    request(any()).expect("there is one");
}

/// Opens the first adapter with other limits.
fn limited(change: impl Fn(&mut wgpu::Limits)) -> Gpu {
    limited_devices(change).remove(0)
}

#[test]
fn what_does_not_fit_the_device_is_refused_by_its_number() {
    let gpu = limited(|limits| {
        limits.max_storage_buffer_binding_size = 64 << 10;
        limits.max_compute_workgroups_per_dimension = 8;
        limits.max_compute_workgroup_storage_size = limits.max_compute_workgroup_storage_size.min(16 << 10);
    });
    let (w, g) = (upload(&gpu, &vec![1.0; 20_000]), upload(&gpu, &vec![1.0; 20_000]));
    let with = |bytes: u64, records| on_device(w.slice(..bytes), g.slice(..bytes)).record_steps(records);
    let most = (64 << 10) / std::mem::size_of::<RawRecord>() as u32;
    let above = format!("record ring is {}, above {most}", most + 1);
    let error = build_error(with(16, most + 1), &gpu, &[&above, "record_steps"]);
    assert_eq!(error.kind(), ErrorKind::Limit);
    with(16, most).build(&gpu).expect("builds");
    build_error(with(16, u32::MAX), &gpu, &["record ring", "4294967295"]);

    let mut builder: Device = OptimizerBuilder::new(Rule::sgd()).record_steps(1);
    for i in 0..9 {
        builder = builder.group(Group::new(format!("{i}")));
    }
    assert_nine_of_eight(&build_error(builder, &gpu, &["norms", "share a norm"]));

    // Each four elements have one partial of twelve words.
    let partials = Partials::PerInvocation;
    let tiny = Tuning { workgroup_size: 1, quads_per_invocation: 1, partials, finish_workgroup_size: 1 };
    let gpu = gpu.with_tuning(tiny).expect("a tiny geometry");
    build_error(with(80_000, 1), &gpu, &["partial sums", "60000, above 16384", "larger blocks"]);
    assert_eq!(download(&gpu, &w, 20_000), vec![1.0; 20_000]);
}

/// These are the limits of devices without compute support, as portable programs request them. A binding of no bytes cannot hold a block.
#[test]
fn devices_that_bind_too_little_are_refused_before_anything_is_planned() {
    type Change = fn(&mut wgpu::Limits);
    let few: [(Change, &str); 3] = [
        (|limits| *limits = wgpu::Limits::downlevel_webgl2_defaults(), "storage buffers"),
        (|limits| *limits = wgpu::Limits::downlevel_defaults(), "storage buffers of a kernel is 7, above 4"),
        (|limits| limits.max_storage_buffer_binding_size = 1 << 10, "storage buffer binding is 16384, above 1024"),
    ];
    for (change, words) in few {
        for gpu in &limited_devices(change) {
            let usage = wgpu::BufferUsages::STORAGE;
            let descriptor = wgpu::BufferDescriptor { label: None, size: 16, usage, mapped_at_creation: false };
            let [w, g] = [(); 2].map(|()| gpu.device().create_buffer(&descriptor));
            let error = build_error(on_device(w.slice(..), g.slice(..)), gpu, &[words, "required_limits"]);
            assert_eq!(error.kind(), ErrorKind::Limit);
        }
    }
}

/// wgpu can distinguish the buffers of two devices of one instance.
#[test]
fn buffers_of_another_device_are_refused() {
    let vulkan =
        || GpuOptions { backends: Some(wgpu::Backends::VULKAN), allow_software: true, ..GpuOptions::default() };
    let (Ok(here), Ok(there)) =
        (pollster::block_on(Gpu::request(&vulkan())), pollster::block_on(Gpu::request(&vulkan())))
    else {
        // Only OpenGL is available, for which this is not guaranteed.
        assert!(devices().iter().all(|gpu| gpu.describe().contains("gl")));
        return;
    };
    let [w, g] = [(); 2].map(|()| upload(&here, &[1.0; 100]));
    let [foreign_w, foreign_g] = [(); 2].map(|()| upload(&there, &[7.0; 100]));
    let error = build_error(on_device(foreign_w.slice(..), foreign_g.slice(..)), &here, &["doesn't match"]);
    assert_eq!(error.kind(), ErrorKind::DeviceRefused);
    let mut optimizer = on_device(w.slice(..), g.slice(..)).rebindable().build(&here).expect("builds");
    assert_refused(optimizer.rebind(&[(foreign_w.slice(..), foreign_g.slice(..))]), &["doesn't match"]);
    let read = pollster::block_on(here.read_buffer::<f32>("a foreign buffer", &foreign_w));
    assert_refused(read, &["a foreign buffer"]);
    for (gpu, buffer, value) in [(&here, &w, 1.0), (&there, &foreign_w, 7.0), (&there, &foreign_g, 7.0)] {
        assert_eq!(download(gpu, buffer, 100), [value; 100]);
    }
    assert!(pollster::block_on(here.read_buffer::<()>("nothing", &w)).expect("no bytes").is_empty());
}

/// An error that only wgpu detects is also an `Err` with wgpu's message.
#[test]
fn what_the_device_refuses_is_an_error_not_a_panic() {
    let gpu = limited(|limits| limits.max_bind_groups = 1);
    let (w, g) = (upload(&gpu, &[1.0; 4]), upload(&gpu, &[1.0; 4]));
    let error = build_error(on_device(w.slice(..), g.slice(..)), &gpu, &["the device refused", "group"]);
    assert_eq!(error.kind(), ErrorKind::DeviceRefused);
    assert_eq!(download(&gpu, &w, 4), [1.0; 4]);
}

/// A caller's device may be opened without the feature. The preset then does not use subgroups, and asking for them is refused.
#[test]
fn subgroups_without_the_feature() {
    let bare = limited(|_| {});
    assert!(!bare.device().features().contains(wgpu::Features::SUBGROUP));
    let tuning = Tuning { partials: Partials::Subgroup, ..bare.tuning() };
    let words = ["tuning: partials is", "subgroup", "Features::SUBGROUP"];
    assert_eq!(assert_refused(bare.clone().with_tuning(tuning), &words).kind(), ErrorKind::Build);

    // The same adapter as if it were a GPU.
    let mut info = bare.device().adapter_info();
    let limits = bare.device().limits();
    for kind in [wgpu::DeviceType::DiscreteGpu, wgpu::DeviceType::IntegratedGpu] {
        info.device_type = kind;
        let preset = |features| Tuning::for_adapter(&info, &limits, features).partials;
        assert_eq!(preset(wgpu::Features::empty()), Partials::PerWorkgroup);
        assert_eq!(preset(wgpu::Features::SUBGROUP), Partials::Subgroup);
    }
}

#[test]
fn geometries_no_device_can_have() {
    let gpu = &devices()[0];
    let partials = Partials::PerWorkgroup;
    let right = Tuning { workgroup_size: 8, quads_per_invocation: 4, partials, finish_workgroup_size: 8 };
    for (tuning, field, number) in [
        (Tuning { workgroup_size: 0, ..right }, "workgroup_size", "0"),
        (Tuning { workgroup_size: 12, ..right }, "workgroup_size", "12"),
        (Tuning { workgroup_size: 1 << 20, ..right }, "workgroup_size", "1048576"),
        (Tuning { finish_workgroup_size: 0, ..right }, "finish_workgroup_size", "0"),
        (Tuning { finish_workgroup_size: 65, ..right }, "finish_workgroup_size", "65"),
        (Tuning { finish_workgroup_size: 1 << 31, ..right }, "finish_workgroup_size", "2147483648"),
        (Tuning { quads_per_invocation: 0, ..right }, "quads_per_invocation", "0"),
        (Tuning { quads_per_invocation: 4097, ..right }, "quads_per_invocation", "4097"),
    ] {
        let words = ["tuning", &format!("{field} is {number},")];
        assert_eq!(assert_refused(gpu.clone().with_tuning(tuning), &words).kind(), ErrorKind::Build);
    }
    for tuning in [right, Tuning { quads_per_invocation: 4096, ..right }, Tuning { workgroup_size: 1, ..right }] {
        assert_eq!(gpu.clone().with_tuning(tuning).expect("a right one").tuning(), tuning);
    }
}

/// Optimizers work on devices with 8 storage buffers per kernel, the number that WebGPU guarantees.
#[test]
fn kernels_with_more_storage_buffers_than_the_device_has() {
    let spec = |rule, regime, element: Element, rounding| {
        Spec::new(rule, regime, vec![vec![1.0; 7], vec![0.5; 66]]).stored(element, element, rounding)
    };
    let (f32, f16, bf16) = (Element::F32, Element::F16, Element::Bf16);
    let (masters, nearest) = (Rounding::Masters, Rounding::Nearest);
    let (seesaw, secant, ratio) = (Regime::seesaw(), Regime::adgd(), Regime::norm_ratio());
    let averaging = Averaging::Running { start: 0 };
    let fits = [
        vec![
            spec(Rule::sgd(), seesaw, bf16, masters),
            spec(Rule::adamw(), seesaw, f16, masters),
            spec(Rule::sgd(), Regime::dog(), bf16, masters),
            spec(Rule::sgdm(0.9), secant, bf16, nearest),
            spec(Rule::adamw(), secant, f32, masters),
            Spec { averaging, ..spec(Rule::adamw(), seesaw, bf16, masters) },
            Spec { telemetry: true, ..spec(Rule::adamw(), seesaw, bf16, masters) },
            Spec { telemetry: true, averaging, ..spec(Rule::adamw(), seesaw, f32, masters) },
            Spec { telemetry: true, averaging, ..spec(Rule::sgd(), ratio, bf16, masters) },
            Spec { trust: Some(0.1), averaging, ..spec(Rule::sgd(), ratio, f16, masters) },
            Spec { telemetry: true, averaging, ..spec(Rule::sgdm(0.9), secant, f32, masters) },
        ],
        vec![Spec { telemetry: true, ..spec(Rule::sgd(), Regime::auto_sgd(), bf16, masters) }],
    ];
    let too_many = [spec(Rule::sgdm(0.9), secant, bf16, masters), spec(Rule::sgd(), secant, f16, masters)];
    for gpu in &limited_devices(|limits| limits.max_storage_buffers_per_shader_stage = 8) {
        for mut specs in fits.clone() {
            for (index, spec) in specs.iter_mut().enumerate() {
                spec.name = index.to_string();
            }
            // Each tensor has two buffers of its own, since their element types differ.
            let places = separate(&specs);
            let mut run = GpuRun::with(gpu, &specs, places, |builder| builder.clear_gradients().micro_batches(2));
            for _ in 0..2 {
                run.step(&filled(&specs, 0.5));
            }
            let records = run.records().records;
            assert_eq!(records.len(), 2 * specs.len(), "{}", run.path());
            assert!(records.iter().all(|record| !record.flags.skipped()), "{}", run.path());
            if specs.iter().any(|spec| spec.averaging != Averaging::Off) {
                run.swap_averages();
                run.swap_averages();
            }
        }
        for spec in &too_many {
            let (w, g) = (upload(gpu, &[0.0; 64]), upload(gpu, &[0.0; 64]));
            let [w, g] = [&w, &g].map(|buffer| spec.params.of(buffer.slice(..14)));
            let builder = OptimizerBuilder::new(Rule::sgd()).group(spec.group().tensor("w", w, g));
            let words = ["storage buffers", "9", "8", "Rounding::Nearest", "last gradient"];
            assert_nine_of_eight(&build_error(builder, gpu, &words));
        }
    }
}
