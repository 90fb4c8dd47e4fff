//! Promise: whatever is wrong comes back as an `Err` whose one line names the culprit, the number and the limit, and nothing has
//! changed; no panic, no driver message out of the blue, no half-done work.

use wgpu_optim::gpu::{Partials, Tuning};
use wgpu_optim::layout::RawRecord;
use wgpu_optim::{
    AdamW, AutoSgd, Averaging, Element, Error, Gpu, GpuOptions, Group, Hypergradient, Lion, LossScaler,
    NonFinitePolicy, NormRatio, Optimizer, OptimizerBuilder, Regime, Rounding, Rule, Seesaw, Sgdm, TrustRatio, wgpu,
};
use wgpu_optim_conformance as conformance;
use wgpu_optim_conformance::run::{GpuRun, Place, Run, Spec, bits, devices, packed};
use wgpu_optim_conformance::{download, upload};

type Device = OptimizerBuilder<wgpu_optim::gpu::Tensor>;
type Host = OptimizerBuilder<wgpu_optim::cpu::Tensor>;

/// The message is one line with all of `parts`.
fn assert_message(error: &Error, parts: &[&str]) {
    let message = error.to_string();
    assert!(!message.is_empty() && !message.contains('\n'), "not one line: {message}");
    for part in parts {
        assert!(message.contains(part), "\"{part}\" is not in \"{message}\"");
    }
}

fn build_error(builder: Device, gpu: &Gpu) -> Error {
    builder.build(gpu).expect_err("this must not build")
}

fn host_error(builder: Host) -> Error {
    builder.build_cpu().expect_err("this must not build")
}

fn one_tensor(values: &[f32]) -> Host {
    OptimizerBuilder::new(Rule::sgd()).group(Group::new("all").tensor("w", values, values))
}

#[test]
fn no_groups() {
    let error = host_error(OptimizerBuilder::new(Rule::sgd()));
    assert_eq!(error, Error::NoGroups);
    assert_message(&error, &["OptimizerBuilder::group"]);
    assert_eq!(build_error(OptimizerBuilder::new(Rule::sgd()), &devices()[0]), Error::NoGroups);
}

#[test]
fn names_given_twice() {
    let values = [0.0f32; 4];
    let w = &values[..];
    let error = host_error(one_tensor(w).group(Group::new("all")));
    assert_eq!(error, Error::DuplicateName { what: "group", name: "all".to_owned() });
    assert_message(&error, &["group", "\"all\""]);
    let error = host_error(one_tensor(w).group(Group::new("other").tensor("w", w, w)));
    assert_eq!(error, Error::DuplicateName { what: "tensor", name: "w".to_owned() });
    assert_message(&error, &["tensor", "\"w\""]);
    // Different names are no error.
    assert!(one_tensor(w).group(Group::new("other").tensor("v", w, w)).build_cpu().is_ok());
}

#[test]
fn lengths_that_differ() {
    let (w, g) = ([0.0f32; 4], [0.0f32; 5]);
    let expected = Error::LengthMismatch { tensor: "w".to_owned(), params: 4, grads: 5 };
    let error = host_error(OptimizerBuilder::new(Rule::sgd()).group(Group::new("all").tensor("w", &w[..], &g[..])));
    assert_eq!(error, expected);
    assert_message(&error, &["\"w\"", "4 parameters", "5 gradients"]);
    let gpu = &devices()[0];
    let (w, g) = (upload(gpu, &w), upload(gpu, &g));
    let group = Group::new("all").tensor("w", w.slice(..16), g.slice(..20));
    assert_eq!(build_error(OptimizerBuilder::new(Rule::sgd()).group(group), gpu), expected);
}

/// Nine of something of which the device has eight.
fn assert_nine_of_eight(error: &Error) {
    let nine_of_eight = matches!(error, Error::Limit { value: 9, limit: 8, .. });
    assert!(nine_of_eight, "{error}");
}

/// One tensor of the device, from byte ranges of two buffers.
fn on_device(params: wgpu::BufferSlice, grads: wgpu::BufferSlice) -> Device {
    OptimizerBuilder::new(Rule::sgd()).group(Group::new("all").tensor("w", params, grads))
}

#[test]
fn slices_that_do_not_lie_on_elements() {
    let gpu = &devices()[0];
    let (w, g) = (upload(gpu, &[1.0; 16]), upload(gpu, &[1.0; 16]));
    let cases = [
        (on_device(w.slice(2..18), g.slice(0..16)), "parameter", 2, 16),
        (on_device(w.slice(0..16), g.slice(6..22)), "gradient", 6, 16),
        (on_device(w.slice(4..11), g.slice(0..8)), "parameter", 4, 7),
        (on_device(w.slice(4..12), g.slice(8..17)), "gradient", 8, 9),
    ];
    for (builder, role, offset_bytes, size_bytes) in cases {
        let error = build_error(builder, gpu);
        assert_eq!(
            error,
            Error::Misaligned { tensor: "w".to_owned(), role, offset_bytes, size_bytes, element: Element::F32 }
        );
        assert_message(&error, &["\"w\"", role, &offset_bytes.to_string(), &size_bytes.to_string(), "multiple of 4"]);
    }
    assert_eq!(download(gpu, &w, 16), [1.0; 16]);
}

#[test]
fn buffers_without_storage_usage() {
    let gpu = &devices()[0];
    let right = upload(gpu, &[1.0; 4]);
    let wrong = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 16,
        usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::VERTEX,
        mapped_at_creation: false,
    });
    for (builder, role) in [
        (on_device(wrong.slice(..), right.slice(..)), "parameter"),
        (on_device(right.slice(..), wrong.slice(..)), "gradient"),
    ] {
        let error = build_error(builder, gpu);
        let missing = "BufferUsages::STORAGE";
        assert_eq!(error, Error::MissingUsage { tensor: "w".to_owned(), role, missing });
        assert_message(&error, &["\"w\"", role, missing]);
    }
}

#[test]
fn slices_that_overlap() {
    let gpu = &devices()[0];
    let (a, b) = (upload(gpu, &[1.0; 64]), upload(gpu, &[1.0; 64]));
    let elements = |buffer: &'static str, from: u64, to: u64| (buffer, from, to);
    let slice = |(buffer, from, to): (&str, u64, u64)| {
        if buffer == "a" { a.slice(4 * from..4 * to) } else { b.slice(4 * from..4 * to) }
    };
    // First tensor's parameters and gradients, second tensor's; who overlaps whom, and where.
    let cases = [
        (
            ("a", 0, 16),
            ("a", 0, 16),
            ("b", 0, 1),
            ("b", 1, 2),
            "gradients of tensor \"v\"",
            "parameters of tensor \"v\"",
            (0, 16),
        ),
        (
            ("a", 0, 16),
            ("a", 15, 31),
            ("b", 0, 1),
            ("b", 1, 2),
            "parameters of tensor \"v\"",
            "gradients of tensor \"v\"",
            (15, 16),
        ),
        (
            ("a", 0, 16),
            ("b", 0, 16),
            ("a", 8, 12),
            ("b", 16, 20),
            "parameters of tensor \"v\"",
            "parameters of tensor \"w\"",
            (8, 12),
        ),
        (
            ("a", 0, 16),
            ("b", 0, 16),
            ("a", 16, 20),
            ("b", 15, 19),
            "gradients of tensor \"v\"",
            "gradients of tensor \"w\"",
            (15, 16),
        ),
        (
            ("a", 0, 16),
            ("b", 0, 16),
            ("b", 10, 20),
            ("a", 20, 30),
            "gradients of tensor \"v\"",
            "parameters of tensor \"w\"",
            (10, 16),
        ),
        (
            ("a", 40, 50),
            ("b", 0, 10),
            ("b", 20, 30),
            ("a", 31, 41),
            "gradients of tensor \"w\"",
            "parameters of tensor \"v\"",
            (40, 41),
        ),
    ];
    let builder = |vp, vg, wp, wg| {
        OptimizerBuilder::new(Rule::sgd())
            .group(Group::new("first").tensor("v", slice(vp), slice(vg)))
            .group(Group::new("second").tensor("w", slice(wp), slice(wg)))
    };
    for (vp, vg, wp, wg, first, second, (start, end)) in cases {
        let error = build_error(builder(vp, vg, wp, wg), gpu);
        assert_message(&error, &[first, second, &format!("{}..{}", 4 * start, 4 * end)]);
        assert!(matches!(error, Error::Overlap { start: s, end: e, .. } if (s, e) == (4 * start, 4 * end)), "{error}");
    }
    // Touching, or empty in the middle of another, is no overlap.
    let touching = builder(elements("a", 0, 16), elements("a", 16, 32), elements("a", 32, 40), elements("b", 0, 8));
    assert!(touching.build(gpu).is_ok());
    let empty = builder(elements("a", 0, 16), elements("b", 0, 16), elements("a", 8, 8), elements("b", 8, 8));
    assert!(empty.build(gpu).is_ok());
    assert_eq!(download(gpu, &a, 64), [1.0; 64]);
}

/// Every number of rules, regimes and groups, on both sides of its range, and NaN.
#[test]
fn numbers_out_of_range() {
    let sgdm = |momentum, dampening, nesterov| Rule::Sgdm(Sgdm { momentum, dampening, nesterov });
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let mut cases: Vec<(Host, &str, &str)> = Vec::new();
    let values = [0.0f32; 4];
    let with_rule = |rule| OptimizerBuilder::new(rule).group(Group::new("all").tensor("w", &values[..], &values[..]));
    for bad in [-0.1, 1.0, inf, nan] {
        cases.push((with_rule(sgdm(bad, 0.0, false)), "rule sgdm", "momentum"));
        cases.push((with_rule(Rule::signum(bad)), "rule signum", "momentum"));
        cases.push((with_rule(adamw(bad, 0.9, 1e-8)), "rule adamw", "beta1"));
        cases.push((with_rule(adamw(0.9, bad, 1e-8)), "rule adamw", "beta2"));
        cases.push((with_rule(lion(bad, 0.9)), "rule lion", "beta1"));
        cases.push((with_rule(lion(0.9, bad)), "rule lion", "beta2"));
        cases.push((with_rule(sgdm(0.9, bad, false)), "rule sgdm", "dampening"));
    }
    cases.push((with_rule(lion(0.9, 0.0)), "rule lion", "beta2"));
    for bad in [-1e-8, 0.0, 1e-39, inf, nan] {
        cases.push((with_rule(adamw(0.9, 0.999, bad)), "rule adamw", "epsilon"));
    }
    cases.push((with_rule(sgdm(0.0, 0.0, true)), "rule nesterov", "momentum"));
    cases.push((with_rule(sgdm(0.9, 0.1, true)), "rule nesterov", "dampening"));
    let with_regime = |regime| with_rule(Rule::sgd()).regime(regime);
    let seesaw = |change: &dyn Fn(&mut Seesaw)| {
        let mut seesaw = Seesaw::default();
        change(&mut seesaw);
        with_regime(Regime::Seesaw(seesaw))
    };
    for bad in [-0.5, 1.1e6, f32::MAX, inf, nan] {
        cases.push((seesaw(&|s| s.exponent = bad), "regime seesaw", "exponent"));
        cases.push((seesaw(&|s| s.exponent_above = bad), "regime seesaw", "exponent_above"));
        cases.push((seesaw(&|s| s.gain = bad), "regime seesaw", "gain"));
    }
    for bad in [-0.5, inf, nan] {
        cases.push((seesaw(&|s| s.early_steps = bad), "regime seesaw", "early_steps"));
        cases.push((seesaw(&|s| s.brake_slack = bad), "regime seesaw", "brake_slack"));
        cases.push((
            with_regime(Regime::NormRatio(NormRatio { exponent: bad, ..NormRatio::default() })),
            "regime norm-ratio",
            "exponent",
        ));
        cases.push((
            with_regime(Regime::Hypergradient(Hypergradient { gain: bad, ..Hypergradient::default() })),
            "regime hypergradient",
            "gain",
        ));
    }
    for bad in [-0.5, 1.0, nan] {
        cases.push((seesaw(&|s| s.smoothing = bad), "regime seesaw", "smoothing"));
    }
    for bad in [-1.0, 0.0, inf, nan] {
        cases.push((seesaw(&|s| s.first_step = Some(bad)), "regime seesaw", "first_step"));
    }
    for bad in [-1.0, 0.0, 0.9e-30, 1.1e30, inf, nan] {
        cases.push((with_regime(Regime::fixed(bad)), "regime fixed", "learning rate"));
        let ratio = NormRatio { initial_rate: Some(bad), ..NormRatio::default() };
        cases.push((with_regime(Regime::NormRatio(ratio)), "regime norm-ratio", "learning rate"));
    }
    for bad in [-1e-3, inf, nan] {
        cases.push((with_rule(Rule::sgd()).weight_decay(bad), "group \"all\"", "weight_decay"));
        cases.push((with_rule(Rule::sgd()).decoupled_weight_decay(bad), "group \"all\"", "weight_decay"));
    }
    for bad in [-1.0, 0.0, nan] {
        cases.push((with_rule(Rule::sgd()).clip_norm(bad), "group \"all\"", "clip_norm"));
    }
    let averaged = |averaging| with_rule(Rule::sgd()).averaging(averaging);
    for bad in [-0.1, 1.0, inf, nan] {
        let averaging = Averaging::Exponential { decay: bad, start: 0 };
        cases.push((averaged(averaging), "averaging exponential", "decay"));
    }
    for bad in [-0.1, inf, nan] {
        let averaging = Averaging::PolynomialDecay { eta: bad, start: 0 };
        cases.push((averaged(averaging), "averaging polynomial", "eta"));
    }
    cases.push((with_rule(Rule::sgd()).record_steps(0), "optimizer", "record_steps"));
    let with_scaler = |change: &dyn Fn(&mut LossScaler)| {
        let mut scaler = LossScaler::default();
        change(&mut scaler);
        with_rule(Rule::sgd()).loss_scaler(scaler)
    };
    for bad in [-1.0, 0.0, 0.5, 3.0, 1.5e38, inf, nan] {
        cases.push((with_scaler(&|s| s.min_scale = bad), "loss scaler", "min_scale"));
        cases.push((with_scaler(&|s| s.max_scale = bad), "loss scaler", "max_scale"));
        cases.push((with_scaler(&|s| s.initial_scale = bad), "loss scaler", "initial_scale"));
    }
    // Below the smallest, above the largest.
    for (smallest, first, largest) in [(4.0, 2.0, 8.0), (4.0, 16.0, 8.0)] {
        let between = with_scaler(&|s| {
            (s.min_scale, s.initial_scale, s.max_scale) = (smallest, first, largest);
        });
        cases.push((between, "loss scaler", "initial_scale"));
    }
    cases.push((with_scaler(&|s| s.growth_interval = 0), "loss scaler", "growth_interval"));
    cases.push((
        with_rule(Rule::sgd()).nonfinite_policy(NonFinitePolicy::Error { after: 0 }),
        "optimizer",
        "NonFinitePolicy::Error::after",
    ));
    // A group's own bad number is named too.
    cases.push((with_rule(Rule::sgd()).group(Group::new("own").clip_norm(-2.0)), "group \"own\"", "clip_norm"));
    assert!(cases.len() > 50);
    for (builder, owner, field) in cases {
        let error = host_error(builder.clone());
        let Error::InvalidValue { owner: o, field: f, value, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!((o.as_str(), *f), (owner, field), "{error}");
        assert_message(&error, &[owner, field, value, "must be"]);
    }
}

/// Three streams of parameters take turns in the whole optimizer, and would need a momentum each.
#[test]
fn streams_beside_what_they_cannot_be_with() {
    let values = [0.0f32; 4];
    let w = &values[..];
    let error = host_error(
        OptimizerBuilder::new(Rule::signum(0.0))
            .regime(Regime::auto_sgd())
            .group(Group::new("heavy").tensor("a", w, w)),
    );
    assert_message(&error, &["\"heavy\"", "signum", "signsgd", "auto-sgd"]);
    let beside = |regime, maximize| {
        OptimizerBuilder::new(Rule::sgd())
            .regime(Regime::auto_sgd())
            .group(Group::new("first").tensor("a", w, w))
            .group(Group::new("second").regime(regime).maximize(maximize).tensor("b", w, w))
    };
    let auto = |change: fn(&mut AutoSgd)| {
        let mut regime = AutoSgd::default();
        change(&mut regime);
        Regime::AutoSgd(regime)
    };
    for (regime, maximize) in [
        (Regime::seesaw(), false),
        (auto(|a| a.factor = 3.0), false),
        (auto(|a| a.certainty = 4.0), false),
        (auto(|a| a.rounds = 5), false),
        (Regime::auto_sgd(), true),
    ] {
        let error = host_error(beside(regime, maximize));
        assert_message(&error, &["\"second\"", "several optimizers", regime.name()]);
    }
    // What mixes the streams.
    let averaged = one_tensor(&values).regime(Regime::auto_sgd()).averaging(Averaging::Running { start: 0 });
    assert_message(&host_error(averaged), &["\"all\"", "averaging", "auto-sgd"]);
    let trusted = one_tensor(&values).regime(Regime::auto_sgd()).trust_ratio(TrustRatio::default());
    assert_message(&host_error(trusted), &["\"all\"", "trust_ratio", "auto-sgd"]);
    // A first rate may be each group's own.
    let own = auto(|a| a.initial_rate = Some(0.1));
    assert!(beside(own, false).build_cpu().is_ok());
    for (field, regime) in [
        ("factor", auto(|a| a.factor = 1.0)),
        ("factor", auto(|a| a.factor = 10.5)),
        ("factor", auto(|a| a.factor = f32::NAN)),
        ("certainty", auto(|a| a.certainty = -1.0)),
        ("certainty", auto(|a| a.certainty = f32::INFINITY)),
        ("rounds", auto(|a| a.rounds = 3)),
        ("rounds", auto(|a| a.rounds = 65_537)),
        ("learning rate", auto(|a| a.initial_rate = Some(0.0))),
        ("first_step", auto(|a| a.first_step = 0.0)),
    ] {
        let error = host_error(one_tensor(&values).regime(regime));
        assert_message(&error, &["regime auto-sgd", field, "must be"]);
    }
    let extreme = auto(|a| {
        (a.factor, a.certainty, a.rounds) = (10.0, 0.0, 65_536);
    });
    assert!(one_tensor(&values).regime(extreme).build_cpu().is_ok());
}

/// Both ends of every range that belong to it.
#[test]
fn numbers_just_within_range() {
    let values = [0.0f32; 4];
    let with = |rule, regime| {
        OptimizerBuilder::new(rule).regime(regime).group(Group::new("all").tensor("w", &values[..], &values[..]))
    };
    let below_one = f32::from_bits(1f32.to_bits() - 1);
    let extreme = Seesaw {
        exponent_above: 1e6,
        exponent: 0.0,
        gain: 0.0,
        early_steps: 0.0,
        smoothing: 0.0,
        norm_floor: 0.0,
        brake_slack: 0.0,
        first_step: Some(f32::MIN_POSITIVE),
    };
    let other = Seesaw { smoothing: below_one, exponent: 1e6, gain: 1e6, early_steps: f32::MAX, ..Seesaw::default() };
    for builder in [
        with(Rule::signum(0.0), Regime::Seesaw(extreme)),
        with(Rule::Sgdm(Sgdm { momentum: below_one, dampening: below_one, nesterov: false }), Regime::Seesaw(other)),
        with(Rule::nesterov(f32::MIN_POSITIVE), Regime::fixed(1e-30)),
        with(adamw(0.0, 0.0, f32::MIN_POSITIVE), Regime::fixed(1e-30)),
        with(adamw(below_one, below_one, f32::MAX), Regime::seesaw()),
        with(lion(0.0, f32::MIN_POSITIVE), Regime::seesaw()),
        with(lion(below_one, below_one), Regime::seesaw()),
        with(Rule::sgd(), Regime::fixed(1e30)),
        with(Rule::sgd(), Regime::seesaw())
            .weight_decay(0.0)
            .clip_norm(f32::INFINITY)
            .loss_scaler(LossScaler::fixed(1.0))
            .nonfinite_policy(NonFinitePolicy::Error { after: u32::MAX })
            .record_steps(1),
        with(Rule::sgd(), Regime::seesaw())
            .decoupled_weight_decay(f32::MAX)
            .loss_scaler(LossScaler::fixed(2f32.powi(126)))
            .clip_norm(f32::MIN_POSITIVE),
        with(Rule::sgd(), Regime::seesaw()).averaging(Averaging::Running { start: u32::MAX }),
        with(Rule::sgd(), Regime::seesaw()).averaging(Averaging::Exponential { decay: below_one, start: 0 }),
        with(Rule::sgd(), Regime::seesaw()).averaging(Averaging::Exponential { decay: 0.0, start: 0 }),
        with(Rule::sgd(), Regime::seesaw()).averaging(Averaging::PolynomialDecay { eta: f32::MAX, start: 0 }),
    ] {
        assert!(builder.build_cpu().is_ok());
    }
}

#[test]
fn a_norm_shared_by_momentum_and_counters() {
    let values = [0.0f32; 4];
    let w = &values[..];
    let builder = |regime| {
        OptimizerBuilder::new(Rule::sgd())
            .regime(regime)
            .group(Group::new("plain").share_norm("all").tensor("a", w, w))
            .group(Group::new("heavy").rule(Rule::sgdm(0.9)).share_norm("all").tensor("b", w, w))
    };
    let error = host_error(builder(Regime::seesaw()));
    assert!(matches!(&error, Error::MixedScope { scope, .. } if scope == "all"), "{error}");
    assert_message(&error, &["\"plain\"", "\"heavy\"", "\"all\""]);
    // Without alignment there is nothing to mix.
    assert!(builder(Regime::norm_ratio()).build_cpu().is_ok());
}

/// The adapter's device with other limits.
fn limited(change: impl Fn(&mut wgpu::Limits)) -> Gpu {
    let adapters = pollster::block_on(Gpu::adapters(None));
    let mut limits = adapters[0].limits();
    change(&mut limits);
    let (device, queue) = pollster::block_on(
        adapters[0].request_device(&wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() }),
    )
    .expect("less than the adapter has");
    Gpu::from_parts(device, queue)
}

#[test]
fn what_does_not_fit_the_device_is_refused_by_its_number() {
    let gpu = limited(|limits| {
        limits.max_storage_buffer_binding_size = 64 << 10;
        limits.max_compute_workgroups_per_dimension = 8;
        limits.max_compute_workgroup_storage_size = limits.max_compute_workgroup_storage_size.min(16 << 10);
    });
    let buffer = upload(&gpu, &vec![1.0; 20_000]);
    let grads = upload(&gpu, &vec![1.0; 20_000]);
    let most = (64 << 10) / std::mem::size_of::<RawRecord>() as u32;
    let error = build_error(on_device(buffer.slice(..16), grads.slice(..16)).record_steps(most + 1), &gpu);
    assert!(
        matches!(error, Error::Limit { value, limit, .. }
            if (value, limit) == (u64::from(most) + 1, u64::from(most))),
        "{error}"
    );
    let numbers = [(most + 1).to_string(), most.to_string()];
    assert_message(&error, &["record ring", &numbers[0], &numbers[1], "record_steps"]);
    assert!(on_device(buffer.slice(..16), grads.slice(..16)).record_steps(most).build(&gpu).is_ok());
    let error = build_error(on_device(buffer.slice(..16), grads.slice(..16)).record_steps(u32::MAX), &gpu);
    assert_message(&error, &["record ring", "4294967295"]);

    let mut builder: Device = OptimizerBuilder::new(Rule::sgd()).record_steps(1);
    for i in 0..9 {
        builder = builder.group(Group::new(format!("{i}")));
    }
    let error = build_error(builder, &gpu);
    assert_nine_of_eight(&error);
    assert_message(&error, &["norms", "share a norm"]);

    // One partial per four elements, twelve words each.
    let tiny = Tuning {
        workgroup_size: 1,
        quads_per_invocation: 1,
        partials: Partials::PerInvocation,
        finish_workgroup_size: 1,
    };
    let gpu = gpu.with_tuning(tiny).expect("a tiny geometry");
    let error = build_error(on_device(buffer.slice(..80_000), grads.slice(..80_000)).record_steps(1), &gpu);
    assert!(matches!(error, Error::Limit { value: 60_000, limit: 16_384, .. }), "{error}");
    assert_message(&error, &["partial sums", "larger blocks"]);

    assert_eq!(download(&gpu, &buffer, 20_000), vec![1.0; 20_000]);
}

/// What only wgpu finds wrong comes back too, as an `Err` with its words.
#[test]
fn what_the_device_refuses_is_an_error_not_a_panic() {
    let gpu = limited(|limits| limits.max_bind_groups = 1);
    let (w, g) = (upload(&gpu, &[1.0; 4]), upload(&gpu, &[1.0; 4]));
    let error = build_error(on_device(w.slice(..), g.slice(..)), &gpu);
    assert!(matches!(error, Error::Device { .. }), "{error}");
    assert_message(&error, &["the device refused", "group"]);
    assert_eq!(download(&gpu, &w, 4), [1.0; 4]);
}

/// A device that was opened without the feature, as callers have them: the preset does without, and who asks for it is told.
#[test]
fn subgroups_without_the_feature() {
    let bare = limited(|_| {});
    assert!(!bare.device().features().contains(wgpu::Features::SUBGROUP));
    let tuning = Tuning { partials: Partials::Subgroup, ..bare.tuning() };
    let error = bare.clone().with_tuning(tuning).expect_err("no such feature");
    assert!(matches!(&error, Error::InvalidValue { field: "partials", .. }), "{error}");
    assert_message(&error, &["tuning", "subgroup", "Features::SUBGROUP"]);

    // The same adapter, were it a GPU.
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
    let right = Tuning {
        workgroup_size: 8,
        quads_per_invocation: 4,
        partials: Partials::PerWorkgroup,
        finish_workgroup_size: 8,
    };
    let cases = [
        (Tuning { workgroup_size: 0, ..right }, "workgroup_size", "0"),
        (Tuning { workgroup_size: 12, ..right }, "workgroup_size", "12"),
        (Tuning { workgroup_size: 1 << 20, ..right }, "workgroup_size", "1048576"),
        (Tuning { finish_workgroup_size: 0, ..right }, "finish_workgroup_size", "0"),
        (Tuning { finish_workgroup_size: 65, ..right }, "finish_workgroup_size", "65"),
        (Tuning { finish_workgroup_size: 1 << 31, ..right }, "finish_workgroup_size", "2147483648"),
        (Tuning { quads_per_invocation: 0, ..right }, "quads_per_invocation", "0"),
        (Tuning { quads_per_invocation: 4097, ..right }, "quads_per_invocation", "4097"),
    ];
    for (tuning, field, number) in cases {
        let error = gpu.clone().with_tuning(tuning).expect_err("no device has it");
        assert!(matches!(&error, Error::InvalidValue { field: f, .. } if *f == field), "{error}");
        assert_message(&error, &["tuning", field, number]);
    }
    for tuning in [right, Tuning { quads_per_invocation: 4096, ..right }, Tuning { workgroup_size: 1, ..right }] {
        assert_eq!(gpu.clone().with_tuning(tuning).expect("a right one").tuning(), tuning);
    }
}

#[test]
fn cpu_steps_with_other_slices_than_declared() {
    let (a, b) = (vec![1.0f32; 4], vec![1.0f32; 9]);
    let mut optimizer = OptimizerBuilder::new(Rule::sgdm(0.9))
        .group(Group::new("all").tensor("a", &a, &a).tensor("b", &b, &b))
        .build_cpu()
        .expect("builds");
    let (mut w, mut v) = (a.clone(), b.clone());
    let states = optimizer.states().to_vec();
    let too_few = optimizer.step(&mut [&mut w], &[&a, &b]).expect_err("a tensor is missing");
    assert_eq!(too_few, Error::StepTensors { role: "parameter", expected: 2, actual: 1 });
    assert_message(&too_few, &["2 tensors", "1 parameter"]);
    let too_many = optimizer.step(&mut [&mut w, &mut v], &[&a, &b, &b]).expect_err("one too many");
    assert_eq!(too_many, Error::StepTensors { role: "gradient", expected: 2, actual: 3 });
    let short = optimizer.step(&mut [&mut w, &mut v[..8]], &[&a, &b]).expect_err("too short");
    assert_eq!(short, Error::StepLength { tensor: "b".to_owned(), role: "parameter", expected: 9, actual: 8 });
    assert_message(&short, &["\"b\"", "9 elements", "8 parameters"]);
    let swapped = optimizer.step(&mut [&mut w, &mut v], &[&b, &a]).expect_err("swapped");
    assert_eq!(swapped, Error::StepLength { tensor: "a".to_owned(), role: "gradient", expected: 4, actual: 9 });
    assert_eq!((&w, &v), (&a, &b), "parameters changed");
    assert_eq!(optimizer.states(), states);
    assert!(optimizer.drain_records().records.is_empty());
    optimizer.step(&mut [&mut w, &mut v], &[&a, &b]).expect("the right slices");
    assert_ne!(w, a);
}

/// What is asked of averages that nobody keeps, and of slices that are not the optimizer's. tests/optimizer/averaging.rs has the rest.
#[test]
fn averages_that_are_not_there() {
    let expected = Error::NoAverages { owner: "the optimizer".to_owned() };
    let values = [1.0f32; 4];
    let mut optimizer = one_tensor(&values).build_cpu().expect("builds");
    let mut w = values;
    let refused = optimizer.swap_averages(&mut [&mut w]).expect_err("off");
    assert_eq!(refused, expected);
    assert_message(&refused, &["the optimizer", "Averaging", "Off"]);
    assert!(!optimizer.averages_are_swapped());
    assert_eq!((optimizer.averages(0), optimizer.averages(7)), (None, None));
    let mut averaged = one_tensor(&values).averaging(Averaging::polynomial_decay()).build_cpu().expect("builds");
    averaged.step(&mut [&mut w], &[&values]).expect("steps");
    let before = w;
    for (refused, part) in
        [(averaged.swap_averages(&mut []), "1 tensors"), (averaged.swap_averages(&mut [&mut w[..3]]), "\"w\"")]
    {
        assert_message(&refused.expect_err("other slices"), &[part]);
        assert!(!averaged.averages_are_swapped());
    }
    assert_eq!(w, before);
    assert!(averaged.averages(0).is_some() && averaged.averages(1).is_none());
    averaged.swap_averages(&mut [&mut w]).expect("swaps");
    let refused = averaged.step(&mut [&mut w], &[&values]).expect_err("swapped");
    assert_message(&refused, &["a step", "swapped in", "swap_averages"]);
    for gpu in &devices() {
        let (w, g) = (upload(gpu, &[1.0; 4]), upload(gpu, &[1.0; 4]));
        let optimizer = on_device(w.slice(..), g.slice(..)).build(gpu).expect("builds");
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let refused = optimizer.encode_swap_averages(&mut encoder);
        assert_eq!(refused, Err(expected.clone()));
        assert!(!optimizer.averages_are_swapped());
        optimizer.encode_step(&mut encoder).expect("alive");
    }
}

#[test]
fn adapters_that_are_not_there() {
    let request = |options: GpuOptions| pollster::block_on(Gpu::request(&options));
    let named =
        GpuOptions { adapter_name: Some("no such adapter".to_owned()), allow_software: true, ..GpuOptions::default() };
    let error = request(named).expect_err("no adapter has this name");
    assert_message(&error, &["no adapter's name contains", "\"no such adapter\"", &devices()[0].describe()]);
    let nowhere = GpuOptions { backends: Some(wgpu::Backends::BROWSER_WEBGPU), ..GpuOptions::default() };
    let error = request(nowhere).expect_err("no browser here");
    assert_message(&error, &["no usable adapter", "browser_webgpu"]);
    // Where all adapters are software, hardware is refused with their names; else it is found.
    match request(GpuOptions::default()) {
        Ok(gpu) => assert!(!gpu.describe().contains("software")),
        Err(error) => assert_message(&error, &["software", &devices()[0].describe()]),
    }
    let any = GpuOptions { allow_software: true, ..GpuOptions::default() };
    assert!(request(any).is_ok());
}

fn encode(optimizer: &Optimizer) -> Result<(), Error> {
    let mut encoder = optimizer.gpu().device().create_command_encoder(&Default::default());
    let result = optimizer.encode_step(&mut encoder);
    optimizer.gpu().queue().submit([encoder.finish()]);
    result
}

/// A loss that the caller reports: from then on everything says so, and nothing is recorded.
#[test]
fn a_lost_device_is_an_error_from_then_on() {
    for adapter in pollster::block_on(Gpu::adapters(None)) {
        let gpu = pollster::block_on(Gpu::open(&adapter)).expect("opens");
        let mut spec = Spec::new(Rule::sgd(), Regime::fixed(0.5), vec![vec![1.0; 8]]);
        spec.averaging = Averaging::polynomial_decay();
        let mut run = GpuRun::new(&gpu, &[spec], vec![Place { params: (0, 0), grads: (1, 0) }]);
        run.step(&[vec![1.0; 8]]);
        let after = bits(&run.params());
        gpu.mark_lost("unplugged");
        gpu.mark_lost("and again");
        let lost = Error::DeviceLost("unplugged".to_owned());
        assert_message(&lost, &["unplugged", "build a new optimizer"]);
        assert_eq!(encode(&run.optimizer), Err(lost.clone()));
        assert_eq!(bits(&run.params()), after, "{}: nothing was recorded", gpu.describe());
        assert_eq!(pollster::block_on(run.optimizer.drain_records()), Err(lost.clone()));
        assert_eq!(run.optimizer.try_drain_records(), Err(lost.clone()));
        assert_eq!(pollster::block_on(run.optimizer.read_states()).err(), Some(lost.clone()));
        assert_eq!(pollster::block_on(run.optimizer.read_sums()).err(), Some(lost.clone()));
        assert_eq!(pollster::block_on(run.optimizer.read_averages(0)).err(), Some(lost.clone()));
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        assert_eq!(run.optimizer.encode_swap_averages(&mut encoder), Err(lost.clone()));
        assert!(!run.optimizer.averages_are_swapped());
        let buffer = upload(&gpu, &[1.0; 8]);
        let builder = on_device(buffer.slice(..16), buffer.slice(16..));
        assert_eq!(build_error(builder, &gpu), lost);
    }
}

/// A device of ours that is really destroyed tells by itself, as soon as it has been polled.
#[test]
fn a_destroyed_device_of_ours_is_noticed() {
    for adapter in pollster::block_on(Gpu::adapters(None)) {
        let gpu = pollster::block_on(Gpu::open(&adapter)).expect("opens");
        let specs = [Spec::new(Rule::sgd(), Regime::fixed(0.5), vec![vec![1.0; 8]])];
        let run = GpuRun::new(&gpu, &specs, packed(&specs, 0, 0));
        assert_eq!(encode(&run.optimizer), Ok(()));
        gpu.device().destroy();
        // Whether the poll itself fails is the backend's business.
        let _ = gpu.device().poll(wgpu::PollType::wait_indefinitely());
        assert!(matches!(gpu.check_alive(), Err(Error::DeviceLost(_))), "{}", gpu.describe());
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        assert!(matches!(run.optimizer.encode_step(&mut encoder), Err(Error::DeviceLost(_))));
    }
}

/// A device of the caller's that is gone without a word: reading back fails with an error, it does not hang.
#[test]
fn a_readback_from_a_device_that_is_gone_is_an_error() {
    let gpu = limited(|_| {});
    let specs = [Spec::new(Rule::sgd(), Regime::fixed(0.5), vec![vec![1.0; 8]])];
    let mut run = GpuRun::new(&gpu, &specs, packed(&specs, 0, 0));
    run.step(&[vec![1.0; 8]]);
    gpu.device().destroy();
    let error = pollster::block_on(run.optimizer.drain_records()).expect_err("there is nothing to read");
    assert!(matches!(error, Error::DeviceLost(_)), "{error}");
    assert_message(&error, &["lost", "takes no more work", "half done"]);
}

fn adamw(beta1: f32, beta2: f32, epsilon: f32) -> Rule {
    Rule::AdamW(AdamW { beta1, beta2, epsilon })
}

fn lion(beta1: f32, beta2: f32) -> Rule {
    Rule::Lion(Lion { beta1, beta2 })
}

/// A buffer of so many bytes.
fn buffer_of(gpu: &Gpu, size: u64) -> wgpu::Buffer {
    gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("halves"),
        size,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    })
}

#[test]
fn halves_that_do_not_lie_on_words() {
    for gpu in &devices() {
        let (w, g) = (buffer_of(gpu, 64), buffer_of(gpu, 64));
        for element in [Element::F16, Element::Bf16] {
            let of = |buffer: &wgpu::Buffer, start, end| {
                // Only to be read by the builder.
                let slice = element.of(buffer.slice(start..end));
                OptimizerBuilder::new(Rule::sgd()).group(Group::new("all").tensor(
                    "w",
                    slice,
                    element.of(g.slice(..end - start)),
                ))
            };
            let gradient = |start, end| {
                let slice = element.of(g.slice(start..end));
                OptimizerBuilder::new(Rule::sgd()).group(Group::new("all").tensor(
                    "w",
                    element.of(w.slice(..end - start)),
                    slice,
                ))
            };
            for (builder, role, offset_bytes, size_bytes) in [
                (of(&w, 2, 10), "parameter", 2, 8),
                (of(&w, 4, 9), "parameter", 4, 5),
                (gradient(6, 10), "gradient", 6, 4),
            ] {
                let error = build_error(builder, gpu);
                let expected = Error::Misaligned { tensor: "w".to_owned(), role, offset_bytes, size_bytes, element };
                assert_eq!(error, expected);
                let (offset, size) = (offset_bytes.to_string(), size_bytes.to_string());
                let parts = ["\"w\"", role, &offset, &size, "multiple of 4", "2 bytes"];
                assert_message(&error, &parts);
            }
            // Three elements that end where the buffer does.
            let short = buffer_of(gpu, 6);
            let error = build_error(of(&short, 0, 6), gpu);
            let expected = Error::HalfWord { tensor: "w".to_owned(), role: "parameter", end_bytes: 6, buffer_bytes: 6 };
            assert_eq!(error, expected);
            assert_message(&error, &["\"w\"", "parameter", "byte 6", "2 bytes longer"]);
            let whole = buffer_of(gpu, 8);
            assert!(of(&whole, 0, 6).build(gpu).is_ok());
        }
    }
}

#[test]
fn slices_of_different_elements_that_overlap() {
    for gpu in &devices() {
        let (one, g, h) = (buffer_of(gpu, 256), buffer_of(gpu, 256), buffer_of(gpu, 256));
        let builder = |halves: std::ops::Range<u64>, floats: std::ops::Range<u64>| {
            let (halves_end, floats_end) = (halves.end - halves.start, floats.end - floats.start);
            OptimizerBuilder::new(Rule::sgd()).group(
                Group::new("all")
                    .tensor("halves", Element::F16.of(one.slice(halves)), Element::F16.of(g.slice(..halves_end)))
                    .tensor("floats", one.slice(floats), h.slice(..floats_end)),
            )
        };
        // Elements 0..40 and 12..20: bytes, not elements, tell.
        let error = build_error(builder(0..80, 48..80), gpu);
        let expected = Error::Overlap {
            first: "the parameters of tensor \"halves\"".to_owned(),
            second: "the parameters of tensor \"floats\"".to_owned(),
            start: 48,
            end: 80,
        };
        assert_eq!(error, expected);
        assert_message(&error, &["48..80"]);
        // Elements 0..40 and 20..30, but bytes 0..80 and 80..120.
        assert!(builder(0..80, 80..120).build(gpu).is_ok());
        assert!(builder(80..160, 0..80).build(gpu).is_ok());
    }
}

#[test]
fn halves_that_an_average_does_not_go_with() {
    let (w, g) = (vec![half::f16::ONE; 5], vec![half::f16::ONE; 5]);
    let floats = vec![1.0f32; 5];
    let of = |group: Group<wgpu_optim::cpu::Tensor>| OptimizerBuilder::new(Rule::sgd()).group(group);
    for rounding in [Rounding::Nearest, Rounding::Stochastic { seed: 1 }] {
        let averaged = |group: Group<_>| {
            let group = group.averaging(Averaging::Running { start: 0 });
            of(group.rounding(rounding))
        };
        let error = host_error(averaged(Group::new("all").tensor("w", &w, &g)));
        assert_message(&error, &["\"w\"", rounding.name(), "masters"]);
        // What is f32 is not rounded.
        let group = Group::new("all").tensor("w", &floats, &g);
        assert!(averaged(group).build_cpu().is_ok());
        for gpu in &devices() {
            let (w, g) = (buffer_of(gpu, 64), buffer_of(gpu, 64));
            let slices = [&w, &g].map(|buffer| Element::F16.of(buffer.slice(..10)));
            let group = Group::new("all")
                .tensor("w", slices[0], slices[1])
                .averaging(Averaging::Running { start: 0 })
                .rounding(rounding);
            let error = build_error(OptimizerBuilder::new(Rule::sgd()).group(group), gpu);
            assert_message(&error, &["\"w\"", rounding.name(), "masters"]);
        }
    }
}

/// Devices that give a kernel 8 storage buffers, as WebGPU promises and no more.
fn small_devices() -> Vec<Gpu> {
    let adapters = pollster::block_on(Gpu::adapters(None));
    let open = |adapter: &wgpu::Adapter| {
        let descriptor = wgpu::DeviceDescriptor {
            required_limits: wgpu::Limits { max_storage_buffers_per_shader_stage: 8, ..adapter.limits() },
            ..Default::default()
        };
        let device = pollster::block_on(adapter.request_device(&descriptor));
        let (device, queue) = device.expect("a device with less than the adapter has");
        Gpu::from_parts(device, queue)
    };
    adapters.iter().map(open).collect()
}

#[test]
fn kernels_with_more_storage_buffers_than_the_device_has() {
    let spec = |rule, regime, element: Element, rounding| {
        Spec::new(rule, regime, vec![vec![1.0; 7], vec![0.5; 66]]).stored(element, element, rounding)
    };
    let (f32, f16, bf16) = (Element::F32, Element::F16, Element::Bf16);
    let (masters, nearest) = (Rounding::Masters, Rounding::Nearest);
    let secant = Regime::adgd();
    let fits = [
        vec![
            spec(Rule::sgd(), Regime::seesaw(), bf16, masters),
            spec(Rule::adamw(), Regime::seesaw(), f16, masters),
            spec(Rule::sgd(), Regime::dog(), bf16, masters),
            spec(Rule::sgdm(0.9), secant, bf16, nearest),
            spec(Rule::adamw(), secant, f32, masters),
            Spec { averaging: Averaging::Running { start: 0 }, ..spec(Rule::adamw(), Regime::seesaw(), bf16, masters) },
            Spec { telemetry: true, ..spec(Rule::adamw(), Regime::seesaw(), bf16, masters) },
            Spec {
                telemetry: true,
                averaging: Averaging::Running { start: 0 },
                ..spec(Rule::adamw(), Regime::seesaw(), f32, masters)
            },
        ],
        vec![Spec { telemetry: true, ..spec(Rule::sgd(), Regime::auto_sgd(), bf16, masters) }],
    ];
    let too_many = [
        spec(Rule::sgdm(0.9), secant, bf16, masters),
        spec(Rule::sgd(), secant, f16, masters),
        Spec {
            telemetry: true,
            averaging: Averaging::Running { start: 0 },
            ..spec(Rule::sgd(), Regime::norm_ratio(), bf16, masters)
        },
        Spec {
            trust: Some(0.1),
            averaging: Averaging::Running { start: 0 },
            ..spec(Rule::sgd(), Regime::norm_ratio(), f16, masters)
        },
    ];
    for gpu in &small_devices() {
        for mut specs in fits.clone() {
            for (index, spec) in specs.iter_mut().enumerate() {
                spec.name = index.to_string();
            }
            // Each in its own two buffers, since they are stored in different elements.
            let places = conformance::run::separate(&specs);
            let mut run = GpuRun::with(gpu, &specs, places, |builder| builder.clear_gradients(true).micro_batches(2));
            let grads: Vec<Vec<f32>> = conformance::run::lengths(&specs).map(|len| vec![0.5; len]).collect();
            for _ in 0..2 {
                run.step(&grads);
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
            let w = buffer_of(gpu, 256);
            let g = buffer_of(gpu, 256);
            let slices = [&w, &g].map(|buffer| spec.params.of(buffer.slice(..14)));
            let group = spec.group().tensor("w", slices[0], slices[1]);
            let error = build_error(OptimizerBuilder::new(Rule::sgd()).group(group), gpu);
            assert_nine_of_eight(&error);
            let parts = ["storage buffers", "9", "8", "Rounding::Nearest", "secant"];
            assert_message(&error, &parts);
        }
    }
}
