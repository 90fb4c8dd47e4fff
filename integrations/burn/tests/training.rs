//! Promises of the crate: burn's modules are trained as burn's own SGD trains them, in burn's own buffers; what somebody else has is not
//! changed; nothing is read before it is computed; what does not fit is refused with its name, and the module comes back as it was; a run
//! goes on from its files as if it had never stopped.
//!
//! On every adapter that burn can use.

use std::sync::OnceLock;

use burn::module::{Module, Param, ParamGroup};
use burn::nn::{Linear, LinearConfig};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Tensor, TensorData};
use wgpu_optim_burn::wgpu_optim::{Averaging, Gpu, Group, OptimizerBuilder, Regime, Rule, Sgdm, wgpu};
use wgpu_optim_burn::{Copies, Error, WgpuOptimConfig, features, share_ours};

/// A device of ours on every adapter that burn takes, handed to burn.
fn devices() -> &'static [(Device, Gpu)] {
    static DEVICES: OnceLock<Vec<(Device, Gpu)>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
        let instance = instance();
        let adapters = pollster::block_on(instance.enumerate_adapters(backends));
        assert!(
            !adapters.is_empty(),
            "no adapter: burn needs at least a software driver (Debian: mesa-vulkan-drivers)"
        );
        let opened = adapters.into_iter().map(|adapter| open(&instance, adapter));
        opened.collect()
    })
}

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env())
}

fn open(instance: &wgpu::Instance, adapter: wgpu::Adapter) -> (Device, Gpu) {
    let opened = adapter.request_device(&wgpu::DeviceDescriptor {
        required_features: features(&adapter),
        required_limits: adapter.limits(),
        ..Default::default()
    });
    let (device, queue) = pollster::block_on(opened).expect("an adapter opens");
    let gpu = Gpu::from_parts(device, queue);
    let device = share_ours(&gpu, instance.clone(), adapter).expect("shares");
    (device.autodiff(), gpu)
}

#[derive(Module, Debug)]
struct Net {
    first: Linear,
    second: Linear,
}

impl Net {
    fn new(device: &Device) -> Self {
        Net { first: LinearConfig::new(13, 10).init(device), second: LinearConfig::new(10, 3).init(device) }
    }

    fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        self.second.forward(self.first.forward(input).tanh())
    }

    fn loss(&self, step: u64) -> Tensor<1> {
        let device = self.first.weight.device();
        let input = Tensor::from_data(numbers(step, [8, 13]), &device);
        let target = Tensor::from_data(numbers(step + 1000, [8, 3]), &device);
        (self.forward(input) - target).square().mean()
    }

    fn gradients(&self, step: u64) -> GradientsParams {
        GradientsParams::from_grads(self.loss(step).backward(), self)
    }

    /// Every value, tensor by tensor.
    fn values(&self) -> Vec<Vec<f32>> {
        let bias = |layer: &Linear| values(layer.bias.as_ref().expect("a bias").val());
        vec![values(self.first.weight.val()), bias(&self.first), values(self.second.weight.val()), bias(&self.second)]
    }
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().expect("f32")
}

/// Reproducible numbers in [-1, 1): a 64-bit linear congruential generator, high bits.
fn numbers<const D: usize>(seed: u64, shape: [usize; D]) -> TensorData {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) as f32) / 8_388_608.0 - 1.0
    };
    let values: Vec<f32> = std::iter::repeat_with(next).take(shape.iter().product()).collect();
    TensorData::new(values, shape)
}

fn fixed(rule: Rule, rate: f32) -> OptimizerBuilder<wgpu_optim_burn::wgpu_optim::gpu::Tensor> {
    OptimizerBuilder::new(rule).regime(Regime::fixed(rate))
}

/// Parameter for parameter what burn's own optimizer makes of the same gradients, over 100 steps, to a few units in the last place.
#[test]
fn a_fixed_rate_is_burns_sgd() {
    const RATE: f64 = 0.015625;
    let momentum = |dampening, nesterov| {
        Some(MomentumConfig::new().with_momentum(0.9).with_dampening(dampening).with_nesterov(nesterov))
    };
    let sgdm = |dampening, nesterov| Rule::Sgdm(Sgdm { momentum: 0.9, dampening, nesterov });
    let cases = [
        ("sgd", Rule::sgd(), None, 0.0f32),
        ("sgd with weight decay", Rule::sgd(), None, 0.0625),
        ("sgdm", sgdm(0.0, false), momentum(0.0, false), 0.0),
        ("sgdm, burn's dampening", sgdm(0.1, false), momentum(0.1, false), 0.0),
        ("nesterov with weight decay", sgdm(0.0, true), momentum(0.0, true), 0.0625),
    ];
    for (device, gpu) in devices() {
        for (name, rule, momentum, decay) in &cases {
            let start = Net::new(device);
            let before = start.values();
            let mut theirs = start.clone().fork(device);
            let mut ours = start.fork(device);
            let decays = (*decay > 0.0).then(|| WeightDecayConfig::new(*decay));
            let mut burn = SgdConfig::new().with_momentum(momentum.clone()).with_weight_decay(decays).init();
            let builder = fixed(*rule, RATE as f32).weight_decay(*decay);
            let mut optim = WgpuOptimConfig::new(builder).init(&ours, gpu).expect("makes");
            for step in 0..100 {
                // The same gradients for both, whatever the parameters have come to.
                let gradients = |net: &Net| {
                    let mut gradients = GradientsParams::new();
                    let plain = device.clone().inner();
                    let mut register = |layer: &Linear, seed: u64| {
                        let shape = layer.weight.dims();
                        let bias = layer.bias.as_ref().expect("a bias");
                        gradients.register(layer.weight.id, Tensor::<2>::from_data(numbers(seed, shape), &plain));
                        gradients.register(bias.id, Tensor::<1>::from_data(numbers(seed + 1, [shape[1]]), &plain));
                    };
                    register(&net.first, 4 * step);
                    register(&net.second, 4 * step + 2);
                    gradients
                };
                let (of_theirs, of_ours) = (gradients(&theirs), gradients(&ours));
                theirs = burn.step(RATE, theirs, of_theirs);
                ours = optim.step(ours, of_ours).expect("steps");
            }
            assert!(ours.values() != before && theirs.values() != before, "{name}: no step");
            let mut largest = 0.0f32;
            for (theirs, ours) in theirs.values().concat().iter().zip(ours.values().concat()) {
                // Both round every operation, in another order; parameters near zero have come from where they were.
                let ulp = f32::EPSILON * theirs.abs().max(0.25);
                let distance = (theirs - ours).abs() / ulp;
                assert!(distance <= 8.0, "{}, {name}: {ours} is {distance} ulps from burn's {theirs}", gpu.describe());
                largest = largest.max(distance);
            }
            println!("{}, {name}: at most {largest} ulps", gpu.describe());
        }
    }
}

/// Nothing is waited for, and yet each kernel finds what the one before it left: gradients that burn has only recorded, parameters that
/// the step has only just been told to move. Dyadic numbers, so that the answer is exact.
#[test]
fn steps_come_between_backward_and_forward() {
    for (device, gpu) in devices() {
        let mut net = Net::new(device);
        let zeros = |param: Param<Tensor<2>>| param.map(|w| Tensor::from_inner(w.inner() * 0.0).require_grad());
        net.first.weight = zeros(net.first.weight);
        net.second.weight = zeros(net.second.weight);
        let mut optim = WgpuOptimConfig::new(fixed(Rule::sgd(), 0.125)).init(&net, gpu).expect("makes");
        let biases = net.values();
        for _ in 0..20 {
            // The gradient of each weight is w - 1; that of each bias is 0.
            let sum = |layer: &Linear| {
                let bias = layer.bias.as_ref().expect("a bias").val();
                ((layer.weight.val() - 1.0).square() * 0.5).sum() + (bias * 0.0).sum()
            };
            let loss = sum(&net.first) + sum(&net.second);
            let gradients = GradientsParams::from_grads(loss.backward(), &net);
            net = optim.step(net, gradients).expect("steps");
        }
        let mut w = 0.0f32;
        for _ in 0..20 {
            w -= 0.125 * (w - 1.0);
        }
        let found = net.values();
        for tensor in [0, 2] {
            for &value in &found[tensor] {
                assert!((value - w).abs() <= 1e-6, "{}: {value} but {w}", gpu.describe());
            }
        }
        assert_eq!(found[1], biases[1]);
        assert_eq!(found[3], biases[3]);
    }
}

#[test]
fn training_needs_no_rate_and_no_copy() {
    for (device, gpu) in devices() {
        let mut net = Net::new(device);
        let mut optim =
            WgpuOptimConfig::new(OptimizerBuilder::new(Rule::sgdm(0.9)).global_norm()).init(&net, gpu).expect("makes");
        let first = values(net.loss(0).inner())[0];
        for _ in 0..300 {
            let gradients = net.gradients(0);
            net = optim.step(net, gradients).expect("steps");
        }
        let last = values(net.loss(0).inner())[0];
        assert!(last <= 0.5 * first, "{}: from {first} to {last}", gpu.describe());
        assert_eq!(optim.copies().parameters, 0, "{}", gpu.describe());
        let records = optim.drain_records().expect("arrive").records;
        assert_eq!(records.len(), 300);
        assert!(records.iter().skip(1).all(|record| record.learning_rate > 0.0));
        assert_eq!(optim.name(0), Some("first.weight"));
    }
}

#[test]
fn a_clone_keeps_its_parameters() {
    for (device, gpu) in devices() {
        let mut net = Net::new(device);
        let mut optim = WgpuOptimConfig::new(fixed(Rule::sgd(), 0.1)).init(&net, gpu).expect("makes");
        let kept = net.clone();
        let before = kept.values();
        for step in 0..3 {
            let gradients = net.gradients(step);
            net = optim.step(net, gradients).expect("steps");
        }
        assert_eq!(kept.values(), before, "{}", gpu.describe());
        assert!(net.values() != before);
        // Once each: what is trained then is nobody else's.
        assert_eq!(optim.copies().parameters, 4, "{}", gpu.describe());

        // The same steps without a clone have the same bits.
        let mut alone = kept;
        let mut again = WgpuOptimConfig::new(fixed(Rule::sgd(), 0.1)).init(&alone, gpu).expect("makes");
        for step in 0..3 {
            let gradients = alone.gradients(step);
            alone = again.step(alone, gradients).expect("steps");
        }
        assert_eq!(alone.values(), net.values(), "{}", gpu.describe());
        assert_eq!(again.copies().parameters, 0, "{}", gpu.describe());
    }
}

/// Transposed parameters and gradients, which burn keeps as they were with other strides.
#[test]
fn strided_tensors_are_straightened() {
    for (device, gpu) in devices() {
        let plain = device.clone().inner();
        let [values_of, gradient] = [1, 2].map(|seed| Tensor::<2>::from_data(numbers(seed, [5, 13]), &plain));
        let expected = values((values_of.clone() - gradient.clone() * 0.5).transpose());
        let mut net = Net::new(device);
        let transposed = Tensor::from_inner(values_of.transpose());
        net.first.weight = Param::from_tensor(transposed);
        net.first.bias = None;
        net.second = net.second.no_grad();
        let mut optim = WgpuOptimConfig::new(fixed(Rule::sgd(), 0.5)).init(&net, gpu).expect("makes");
        let mut gradients = GradientsParams::new();
        gradients.register(net.first.weight.id, gradient.transpose());
        net = optim.step(net, gradients).expect("steps");
        assert_eq!(values(net.first.weight.val()), expected, "{}", gpu.describe());
        let copies = Copies { parameters: 1, gradients: 1 };
        assert_eq!(optim.copies(), copies, "{}", gpu.describe());
    }
}

#[test]
fn groups_go_by_the_parameters_paths() {
    for (device, gpu) in devices() {
        let mut net = Net::new(device);
        let biases = ParamGroup::from_regex("bias$").expect("a pattern");
        let config = WgpuOptimConfig::new(fixed(Rule::sgd(), 0.25).weight_decay(0.5).telemetry(true))
            .with_group(biases, Group::new("biases").weight_decay(0.0))
            .with_group(ParamGroup::from_path("second.weight"), Group::new("head").per_tensor());
        let mut optim = config.init(&net, gpu).expect("makes");
        let groups = optim.optimizer().groups();
        let names: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
        assert_eq!(names, ["all", "biases", "head/second.weight"]);
        let tensors = ["first.weight", "first.bias", "second.bias", "second.weight"];
        for (index, name) in tensors.iter().enumerate() {
            assert_eq!(optim.name(index), Some(*name));
        }

        let before = net.values();
        let gradients = net.gradients(0);
        let plain = |tensor: Option<Tensor<1>>| values(tensor.expect("a gradient"));
        let of_bias = plain(gradients.get(net.first.bias.as_ref().expect("a bias").id));
        let of_weight = values(gradients.get::<2>(net.second.weight.id).expect("a gradient"));
        net = optim.step(net, gradients).expect("steps");
        let after = net.values();
        for (tensor, gradient, decay) in [(1, of_bias, 0.0), (2, of_weight, 0.5)] {
            for ((before, after), g) in before[tensor].iter().zip(&after[tensor]).zip(gradient) {
                let expected = before - 0.25 * (g + decay * before);
                assert!((after - expected).abs() <= 1e-6, "{after} but {expected}");
            }
        }
        let records = optim.drain_records().expect("arrive");
        let recorded: Vec<_> = records.tensors.iter().filter_map(|record| optim.name(record.tensor)).collect();
        assert_eq!(recorded, tensors);

        let nothing = Group::new("nothing");
        let empty = config.with_group(ParamGroup::from_path("third"), nothing).init(&net, gpu);
        let text = empty.expect_err("no such parameter").to_string();
        assert!(text.contains("\"nothing\"") && text.contains("\"second.weight\""), "{text}");
    }
}

#[test]
fn what_does_not_fit_is_refused_and_the_module_comes_back() {
    for (device, gpu) in devices() {
        let net = Net::new(device);
        let config = WgpuOptimConfig::new(fixed(Rule::sgd(), 0.1));
        let mut optim = config.init(&net, gpu).expect("makes");
        let before = net.values();

        let mut gradients = net.gradients(0);
        gradients.remove::<2>(net.second.weight.id);
        let (net, refused) = optim.try_step(net, gradients, None);
        let text = refused.expect_err("no gradient").to_string();
        assert!(text.contains("\"second.weight\" has no gradient"), "{text}");
        assert_eq!(net.values(), before);

        // A gradient of another length.
        let mut gradients = net.gradients(0);
        let short = Tensor::<2>::zeros([2, 2], &device.clone().inner());
        gradients.register(net.first.weight.id, short);
        let (net, refused) = optim.try_step(net, gradients, None);
        let text = refused.expect_err("short").to_string();
        assert!(text.contains("first.weight") && text.contains("4 elements instead of 130"), "{text}");
        assert_eq!(net.values(), before);

        // Another module.
        let other = Net::new(device);
        let gradients = other.gradients(0);
        let refused = optim.try_step(other, gradients, None).1;
        assert!(matches!(refused, Err(Error::UnknownParameter { .. })), "{refused:?}");

        // Frozen parameters are none of the optimizer's, and must stay frozen.
        let mut half = net.clone();
        half.first = half.first.no_grad();
        let mut optim = config.init(&half, gpu).expect("makes");
        assert_eq!(optim.name(0), Some("second.weight"));
        let gradients = half.gradients(0);
        let half = optim.step(half, gradients).expect("steps");
        assert_eq!(half.values()[..2], before[..2]);
        let gradients = net.gradients(0);
        let refused = optim.try_step(net.clone(), gradients, None).1;
        assert!(matches!(refused, Err(Error::UnknownParameter { .. })), "{refused:?}");

        let frozen = net.clone().no_grad();
        let refused = config.init(&frozen, gpu);
        assert!(matches!(refused, Err(Error::NoParameters)), "{refused:?}");
        let mut tied = net.clone();
        tied.second.bias = tied.first.bias.clone();
        let refused = config.init(&tied, gpu);
        let text = refused.expect_err("tied").to_string();
        assert!(text.contains("\"first.bias\" and \"second.bias\""), "{text}");

        let polyak = WgpuOptimConfig::new(OptimizerBuilder::new(Rule::sgd()).regime(Regime::polyak()));
        let mut optim = polyak.init(&net, gpu).expect("makes");
        let gradients = net.gradients(0);
        let (net, refused) = optim.try_step(net, gradients, None);
        assert!(matches!(refused, Err(Error::MissingLoss { .. })), "{refused:?}");
        let ranks = OptimizerBuilder::new(Rule::sgd()).sharded(2, 2);
        let refused = WgpuOptimConfig::new(ranks).init(&net, gpu);
        assert!(matches!(refused, Err(Error::Optimizer(_))), "{refused:?}");
        assert_eq!(net.values(), before);
    }
}

/// Polyak's rate is the loss over the squared norm.
#[test]
fn a_regime_can_go_by_the_loss() {
    for (device, gpu) in devices() {
        let mut net = Net::new(device);
        let builder = OptimizerBuilder::new(Rule::sgd()).regime(Regime::polyak());
        let mut optim = WgpuOptimConfig::new(builder).init(&net, gpu).expect("makes");
        let first = values(net.loss(0).inner())[0];
        for _ in 0..50 {
            let loss = net.loss(0);
            let gradients = GradientsParams::from_grads(loss.backward(), &net);
            net = optim.step_with_loss(net, gradients, &loss).expect("steps");
        }
        let last = values(net.loss(0).inner())[0];
        assert!(last <= 0.5 * first, "{}: from {first} to {last}", gpu.describe());
    }
}

#[test]
fn averages_come_in_a_module_of_their_own() {
    for (device, gpu) in devices() {
        let mut net = Net::new(device);
        let builder = fixed(Rule::sgd(), 0.1).averaging(Averaging::Running { start: 0 });
        let mut optim = WgpuOptimConfig::new(builder).init(&net, gpu).expect("makes");
        let mut sums: Vec<Vec<f64>> = net.values().iter().map(|tensor| vec![0.0; tensor.len()]).collect();
        for step in 0..4 {
            let gradients = net.gradients(step);
            net = optim.step(net, gradients).expect("steps");
            for (sums, values) in sums.iter_mut().zip(net.values()) {
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += f64::from(value));
            }
        }
        let before = net.values();
        let averaged = optim.averaged(&net).expect("averages").values();
        for (average, sum) in averaged.concat().iter().zip(sums.concat()) {
            assert!((f64::from(*average) - sum / 4.0).abs() <= 1e-6, "{average} but {}", sum / 4.0);
        }
        assert_eq!(net.values(), before);
        assert_eq!(optim.copies().parameters, 0);
    }
}

/// The module's parameters in burn's file, what the optimizer remembers in ours.
#[cfg(feature = "checkpoint")]
#[test]
fn a_run_goes_on_from_its_files() {
    for (device, gpu) in devices() {
        let folder = tempfile::tempdir().expect("a folder");
        let (module, state) = (folder.path().join("net.bpk"), folder.path().join("optimizer.safetensors"));
        let config = WgpuOptimConfig::new(OptimizerBuilder::new(Rule::sgdm(0.9)));
        let mut net = Net::new(device);
        let mut optim = config.init(&net, gpu).expect("makes");
        for step in 0..10 {
            if step == 5 {
                net.clone().save_file(&module).expect("saves");
                optim.save(&state).expect("saves");
            }
            let gradients = net.gradients(step);
            net = optim.step(net, gradients).expect("steps");
        }
        let mut again = Net::new(device).load_file(&module);
        let mut resumed = config.init(&again, gpu).expect("makes");
        let step = resumed.load(&state).expect("loads");
        assert_eq!(step, 5);
        for step in step..10 {
            let gradients = again.gradients(step);
            again = resumed.step(again, gradients).expect("steps");
        }
        assert_eq!(again.values(), net.values(), "{}", gpu.describe());
    }
}

#[test]
fn a_device_with_too_little_is_refused() {
    let instance = instance();
    for adapter in pollster::block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN)) {
        if features(&adapter).is_empty() {
            continue;
        }
        let (device, queue) = pollster::block_on(adapter.request_device(&Default::default())).expect("opens");
        let gpu = Gpu::from_parts(device, queue);
        let refused = share_ours(&gpu, instance.clone(), adapter);
        assert!(matches!(refused, Err(Error::MissingFeatures { .. })), "{refused:?}");
    }
}
