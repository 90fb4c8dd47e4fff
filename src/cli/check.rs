//! `wgpu-optim check`: is this device's arithmetic right? Every rule and regime, over lengths around the kernels' boundaries,
//! against the CPU path and an f64 oracle.

mod oracle;

use serde::Serialize;
use wgpu_optim::gpu::Tensor;
use wgpu_optim::{
    CpuOptimizer, Gpu, GpuOptions, Group, Optimizer, OptimizerBuilder, Record, Regime, Rule, wgpu,
};

use crate::CliError;
use crate::table::Columns;
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

/// Steps of each case.
const STEPS: usize = 8;

/// Distance allowed from the oracle, relative to the largest parameter, and in ln η. Each step rounds every element a few times
/// to 2^-24, and sums of up to 2^15 elements lose a few bits in f32; a wrong kernel is off by more than 1e-2.
const TOLERANCE: f64 = 2e-5;

/// One rule and regime on one adapter, over all lengths.
#[derive(Debug, Serialize)]
struct Case {
    adapter: String,
    rule: &'static str,
    regime: &'static str,
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
        for rule in rules() {
            for regime in regimes() {
                cases.push(check(gpu, rule, regime)?);
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
        println!("{}", serde_json::json!(report));
    } else {
        print(&report);
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

fn rules() -> [Rule; 5] {
    [
        Rule::sgd(),
        Rule::sgdm(0.9),
        Rule::nesterov(0.9),
        Rule::sign_sgd(),
        Rule::signum(0.9),
    ]
}

fn regimes() -> [Regime; 4] {
    [
        Regime::seesaw(),
        Regime::norm_ratio(),
        Regime::hypergradient(),
        Regime::fixed(0.01),
    ]
}

/// Lengths around every boundary of the kernels: nothing, less than a quad, a quad, a row, a block.
fn lengths(gpu: &Gpu) -> Vec<usize> {
    let block = gpu.tuning().block_elements() as usize;
    vec![
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
    ]
}

fn check(gpu: &Gpu, rule: Rule, regime: Regime) -> Result<Case, CliError> {
    let mut case = Case {
        adapter: gpu.describe(),
        rule: rule.name(),
        regime: regime.name(),
        lengths: 0,
        device_error: 0.0,
        cpu_error: 0.0,
        failed_length: None,
    };
    for length in lengths(gpu) {
        let (device, cpu) = compare(gpu, rule, regime, length)?;
        case.lengths += 1;
        case.device_error = case.device_error.max(device);
        case.cpu_error = case.cpu_error.max(cpu);
        let good = device <= TOLERANCE && cpu <= TOLERANCE;
        if !good && case.failed_length.is_none() {
            case.failed_length = Some(length);
        }
    }
    Ok(case)
}

/// Runs one case of one length three times over: device, CPU path, oracle. Distances of the first two from the third.
fn compare(gpu: &Gpu, rule: Rule, regime: Regime, length: usize) -> Result<(f64, f64), CliError> {
    let initial: Vec<f32> = (0..length).map(|i| pseudo_random(i, 0)).collect();
    let mut oracle = Oracle::new(rule, regime, &initial);
    let mut host = HostRun::new(rule, regime, &initial)?;
    let mut device = DeviceRun::new(gpu, rule, regime, &initial)?;
    let (mut device_error, mut cpu_error) = (0f64, 0f64);
    for step in 1..=STEPS {
        // The same gradients for all three, so that errors do not feed back through them.
        let gradient: Vec<f32> = (0..length)
            .map(|i| 0.5 * pseudo_random(i, 0) + pseudo_random(i, step))
            .collect();
        let expected = oracle.step(&gradient);
        let device_record = device.step(&gradient)?;
        let host_record = host.step(&gradient)?;
        device_error = device_error.max(rate_error(&device_record, expected.rate));
        cpu_error = cpu_error.max(rate_error(&host_record, expected.rate));
    }
    device_error = device_error.max(parameter_error(&device.parameters()?, &oracle.w));
    cpu_error = cpu_error.max(parameter_error(&host.parameters, &oracle.w));
    Ok((device_error, cpu_error))
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
    parameters: Vec<f32>,
}

impl HostRun {
    fn new(rule: Rule, regime: Regime, initial: &[f32]) -> Result<Self, CliError> {
        Ok(HostRun {
            optimizer: OptimizerBuilder::new(rule)
                .regime(regime)
                .group(Group::new("case").tensor("case", initial, initial))
                .build_cpu()?,
            parameters: initial.to_vec(),
        })
    }

    fn step(&mut self, gradient: &[f32]) -> Result<Record, CliError> {
        self.optimizer
            .step(&mut [&mut self.parameters], &[gradient])?;
        only(self.optimizer.drain_records().records)
    }
}

struct DeviceRun<'a> {
    gpu: &'a Gpu,
    optimizer: Optimizer,
    parameters: wgpu::Buffer,
    gradients: wgpu::Buffer,
    length: usize,
}

impl<'a> DeviceRun<'a> {
    fn new(gpu: &'a Gpu, rule: Rule, regime: Regime, initial: &[f32]) -> Result<Self, CliError> {
        let buffer = |label| {
            gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: (initial.len().max(4) * 4) as u64,
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_DST
                    | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        };
        let (parameters, gradients) = (buffer("parameters"), buffer("gradients"));
        gpu.queue()
            .write_buffer(&parameters, 0, bytemuck::cast_slice(initial));
        let bytes = 0..(initial.len() * 4) as u64;
        let group: Group<Tensor> = Group::new("case").tensor(
            "case",
            parameters.slice(bytes.clone()),
            gradients.slice(bytes),
        );
        Ok(DeviceRun {
            gpu,
            optimizer: OptimizerBuilder::new(rule)
                .regime(regime)
                .group(group)
                .build(gpu)?,
            parameters,
            gradients,
            length: initial.len(),
        })
    }

    fn step(&mut self, gradient: &[f32]) -> Result<Record, CliError> {
        let queue = self.gpu.queue();
        queue.write_buffer(&self.gradients, 0, bytemuck::cast_slice(gradient));
        let mut encoder = self
            .gpu
            .device()
            .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        self.optimizer.encode_step(&mut encoder)?;
        queue.submit([encoder.finish()]);
        only(pollster::block_on(self.optimizer.drain_records())?.records)
    }

    fn parameters(&self) -> Result<Vec<f32>, CliError> {
        let mut values =
            pollster::block_on(self.gpu.read_buffer::<f32>("parameters", &self.parameters))?;
        values.truncate(self.length);
        Ok(values)
    }
}

/// The record of a step: one step of one group leaves one.
fn only(records: Vec<Record>) -> Result<Record, CliError> {
    match records.as_slice() {
        [record] => Ok(*record),
        _ => Err(wgpu_optim::Error::Readback {
            what: "records",
            message: format!("one step of one group left {} records", records.len()),
        }
        .into()),
    }
}

fn print(report: &Report) {
    let mut table = Columns::new(
        [
            "rule",
            "regime",
            "",
            "lengths",
            "device against f64",
            "CPU path against f64",
        ],
        3,
    );
    let mut adapter = "";
    for case in &report.cases {
        if case.adapter != adapter {
            adapter = &case.adapter;
            table.row([adapter, "", "", "", "", ""].map(str::to_owned));
        }
        table.row([
            case.rule.to_owned(),
            case.regime.to_owned(),
            match case.failed_length {
                None => "ok".to_owned(),
                Some(length) => format!("FAILED at length {length}"),
            },
            case.lengths.to_string(),
            format!("{:.1e}", case.device_error),
            format!("{:.1e}", case.cpu_error),
        ]);
    }
    table.print();
    println!(
        "largest distance of parameters (relative to the largest) and of ln(lr); {:.0e} is allowed",
        report.tolerance
    );
}
