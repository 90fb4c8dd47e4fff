//! What tests/page and integrations/js are given, and what tests/kernels/translate.rs and tests/metal take from the same place: kernels, and cases with what the CPU path makes
//! of them.

use std::collections::HashMap;

use crate::bench::device::COPY;
use crate::run::{CpuRun, GUARD, GpuRun, Run, Setup};
use crate::spec::{Spec, packed, regimes, shape_for};
use crate::stored::Stored;
use crate::{NOT_FINITE, Numbers, noise, tensors, upload};
use serde_json::{Value, json};
use wgpu_optim::gpu::{Partials, Tensor, Tuning};
use wgpu_optim::internals::{BoundBuffer, Dispatch, KernelSource};
use wgpu_optim::{
    AdamW, Averaging, Curvature, CurvatureForm, Element, Gpu, Group, LossScaler, NAdamW, NonFinitePolicy,
    OptimizerBuilder, RateFactors, Regime, RmsProp, Rounding, Rule, Schedule, State, TrustRatio, WeightDecay,
    ZerothOrderBuilder, ZerothOrderMethod, wgpu,
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
        required_limits: wgpu::Limits {
            min_storage_buffer_offset_alignment: 256,
            max_storage_buffers_per_shader_stage: adapter.limits().max_storage_buffers_per_shader_stage.min(10),
            ..adapter.limits()
        },
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
        "checkpoint": resumed()?,
        "throughput": throughput,
        "kernels": kernels.listed,
    }))
}

/// What is run in a geometry. tests/metal plants faults in the first three. Only passes 1 and 2 depend on the kind of partial sums: what is about
/// the others is run with one kind.
pub fn cases_of(gpu: &Gpu, kernels: &mut Kernels) -> Outcome<Vec<Value>> {
    let name = gpu.tuning().partials.name();
    let mut cases = vec![
        case_of_rules(gpu, name, kernels)?,
        case_of_halves(gpu, name, kernels)?,
        case_of_nonfinite(gpu, name, false, kernels)?,
    ];
    let all = gpu.tuning().partials == Partials::ALL[0];
    if all {
        cases.extend([
            case_of_shapes(gpu, name, kernels)?,
            case_of_settings(gpu, name, kernels)?,
            case_of_unchecked(gpu, name, kernels)?,
            case_of_codes(gpu, name, kernels)?,
            case_of_regimes(gpu, name, false, kernels)?,
            case_of_regimes(gpu, name, true, kernels)?,
        ]);
    }
    cases.extend(cases_of_small_models(gpu, name, all, kernels)?);
    Ok(cases)
}

/// Kernels by what they are compiled from, each once.
#[derive(Default)]
pub struct Kernels {
    /// What there is to know of each.
    pub listed: Vec<Value>,
    places: HashMap<String, usize>,
}

impl Kernels {
    fn place(&mut self, source: &KernelSource, layout: Vec<Vec<(u32, &str)>>) -> usize {
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
            buffers.map(|bound| (bound.binding, kind_of(bound))).collect()
        });
        self.place(dispatch.pipeline.source(), layout.collect())
    }
}

/// How a buffer is bound, in the words of WebGPU.
fn kind_of(bound: &BoundBuffer) -> &'static str {
    match (bound.uniform, bound.read_only) {
        (true, _) => "uniform",
        (false, true) => "read-only-storage",
        (false, false) => "storage",
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

    fn dispatches<'a>(
        &mut self,
        dispatches: impl IntoIterator<Item = &'a Dispatch>,
        kernels: &mut Kernels,
    ) -> Vec<Value> {
        let dispatches = dispatches.into_iter();
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

/// What is in a case beside its groups.
#[derive(Clone, Copy, Default)]
struct Form {
    setup: Setup,
    /// Gradients are given as words, because some are not finite.
    words: bool,
    /// Parameters are given as words, of which every bit must be the CPU path's.
    exact: bool,
}

/// The words that tensors lie in, one after the other as [`packed`] puts them.
fn words_of(element: impl Fn(&Spec) -> Element, specs: &[Spec], tensors: &[Vec<f32>]) -> Vec<u32> {
    let elements = specs.iter().flat_map(|spec| vec![element(spec); spec.tensors.len()]);
    let mut words = Vec::new();
    for (element, tensor) in elements.zip(tensors) {
        let stored = Stored::new(element, tensor);
        for bytes in stored.bytes().chunks(4) {
            // What is left over of a word is not the tensor's.
            let mut word = GUARD.to_ne_bytes();
            word[..bytes.len()].copy_from_slice(bytes);
            words.push(u32::from_ne_bytes(word));
        }
    }
    words
}

fn listed(words: &[u32], as_words: bool) -> Value {
    if as_words { json!(words) } else { json!(bytemuck::cast_slice::<u32, f32>(words)) }
}

/// Groups, and some steps: buffers and dispatches, gradients, and what the CPU path makes of them. Where a regime needs looks, every second
/// list of gradients is of a look.
fn case(
    gpu: &Gpu,
    name: &str,
    specs: &[Spec],
    form: Form,
    steps: impl IntoIterator<Item = Vec<Vec<f32>>>,
    kernels: &mut Kernels,
) -> Outcome<Value> {
    let setup = Setup { record_steps: Some(16), ..form.setup };
    let device = GpuRun::try_with_room(gpu, specs, packed(specs, 0, 0), &[], |builder| setup.tell(builder))?;
    let mut host = CpuRun::try_with(specs, setup)?;
    let (mut gradients, mut rates) = (Vec::new(), Vec::new());
    let has_looks = specs.iter().any(|spec| spec.regime.needs_looks());
    for (turn, step) in steps.into_iter().enumerate() {
        if has_looks && turn % 2 == 1 {
            host.try_look(&step)?
        } else {
            host.try_step(&step)?
        }
        rates.push(host.rates());
        gradients.push(listed(&words_of(|spec| spec.grads, specs, &step), form.words || form.exact));
    }
    let mut buffers = device.buffers.clone();
    buffers.push(device.optimizer.learning_rates().clone());
    let mut recording = Recording { gpu: gpu.clone(), buffers };
    let mut turns = vec![recording.dispatches(device.optimizer.dispatches(), kernels)];
    if has_looks {
        turns.push(recording.dispatches(&device.optimizer.look_dispatches(), kernels));
    }
    let params = |spec: &Spec| spec.params;
    let length = |spec: &Spec| words_of(params, std::slice::from_ref(spec), &spec.tensors).len();
    Ok(json!({
        "name": name,
        // The package is not told of a loss.
        "options": match specs.iter().any(|spec| spec.regime.needs_loss()) {
            true => Value::Null,
            false => options(specs, setup, Some(gpu.tuning()))?,
        },
        "words": form.words,
        "exact": form.exact,
        "groups": specs.iter().map(|spec| &spec.name).collect::<Vec<_>>(),
        "lengths": specs.iter().map(length).collect::<Vec<_>>(),
        "buffers": recording.contents()?,
        "turns": turns,
        "gradients": gradients,
        "rates": rates,
        "parameters": listed(&words_of(params, specs, &host.params()), form.exact),
    }))
}

/// The optimizer as `integrations/js` is told of it. Buffers are left out: those of parameters and of gradients, which have the tensors of
/// [`packed`].
fn options(specs: &[Spec], setup: Setup, tuning: Option<Tuning>) -> Outcome<Value> {
    let mut places = packed(specs, 0, 0).into_iter();
    let mut groups = Vec::new();
    for spec in specs {
        let tensors: Vec<Value> = spec
            .tensors
            .iter()
            .zip(spec.all_shapes())
            .zip(places.by_ref())
            .map(|((tensor, shape), place)| {
                let slice = |element: Element, start: usize| {
                    let bytes = element.bytes();
                    json!({ "offset": start as u64 * bytes, "size": tensor.len() as u64 * bytes, "type": element.name() })
                };
                json!({ "shape": shape, "param": slice(spec.params, place.params.1), "grad": slice(spec.grads, place.grads.1) })
            })
            .collect();
        let mut group = json!({
            "name": spec.name,
            "rule": named(spec.rule.name(), serde_json::to_value(spec.rule)?),
            "regime": named(spec.regime.name(), serde_json::to_value(spec.regime)?),
            "averaging": variant(serde_json::to_value(spec.averaging)?),
            "rounding": variant(serde_json::to_value(spec.rounding)?),
            "state": variant(serde_json::to_value(spec.state)?),
            "schedule": match &spec.schedule {
                Schedule::Table { factors, every } => json!({ "name": "table", "factors": factors[..], "every": every }),
                schedule => variant(serde_json::to_value(schedule)?),
            },
            "maximize": spec.maximize,
            "telemetry": spec.telemetry,
            "perTensor": spec.per_tensor,
            "lazyRows": spec.lazy_rows,
            "tensors": tensors,
        });
        match &spec.rate_factors {
            Some(RateFactors::Rows(factors)) => group["rateFactors"] = json!({ "rows": factors[..] }),
            Some(RateFactors::Columns(factors)) => group["rateFactors"] = json!({ "columns": factors[..] }),
            _ => {}
        }
        if let Some(coefficient) = spec.trust {
            group["trustRatio"] = json!({ "coefficient": coefficient });
        }
        let decay = if let WeightDecay::Coupled(_) = spec.decay { "weightDecay" } else { "decoupledWeightDecay" };
        group[decay] = json!(spec.decay.coupled() + spec.decay.decoupled());
        if spec.clip.is_finite() {
            group["clipNorm"] = json!(spec.clip);
        }
        groups.push(group);
    }
    let policy = variant(serde_json::to_value(setup.policy)?);
    let mut options = json!({ "groups": groups, "nonfinitePolicy": policy });
    if setup.scaler.is_some() {
        options["lossScaler"] = json!(true);
    }
    if let Some(batches) = setup.micro_batches {
        options["microBatches"] = json!(batches);
    }
    if let Some(tuning) = tuning {
        options["tuning"] = json!({
            "workgroupSize": tuning.workgroup_size,
            "quadsPerInvocation": tuning.quads_per_invocation,
            "partials": tuning.partials.name(),
            "finishWorkgroupSize": tuning.finish_workgroup_size,
        });
    }
    Ok(options)
}

/// A serialized variant with this name, and its fields in camel case. Fields without a value are left out.
fn named(name: &str, variant: Value) -> Value {
    let mut named = json!({ "name": name });
    let fields = variant.as_object().and_then(|variant| variant.values().next()?.as_object());
    for (field, value) in fields.into_iter().flatten().filter(|(_, value)| !value.is_null()) {
        let mut words = field.split('_');
        let first = words.next().unwrap_or_default().to_owned();
        let camel = words.fold(first, |camel, word| camel + &word[..1].to_uppercase() + &word[1..]);
        named[camel] = value.clone();
    }
    named
}

/// A serialized variant under its own name.
fn variant(variant: Value) -> Value {
    let name = variant.as_str().or_else(|| Some(variant.as_object()?.keys().next()?));
    let name = name.unwrap_or_default();
    let name = name[..1].to_lowercase() + &name[1..];
    named(&name, variant)
}

/// A checkpoint that the CPU path has made, with what it makes of some steps after it.
fn resumed() -> Outcome<Value> {
    let mut numbers = Numbers(51);
    let mut spec = |rule: Rule, regime: Regime, averaging: Averaging| {
        let tensors = [5, 300].map(|length| numbers.vec(length));
        let name = format!("{}, {}", rule.name(), averaging.name());
        Spec { averaging, ..Spec::new(rule, regime, tensors.into()).named(name) }
    };
    let specs = [
        spec(Rule::sgdm(0.9), Regime::seesaw(), Averaging::Off),
        spec(Rule::adamw(), Regime::norm_ratio(), Averaging::polynomial_decay()),
        spec(Rule::sgd(), Regime::seesaw(), Averaging::ScheduleFree),
    ];
    let mut run = CpuRun::try_with(&specs, Setup::default())?;
    let step = |step: usize| noise(&specs, 60 + step as u64);
    for number in 0..STEPS {
        run.try_step(&step(number))?;
    }
    let checkpoint = run.checkpoint();
    let mut names = checkpoint.tensors().map(|(name, _)| name);
    let names: HashMap<&str, Vec<&str>> =
        specs.iter().map(|spec| (spec.name.as_str(), names.by_ref().take(spec.tensors.len()).collect())).collect();
    let bytes = checkpoint.to_bytes();
    let (mut gradients, mut rates) = (Vec::new(), Vec::new());
    for number in STEPS..2 * STEPS {
        run.try_step(&step(number))?;
        rates.push(run.rates());
        gradients.push(step(number).concat());
    }
    Ok(json!({
        "options": options(&specs, Setup::default(), None)?,
        "step": STEPS,
        "names": names,
        "bytes": bytes,
        "gradients": gradients,
        "rates": rates,
        "parameters": run.params().concat(),
    }))
}

/// Every rule under Seesaw and NormRatio, over lengths around the kernels' boundaries.
fn case_of_rules(gpu: &Gpu, name: &str, kernels: &mut Kernels) -> Outcome<Value> {
    let block = gpu.tuning().block_elements() as usize;
    let lengths = [1, 3, 4, 5, 31, 33, block - 1, block, block + 1];
    let mut numbers = Numbers(1);
    let mut spec = |rule: Rule, regime: Regime| {
        let tensors = lengths.map(|length| numbers.vec(length));
        Spec::new(rule, regime, tensors.into()).named(format!("{}, {}", rule.name(), regime.name()))
    };
    let rules = Rule::all().into_iter();
    let specs: Vec<Spec> =
        rules.flat_map(|rule| [Regime::seesaw(), Regime::norm_ratio()].map(|regime| spec(rule, regime))).collect();
    let first = specs.iter().flat_map(|spec| &spec.tensors);
    let steps = (0..STEPS).map(|step| {
        let mut noise = Numbers(2 + step as u64);
        first.clone().map(|tensor| tensor.iter().map(|w| 0.5 * w + noise.next()).collect()).collect()
    });
    case(gpu, name, &specs, Form::default(), steps, kernels)
}

/// Small models, whose steps are one dispatch, in two groups with norms of their own: each rule under Seesaw and each regime, or SGD with momentum
/// alone.
fn cases_of_small_models(gpu: &Gpu, name: &str, all: bool, kernels: &mut Kernels) -> Outcome<Vec<Value>> {
    let of_rules = Rule::all().into_iter().map(|rule| (rule, Regime::seesaw()));
    let of_regimes = rules_and_regimes().filter(|(_, regime)| *regime != Regime::seesaw());
    let has_own_passes =
        |(rule, regime): &(Rule, Regime)| rule.owns_passes() || regime.needs_looks() || regime.needs_schedule_free();
    let is_run = |pair: &(Rule, Regime)| all || *pair == (Rule::sgdm(0.9), Regime::seesaw());
    let small = of_rules.chain(of_regimes).filter(|pair| is_run(pair) && !has_own_passes(pair));
    small
        .map(|(rule, regime)| {
            let lengths = [[1, 300, 5], [64, 3, 130]];
            let mut numbers = Numbers(31);
            let specs = lengths.map(|lengths| {
                let tensors = lengths.map(|length| numbers.vec(length));
                let title = format!("{}, {}, {}", rule.name(), regime.name(), lengths[0]);
                Spec::new(rule, regime, tensors.into()).named(title)
            });
            let steps = (0..steps_of(&regime)).map(|step| noise(&specs, 40 + step as u64));
            let case = case(gpu, &format!("{name}, one dispatch"), &specs, Form::default(), steps, kernels)?;
            let dispatches = case["turns"][0].as_array().map_or(0, Vec::len);
            if dispatches != 1 {
                let (rule, regime) = (rule.name(), regime.name());
                return Err(format!("{rule} under {regime} takes {dispatches} dispatches instead of one").into());
            }
            Ok(case)
        })
        .collect()
}

/// Each regime with a rule that fits.
fn rules_and_regimes() -> impl Iterator<Item = (Rule, Regime)> {
    regimes().map(|regime| {
        let rule = [Rule::sgd(), Rule::adamw()].into_iter().find(|rule| regime.fits(rule));
        (rule.expect("a rule that fits"), regime)
    })
}

/// Number of steps of a case: an episode of streams takes fifteen.
fn steps_of(regime: &Regime) -> usize {
    if regime.needs_streams() { 18 } else { STEPS }
}

/// Lengths of the tensors in cases of settings: several blocks, and less than a quad.
fn some_lengths(gpu: &Gpu) -> [usize; 3] {
    [1, 33, gpu.tuning().block_elements() as usize + 1]
}

/// Every regime, those with streams in a case of their own.
fn case_of_regimes(gpu: &Gpu, name: &str, streams: bool, kernels: &mut Kernels) -> Outcome<Value> {
    let of_kind = rules_and_regimes().filter(|(_, regime)| regime.needs_streams() == streams);
    let specs = (0..).zip(of_kind).map(|(seed, (rule, regime))| {
        let title = format!("{}, {}", rule.name(), regime.name());
        Spec::new(rule, regime, tensors(50 + seed, &some_lengths(gpu))).named(title)
    });
    let specs: Vec<Spec> = specs.collect();
    let looks = specs.iter().any(|spec| spec.regime.needs_looks());
    let turns = if looks { 2 } else { 1 } * steps_of(&specs[0].regime);
    let steps = (0..turns).map(|turn| noise(&specs, 80 + turn as u64));
    let title = if streams { "regimes with streams" } else { "regimes" };
    case(gpu, &format!("{name}, {title}"), &specs, Form::default(), steps, kernels)
}

/// Rules that work on matrices, lazy rows, and factors of rows and columns.
fn case_of_shapes(gpu: &Gpu, name: &str, kernels: &mut Kernels) -> Outcome<Value> {
    let shapes = [[1, 7], [65, 63], [33, 7]];
    let lengths = shapes.map(|[rows, columns]| rows * columns);
    let shapes: Vec<Vec<usize>> = shapes.map(Vec::from).into();
    let spec = |seed, rule: Rule, title: &str| {
        let spec = Spec::new(rule, Regime::seesaw(), tensors(seed, &lengths)).named(format!("{}{title}", rule.name()));
        Spec { shapes: shapes.clone(), ..spec }
    };
    let factors = |count: usize| (0..count).map(|i| [1.0, 0.25, 3.0, 0.0][i % 4]).collect();
    let columns = || Some(RateFactors::Columns(factors(7)));
    // Without the matrix that has other columns.
    let narrow = |mut spec: Spec| {
        spec.tensors.remove(1);
        spec.shapes.remove(1);
        spec
    };
    let specs = [
        spec(61, Rule::muon(), ""),
        spec(62, Rule::adafactor(), ""),
        Spec { lazy_rows: true, ..spec(63, Rule::sgdm(0.9), ", lazy rows") },
        Spec { rate_factors: columns(), ..narrow(spec(64, Rule::adamw(), ", factors of columns")) },
        Spec { lazy_rows: true, rate_factors: columns(), ..narrow(spec(65, Rule::lion(), ", both")) },
    ];
    let steps = (0..STEPS).map(|step| {
        let mut gradients = noise(&specs, 90 + step as u64);
        let all_shapes = specs.iter().flat_map(Spec::all_shapes);
        for (gradient, shape) in gradients.iter_mut().zip(all_shapes) {
            // One of three rows has no gradient.
            for (row, values) in gradient.chunks_mut(shape[1]).enumerate() {
                if (row + step) % 3 == 0 {
                    values.fill(0.0);
                }
            }
        }
        gradients
    });
    case(gpu, &format!("{name}, rows and matrices"), &specs, Form::default(), steps, kernels)
}

/// Averages, decay, clip, schedules, trust ratios and telemetry.
fn case_of_settings(gpu: &Gpu, name: &str, kernels: &mut Kernels) -> Outcome<Value> {
    let spec = |seed, rule, title: &str| {
        Spec::new(rule, Regime::seesaw(), tensors(seed, &some_lengths(gpu))).named(title.to_owned())
    };
    let table = Schedule::Table { factors: [1.0, 0.5, 0.25].into(), every: 2 };
    let specs = [
        Spec { averaging: Averaging::polynomial_decay(), ..spec(71, Rule::adamw(), "averages") },
        Spec { averaging: Averaging::ScheduleFree, ..spec(72, Rule::sgd(), "schedule-free") },
        Spec { decay: WeightDecay::Decoupled(0.1), clip: 1.0, ..spec(73, Rule::lion(), "decay, clip") },
        Spec { decay: WeightDecay::Coupled(0.1), maximize: true, ..spec(74, Rule::sgdm(0.9), "climbing, decay") },
        Spec { schedule: table, ..spec(75, Rule::sgd(), "a table as schedule") },
        Spec { trust: Some(0.02), telemetry: true, ..spec(76, Rule::sgd(), "trust ratio") },
    ];
    let steps = (0..STEPS).map(|step| noise(&specs, 100 + step as u64));
    case(gpu, &format!("{name}, settings"), &specs, Form::default(), steps, kernels)
}

/// Groups with a fixed rate whose gradients are not measured, beside one that needs its norm.
fn case_of_unchecked(gpu: &Gpu, name: &str, kernels: &mut Kernels) -> Outcome<Value> {
    let spec = |(seed, rule): (u64, Rule), regime: Regime| {
        let title = format!("{}, {}", rule.name(), regime.name());
        Spec::new(rule, regime, tensors(seed, &some_lengths(gpu))).named(title)
    };
    let unchecked = (110..).zip([Rule::sgd(), Rule::sgdm(0.9), Rule::adamw(), Rule::lion()]);
    let mut specs: Vec<Spec> = unchecked.map(|rule| spec(rule, Regime::fixed(0.01))).collect();
    specs.push(spec((120, Rule::sgd()), Regime::seesaw()));
    let steps = (0..STEPS).map(|step| noise(&specs, 130 + step as u64));
    let setup = Setup { policy: NonFinitePolicy::Unchecked, ..Setup::default() };
    case(gpu, &format!("{name}, unchecked"), &specs, Form { setup, ..Form::default() }, steps, kernels)
}

/// Rules with 8-bit state whose moments are not rounded in f32, so that every path finds the same codes.
fn case_of_codes(gpu: &Gpu, name: &str, kernels: &mut Kernels) -> Outcome<Value> {
    let rules = [
        Rule::sgdm(0.5),
        Rule::AdamW(AdamW { beta1: 0.5, beta2: 0.5, ..AdamW::default() }),
        Rule::NAdamW(NAdamW { beta1: 0.5, beta2: 0.5, ..NAdamW::default() }),
        Rule::RmsProp(RmsProp { alpha: 0.5, ..RmsProp::default() }),
    ];
    let specs = rules.map(|rule| {
        let spec = Spec::new(rule, Regime::fixed(2f32.powi(-12)), tensors(140, &some_lengths(gpu)));
        Spec { state: State::Bits8, ..spec.named(rule.name()) }
    });
    let steps = (0..STEPS).map(|step| dyadic(&specs, 150 + step as u64));
    case(gpu, &format!("{name}, 8-bit state"), &specs, Form::default(), steps, kernels)
}

/// Gradients that are multiples of a quarter.
fn dyadic(specs: &[Spec], seed: u64) -> Vec<Vec<f32>> {
    let mut gradients = noise(specs, seed);
    gradients.iter_mut().flatten().for_each(|x| *x = (8.0 * *x).round() / 4.0);
    gradients
}

/// More than half of what f32 can hold.
const HUGE: f32 = 2.5e38;

/// Steps of which every second has one NaN or infinity in one gradient, or makes a sum that f32 cannot hold, so that it must leave no trace. A
/// driver that compiles floats as if there were none of either (Metal's fast math) has to see them all the same. `full` is with a loss scale and
/// with micro-batches.
pub fn case_of_nonfinite(gpu: &Gpu, name: &str, full: bool, kernels: &mut Kernels) -> Outcome<Value> {
    let block = gpu.tuning().block_elements() as usize;
    let none = f32::INFINITY;
    // What is measured depends on the rule through its memory alone. The parameters of a huge group overflow when a gradient of their size is
    // added to them.
    let settings = [
        ("sgd", Rule::sgd(), Regime::seesaw(), 0.0, none),
        ("sgdm", Rule::sgdm(0.9), Regime::seesaw(), 0.0, none),
        ("adamw", Rule::adamw(), Regime::seesaw(), 0.0, none),
        ("decay", Rule::sgd(), Regime::seesaw(), 0.1, none),
        ("huge, decay", Rule::sgd(), Regime::fixed(2f32.powi(-40)), 1.0, none),
        ("sgdm, decay, clip", Rule::sgdm(0.9), Regime::norm_ratio(), 0.1, 1.0),
        ("sgd, clip", Rule::sgd(), Regime::norm_ratio(), 0.0, 1.0),
        ("secant", Rule::sgd(), Regime::adgd(), 0.0, none),
        ("distance", Rule::sgd(), Regime::dowg(), 0.0, none),
    ];
    let mut numbers = Numbers(11);
    let mut specs = Vec::new();
    for (name, rule, regime, decay, clip) in settings {
        let huge = name.starts_with("huge");
        // More than a block where no memory is measured with it, and where something overflows.
        let longest = if specs.is_empty() || huge { block + 1 } else { 34 };
        let size = |w: f32| if huge { HUGE.copysign(w) } else { w };
        let tensors = [1, 5, longest].map(|length| numbers.vec(length).into_iter().map(size).collect());
        let decay = WeightDecay::Coupled(decay);
        specs.push(Spec { decay, clip, ..Spec::new(rule, regime, tensors.into()).named(name) });
    }
    let first: Vec<&Vec<f32>> = specs.iter().flat_map(|spec| &spec.tensors).collect();
    // Each tensor once, at its end or its beginning.
    let steps = (0..2 * first.len()).map(|bad| {
        let mut numbers = Numbers(12 + bad as u64);
        let mut gradients: Vec<Vec<f32>> = first.iter().map(|tensor| numbers.vec(tensor.len())).collect();
        if bad % 2 == 0 {
            let tensor = bad / 2;
            let element = if tensor % 2 == 0 { first[tensor].len() - 1 } else { 0 };
            let w = first[tensor][element];
            gradients[tensor][element] = if w.abs() == HUGE {
                // Of micro-batches that is the sum.
                let largest = if full { f32::MAX } else { HUGE };
                largest.copysign(w)
            } else {
                f32::from_bits(NOT_FINITE[tensor % NOT_FINITE.len()])
            };
        }
        gradients
    });
    let mut form = Form { words: true, ..Form::default() };
    let mut title = format!("{name}, not finite");
    if full {
        title += ", loss scale";
        form.setup = Setup { scaler: Some(LossScaler::default()), micro_batches: Some(2), ..Setup::default() };
    }
    case(gpu, &title, &specs, form, steps, kernels)
}

/// Parameters and gradients of 16 bits and steps that f32 has no rounding for, of which every bit must be the CPU path's.
fn case_of_halves(gpu: &Gpu, name: &str, kernels: &mut Kernels) -> Outcome<Value> {
    let block = gpu.tuning().block_elements() as usize;
    let lengths = [1, 2, 3, 4, 5, 31, 33, block - 1, block, block + 1];
    let mut specs = Vec::new();
    for element in [Element::F16, Element::Bf16] {
        for rounding in [Rounding::Masters, Rounding::Nearest, Rounding::Stochastic { seed: 1 }] {
            let tensors = tensors(1 + specs.len() as u64, &lengths);
            // A step of ¼ is at least a unit of f32 of all that is below 1, and much smaller than a unit of 16 bits.
            let spec = Spec::new(Rule::sgd(), Regime::fixed(2f32.powi(-12)), tensors);
            let title = format!("{} parameters, rounding {}", element.name(), rounding.name());
            specs.push(spec.named(title).stored(element, element, rounding));
        }
        let masters = specs[specs.len() - 3].clone();
        let title = format!("{}, 24 bits", masters.name);
        specs.push(Spec { state: State::Bits8, ..masters.named(title) });
    }
    let steps = (0..STEPS).map(|step| {
        let mut gradients = dyadic(&specs, 2 + step as u64);
        // Two steps have one gradient that is not finite, and must leave no trace.
        match step {
            2 => gradients[0][0] = f32::NAN,
            4 => *gradients.last_mut().and_then(|tensor| tensor.last_mut()).expect("elements") = f32::INFINITY,
            _ => {}
        }
        gradients
    });
    case(gpu, name, &specs, Form { exact: true, ..Form::default() }, steps, kernels)
}

/// Kernels of 16 bits, as [`compile_everything`]: rules with and without memories, regimes with and without a use for parameters.
pub fn compile_halves(gpu: &Gpu, kernels: &mut Kernels) -> Outcome<()> {
    let values = vec![1.0f32; 1024];
    let (parameters, gradients) = (upload(gpu, &values), upload(gpu, &values));
    for (params, grads, rounding, state) in [
        (Element::F16, Element::Bf16, Rounding::Masters, State::F32),
        (Element::Bf16, Element::F16, Rounding::Masters, State::Bits8),
        (Element::Bf16, Element::F16, Rounding::Stochastic { seed: 1 }, State::F32),
        (Element::F32, Element::F16, Rounding::Nearest, State::F32),
    ] {
        let mut builder: OptimizerBuilder<Tensor> =
            OptimizerBuilder::new(Rule::sgd()).rounding(rounding).state(state).micro_batches(2).record_steps(4);
        builder = builder.clear_gradients();
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
    state: State,
    /// Lazy rows, and factors of columns.
    rows: bool,
}

impl Groups {
    const PLAIN: Groups =
        Groups { streams: false, averaging: Averaging::Off, each_with_each: false, state: State::F32, rows: false };

    fn averaged(self, averaging: Averaging) -> Self {
        Groups { averaging, ..self }
    }

    fn compile(self, gpu: &Gpu, tell: &[Tell], kernels: &mut Kernels) -> Outcome<()> {
        // Three past a multiple of four, and no multiple of four, so that there are heads, bodies and tails.
        self.compile_these(gpu, &self.rules_and_regimes(), (3, 9), tell, kernels)
    }

    /// Groups of these rules and regimes, each of one tensor: its first element in the group's place, and its length.
    fn compile_these(
        self,
        gpu: &Gpu,
        rules_and_regimes: &[(Rule, Regime)],
        (first, length): (u64, u64),
        tell: &[Tell],
        kernels: &mut Kernels,
    ) -> Outcome<()> {
        let values = vec![1.0f32; 4096];
        let (parameters, gradients) = (upload(gpu, &values), upload(gpu, &values));
        let loss = upload(gpu, &values);
        let mut builder: OptimizerBuilder<Tensor> =
            OptimizerBuilder::new(Rule::sgd()).averaging(self.averaging).record_steps(4).loss(loss.slice(..4));
        for tell in tell {
            builder = tell(builder);
        }
        let mut count = 0;
        for &(rule, regime) in rules_and_regimes {
            let at = 4 * (first + 20 * count);
            let bytes = at..at + 4 * length;
            let (w, g) = (parameters.slice(bytes.clone()), gradients.slice(bytes));
            let mut group = Group::new(count.to_string()).rule(rule).regime(regime).state(self.state);
            let mut shape = shape_for(&rule, length as usize);
            if self.rows {
                shape = vec![length as usize / 3, 3];
                group = group.lazy_rows(!rule.owns_passes()).rate_factors(RateFactors::Columns([0.5, 1.0, 2.0].into()));
            }
            builder = builder.group(group.shaped_tensor(count.to_string(), &shape, w, g));
            count += 1;
        }
        if count == 0 {
            return Ok(());
        }
        let mut optimizer = builder.build(gpu)?;
        for dispatch in optimizer.dispatches().iter().chain(&optimizer.look_dispatches()) {
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
        let regimes = by_memory(self.streams);
        let mut rules = [Rule::all(), Rule::of_matrices()].concat();
        if self.averaging == Averaging::ScheduleFree {
            rules.push(Rule::adamw_without_momentum());
        }
        let mut all = Vec::new();
        let fits = |rule: &Rule| self.averaging.fits(rule) && (self.state == State::F32 || rule.fits_8_bits());
        for rule in rules.into_iter().filter(fits) {
            let usual = [Rule::sgd(), Rule::adamw()].contains(&rule);
            for (number, &regime) in regimes.iter().enumerate() {
                let fits = regime.fits(&rule) && regime.fits_averaging(&self.averaging);
                let remembers = regime.needs_last_gradient() || regime.needs_estimate() || regime.needs_displacement();
                let fits = fits && !(self.rows && remembers);
                if fits && (self.each_with_each || usual || number == 0) {
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
    let without_streams: [Tell; 4] = [
        |builder| builder.weight_decay(0.1),
        |builder| builder.loss_scaler(LossScaler::default()),
        |builder| builder.schedule(Schedule::Step { every: 10, factor: 0.5 }),
        |builder| builder.schedule(Schedule::Table { factors: [1.0, 0.5].into(), every: 10 }),
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
    Groups { rows: true, ..plain }.compile(gpu, &[], kernels)?;
    Groups { state: State::Bits8, ..plain }.compile(gpu, &[], kernels)?;
    plain.averaged(Averaging::polynomial_decay()).compile(gpu, &[], kernels)?;
    let full = [without_streams[0], without_streams[1], with_streams[2]];
    plain.averaged(Averaging::ScheduleFree).compile(gpu, &full, kernels)
}

/// Kernels of steps in one dispatch: an optimizer for each rule and regime, plain and with settings.
pub fn compile_whole_steps(gpu: &Gpu, kernels: &mut Kernels) -> Outcome<()> {
    let many: Tell = |builder| {
        let builder = builder.weight_decay(0.1).loss_scaler(LossScaler::default()).clip_norm(1.0);
        builder.schedule(Schedule::Table { factors: [1.0, 0.5].into(), every: 10 })
    };
    for streams in [false, true] {
        let groups = Groups { streams, ..Groups::PLAIN };
        for pair in groups.rules_and_regimes().iter().filter(|(rule, _)| !rule.owns_passes()) {
            groups.compile_these(gpu, &[*pair], (0, 8), &[], kernels)?;
            groups.compile_these(gpu, &[*pair], (3, 9), &[many], kernels)?;
        }
    }
    Ok(())
}

/// Kernels of zeroth-order optimizers.
pub fn compile_zeroth_order(gpu: &Gpu, kernels: &mut Kernels) -> Outcome<()> {
    let buffer = upload(gpu, &[0.0; 64]);
    for method in [ZerothOrderMethod::mezo(), ZerothOrderMethod::lozo(), ZerothOrderMethod::lozo_m()] {
        for regime in [Regime::fixed(0.1), Regime::norm_ratio()] {
            let builder = ZerothOrderBuilder::new(method, regime);
            let builder = builder.shaped_tensor("w", &[4, 4], buffer.slice(..64));
            let optimizer = builder.tensor("b", buffer.slice(64..96)).build(gpu, buffer.slice(96..100))?;
            for dispatch in optimizer.dispatches() {
                kernels.of(dispatch);
            }
        }
    }
    Ok(())
}

/// One regime for each kind of memory.
fn by_memory(streams: bool) -> Vec<Regime> {
    if streams {
        return vec![Regime::auto_sgd()];
    }
    let others = [Regime::seesaw(), Regime::norm_ratio(), Regime::adgd(), Regime::dowg(), Regime::polyak()];
    let looks = Regime::Curvature(Curvature::new(CurvatureForm::Long));
    [&others[..], &[Regime::prodigy(), Regime::mechanic(), looks, Regime::schedule_free_plus()]].concat()
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
        let (parameters, gradients) = (upload(&gpu, &values), upload(&gpu, &values));
        let optimizer = OptimizerBuilder::new(rule)
            .regime(regime)
            .record_steps(16)
            .group(Group::new("all").tensor("w", parameters.slice(..), gradients.slice(..)))
            .build(&gpu)?;
        let mut recording = Recording { gpu: gpu.clone(), buffers: Vec::new() };
        rows.push(json!({
            "name": name,
            "bytes": bytes,
            "dispatches": recording.dispatches(optimizer.dispatches(), kernels),
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
                "kernel": kernels.place(&source, vec![vec![(0, "storage"), (1, "read-only-storage")]]),
                "groups": [[[0, 0, 0, bytes], [1, 1, 0, bytes]]],
                "workgroups": blocks,
            }],
        }),
    );
    Ok(json!({ "elements": MANY, "rows": rows }))
}
