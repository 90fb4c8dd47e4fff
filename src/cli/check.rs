//! `wgpu-optim check`: is this device's arithmetic right? Every rule and regime, and every average, over lengths around the kernels'
//! boundaries, against the CPU path and an f64 oracle.

mod oracle;

use serde::Serialize;
use wgpu_optim::gpu::{Partials, Tensor, Tuning, TuningCache};
use wgpu_optim::{
    AutoSgd, Averaging, CpuOptimizer, DoG, DoWG, Gpu, GpuOptions, Group, Optimizer,
    OptimizerBuilder, Record, Regime, Rule, SecantForm, StepMode, cpu, wgpu,
};

use crate::CliError;
use crate::table::{Columns, say};
use crate::target::size_in_words;
use oracle::Oracle;

/// Options of `check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Part of the name of the adapters to check; all of them without it
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// Steps of each case, but for [`steps`].
const STEPS: usize = 8;

/// Elements of the longest case.
const LONGEST: usize = 1 << 20;

/// Distance allowed from the oracle, relative to the largest parameter, and in ln η. Each step rounds every element a few times
/// to 2^-24, and sums of up to 2^15 elements lose a few bits in f32; a wrong kernel is off by more than 1e-2.
const TOLERANCE: f64 = 2e-5;

/// One rule, regime, mode and average on one adapter, over all lengths.
#[derive(Debug, Serialize)]
struct Case {
    adapter: String,
    /// Where its geometry comes from: the preset, the preset with subgroups, the cache.
    tuning: String,
    rule: &'static str,
    regime: &'static str,
    mode: &'static str,
    /// What is averaged; the averages are compared then as well as the parameters.
    average: &'static str,
    lengths: usize,
    /// Largest distance of the device from the oracle.
    device_error: f64,
    /// Largest distance of the CPU path from the oracle.
    cpu_error: f64,
    /// The shortest length that fails, if any.
    failed_length: Option<usize>,
}

#[derive(Serialize)]
struct Report {
    tolerance: f64,
    cases: Vec<Case>,
}

/// Checks every adapter.
pub fn run(args: &Args) -> Result<(), CliError> {
    let gpus = adapters(args)?;
    let mut cases = Vec::new();
    for gpu in &gpus {
        for (tuning, gpu) in geometries(gpu)? {
            for rule in rules() {
                for regime in regimes().into_iter().filter(|regime| regime.fits(&rule)) {
                    for mode in modes(regime) {
                        let subject = Subject::new(rule, regime, mode, Averaging::Off);
                        cases.push(check(&gpu, &tuning, subject)?);
                    }
                }
            }
            for averaging in averagings() {
                for rule in [Rule::sgd(), Rule::sgdm(0.9)] {
                    for mode in modes(Regime::seesaw()) {
                        let subject = Subject::new(rule, Regime::seesaw(), mode, averaging);
                        cases.push(check(&gpu, &tuning, subject)?);
                    }
                }
            }
        }
    }
    let failures = cases
        .iter()
        .filter(|case| case.failed_length.is_some())
        .count();
    let count = cases.len();
    let report = Report {
        tolerance: TOLERANCE,
        cases,
    };
    if args.json {
        say(serde_json::json!(report))?;
    } else {
        print(&report)?;
    }
    if failures > 0 {
        return Err(CliError::CheckFailed {
            failures,
            cases: count,
        });
    }
    Ok(())
}

fn adapters(args: &Args) -> Result<Vec<Gpu>, CliError> {
    let adapters = pollster::block_on(Gpu::adapters(None));
    let wanted = args.adapter.as_deref().unwrap_or_default().to_lowercase();
    let chosen: Vec<&wgpu::Adapter> = adapters
        .iter()
        .filter(|adapter| adapter.get_info().name.to_lowercase().contains(&wanted))
        .collect();
    if chosen.is_empty() {
        // Says which adapters there are, or that there is none.
        pollster::block_on(Gpu::request(&GpuOptions {
            adapter_name: args.adapter.clone(),
            allow_software: true,
            ..GpuOptions::default()
        }))?;
    }
    chosen
        .into_iter()
        .map(|adapter| Ok(pollster::block_on(Gpu::open(adapter))?))
        .collect()
}

/// The adapter in its preset, with sums by subgroup where it can and the preset does not, and as it was tuned.
fn geometries(gpu: &Gpu) -> Result<Vec<(String, Gpu)>, CliError> {
    let preset = gpu.tuning();
    let mut tunings = vec![("preset".to_owned(), preset)];
    if Partials::Subgroup.is_supported(gpu.device().features()) {
        let subgroup = Tuning {
            partials: Partials::Subgroup,
            ..preset
        };
        tunings.push(("preset, but by subgroup".to_owned(), subgroup));
    }
    for (elements, tuning) in TuningCache::from_env()
        .map(|cache| cache.entries(gpu))
        .unwrap_or_default()
    {
        let size = size_in_words(elements);
        tunings.push((format!("cached for {size}"), tuning));
    }
    let mut seen = Vec::new();
    let mut gpus = Vec::new();
    for (name, tuning) in tunings {
        if !seen.contains(&tuning) {
            seen.push(tuning);
            gpus.push((name, gpu.clone().with_tuning(tuning)?));
        }
    }
    Ok(gpus)
}

fn rules() -> [Rule; 5] {
    [
        Rule::sgd(),
        Rule::sgdm(0.9),
        Rule::nesterov(0.9),
        Rule::sign_sgd(),
        Rule::signum(0.9),
    ]
}

fn regimes() -> Vec<Regime> {
    vec![
        Regime::seesaw(),
        Regime::norm_ratio(),
        Regime::hypergradient(),
        Regime::fixed(0.01),
        Regime::adagrad_norm(),
        Regime::barzilai_borwein(SecantForm::Long),
        Regime::barzilai_borwein(SecantForm::Short),
        Regime::barzilai_borwein(SecantForm::Geometric),
        Regime::adgd(),
        // Steps of the usual 1e-6 are so small beside the parameters that their rounding shows.
        Regime::DoG(DoG {
            initial_distance: 1e-2,
        }),
        Regime::DoWG(DoWG {
            initial_distance: 1e-2,
        }),
        Regime::polyak(),
        Regime::ngn(),
        Regime::gated_distance(),
        // Some stream wins after five rounds.
        Regime::AutoSgd(AutoSgd {
            rounds: 4,
            ..AutoSgd::default()
        }),
    ]
}

/// Steps of a case: GatedDistance only runs after an ignition, and begins its third window 48 steps later. An episode of streams takes
/// fifteen, and the first after it tells how it ended.
fn steps(regime: Regime) -> usize {
    if regime.needs_sketch() {
        8 * STEPS
    } else if regime.needs_streams() {
        18
    } else {
        STEPS
    }
}

/// The modes that the regime can be had in.
fn modes(regime: Regime) -> Vec<StepMode> {
    let mut modes = vec![StepMode::TwoPass];
    if regime.fits_lagged_steps() {
        modes.push(StepMode::Lagged);
    }
    modes
}

/// Averages that start at the first step, and after it.
fn averagings() -> [Averaging; 3] {
    [
        Averaging::Running { start: 0 },
        Averaging::Exponential {
            decay: 0.75,
            start: 2,
        },
        Averaging::PolynomialDecay { eta: 8.0, start: 1 },
    ]
}

/// The loss of a step: it falls, with some noise, and ends below the smallest loss there can be.
fn loss_of(step: usize) -> f32 {
    if step == STEPS {
        -0.5
    } else {
        (3.0 + pseudo_random(0, step)) / step as f32
    }
}

/// Lengths around every boundary of the kernels: nothing, less than a quad, a quad, a row, a block.
fn lengths(gpu: &Gpu) -> Vec<usize> {
    let block = gpu.tuning().block_elements() as usize;
    let mut lengths = vec![
        0,
        1,
        3,
        4,
        5,
        31,
        33,
        block - 1,
        block,
        block + 1,
        3 * block + 2,
    ];
    // A cached geometry may have blocks that the oracle would take minutes for: what there is of them is one block.
    for length in &mut lengths {
        *length = (*length).min(LONGEST);
    }
    lengths
}

/// What a case is about.
#[derive(Debug, Clone, Copy)]
struct Subject {
    rule: Rule,
    regime: Regime,
    mode: StepMode,
    averaging: Averaging,
}

impl Subject {
    fn new(rule: Rule, regime: Regime, mode: StepMode, averaging: Averaging) -> Self {
        Subject {
            rule,
            regime,
            mode,
            averaging,
        }
    }

    fn builder<T>(self) -> OptimizerBuilder<T> {
        OptimizerBuilder::new(self.rule)
            .regime(self.regime)
            .step_mode(self.mode)
            .averaging(self.averaging)
    }

    fn oracle(self, w: &[f32]) -> Oracle {
        let mut oracle = Oracle::new(self.rule, self.regime, w);
        oracle.averaging = self.averaging;
        oracle
    }
}

/// Runs one subject three times over, on device, CPU path and oracle, with one group per length, side by side.
fn check(gpu: &Gpu, tuning: &str, subject: Subject) -> Result<Case, CliError> {
    let lengths = lengths(gpu);
    let initial: Vec<Vec<f32>> = lengths.iter().map(|&length| values(length, 0)).collect();
    let mut oracles: Vec<Oracle> = initial.iter().map(|w| subject.oracle(w)).collect();
    let mut host = HostRun::new(subject.builder(), &initial)?;
    let mut device = DeviceRun::new(gpu, subject.builder(), &initial)?;
    let mut device_errors = vec![0f64; lengths.len()];
    let mut cpu_errors = vec![0f64; lengths.len()];
    for step in 1..=steps(subject.regime) {
        // The same gradients for all three, so that errors do not feed back through them.
        let gradients: Vec<Vec<f32>> = lengths
            .iter()
            .map(|&length| {
                let pull = values(length, 0);
                let noise = values(length, step);
                pull.iter().zip(&noise).map(|(a, b)| 0.5 * a + b).collect()
            })
            .collect();
        let expected: Vec<f64> = oracles
            .iter_mut()
            .zip(&gradients)
            .map(|(oracle, gradient)| {
                oracle.loss = f64::from(loss_of(step));
                oracle.step_in(subject.mode, gradient).rate
            })
            .collect();
        let on_device = device.step(&gradients, loss_of(step))?;
        let on_host = host.step(&gradients, loss_of(step))?;
        for group in 0..lengths.len() {
            device_errors[group] =
                device_errors[group].max(rate_error(&on_device[group], expected[group]));
            cpu_errors[group] = cpu_errors[group].max(rate_error(&on_host[group], expected[group]));
        }
    }
    let mut compare = |on_device: &[f32], on_host: &[Vec<f32>], expected: &[&[f64]]| {
        let mut start = 0;
        for (group, expected) in expected.iter().enumerate() {
            let end = start + lengths[group];
            let error = parameter_error(&on_device[start..end], expected);
            device_errors[group] = device_errors[group].max(error);
            let error = parameter_error(&on_host[group], expected);
            cpu_errors[group] = cpu_errors[group].max(error);
            start = end;
        }
    };
    let parameters: Vec<&[f64]> = oracles.iter().map(|oracle| oracle.w.as_slice()).collect();
    compare(&device.parameters()?, &host.parameters, &parameters);
    let averages: Option<Vec<&[f64]>> = oracles
        .iter()
        .map(|oracle| oracle.average.as_deref())
        .collect();
    if let Some(averages) = averages {
        device.swap_averages()?;
        host.swap_averages()?;
        compare(&device.parameters()?, &host.parameters, &averages);
    }
    let failed = (0..lengths.len())
        .find(|&group| !(device_errors[group] <= TOLERANCE && cpu_errors[group] <= TOLERANCE));
    Ok(Case {
        adapter: gpu.describe(),
        tuning: tuning.to_owned(),
        rule: subject.rule.name(),
        regime: subject.regime.name(),
        mode: subject.mode.name(),
        average: subject.averaging.name(),
        lengths: lengths.len(),
        device_error: device_errors.iter().copied().fold(0.0, f64::max),
        cpu_error: cpu_errors.iter().copied().fold(0.0, f64::max),
        failed_length: failed.map(|group| lengths[group]),
    })
}

fn values(length: usize, step: usize) -> Vec<f32> {
    (0..length).map(|i| pseudo_random(i, step)).collect()
}

/// Uniform in [-1, 1): a hash of the element and the step.
fn pseudo_random(element: usize, step: usize) -> f32 {
    let mut x = (element as u64) << 20 | step as u64;
    for _ in 0..2 {
        x = (x ^ (x >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    (x >> 40) as f32 / 8_388_608.0 - 1.0
}

fn rate_error(record: &Record, expected: f64) -> f64 {
    let got = f64::from(record.learning_rate);
    if got == expected {
        return 0.0;
    }
    let error = (got / expected).ln().abs();
    if error.is_nan() { f64::INFINITY } else { error }
}

fn parameter_error(got: &[f32], expected: &[f64]) -> f64 {
    let largest = expected
        .iter()
        .fold(f64::MIN_POSITIVE, |a, b| a.max(b.abs()));
    got.iter()
        .zip(expected)
        .map(|(got, expected)| (f64::from(*got) - expected).abs() / largest)
        .fold(
            0.0,
            |a, b| if b.is_nan() { f64::INFINITY } else { b.max(a) },
        )
}

struct HostRun {
    optimizer: CpuOptimizer,
    parameters: Vec<Vec<f32>>,
}

impl HostRun {
    fn new(
        mut builder: OptimizerBuilder<cpu::Tensor>,
        initial: &[Vec<f32>],
    ) -> Result<Self, CliError> {
        for (index, values) in initial.iter().enumerate() {
            let name = index.to_string();
            builder = builder.group(Group::new(&name).tensor(&name, values, values));
        }
        Ok(HostRun {
            optimizer: builder.build_cpu()?,
            parameters: initial.to_vec(),
        })
    }

    fn step(&mut self, gradients: &[Vec<f32>], loss: f32) -> Result<Vec<Record>, CliError> {
        let groups = gradients.len();
        let mut parameters: Vec<&mut [f32]> =
            self.parameters.iter_mut().map(Vec::as_mut_slice).collect();
        if self.optimizer.step_mode() == StepMode::Lagged {
            let mut gradients = gradients.to_vec();
            let mut gradients: Vec<&mut [f32]> =
                gradients.iter_mut().map(Vec::as_mut_slice).collect();
            self.optimizer
                .step_lagged(&mut parameters, &mut gradients)?;
            self.parameters = parameters.iter().map(|tensor| tensor.to_vec()).collect();
        } else {
            let gradients: Vec<&[f32]> = gradients.iter().map(Vec::as_slice).collect();
            self.optimizer
                .step_with_loss(&mut parameters, &gradients, loss)?;
        }
        one_each(self.optimizer.drain_records().records, groups)
    }

    fn swap_averages(&mut self) -> Result<(), CliError> {
        let mut parameters: Vec<&mut [f32]> =
            self.parameters.iter_mut().map(Vec::as_mut_slice).collect();
        Ok(self.optimizer.swap_averages(&mut parameters)?)
    }
}

/// All tensors packed into one buffer, so that most of them start and end at odd places.
struct DeviceRun<'a> {
    gpu: &'a Gpu,
    optimizer: Optimizer,
    parameters: wgpu::Buffer,
    gradients: wgpu::Buffer,
    loss: wgpu::Buffer,
}

/// Where in its buffer the loss is: not where a binding may start.
const LOSS_OFFSET: u64 = 36;

impl<'a> DeviceRun<'a> {
    fn new(
        gpu: &'a Gpu,
        mut builder: OptimizerBuilder<Tensor>,
        initial: &[Vec<f32>],
    ) -> Result<Self, CliError> {
        let packed = initial.concat();
        let [parameters, gradients] = ["parameters", "gradients"].map(|label| {
            gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: (packed.len().max(4) * 4) as u64,
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_DST
                    | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        });
        gpu.queue()
            .write_buffer(&parameters, 0, bytemuck::cast_slice(&packed));
        let loss = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("loss"),
            size: 64,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        builder = builder.loss(loss.slice(LOSS_OFFSET..LOSS_OFFSET + 4));
        let mut start = 0;
        for (index, values) in initial.iter().enumerate() {
            let bytes = start..start + 4 * values.len() as u64;
            start = bytes.end;
            let name = index.to_string();
            builder = builder.group(Group::new(&name).tensor(
                &name,
                parameters.slice(bytes.clone()),
                gradients.slice(bytes),
            ));
        }
        Ok(DeviceRun {
            gpu,
            optimizer: builder.build(gpu)?,
            parameters,
            gradients,
            loss,
        })
    }

    fn step(&mut self, gradients: &[Vec<f32>], loss: f32) -> Result<Vec<Record>, CliError> {
        let queue = self.gpu.queue();
        queue.write_buffer(&self.loss, LOSS_OFFSET, bytemuck::bytes_of(&loss));
        queue.write_buffer(
            self.places()[1],
            0,
            bytemuck::cast_slice(&gradients.concat()),
        );
        let mut encoder = self
            .gpu
            .device()
            .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        self.optimizer.encode_step(&mut encoder)?;
        queue.submit([encoder.finish()]);
        let records = pollster::block_on(self.optimizer.drain_records())?.records;
        one_each(records, gradients.len())
    }

    fn swap_averages(&self) -> Result<(), CliError> {
        let mut encoder = self
            .gpu
            .device()
            .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        self.optimizer.encode_swap_averages(&mut encoder)?;
        self.gpu.queue().submit([encoder.finish()]);
        Ok(())
    }

    /// Where the parameters and the gradients are now.
    fn places(&self) -> [&wgpu::Buffer; 2] {
        if self.optimizer.roles_are_swapped() {
            [&self.gradients, &self.parameters]
        } else {
            [&self.parameters, &self.gradients]
        }
    }

    fn parameters(&self) -> Result<Vec<f32>, CliError> {
        Ok(pollster::block_on(
            self.gpu.read_buffer("parameters", self.places()[0]),
        )?)
    }
}

/// The records of one step: one per group.
fn one_each(records: Vec<Record>, groups: usize) -> Result<Vec<Record>, CliError> {
    if records.len() == groups {
        return Ok(records);
    }
    Err(wgpu_optim::Error::Readback {
        what: "records",
        message: format!("one step of {groups} groups left {} records", records.len()),
    }
    .into())
}

fn print(report: &Report) -> Result<(), CliError> {
    let mut table = Columns::new(
        [
            "rule",
            "regime",
            "mode",
            "average",
            "",
            "lengths",
            "device against f64",
            "CPU path against f64",
        ],
        5,
    );
    let mut heading = String::new();
    for case in &report.cases {
        let of_case = format!("{}, {}", case.adapter, case.tuning);
        if of_case != heading {
            table.row([of_case.as_str(), "", "", "", "", "", "", ""].map(str::to_owned));
            heading = of_case;
        }
        table.row([
            case.rule.to_owned(),
            case.regime.to_owned(),
            case.mode.to_owned(),
            case.average.to_owned(),
            match case.failed_length {
                None => "ok".to_owned(),
                Some(length) => format!("FAILED at length {length}"),
            },
            case.lengths.to_string(),
            format!("{:.1e}", case.device_error),
            format!("{:.1e}", case.cpu_error),
        ]);
    }
    table.print()?;
    say(format!(
        "largest distance of parameters and averages (relative to the largest) and of ln(lr); {:.0e} is allowed",
        report.tolerance
    ))
}
