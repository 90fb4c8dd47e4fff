//! The tests check that burn's modules are trained as by burn's own SGD, in burn's own buffers. Shared buffers must not be changed, and
//! no tensor may be read before it is computed. Errors must name the tensor that does not fit, and return the module unchanged. A run that
//! continues from its files must compute the same bits as an uninterrupted one.
//!
//! They use every adapter that burn can use, with burn's feature `fusion` and without it.

use std::sync::OnceLock;

use burn::module::{Module, ModuleMapper, Param, ParamGroup};
use burn::nn::{Linear, LinearConfig};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer, OptimizerRecord, SgdConfig};
use burn::tensor::{DType, Device, Tensor, TensorData};
use wgpu_optim_burn::Shared;
use wgpu_optim_burn::wgpu_optim::{Averaging, Gpu, Group, OptimizerBuilder, Regime, Rule, Sgdm, wgpu};
use wgpu_optim_burn::{Copies, Error, WgpuOptimConfig, features, share_ours};

/// Opens a device on every adapter that burn can use, and shares it with burn.
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

    fn zero_loss(device: &Device) -> Tensor<1> {
        Tensor::zeros([1], device)
    }

    /// Returns the values of every tensor.
    fn values(&self) -> Vec<Vec<f32>> {
        let bias = |layer: &Linear| values(layer.bias.as_ref().expect("a bias").val());
        vec![values(self.first.weight.val()), bias(&self.first), values(self.second.weight.val()), bias(&self.second)]
    }
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().expect("f32")
}

/// Returns reproducible numbers in [-1, 1): the high bits of a 64-bit linear congruential generator.
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

/// After 100 steps with the same gradients, all parameters equal those of burn's optimizer within a few units in the last place.
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
                // Both get the same gradients, which do not depend on the parameters.
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
                // Both round every operation, in a different order. Parameters near zero have the rounding errors of their larger former values.
                let ulp = f32::EPSILON * theirs.abs().max(0.25);
                let distance = (theirs - ours).abs() / ulp;
                assert!(distance <= 8.0, "{}, {name}: {ours} is {distance} ulps from burn's {theirs}", gpu.describe());
                largest = largest.max(distance);
            }
            println!("{}, {name}: at most {largest} ulps", gpu.describe());
        }
    }
}

/// Without any wait, each kernel reads the results of the previous ones: gradients that burn has only recorded, and parameters of a step
/// that was just submitted. The numbers are dyadic, so that the result is exact.
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
            // The gradient of each weight is w - 1, and that of each bias is 0.
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
        // Each parameter is copied once. The buffer of the copy is not shared.
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

/// Transposed parameters and gradients, for which burn only changes the strides.
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

/// Muon leaves biases to another rule, so that they come after the matrices. Each tensor still gets its own gradient.
#[test]
fn tensors_that_a_rule_leaves_to_another_keep_their_gradients() {
    for (device, gpu) in devices() {
        let mut net = Net::new(device);
        let builder = fixed(Rule::muon(), 0.25).other_tensors(Rule::sgd());
        let mut optim = WgpuOptimConfig::new(builder).init(&net, gpu).expect("makes");
        for (index, tensor) in optim.optimizer().tensors().iter().enumerate() {
            assert_eq!(optim.name(index), Some(tensor.name.as_str()));
        }
        let before = net.values();
        let gradients = net.gradients(0);
        let biases = [&net.first, &net.second].map(|layer| {
            let bias = layer.bias.as_ref().expect("a bias").id;
            values::<1>(gradients.get(bias).expect("a gradient"))
        });
        net = optim.step(net, gradients).expect("steps");
        let after = net.values();
        for (tensor, gradient) in [1, 3].into_iter().zip(biases) {
            for ((before, after), g) in before[tensor].iter().zip(&after[tensor]).zip(gradient) {
                let expected = before - 0.25 * g;
                assert!((after - expected).abs() <= 1e-6, "{after} but {expected}");
            }
        }
        assert!(before[0] != after[0] && before[2] != after[2], "the matrices have moved");
    }
}

#[test]
fn what_does_not_fit_is_refused_and_the_module_comes_back() {
    for (device, gpu) in devices() {
        let net = Net::new(device);
        let config = WgpuOptimConfig::new(fixed(Rule::sgd(), 0.1));
        let mut optim = config.init(&net, gpu).expect("makes");
        let before = net.values();

        // A gradient has another length.
        let mut gradients = net.gradients(0);
        let short = Tensor::<2>::zeros([2, 2], &device.clone().inner());
        gradients.register(net.first.weight.id, short);
        let (net, refused) = optim.try_step(net, gradients, None);
        let text = refused.expect_err("short").to_string();
        assert!(text.contains("first.weight") && text.contains("4 elements instead of 130"), "{text}");
        assert_eq!(net.values(), before);

        // The same with the last parameter, after all others have been taken out of the module.
        let mut gradients = net.gradients(0);
        gradients
            .register(net.second.bias.as_ref().expect("a bias").id, Tensor::<1>::zeros([7], &device.clone().inner()));
        let (net, refused) = optim.try_step(net, gradients, None);
        assert!(refused.expect_err("long").to_string().contains("second.bias"));
        assert_eq!(net.values(), before);

        // The module contains a parameter twice.
        let mut tied = net.clone();
        tied.second.bias = tied.first.bias.clone();
        let tied_before = tied.values();
        let (tied, refused) = optim.try_step(tied, net.gradients(0), None);
        let text = refused.expect_err("tied").to_string();
        assert!(text.contains("\"first.bias\" and \"second.bias\""), "{text}");
        assert_eq!(tied.values(), tied_before);
        drop(tied);

        // The module is another one.
        let other = Net::new(device);
        let gradients = other.gradients(0);
        let refused = optim.try_step(other, gradients, None).1;
        assert!(matches!(refused, Err(Error::UnknownParameter { .. })), "{refused:?}");

        // The optimizer does not have frozen parameters, and they must stay frozen.
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

/// Parameters without a gradient are not changed, and the norm contains only the others. Which parameters have a gradient differs by step.
#[test]
fn parameters_without_a_gradient_are_left_out() {
    for (device, gpu) in devices() {
        let mut net = Net::new(device);
        let mut head = net.second.clone().fork(device);
        let builder = || OptimizerBuilder::new(Rule::sgdm(0.9)).global_norm();
        let mut optim = WgpuOptimConfig::new(builder()).init(&net, gpu).expect("makes");
        let mut alone = WgpuOptimConfig::new(builder()).init(&head, gpu).expect("makes");
        let without_first = |net: &Net, step| {
            let mut gradients = net.gradients(step);
            gradients.remove::<2>(net.first.weight.id);
            gradients.remove::<1>(net.first.bias.as_ref().expect("a bias").id);
            gradients
        };
        let before = net.values();
        for step in 0..3 {
            let (gradients, same) = (without_first(&net, step), without_first(&net, step));
            net = optim.step(net, gradients).expect("steps");
            head = alone.step(head, same).expect("steps");
        }
        let after = net.values();
        assert_eq!(after[..2], before[..2], "{}", gpu.describe());
        assert_eq!(after[2], values(head.weight.val()), "{}", gpu.describe());
        assert!(after[2] != before[2]);
        net = {
            let gradients = net.gradients(3);
            optim.step(net, gradients).expect("steps")
        };
        assert!(net.values()[0] != before[0], "{}", gpu.describe());
        // The head shared the buffers of the second layer.
        assert_eq!(optim.copies(), Copies { parameters: 2, gradients: 0 });

        // A step without any gradient changes nothing.
        let before = net.values();
        let net = optim.step(net, GradientsParams::new()).expect("steps");
        assert_eq!(net.values(), before, "{}", gpu.describe());
        let records = optim.drain_records().expect("arrive").records;
        assert!(records.last().expect("a record").flags.absent(), "{}", gpu.describe());
    }
}

/// Mapper that casts every parameter.
struct Cast(DType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| Tensor::from_inner(tensor.inner().cast(self.0)).require_grad())
    }
}

/// 16-bit parameters are f32 parameters rounded to 16 bits, because the optimizer has master weights: steps too small for 16 bits add up.
#[test]
fn halves_follow_f32() {
    for (device, gpu) in devices() {
        for (dtype, digits) in [(DType::F16, 11), (DType::BF16, 8)] {
            if !device.supports_dtype(dtype) {
                println!("{}: burn has no {dtype:?} here", gpu.describe());
                continue;
            }
            let mut half = Net::new(device).map(&mut Cast(dtype));
            let mut full = half.clone().map(&mut Cast(DType::F32));
            let config = WgpuOptimConfig::new(fixed(Rule::sgdm(0.9), 1e-4).averaging(Averaging::Running { start: 0 }));
            let mut of_half = config.init(&half, gpu).expect("makes");
            let mut of_full = config.init(&full, gpu).expect("makes");
            let before = full.values();
            // The gradients are multiples of 1/16, which both types represent exactly.
            let plain = device.clone().inner();
            let gradients = |net: &Net, dtype| {
                let mut gradients = GradientsParams::new();
                for (layer, seed) in [(&net.first, 1), (&net.second, 3)] {
                    let shape = layer.weight.dims();
                    let [weight, bias] = [numbers(seed, shape), numbers(seed + 1, [1, shape[1]])]
                        .map(|data| (Tensor::<2>::from_data(data, &plain) * 16.0).round().div_scalar(16.0).cast(dtype));
                    gradients.register(layer.weight.id, weight);
                    gradients.register(layer.bias.as_ref().expect("a bias").id, bias.flatten::<1>(0, 1));
                }
                gradients
            };
            for _ in 0..50 {
                let (of_half_now, of_full_now) = (gradients(&half, dtype), gradients(&full, DType::F32));
                half = of_half.step(half, of_half_now).expect("steps");
                full = of_full.step(full, of_full_now).expect("steps");
            }
            assert_eq!(of_half.copies(), Copies::default(), "{}", gpu.describe());
            let (ours, theirs) = (half.clone().map(&mut Cast(DType::F32)).values(), full.values());
            assert!(theirs != before);
            for (half, full) in ours.concat().iter().zip(theirs.concat()) {
                let unit = full.abs().max(1e-4) * 0.5f32.powi(digits);
                assert!((half - full).abs() <= unit, "{}, {dtype:?}: {half} but {full}", gpu.describe());
            }
            let averaged = of_half.averaged(&half).expect("averages");
            assert_eq!(averaged.first.weight.dtype(), dtype);
            let averages = averaged.map(&mut Cast(DType::F32)).values();
            let expected = of_full.averaged(&full).expect("averages").values();
            for (half, full) in averages.concat().iter().zip(expected.concat()) {
                let unit = full.abs().max(1e-4) * 0.5f32.powi(digits);
                assert!((half - full).abs() <= unit, "{}, {dtype:?}: average {half} but {full}", gpu.describe());
            }
        }
    }
}

/// The products and reductions are large enough for burn to time several kernels for them among the operations of a step.
#[test]
fn steps_are_right_while_burn_tunes_its_kernels() {
    for (device, gpu) in devices() {
        let start: Linear = LinearConfig::new(256, 192).init(device);
        let (mut theirs, mut ours) = (start.clone().fork(device), start.fork(device));
        let mut burn = SgdConfig::new().init();
        let mut optim = WgpuOptimConfig::new(fixed(Rule::sgd(), 0.25)).init(&ours, gpu).expect("makes");
        let gradients = |net: &Linear, step| {
            let input = Tensor::<2>::from_data(numbers(step, [128, 256]), device);
            let loss = (net.forward(input).tanh() - 0.5).square().mean();
            GradientsParams::from_grads(loss.backward(), net)
        };
        for step in 0..10 {
            let (of_theirs, of_ours) = (gradients(&theirs, step), gradients(&ours, step));
            theirs = burn.step(0.25, theirs, of_theirs);
            ours = optim.step(ours, of_ours).expect("steps");
        }
        for (theirs, ours) in values(theirs.weight.val()).iter().zip(values(ours.weight.val())) {
            assert!((theirs - ours).abs() <= 1e-5, "{}: {ours} but burn's {theirs}", gpu.describe());
        }
        assert_eq!(optim.copies().parameters, 0, "{}", gpu.describe());
    }
}

/// burn's accumulator sums the gradients of micro-batches. With their number set, the step uses the mean.
#[test]
fn gradients_accumulate_over_micro_batches() {
    for (device, gpu) in devices() {
        let start = Net::new(device);
        let (mut ours, mut theirs) = (start.clone().fork(device), start.fork(device));
        let mut optim =
            WgpuOptimConfig::new(fixed(Rule::sgd(), 0.25).micro_batches(4)).init(&ours, gpu).expect("makes");
        let mut burn = SgdConfig::new().init();
        for step in 0..3 {
            let (mut sums, mut mean) = (GradientsAccumulator::new(), Net::zero_loss(device));
            for batch in 0..4 {
                let gradients = ours.gradients(4 * step + batch);
                sums.accumulate(&ours, gradients);
                mean = mean + theirs.loss(4 * step + batch) / 4.0;
            }
            ours = optim.step(ours, sums.grads()).expect("steps");
            let gradients = GradientsParams::from_grads(mean.backward(), &theirs);
            theirs = burn.step(0.25, theirs, gradients);
        }
        for (theirs, ours) in theirs.values().concat().iter().zip(ours.values().concat()) {
            assert!((theirs - ours).abs() <= 1e-6, "{}: {ours} but burn's {theirs}", gpu.describe());
        }
        // Both modules had the same buffers at the start.
        assert_eq!(optim.copies().parameters, 4, "{}", gpu.describe());
    }
}

/// Polyak's rate is the loss divided by the squared norm.
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

/// Every call passes a learning rate, as burn's loops and `Learner` do, and the state goes through burn's record of the optimizer.
#[test]
fn burns_module_optimizer_can_hold_it() {
    for (device, gpu) in devices() {
        let start = Net::new(device);
        let mut theirs = start.clone().fork(device);
        let mut ours = start.fork(device);
        let momentum = MomentumConfig::new().with_momentum(0.9).with_dampening(0.0);
        let mut burn = SgdConfig::new().with_momentum(Some(momentum)).init();
        let config = WgpuOptimConfig::new(fixed(Rule::sgdm(0.9), 1.0));
        let shared = Shared::new(config.init(&ours, gpu).expect("makes"));
        let mut optim = ModuleOptimizer::from(shared.clone());
        let rate = |step| 0.125 / (1.0 + step as f64);
        for step in 0..6 {
            if step == 3 {
                // Another optimizer continues from the record.
                let record = OptimizerRecord::from_bytes(optim.into_bytes().expect("bytes")).expect("a record");
                let again = Shared::new(config.init(&ours, gpu).expect("makes"));
                optim = ModuleOptimizer::from(again).load_record(record);
            }
            let (of_theirs, of_ours) = (theirs.gradients(step), ours.gradients(step));
            theirs = burn.step(rate(step), theirs, of_theirs);
            ours = optim.step(rate(step), ours, of_ours);
        }
        for (theirs, ours) in theirs.values().concat().iter().zip(ours.values().concat()) {
            assert!((theirs - ours).abs() <= 1e-6, "{}: {ours} but burn's {theirs}", gpu.describe());
        }
        assert_eq!(shared.lock().copies(), Copies::default(), "{}", gpu.describe());
        assert_eq!(shared.lock().drain_records().expect("arrive").records.len(), 3);

        // A missing gradient is detected when the next step starts.
        let mut gradients = ours.gradients(0);
        gradients.remove::<2>(ours.second.weight.id);
        ours = optim.step(0.1, ours, gradients);
        let gradients = ours.gradients(0);
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| optim.step(0.1, ours, gradients)));
        let text = *refused.expect_err("a panic").downcast::<String>().expect("a text");
        assert!(text.contains("\"second.weight\" had no gradient"), "{text}");
    }
}

/// Implementations and test for `Learner`.
mod learner {
    use burn::optim::lr_scheduler::linear::LinearLrSchedulerConfig;
    use burn::train::{InferenceStep, Learner, RegressionOutput, TrainOutput, TrainStep};

    use super::*;

    impl TrainStep for Net {
        type Input = u64;
        type Output = RegressionOutput;

        fn step(&self, step: u64) -> TrainOutput<RegressionOutput> {
            let loss = self.loss(step);
            let output = InferenceStep::step(self, step);
            TrainOutput::new(self, loss.backward(), output)
        }
    }

    impl InferenceStep for Net {
        type Input = u64;
        type Output = RegressionOutput;

        fn step(&self, step: u64) -> RegressionOutput {
            let target = Tensor::from_data(numbers(step + 1000, [8, 3]), &self.first.weight.device());
            RegressionOutput::new(self.loss(step), target.clone(), target)
        }
    }

    #[test]
    fn burns_learner_trains_with_it() {
        for (device, gpu) in devices() {
            let start = Net::new(device);
            let train = |mut learner: Learner<Net>| {
                for step in 0..8 {
                    learner.lr_step();
                    let output = learner.train_step(step);
                    learner.optimizer_step(output.grads);
                }
                learner.model().values()
            };
            let schedule = || LinearLrSchedulerConfig::new(0.25, 0.01, 8).init().expect("a schedule");
            let theirs = train(Learner::new(start.clone().fork(device), SgdConfig::new().init(), schedule()));
            let ours = start.fork(device);
            let config = WgpuOptimConfig::new(fixed(Rule::sgd(), 1.0));
            let shared = Shared::new(config.init(&ours, gpu).expect("makes"));
            let ours = train(Learner::new(ours, shared.clone().into(), schedule()));
            for (theirs, ours) in theirs.concat().iter().zip(ours.concat()) {
                assert!((theirs - ours).abs() <= 1e-6, "{}: {ours} but burn's {theirs}", gpu.describe());
            }
            // burn keeps the old module during a step.
            assert_eq!(shared.lock().copies().parameters, 8 * 4, "{}", gpu.describe());
        }
    }
}

/// burn's file has the parameters of the module, and the optimizer's file has its state.
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
