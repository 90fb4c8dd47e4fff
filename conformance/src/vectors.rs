//! What the page is given, and what tests/kernels/translate.rs and tests/metal take from the same place: kernels, and cases with what the CPU path makes
//! of them.

use std::collections::HashMap;

use crate::bench::device::COPY;
use half::{bf16, f16};
use serde_json::{Value, json};
use wgpu_optim::cpu::{Values, ValuesMut};
use wgpu_optim::gpu::{Partials, Tensor, Tuning};
use wgpu_optim::internals::{Dispatch, KernelSource};
use wgpu_optim::{
    Averaging, Element, Gpu, Group, LossScaler, Optimizer, OptimizerBuilder, Regime, Rounding, Rule, Schedule,
    TrustRatio, wgpu,
};

/// What may fail, for whatever reason.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const STEPS: usize = 6;

/// Invocations of a workgroup in the cases.
const WORKGROUP: u32 = 64;

/// The fewest invocations that a subgroup has anywhere in WebGPU.
const NARROWEST_SUBGROUP: u32 = wgpu::MINIMUM_SUBGROUP_MIN_SIZE;

/// Parameters of the throughput row.
const MANY: usize = 1 << 22;

/// A device that binds only where every browser's can.
fn device() -> Outcome<Gpu> {
    let adapters = pollster::block_on(Gpu::adapters(None));
    open(adapters.first().ok_or("no graphics driver answers")?)
}

/// A device of this adapter that binds only where every browser's can.
pub fn open(adapter: &wgpu::Adapter) -> Outcome<Gpu> {
    let request = adapter.request_device(&wgpu::DeviceDescriptor {
        label: Some("for the page"),
        required_features: adapter.features() & wgpu::Features::SUBGROUP,
        required_limits: wgpu::Limits { min_storage_buffer_offset_alignment: 256, ..adapter.limits() },
        ..Default::default()
    });
    let (device, queue) = pollster::block_on(request)?;
    Ok(Gpu::from_parts(device, queue))
}

/// The device in each geometry that it supports.
pub fn geometries(found: &Gpu) -> Outcome<Vec<Gpu>> {
    let kinds = Partials::ALL.into_iter();
    kinds
        .filter(|partials| partials.is_supported(found.device().features()))
        .map(|partials| {
            let tuning =
                Tuning { workgroup_size: WORKGROUP, quads_per_invocation: 8, partials, finish_workgroup_size: 64 };
            Ok(found.clone().with_tuning(tuning)?)
        })
        .collect()
}

/// Everything the page is given.
pub fn vectors() -> Outcome<Value> {
    let found = device()?;
    let mut cases = Vec::new();
    let mut kernels = Kernels::default();
    for gpu in geometries(&found)? {
        cases.extend(cases_of(&gpu, &mut kernels)?);
        compile_everything(&gpu, &mut kernels)?;
        compile_halves(&gpu, &mut kernels)?;
    }
    let throughput = throughput(&found, &mut kernels)?;
    Ok(json!({
        "steps": STEPS,
        "cases": cases,
        "throughput": throughput,
        "kernels": kernels.listed,
    }))
}

/// What is run in a geometry.
pub fn cases_of(gpu: &Gpu, kernels: &mut Kernels) -> Outcome<Vec<Value>> {
    let name = gpu.tuning().partials.name();
    Ok(vec![
        case(gpu, name, kernels)?,
        case_of_halves(gpu, name, kernels)?,
        case_of_nonfinite(gpu, name, false, kernels)?,
    ])
}

/// Kernels by what they are compiled from, each once.
#[derive(Default)]
pub struct Kernels {
    /// What there is to know of each.
    pub listed: Vec<Value>,
    places: HashMap<String, usize>,
}

impl Kernels {
    fn place(&mut self, source: &KernelSource, layout: Vec<Vec<(u32, bool)>>) -> usize {
        let constants: serde_json::Map<String, Value> = source
            .constants
            .iter()
            .map(|(name, value)| match name.as_str() {
                // As many as there can be: the page's device may have narrower ones than this machine's, none below this.
                "SUBGROUPS" => (name.clone(), json!(WORKGROUP / NARROWEST_SUBGROUP)),
                _ => (name.clone(), json!(value)),
            })
            .collect();
        let subgroups = source.wgsl.contains("subgroupAdd");
        let head = if subgroups { "enable subgroups;\n" } else { "" };
        let kernel = json!({
            "wgsl": format!("{head}{}", source.wgsl),
            "entry": source.entry_point,
            "constants": constants,
            "layout": layout,
            "subgroups": subgroups,
        });
        self.add(kernel)
    }

    /// The number of a kernel, which is listed if it was not.
    pub fn add(&mut self, kernel: Value) -> usize {
        let listed = &mut self.listed;
        *self.places.entry(kernel.to_string()).or_insert_with(|| {
            listed.push(kernel);
            listed.len() - 1
        })
    }

    fn of(&mut self, dispatch: &Dispatch) -> usize {
        let layout = dispatch.bind_groups.iter().map(|group| {
            let buffers = group.buffers().iter();
            buffers.map(|bound| (bound.binding, bound.read_only)).collect()
        });
        self.place(dispatch.pipeline.source(), layout.collect())
    }
}

/// The buffers and dispatches of an optimizer.
struct Recording {
    gpu: Gpu,
    buffers: Vec<wgpu::Buffer>,
}

impl Recording {
    fn number(&mut self, buffer: &wgpu::Buffer) -> usize {
        let known = self.buffers.iter().position(|known| known == buffer);
        known.unwrap_or_else(|| {
            self.buffers.push(buffer.clone());
            self.buffers.len() - 1
        })
    }

    fn dispatches(&mut self, optimizer: &Optimizer, kernels: &mut Kernels) -> Vec<Value> {
        let dispatches = optimizer.dispatches().iter();
        dispatches
            .map(|dispatch| {
                let groups: Vec<Vec<Value>> = dispatch
                    .bind_groups
                    .iter()
                    .map(|group| {
                        let buffers = group.buffers().iter();
                        buffers
                            .map(|bound| {
                                json!([bound.binding, self.number(&bound.buffer), bound.offset_bytes, bound.size_bytes])
                            })
                            .collect()
                    })
                    .collect();
                json!({
                    "kernel": kernels.of(dispatch),
                    "groups": groups,
                    "workgroups": dispatch.workgroups,
                })
            })
            .collect()
    }

    /// What is in them.
    fn contents(&self) -> Outcome<Vec<Value>> {
        let contents = self.buffers.iter().map(|buffer| {
            let words: Vec<u32> = pollster::block_on(self.gpu.read_buffer("a buffer", buffer))?;
            Ok(match words.first() {
                Some(&word) if words.iter().all(|&other| other == word) => {
                    json!({ "bytes": buffer.size(), "word": word })
                }
                _ => json!({ "bytes": buffer.size(), "words": words }),
            })
        });
        contents.collect()
    }
}

/// Numbers in [-1, 1).
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn buffer(gpu: &Gpu, contents: &[f32]) -> wgpu::Buffer {
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: (4 * contents.len() as u64).next_multiple_of(16),
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    });
    gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(contents));
    buffer
}

/// Every rule under Seesaw and NormRatio, over lengths around the kernels' boundaries: gradients of some steps, and what the CPU path makes
/// of them.
fn case(gpu: &Gpu, name: &str, kernels: &mut Kernels) -> Outcome<Value> {
    let block = gpu.tuning().block_elements() as usize;
    let lengths = [1, 3, 4, 5, 31, 33, block - 1, block, block + 1];
    let groups: Vec<(Rule, Regime)> =
        Rule::all().into_iter().flat_map(|rule| [(rule, Regime::seesaw()), (rule, Regime::norm_ratio())]).collect();
    let count: usize = groups.len() * lengths.iter().sum::<usize>();
    let first = numbers(1, count);
    let (parameters, gradients) = (buffer(gpu, &first), buffer(gpu, &vec![0.0; count]));
    let mut device: OptimizerBuilder<Tensor> = OptimizerBuilder::new(Rule::sgd()).record_steps(16);
    let mut host = OptimizerBuilder::new(Rule::sgd());
    let mut ranges = Vec::new();
    let mut at = 0;
    for (rule, regime) in &groups {
        let name = format!("{} {}", rule.name(), regime.name());
        let group = || Group::new(name.clone()).rule(*rule).regime(*regime);
        let mut on_device = group();
        let mut on_host = Group::new(name.clone()).rule(*rule).regime(*regime);
        for length in lengths {
            let tensor = format!("{name} {length}");
            let bytes = 4 * at as u64..4 * (at + length) as u64;
            on_device = on_device.tensor(tensor.clone(), parameters.slice(bytes.clone()), gradients.slice(bytes));
            let slice = &first[at..at + length];
            on_host = on_host.tensor(tensor, slice, slice);
            ranges.push(at..at + length);
            at += length;
        }
        device = device.group(on_device);
        host = host.group(on_host);
    }
    let optimizer = device.build(gpu)?;
    let mut host = host.build_cpu()?;
    let mut expected = first.clone();
    let mut steps = Vec::new();
    let mut rates = Vec::new();
    for step in 0..STEPS {
        let noise = numbers(2 + step as u64, count);
        let gradient: Vec<f32> = first.iter().zip(noise).map(|(w, noise)| 0.5 * w + noise).collect();
        let mut rest = expected.as_mut_slice();
        let mut params = Vec::new();
        for range in &ranges {
            let (slice, after) = rest.split_at_mut(range.len());
            params.push(slice);
            rest = after;
        }
        let grads: Vec<&[f32]> = ranges.iter().map(|range| &gradient[range.clone()]).collect();
        host.step(&mut params, &grads)?;
        rates.push(host.learning_rates().to_vec());
        steps.push(gradient);
    }
    let mut recording =
        Recording { gpu: gpu.clone(), buffers: vec![parameters, gradients, optimizer.learning_rates().clone()] };
    let dispatches = recording.dispatches(&optimizer, kernels);
    let lengths: Vec<usize> = groups.iter().map(|_| lengths.iter().sum()).collect();
    let names: Vec<String> =
        groups.iter().map(|(rule, regime)| format!("{}, {}", rule.name(), regime.name())).collect();
    Ok(json!({
        "name": name,
        "groups": names,
        "lengths": lengths,
        "buffers": recording.contents()?,
        "dispatches": dispatches,
        "gradients": steps,
        "rates": rates,
        "parameters": expected,
    }))
}

/// What is put into gradients that is not finite: quiet and signalling NaN, and the infinities.
const NOT_FINITE: [u32; 5] = [0x7fc0_0000, 0xffc0_0000, 0x7f80_0001, 0x7f80_0000, 0xff80_0000];

/// A group of [`case_of_nonfinite`].
#[derive(Clone, Copy)]
struct Setting {
    rule: Rule,
    regime: Regime,
    decay: f32,
    clip: f32,
    /// Parameters that overflow when a gradient of their size is added to them.
    huge: bool,
}

impl Setting {
    fn name(&self) -> String {
        format!(
            "{}, {}{}{}{}",
            self.rule.name(),
            self.regime.name(),
            if self.decay > 0.0 { ", decay" } else { "" },
            if self.clip < f32::INFINITY { ", clip" } else { "" },
            if self.huge { ", huge" } else { "" },
        )
    }

    fn group<T>(&self) -> Group<T> {
        Group::new(self.name()).rule(self.rule).regime(self.regime).weight_decay(self.decay).clip_norm(self.clip)
    }
}

/// More than half of what f32 can hold.
const HUGE: f32 = 2.5e38;

/// Steps of which every second has one NaN or infinity in one gradient, or makes a sum that f32 cannot hold, so that it must leave no trace. A
/// driver that compiles floats as if there were none of either (Metal's fast math) has to see them all the same. `full` is with a loss scale and
/// with micro-batches.
pub fn case_of_nonfinite(gpu: &Gpu, name: &str, full: bool, kernels: &mut Kernels) -> Outcome<Value> {
    let block = gpu.tuning().block_elements() as usize;
    let setting = |rule, regime, decay, clip| Setting { rule, regime, decay, clip, huge: false };
    let none = f32::INFINITY;
    // What is measured depends on the rule through its memory alone.
    let settings = [
        setting(Rule::sgd(), Regime::seesaw(), 0.0, none),
        setting(Rule::sgdm(0.9), Regime::seesaw(), 0.0, none),
        setting(Rule::adamw(), Regime::seesaw(), 0.0, none),
        setting(Rule::sgd(), Regime::seesaw(), 0.1, none),
        Setting { huge: true, ..setting(Rule::sgd(), Regime::fixed(2f32.powi(-40)), 1.0, none) },
        setting(Rule::sgdm(0.9), Regime::norm_ratio(), 0.1, 1.0),
        setting(Rule::sgd(), Regime::norm_ratio(), 0.0, 1.0),
        setting(Rule::sgd(), Regime::adgd(), 0.0, none),
        setting(Rule::sgd(), Regime::dowg(), 0.0, none),
    ];
    let mut device = OptimizerBuilder::<Tensor>::new(Rule::sgd()).record_steps(16);
    let mut host = OptimizerBuilder::new(Rule::sgd());
    if full {
        device = device.loss_scaler(LossScaler::default()).micro_batches(2);
        host = host.loss_scaler(LossScaler::default()).micro_batches(2);
    }
    // Tensors, group by group, and whether they are of huge parameters.
    let mut ranges = Vec::new();
    let mut at = 0;
    let mut lengths = Vec::new();
    for (number, setting) in settings.iter().enumerate() {
        let before = at;
        // More than a block where no memory is measured with it, and where something overflows.
        let longest = if number == 0 || setting.huge { block + 1 } else { 34 };
        for length in [1, 5, longest] {
            ranges.push((at..at + length, setting.huge));
            at += length;
        }
        lengths.push(at - before);
    }
    let of_each = ranges.len() / settings.len();
    let mut first = numbers(11, at);
    for (range, huge) in &ranges {
        if *huge {
            first[range.clone()].iter_mut().for_each(|w| *w = HUGE.copysign(*w));
        }
    }
    let (parameters, gradients) = (buffer(gpu, &first), buffer(gpu, &vec![0.0; at]));
    for (setting, ranges) in settings.iter().zip(ranges.chunks(of_each)) {
        let (mut on_device, mut on_host) = (setting.group(), setting.group());
        for (range, _) in ranges {
            let tensor = format!("{} {}", setting.name(), range.len());
            let bytes = 4 * range.start as u64..4 * range.end as u64;
            let (w, g) = (parameters.slice(bytes.clone()), gradients.slice(bytes));
            on_device = on_device.tensor(tensor.clone(), w, g);
            let slice = &first[range.clone()];
            on_host = on_host.tensor(tensor, slice, slice);
        }
        device = device.group(on_device);
        host = host.group(on_host);
    }
    let optimizer = device.build(gpu)?;
    let mut host = host.build_cpu()?;

    let mut expected = first.clone();
    let (mut steps, mut rates) = (Vec::new(), Vec::new());
    // Each tensor once, at its end or its beginning.
    for bad in 0..2 * ranges.len() {
        let mut gradient = numbers(12 + bad as u64, at);
        if bad % 2 == 0 {
            let number = bad / 2;
            let (range, huge) = &ranges[number];
            let spoilt = match number % 2 {
                0 => range.end - 1,
                _ => range.start,
            };
            gradient[spoilt] = if *huge {
                // Of micro-batches that is the sum.
                let largest = if full { f32::MAX } else { HUGE };
                largest.copysign(first[spoilt])
            } else {
                f32::from_bits(NOT_FINITE[number % NOT_FINITE.len()])
            };
        }
        let (mut params, mut grads) = (Vec::new(), Vec::new());
        let mut w = expected.as_mut_slice();
        for (range, _) in &ranges {
            let (own, rest) = w.split_at_mut(range.len());
            params.push(own);
            w = rest;
            grads.push(&gradient[range.clone()]);
        }
        host.step(&mut params, &grads)?;
        rates.push(host.learning_rates().to_vec());
        steps.push(gradient.into_iter().map(f32::to_bits).collect::<Vec<u32>>());
    }
    let mut recording =
        Recording { gpu: gpu.clone(), buffers: vec![parameters, gradients, optimizer.learning_rates().clone()] };
    let dispatches = recording.dispatches(&optimizer, kernels);
    let title = format!("{name}, not finite{}", if full { ", loss scale" } else { "" });
    Ok(json!({
        "name": title,
        "words": true,
        "groups": settings.iter().map(Setting::name).collect::<Vec<_>>(),
        "lengths": lengths,
        "buffers": recording.contents()?,
        "dispatches": dispatches,
        "gradients": steps,
        "rates": rates,
        "parameters": expected,
    }))
}

/// How 16-bit parameters are stored and rounded.
const HALVES: [(Element, Rounding); 6] = [
    (Element::F16, Rounding::Masters),
    (Element::F16, Rounding::Nearest),
    (Element::F16, Rounding::Stochastic { seed: 1 }),
    (Element::Bf16, Rounding::Masters),
    (Element::Bf16, Rounding::Nearest),
    (Element::Bf16, Rounding::Stochastic { seed: 2 }),
];

/// Parameters and gradients of 16 bits and steps that f32 has no rounding for, of which every bit must be the CPU path's.
fn case_of_halves(gpu: &Gpu, name: &str, kernels: &mut Kernels) -> Outcome<Value> {
    let block = gpu.tuning().block_elements() as usize;
    let lengths = [1, 2, 3, 4, 5, 31, 33, block - 1, block, block + 1];
    // Two elements to a word, and a word of its own for each that is left over.
    let words = |length: usize| length.div_ceil(2);
    let per_group: usize = lengths.iter().copied().map(words).sum();
    let count = 2 * per_group * HALVES.len();
    let encoded = |element: Element, value: f32| match element {
        Element::F16 => f16::from_f32(value).to_bits(),
        _ => bf16::from_f32(value).to_bits(),
    };
    let element_of = |at: usize| HALVES[at / (2 * per_group)].0;
    let encode = |values: &[f32]| -> Vec<u16> {
        let places = values.iter().enumerate();
        places.map(|(at, &value)| encoded(element_of(at), value)).collect()
    };
    let first = encode(&numbers(1, count));
    let in_words = |codes: &[u16]| bytemuck::pod_collect_to_vec::<u16, u32>(codes);
    let parameters = buffer(gpu, bytemuck::cast_slice(&in_words(&first)));
    let gradients = buffer(gpu, &vec![0.0; count / 2]);
    // A step of ¼ is at least a unit of f32 of all that is below 1, and much smaller than a unit of 16 bits.
    let regime = Regime::fixed(2f32.powi(-12));
    let mut device: OptimizerBuilder<Tensor> = OptimizerBuilder::new(Rule::sgd()).regime(regime).record_steps(16);
    let mut host = OptimizerBuilder::new(Rule::sgd()).regime(regime);
    let mut ranges = Vec::new();
    let mut at = 0;
    for (element, rounding) in HALVES {
        let group_name = format!("{} {}", element.name(), rounding.name());
        let mut on_device = Group::new(group_name.clone()).rounding(rounding);
        let mut on_host = Group::new(group_name.clone()).rounding(rounding);
        for length in lengths {
            let tensor = format!("{group_name} {length}");
            let bytes = 2 * at as u64..2 * (at + length) as u64;
            on_device = on_device.tensor(
                tensor.clone(),
                element.of(parameters.slice(bytes.clone())),
                element.of(gradients.slice(bytes)),
            );
            on_host = match element {
                Element::F16 => {
                    let slice: &[f16] = bytemuck::cast_slice(&first[at..at + length]);
                    on_host.tensor(tensor, slice, slice)
                }
                _ => {
                    let slice: &[bf16] = bytemuck::cast_slice(&first[at..at + length]);
                    on_host.tensor(tensor, slice, slice)
                }
            };
            ranges.push((element, at..at + length));
            at += 2 * words(length);
        }
        device = device.group(on_device);
        host = host.group(on_host);
    }
    let optimizer = device.build(gpu)?;
    let mut host = host.build_cpu()?;
    let mut expected = first;
    let mut steps = Vec::new();
    let mut rates = Vec::new();
    for step in 0..STEPS {
        // Multiples of ¼.
        let values = numbers(2 + step as u64, count);
        let values: Vec<f32> = values.iter().map(|x| (8.0 * x).round() / 4.0).collect();
        let mut gradient = encode(&values);
        // Two steps have one gradient that is not finite, and must leave no trace.
        match step {
            2 => gradient[ranges[0].1.start] = encoded(ranges[0].0, f32::NAN),
            4 => gradient[ranges[ranges.len() - 1].1.end - 1] = encoded(Element::Bf16, f32::INFINITY),
            _ => {}
        }
        let mut rest = expected.as_mut_slice();
        let mut end = 0;
        let mut params: Vec<Box<dyn ValuesMut>> = Vec::new();
        let mut grads: Vec<Box<dyn Values>> = Vec::new();
        for (element, range) in &ranges {
            let (_, after) = rest.split_at_mut(range.start - end);
            let (slice, after) = after.split_at_mut(range.len());
            let own = &gradient[range.clone()];
            if *element == Element::F16 {
                params.push(Box::new(bytemuck::cast_slice_mut::<u16, f16>(slice)));
                grads.push(Box::new(bytemuck::cast_slice::<u16, f16>(own)));
            } else {
                params.push(Box::new(bytemuck::cast_slice_mut::<u16, bf16>(slice)));
                grads.push(Box::new(bytemuck::cast_slice::<u16, bf16>(own)));
            }
            (rest, end) = (after, range.end);
        }
        host.step(&mut params, &grads)?;
        rates.push(host.learning_rates().to_vec());
        steps.push(in_words(&gradient));
    }
    let mut recording =
        Recording { gpu: gpu.clone(), buffers: vec![parameters, gradients, optimizer.learning_rates().clone()] };
    let dispatches = recording.dispatches(&optimizer, kernels);
    let names =
        HALVES.map(|(element, rounding)| format!("{} parameters, rounding {}", element.name(), rounding.name()));
    Ok(json!({
        "name": name,
        "exact": true,
        "groups": names,
        "lengths": HALVES.map(|_| per_group),
        "buffers": recording.contents()?,
        "dispatches": dispatches,
        "gradients": steps,
        "rates": rates,
        "parameters": in_words(&expected),
    }))
}

/// Kernels of 16 bits, as [`compile_everything`]: rules with and without memories, regimes with and without a use for parameters.
pub fn compile_halves(gpu: &Gpu, kernels: &mut Kernels) -> Outcome<()> {
    let values = vec![1.0f32; 1024];
    let (parameters, gradients) = (buffer(gpu, &values), buffer(gpu, &values));
    for (params, grads, rounding) in [
        (Element::F16, Element::Bf16, Rounding::Masters),
        (Element::Bf16, Element::F16, Rounding::Stochastic { seed: 1 }),
        (Element::F32, Element::F16, Rounding::Nearest),
    ] {
        let mut builder: OptimizerBuilder<Tensor> =
            OptimizerBuilder::new(Rule::sgd()).rounding(rounding).micro_batches(2).clear_gradients().record_steps(4);
        let mut count = 0;
        for rule in [Rule::sgd(), Rule::adamw()] {
            for regime in [Regime::seesaw(), Regime::dowg()] {
                // Two past a multiple of four, so that there are heads, bodies and tails.
                let bytes = |element: Element| {
                    let at = element.bytes() * (2 + 20 * count);
                    at..at + 9 * element.bytes()
                };
                let group = Group::new(count.to_string()).rule(rule).regime(regime);
                let w = params.of(parameters.slice(bytes(params)));
                let g = grads.of(gradients.slice(bytes(grads)));
                builder = builder.group(group.tensor(count.to_string(), w, g));
                count += 1;
            }
        }
        for dispatch in builder.build(gpu)?.dispatches() {
            kernels.of(dispatch);
        }
    }
    Ok(())
}

/// What a builder is told beside its groups.
type Tell = fn(OptimizerBuilder<Tensor>) -> OptimizerBuilder<Tensor>;

/// An optimizer of one group for each rule and regime that fit.
#[derive(Clone, Copy)]
struct Groups {
    streams: bool,
    averaging: Averaging,
    /// Each rule with each regime; or each rule with the first regime, and two rules with the others.
    each_with_each: bool,
}

impl Groups {
    const PLAIN: Groups = Groups { streams: false, averaging: Averaging::Off, each_with_each: false };

    fn averaged(self, averaging: Averaging) -> Self {
        Groups { averaging, ..self }
    }

    fn compile(self, gpu: &Gpu, tell: &[Tell], kernels: &mut Kernels) -> Outcome<()> {
        let values = vec![1.0f32; 1024];
        let (parameters, gradients) = (buffer(gpu, &values), buffer(gpu, &values));
        let loss = buffer(gpu, &values);
        let mut builder: OptimizerBuilder<Tensor> =
            OptimizerBuilder::new(Rule::sgd()).averaging(self.averaging).record_steps(4).loss(loss.slice(..4));
        for tell in tell {
            builder = tell(builder);
        }
        let mut count = 0;
        for (rule, regime) in self.rules_and_regimes() {
            // Three past a multiple of four, so that there are heads, bodies and tails.
            let at = 4 * (3 + 20 * count);
            let (w, g) = (parameters.slice(at..at + 36), gradients.slice(at..at + 36));
            let group = Group::new(count.to_string()).rule(rule).regime(regime);
            builder = builder.group(group.tensor(count.to_string(), w, g));
            count += 1;
        }
        if count == 0 {
            return Ok(());
        }
        let mut optimizer = builder.build(gpu)?;
        for dispatch in optimizer.dispatches() {
            kernels.of(dispatch);
        }
        if self.averaging == Averaging::Off {
            return Ok(());
        }
        // There and back.
        for _ in 0..2 {
            for dispatch in optimizer.swap_dispatches() {
                kernels.of(dispatch);
            }
            // Never submitted: only the direction of the next exchange changes.
            optimizer.encode_swap_averages(&mut gpu.device().create_command_encoder(&Default::default()))?;
        }
        Ok(())
    }

    fn rules_and_regimes(self) -> Vec<(Rule, Regime)> {
        let regimes = regimes(self.streams);
        let mut rules = Rule::all();
        if self.averaging == Averaging::ScheduleFree {
            rules.push(Rule::adamw_without_momentum());
        }
        let mut all = Vec::new();
        for rule in rules.into_iter().filter(|rule| self.averaging.fits(rule)) {
            let usual = [Rule::sgd(), Rule::adamw()].contains(&rule);
            for (number, &regime) in regimes.iter().enumerate() {
                if regime.fits(&rule) && (self.each_with_each || usual || number == 0) {
                    all.push((rule, regime));
                }
            }
        }
        all
    }
}

/// Every kernel that a step can have, to be compiled: few optimizers of many groups, so that none is compiled twice on this machine.
pub fn compile_everything(gpu: &Gpu, kernels: &mut Kernels) -> Outcome<()> {
    let all: Tell = |builder| builder.weight_decay(0.1).loss_scaler(LossScaler::default());
    let with_sums: Tell = |builder| builder.clip_norm(1.0).telemetry(true);
    for streams in [false, true] {
        let groups = Groups { streams, each_with_each: true, ..Groups::PLAIN };
        groups.compile(gpu, &[], kernels)?;
        let averaging = match streams {
            // Which would mix them.
            true => Averaging::Off,
            false => Averaging::polynomial_decay(),
        };
        let groups = groups.averaged(averaging);
        groups.compile(gpu, &[all, with_sums], kernels)?;
    }
    Groups::PLAIN.averaged(Averaging::ScheduleFree).compile(gpu, &[], kernels)
}

/// More kernels: every setting by itself.
pub fn compile_settings(gpu: &Gpu, kernels: &mut Kernels) -> Outcome<()> {
    let without_streams: [Tell; 3] = [
        |builder| builder.weight_decay(0.1),
        |builder| builder.loss_scaler(LossScaler::default()),
        |builder| builder.schedule(Schedule::Step { every: 10, factor: 0.5 }),
    ];
    let with_streams: [Tell; 4] = [
        |builder| builder.clip_norm(1.0),
        |builder| builder.clip_norm(1.0).weight_decay(0.1),
        |builder| builder.telemetry(true),
        |builder| builder.clear_gradients(),
    ];
    let trust: Tell = |builder| builder.trust_ratio(TrustRatio::default());
    let plain = Groups::PLAIN;
    let streams = Groups { streams: true, ..plain };
    for tell in without_streams {
        plain.compile(gpu, &[tell], kernels)?;
    }
    for tell in with_streams {
        plain.compile(gpu, &[tell], kernels)?;
        streams.compile(gpu, &[tell], kernels)?;
    }
    plain.compile(gpu, &[trust], kernels)?;
    plain.averaged(Averaging::polynomial_decay()).compile(gpu, &[], kernels)?;
    let full = [without_streams[0], without_streams[1], with_streams[2]];
    plain.averaged(Averaging::ScheduleFree).compile(gpu, &full, kernels)
}

/// One regime for each kind of memory.
fn regimes(streams: bool) -> Vec<Regime> {
    if streams {
        return vec![Regime::auto_sgd()];
    }
    vec![Regime::seesaw(), Regime::norm_ratio(), Regime::adgd(), Regime::dowg(), Regime::polyak()]
}

/// A step of many parameters, and a copy of as many.
fn throughput(gpu: &Gpu, kernels: &mut Kernels) -> Outcome<Value> {
    let values = vec![0.5f32; MANY];
    // The geometry of a GPU without subgroups, or of a processor.
    let tuning = match gpu.device().adapter_info().device_type {
        wgpu::DeviceType::Cpu => gpu.tuning(),
        _ => Tuning { partials: Partials::PerWorkgroup, ..gpu.tuning() },
    };
    let gpu = gpu.clone().with_tuning(tuning)?;
    let mut rows = Vec::new();
    for (name, rule, regime, bytes) in [
        ("SGD, rate from the norm", Rule::sgd(), Regime::norm_ratio(), 16.0),
        ("SGD, Seesaw", Rule::sgd(), Regime::seesaw(), 19.0),
        ("SGDM, Seesaw", Rule::sgdm(0.9), Regime::seesaw(), 28.0),
    ] {
        let (parameters, gradients) = (buffer(&gpu, &values), buffer(&gpu, &values));
        let optimizer = OptimizerBuilder::new(rule)
            .regime(regime)
            .record_steps(16)
            .group(Group::new("all").tensor("w", parameters.slice(..), gradients.slice(..)))
            .build(&gpu)?;
        let mut recording = Recording { gpu: gpu.clone(), buffers: Vec::new() };
        rows.push(json!({
            "name": name,
            "bytes": bytes,
            "dispatches": recording.dispatches(&optimizer, kernels),
            "buffers": recording.contents()?,
        }));
    }
    let tuning = gpu.tuning();
    let source = KernelSource {
        wgsl: COPY.to_owned(),
        entry_point: "copy",
        constants: vec![
            ("WORKGROUP".to_owned(), tuning.workgroup_size.into()),
            ("QUADS".to_owned(), tuning.quads_per_invocation.into()),
        ],
    };
    let bytes = 4 * MANY;
    let blocks = (MANY as u32).div_ceil(tuning.block_elements());
    rows.insert(
        0,
        json!({
            "name": "copy",
            "bytes": 8,
            "buffers": [{ "bytes": bytes, "word": 0 }, { "bytes": bytes, "word": 1 }],
            "dispatches": [{
                "kernel": kernels.place(&source, vec![vec![(0, false), (1, true)]]),
                "groups": [[[0, 0, 0, bytes], [1, 1, 0, bytes]]],
                "workgroups": blocks,
            }],
        }),
    );
    Ok(json!({ "elements": MANY, "rows": rows }))
}
