//! Tests of long runs: a run of many steps takes no more memory than a short one, its records are complete and do not drift, and changes of ln η that
//! an f32 sum would lose are kept.
//!
//! The test suite runs a short form. `WGPU_OPTIM_SOAK=full cargo test --release --test soak` runs the long one: 1,000,000 steps on the CPU path,
//! 100,000 on every adapter, and 2^24 + 1000 of a small model for the counters.

use std::sync::{Mutex, MutexGuard, PoisonError};

use wgpu_optim::{CpuOptimizer, Gpu, Group, Hypergradient, Optimizer, OptimizerBuilder, Record, Records, Regime, Rule};
use wgpu_optim_conformance::run::devices;
use wgpu_optim_conformance::{Kernel, Numbers, drain, submit, upload};

const LEN: usize = 1001;
/// The number of steps between two drains of the records.
const CHUNK: u64 = 256;
const SEED: u64 = 9;
/// The growth of the resident memory that is allowed, since allocators and drivers keep some more pages.
const SLACK_BYTES: u64 = 6 << 20;

/// Returns a lock that lets one test run at a time, since they share the memory of the process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn full() -> bool {
    match std::env::var("WGPU_OPTIM_SOAK").as_deref() {
        Ok("full") => true,
        Ok(other) => panic!("WGPU_OPTIM_SOAK is {other:?}: give \"full\", or nothing"),
        Err(_) => false,
    }
}

/// Returns the resident bytes of this process, where the system reports them.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(1024 * line.split_whitespace().nth(1)?.parse::<u64>().ok()?)
}

/// Checks the records of a long run.
#[derive(Default)]
struct Ledger {
    next: u64,
    skipped: u32,
    /// ln η so far, from the first rate and the terms.
    sum_of_terms: f64,
    /// The sum of the terms' magnitudes, which bounds their rounding errors.
    magnitude: f64,
    last: f64,
    resident_after_a_tenth: Option<u64>,
}

impl Ledger {
    fn add(&mut self, records: Records, steps: u64) {
        assert_eq!(records.lost_steps, 0);
        for record in &records.records {
            self.add_record(record);
        }
        if self.next >= steps / 10 && self.resident_after_a_tenth.is_none() {
            self.resident_after_a_tenth = resident();
        }
    }

    fn add_record(&mut self, record: &Record) {
        assert_eq!(record.step, self.next, "no step is missing");
        self.next += 1;
        self.skipped += u32::from(record.flags.skipped());
        assert_eq!(record.skipped, self.skipped, "step {}", record.step);
        if record.flags.waiting() {
            return;
        }
        if record.flags.first() {
            self.sum_of_terms = record.ln_rate;
        }
        self.sum_of_terms += record.change();
        let terms = record.terms();
        self.magnitude += terms.map(|(_, term)| f64::from(term.abs())).sum::<f64>();
        // The rate is the exponential of the exact sum at every step.
        let rate = f64::from(record.learning_rate).ln();
        assert!((rate - record.ln_rate).abs() <= 1e-6, "step {}: {rate} is not {}", record.step, record.ln_rate);
        self.last = record.ln_rate;
    }

    fn close(&self, what: &str, steps: u64) {
        assert_eq!(self.next, steps, "{what}");
        // Each term is an f32, with an error of at most half an ulp.
        let allowed = self.magnitude * f64::from(f32::EPSILON) + steps as f64 * 2f64.powi(-32);
        let drift = (self.sum_of_terms - self.last).abs();
        assert!(drift <= allowed, "{what}: the terms add up to {}, and ln η is {}", self.sum_of_terms, self.last);
        if let (Some(before), Some(after)) = (self.resident_after_a_tenth, resident()) {
            assert!(
                after <= before + SLACK_BYTES,
                "{what}: {before} bytes after a tenth of the steps, {after} in the end"
            );
            println!(
                "{what}: {steps} steps, {} skipped, drift {drift:.1e} of {allowed:.1e}, memory {:+} KiB",
                self.skipped,
                (after as i64 - before as i64) / 1024
            );
        }
    }
}

fn curvature(i: usize) -> f32 {
    10f32.powf(-2.0 * i as f32 / LEN as f32)
}

/// The number of steps from one gradient that is not finite to the next.
const BAD_EVERY: u64 = 997;

/// Returns SGD and SGDM on a noisy quadratic.
fn groups() -> [(&'static str, Rule); 2] {
    [("sgd", Rule::sgd()), ("sgdm", Rule::sgdm(0.9))]
}

#[test]
fn the_cpu_path_runs_long() {
    let _alone = alone();
    let steps = if full() { 1_000_000 } else { 30_000 };
    for (name, rule) in groups() {
        let mut w = vec![1.0f32; LEN];
        let mut g = vec![0.0f32; LEN];
        let mut optimizer =
            OptimizerBuilder::new(rule).group(Group::new(name).tensor("w", &w, &g)).build_cpu().expect("builds");
        let curvatures: Vec<f32> = (0..LEN).map(curvature).collect();
        let mut noise = Numbers(SEED);
        let mut ledger = Ledger::default();
        for step in 0..steps {
            for ((g, w), h) in g.iter_mut().zip(&w).zip(&curvatures) {
                *g = h * w + 0.1 * noise.next();
            }
            if step % BAD_EVERY == BAD_EVERY - 1 {
                g[7] = f32::NAN;
            }
            optimizer.step(&mut [&mut w], &[&g]).expect("steps");
            if step % CHUNK == CHUNK - 1 || step == steps - 1 {
                ledger.add(optimizer.drain_records(), steps);
            }
        }
        ledger.close(&format!("CPU path, {name}"), steps);
        assert!(w.iter().all(|w| w.is_finite()));
    }
}

/// The gradient of the same quadratic on the device, with noise from a hash of element and step.
const GRADIENT: &str = "
@group(0) @binding(0) var<storage, read> w: array<f32>;
@group(0) @binding(1) var<storage, read_write> g: array<f32>;
@group(0) @binding(2) var<storage, read_write> step: array<u32>;

fn mixed(x: u32) -> u32 {
    var h = x * 0x9e3779b9u;
    h ^= h >> 16u;
    h *= 0x85ebca6bu;
    h ^= h >> 13u;
    return h;
}

@compute @workgroup_size(1)
fn gradient() {
    let t = step[0];
    step[0] = t + 1u;
    for (var i = 0u; i < LENu; i++) {
        let noise = f32(mixed(mixed(t) + i) >> 8u) / 8388608.0 - 1.0;
        g[i] = exp2(-6.64 * f32(i) / f32(LENu)) * w[i] + 0.1 * noise;
    }
    if t % BAD_EVERYu == BAD_EVERYu - 1u {
        g[7] = bitcast<f32>(0x7fc00000u);
    }
}";

struct OnDevice {
    gpu: Gpu,
    optimizer: Optimizer,
    gradient: Kernel,
}

impl OnDevice {
    fn new(gpu: &Gpu, rule: Rule) -> Self {
        let [w, g, step] = [vec![1.0; LEN], vec![0.0; LEN], vec![0.0; 4]].map(|values| upload(gpu, &values));
        let bytes = ..4 * LEN as u64;
        let optimizer = OptimizerBuilder::new(rule)
            .record_steps(CHUNK as u32)
            .group(Group::new("all").tensor("w", w.slice(bytes), g.slice(bytes)))
            .build(gpu)
            .expect("builds");
        let source = GRADIENT.replace("LENu", &format!("{LEN}u")).replace("BAD_EVERYu", &format!("{BAD_EVERY}u"));
        let gradient = Kernel::new(gpu, &source, &[&w, &g, &step]);
        OnDevice { gpu: gpu.clone(), optimizer, gradient }
    }

    fn submit(&self, steps: u64) {
        submit(&self.gpu, |encoder| {
            for _ in 0..steps {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                self.gradient.dispatch(&mut pass);
                self.optimizer.encode_step_in(&mut pass).expect("alive");
            }
        });
    }
}

#[test]
fn every_adapter_runs_long() {
    let _alone = alone();
    let steps = if full() { 100_000 } else { 3_000 };
    for gpu in &devices() {
        for (name, rule) in groups() {
            let mut device = OnDevice::new(gpu, rule);
            let mut ledger = Ledger::default();
            let mut done = 0;
            while done < steps {
                let chunk = CHUNK.min(steps - done);
                for start in (0..chunk).step_by(16) {
                    device.submit(16.min(chunk - start));
                }
                done += chunk;
                ledger.add(drain(&mut device.optimizer), steps);
            }
            ledger.close(&format!("{}, {name}", gpu.describe()), steps);
        }
    }
}

/// A constant gradient agrees with its past at every step, so that ln η rises by the gain. In f32 such a change of ln η would be rounded away.
#[test]
fn changes_below_the_rounding_of_f32_are_kept() {
    let _alone = alone();
    let steps: u64 = if full() { (1 << 24) + 1000 } else { 200_000 };
    let gain = 2f32.powi(-26);
    let mut w = vec![0.0f32; 4];
    let g = vec![1.0f32; 4];
    let regime = Regime::Hypergradient(Hypergradient { gain, early_steps: 0.0, ..Hypergradient::default() });
    let mut optimizer: CpuOptimizer = OptimizerBuilder::new(Rule::sgd())
        .regime(regime)
        .group(Group::new("all").tensor("w", &w, &g))
        .build_cpu()
        .expect("builds");
    let mut first = f64::NAN;
    let mut last = None;
    for step in 0..steps {
        optimizer.step(&mut [&mut w], &[&g]).expect("steps");
        if step % CHUNK == CHUNK - 1 || step == steps - 1 {
            let records = optimizer.drain_records().records;
            if first.is_nan() {
                first = records[0].ln_rate;
            }
            last = records.last().cloned();
        }
    }
    let last = last.expect("a record");
    assert_eq!(last.step, steps - 1, "beyond 2^24 every step counts");
    let risen = last.ln_rate - first;
    let expected = (steps - 1) as f64 * f64::from(gain);
    assert!((risen - expected).abs() <= 1e-3 * expected, "ln η has risen by {risen}, not {expected}");
    // The sum of the same changes in f32.
    let lost = (1..steps).fold(first as f32, |sum, _| sum + gain);
    assert_eq!(lost, first as f32, "such changes would have been lost");
}
