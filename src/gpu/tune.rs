//! Finds the geometry that does best on this device at this size, by measuring real steps.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::error::{BuildError, DeviceError, Error, ErrorKind, require};
use crate::gpu::context::Gpu;
use crate::gpu::optimizer::Optimizer;
use crate::gpu::timestamps::Timestamps;
use crate::gpu::tuning::{MOST_QUADS_PER_INVOCATION, Partials, Tuning, most_invocations};
use crate::group::{Group, OptimizerBuilder};
use crate::regime::{Hypergradient, NormRatio, Regime, Seesaw};
use crate::rule::Rule;

/// Options of [`Gpu::tune`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TuneOptions {
    /// Number of parameters of the optimizer.
    pub elements: u64,
    /// Rule of the optimizer.
    pub rule: Rule,
    /// Regime of the optimizer. Only its kind matters: its constants are replaced by values that keep the parameters finite.
    pub regime: Regime,
    /// Time to spend, compilation included. A candidate that has begun is finished, and the preset is always measured.
    pub budget: Duration,
}

impl Default for TuneOptions {
    /// A million parameters, momentum 0.9, Seesaw, five seconds.
    fn default() -> Self {
        TuneOptions {
            elements: 1 << 20,
            rule: Rule::sgdm(0.9),
            regime: Regime::seesaw(),
            budget: Duration::from_secs(5),
        }
    }
}

/// Geometry that was measured.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Candidate {
    /// The geometry.
    pub tuning: Tuning,
    /// Nanoseconds per parameter and step; or, in words, why it is out of the question. A machine's speed drifts: each candidate
    /// is measured in turn with the best one so far, and only their ratio counts, so that all figures are on the scale of the
    /// first.
    pub ns_per_param: Result<f64, String>,
}

/// Result of [`Gpu::tune`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TuneReport {
    /// The geometry to use: the preset, unless another is faster by more than the noise.
    pub best: Tuning,
    /// Nanoseconds per parameter and step with it: the preset's, times the median ratio of the alternating rounds.
    pub best_ns_per_param: f64,
    /// The adapter's preset.
    pub preset: Tuning,
    /// Nanoseconds per parameter and step with the preset, in the same alternating rounds; `None` where it failed.
    pub preset_ns_per_param: Option<f64>,
    /// Everything that was tried, in the order of the search. The preset comes first.
    pub candidates: Vec<Candidate>,
    /// True if times are the device's timestamps. Otherwise they are wall-clock times, which include submitting and waiting.
    pub timestamps: bool,
}

impl Gpu {
    /// Measures steps in many geometries on this device and finds the best for an optimizer of this size; hand it to
    /// [`Gpu::with_tuning`], or to a `TuningCache` for the next run.
    ///
    /// Starts from the adapter's preset and a few other points, then changes a number or two at a time for as long as that helps. In
    /// the end the best and the preset are measured alternately, and the preset is kept unless the other wins by more than 3 %. A
    /// geometry that the device refuses, or whose gradient norm comes out wrong, is out.
    ///
    /// Works on buffers of its own: two of 4 bytes per parameter, and what two optimizers need. Blocks, so it is nothing for
    /// browsers. Other work on the device or, with a software driver, on the host makes for noise.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), wgpu_optim::Error> {
    /// use wgpu_optim::gpu::TuneOptions;
    /// use wgpu_optim::{Gpu, GpuOptions};
    ///
    /// let gpu = pollster::block_on(Gpu::request(&GpuOptions::default()))?;
    /// let report = gpu.tune(&TuneOptions { elements: 1 << 22, ..TuneOptions::default() })?;
    /// let gpu = gpu.with_tuning(report.best)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Build`](crate::ErrorKind::Build) or [`ErrorKind::Limit`](crate::ErrorKind::Limit) where no optimizer can have this size or rule, [`ErrorKind::DeviceRefused`](crate::ErrorKind::DeviceRefused) where the
    /// device has no memory for it, [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
    pub fn tune(&self, options: &TuneOptions) -> Result<TuneReport, Error> {
        self.tune_from(Tuning::for_device(self.device()), options)
    }

    fn tune_from(&self, preset: Tuning, options: &TuneOptions) -> Result<TuneReport, Error> {
        let start = Instant::now();
        self.check_alive()?;
        let bench = Bench::new(self, options)?;
        let mut search = Search {
            bench,
            seen: HashMap::new(),
            candidates: Vec::new(),
            best: None,
            ready: None,
            first_error: None,
            // The rest is for the last rounds.
            end: start + options.budget.mul_f64(0.75),
        };
        search.run(preset)?;
        let Some((best, ns)) = search.best else {
            // Nothing else can have gone wrong with every candidate, the preset among them.
            return Err(search.first_error.unwrap_or(Error::from(BuildError::NoGroups)));
        };
        let mut report = TuneReport {
            best,
            best_ns_per_param: ns,
            preset,
            preset_ns_per_param: search.value(preset),
            timestamps: search.bench.clock.is_some(),
            candidates: search.candidates,
        };
        if best != preset && report.preset_ns_per_param.is_some() {
            // Room for two others.
            search.ready = None;
            let end = start + options.budget;
            let rounds = match search.bench.alternate([preset, best], end) {
                Err(error) if is_final(&error) => return Err(error),
                // What cannot be compared cannot win.
                rounds => rounds.unwrap_or_default(),
            };
            let preset_ns = median(rounds.iter().map(|[preset, _]| *preset));
            // Of each round, for what else goes on hits both of a pair alike.
            let ratio = median(rounds.iter().map(|[preset, best]| best / preset));
            let wins = rounds.iter().filter(|[preset, best]| best < preset).count();
            report.preset_ns_per_param = preset_ns.or(report.preset_ns_per_param);
            let preset_ns = report.preset_ns_per_param.unwrap_or(ns);
            match ratio {
                Some(ratio) if ratio < WINS_BELOW && 3 * wins >= 2 * rounds.len() => {
                    report.best_ns_per_param = ratio * preset_ns;
                }
                _ => {
                    report.best = preset;
                    report.best_ns_per_param = preset_ns;
                }
            }
        }
        Ok(report)
    }
}

/// What a geometry must come below, as a share of the preset's time, to be taken instead.
const WINS_BELOW: f64 = 0.97;
/// A step of the search counts as one if it saves this much.
const BETTER_BELOW: f64 = 0.99;
/// Samples of each candidate.
const SAMPLES: usize = 5;
/// Alternating rounds at the end.
const ROUNDS: std::ops::RangeInclusive<usize> = 5..=25;
/// Steps in one submit.
const MOST_STEPS: usize = 256;

/// The search, and what it has seen.
struct Search<'a> {
    bench: Bench<'a>,
    seen: HashMap<Tuning, Option<f64>>,
    candidates: Vec<Candidate>,
    best: Option<(Tuning, f64)>,
    /// The best one's optimizer.
    ready: Option<Ready>,
    first_error: Option<Error>,
    end: Instant,
}

impl Search<'_> {
    fn run(&mut self, preset: Tuning) -> Result<(), Error> {
        self.try_one(preset)?;
        let limits = self.bench.gpu.device().limits();
        let features = self.bench.gpu.device().features();
        let most = most_invocations(&limits);
        let kinds = Partials::ALL.map(|kind| kind.is_supported(features).then_some(kind));
        let widest = if kinds[2].is_some() { Partials::Subgroup } else { Partials::PerWorkgroup };
        // What does well on one kind of device or another, should the preset be in the wrong valley.
        for (workgroup_size, quads_per_invocation, partials) in
            [(256, 4, widest), (64, 16, widest), (8, 256, Partials::PerInvocation)]
        {
            self.try_in_time(Tuning {
                workgroup_size: most.min(workgroup_size),
                quads_per_invocation,
                partials,
                ..preset
            })?;
        }
        loop {
            let before = self.best;
            for kind in kinds.into_iter().flatten() {
                if let Some((best, _)) = self.best {
                    self.try_in_time(Tuning { partials: kind, ..best })?;
                }
            }
            for (workgroup, quads, finish) in MOVES {
                self.walk(|from| Tuning {
                    workgroup_size: scaled(from.workgroup_size, workgroup, most),
                    quads_per_invocation: scaled(from.quads_per_invocation, quads, MOST_QUADS_PER_INVOCATION),
                    finish_workgroup_size: scaled(from.finish_workgroup_size, finish, most),
                    ..from
                })?;
            }
            if self.best == before || Instant::now() >= self.end {
                return Ok(());
            }
        }
    }

    /// Goes in one direction for as long as it helps.
    fn walk(&mut self, next: impl Fn(Tuning) -> Tuning) -> Result<(), Error> {
        while let Some((from, _)) = self.best {
            self.try_in_time(next(from))?;
            if self.best.is_none_or(|(best, _)| best == from) {
                break;
            }
        }
        Ok(())
    }

    fn try_in_time(&mut self, mut tuning: Tuning) -> Result<(), Error> {
        // Blocks of twice the size or more are one block, as blocks of the size are.
        while u64::from(tuning.block_elements()) >= 2 * self.bench.elements && tuning.quads_per_invocation > 1 {
            tuning.quads_per_invocation /= 2;
        }
        // What is found serves sizes around this one, too.
        let suits = tuning.suits(self.bench.elements.saturating_mul(8), &self.bench.gpu.device().limits());
        if self.seen.contains_key(&tuning) || !suits || Instant::now() >= self.end {
            return Ok(());
        }
        self.try_one(tuning)
    }

    fn try_one(&mut self, tuning: Tuning) -> Result<(), Error> {
        let ns_per_param = match self.measure(tuning) {
            Ok(ns) => Ok(ns),
            Err(error) if is_final(&error) => return Err(error),
            Err(error) => {
                let words = error.to_string();
                self.first_error.get_or_insert(error);
                Err(words)
            }
        };
        self.seen.insert(tuning, ns_per_param.as_ref().ok().copied());
        self.candidates.push(Candidate { tuning, ns_per_param });
        Ok(())
    }

    /// Nanoseconds per parameter, on the scale of the first that was measured. The best is replaced by what is better twice: of many
    /// that are measured once, the luckiest looks best.
    fn measure(&mut self, tuning: Tuning) -> Result<f64, Error> {
        let ready = self.bench.ready(tuning)?;
        let (ns, better) = match self.best.zip(self.ready.as_ref()) {
            Some(((_, best), best_ready)) => {
                let mut ratio = self.bench.ratio(&ready, best_ready)?;
                if ratio < BETTER_BELOW {
                    ratio = self.bench.ratio(&ready, best_ready)?;
                }
                (ratio * best, ratio < BETTER_BELOW)
            }
            None => (self.bench.ns_per_param(self.bench.alone(&ready)?), true),
        };
        if better {
            self.best = Some((tuning, ns));
            self.ready = Some(ready);
        }
        Ok(ns)
    }

    fn value(&self, tuning: Tuning) -> Option<f64> {
        self.seen.get(&tuning).copied().flatten()
    }
}

/// Whether there is no going on with any candidate.
fn is_final(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::DeviceLost | ErrorKind::Readback)
}

/// By how many powers of two workgroup size, quads per invocation and finishing workgroup size change at a time.
const MOVES: [(i32, i32, i32); 14] = [
    (0, 2, 0),
    (0, -2, 0),
    (0, 1, 0),
    (0, -1, 0),
    // The same block by more or fewer invocations.
    (1, -1, 0),
    (-1, 1, 0),
    (2, -2, 0),
    (-2, 2, 0),
    (1, 0, 0),
    (-1, 0, 0),
    (0, 0, 1),
    (0, 0, -1),
    (0, 0, 2),
    (0, 0, -2),
];

/// Times a power of two, between 1 and `most`.
fn scaled(value: u32, powers: i32, most: u32) -> u32 {
    let power = (value.max(1).ilog2() as i32 + powers).clamp(0, most.ilog2() as i32);
    if powers == 0 { value } else { 1 << power }
}

/// Buffers to step on.
struct Bench<'a> {
    gpu: &'a Gpu,
    rule: Rule,
    regime: Regime,
    elements: u64,
    params: wgpu::Buffer,
    grads: wgpu::Buffer,
    /// Σ g².
    square: f64,
    /// How long a sample is to take.
    sample: Duration,
    /// `None` without timestamps, or once they made no sense.
    clock: Option<Timestamps>,
}

/// An optimizer that has been warmed up.
struct Ready {
    optimizer: Optimizer,
    /// Steps of a sample.
    steps: usize,
}

impl<'a> Bench<'a> {
    fn new(gpu: &'a Gpu, options: &TuneOptions) -> Result<Self, Error> {
        let elements = options.elements;
        require(elements > 0, || "tune".to_owned(), "elements", elements, "at least 1: there is nothing to measure")?;
        let most = gpu.device().limits().max_buffer_size / 4;
        if elements > most {
            return Err(Error::from(BuildError::Limit {
                what: "the number of elements to tune for".to_owned(),
                value: elements,
                limit: most,
                way_out: "tune for a smaller size, geometries serve neighbouring sizes as well",
            }));
        }
        let piece: Vec<f32> = (0..elements.min(PIECE_ELEMENTS)).map(gradient).collect();
        let [params, grads] = gpu.scoped("the buffers to tune on", || {
            Ok::<_, Error>(["parameters", "gradients"].map(|label| filled(gpu, label, elements, &piece)))
        })?;
        let square_of = |piece: &[f32]| -> f64 { piece.iter().map(|&g| f64::from(g).powi(2)).sum() };
        let (whole, rest) = (elements / PIECE_ELEMENTS, elements % PIECE_ELEMENTS);
        let mut bench = Bench {
            gpu,
            rule: options.rule,
            regime: moderate(options.regime),
            elements,
            params,
            grads,
            square: whole as f64 * square_of(&piece) + square_of(&piece[..rest as usize]),
            sample: (options.budget / 500).clamp(Duration::from_millis(1), Duration::from_millis(40)),
            clock: Timestamps::new(gpu),
        };
        bench.check_clock()?;
        Ok(bench)
    }

    /// All candidates are to be measured by one clock: the device's, if it makes sense now.
    fn check_clock(&mut self) -> Result<(), Error> {
        if self.clock.is_none() {
            return Ok(());
        }
        let preset = match self.ready(Tuning::for_device(self.gpu.device())) {
            Ok(preset) => preset,
            Err(error) if is_final(&error) => return Err(error),
            // The search will say so.
            Err(_) => return Ok(()),
        };
        for _ in 0..3 {
            if self.seconds(&preset)?.is_none() {
                self.clock = None;
                break;
            }
        }
        Ok(())
    }

    /// Builds, takes a step, and sees whether its norm is right: a driver that gives up on a long loop looks fast.
    fn ready(&self, tuning: Tuning) -> Result<Ready, Error> {
        let gpu = self.gpu.clone().with_tuning(tuning)?;
        let bytes = ..4 * self.elements;
        let optimizer = OptimizerBuilder::new(self.rule)
            .regime(self.regime)
            .record_steps(1)
            .separate_passes()
            // Any number will do, for regimes that go by the loss.
            .loss(self.grads.slice(..4))
            .group(Group::new("tune").tensor("w", self.params.slice(bytes), self.grads.slice(bytes)))
            .build(&gpu)?;
        self.step(&optimizer, 1, None)?;
        let square = pollster::block_on(optimizer.read_sums())?.first().map_or(f64::NAN, |sums| sums.square.value());
        let close = (square / self.square - 1.0).abs() <= 1e-3;
        if !close {
            return Err(Error::from(DeviceError::Failed {
                what: "this geometry".to_owned(),
                message: format!("Σ g² came out as {square:e} instead of {:e}", self.square),
            }));
        }
        let start = Instant::now();
        self.step(&optimizer, 1, None)?;
        let steps = self.sample.as_secs_f64() / start.elapsed().as_secs_f64().max(1e-9);
        Ok(Ready { optimizer, steps: (steps as usize).clamp(1, MOST_STEPS) })
    }

    /// Submits steps and waits for them; the wall-clock time.
    fn step(&self, optimizer: &Optimizer, steps: usize, clock: Option<&Timestamps>) -> Result<Duration, Error> {
        let device = self.gpu.device();
        let start = Instant::now();
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: Some("wgpu-optim tune"),
                timestamp_writes: clock.map(|clock| clock.around_pass(0)),
            });
            for _ in 0..steps {
                optimizer.encode_step_in(&mut pass)?;
            }
        }
        let submission = self.gpu.queue().submit([encoder.finish()]);
        self.gpu.finish("the steps to be timed", &submission)?;
        Ok(start.elapsed())
    }

    /// Seconds of a step; `None` where there are timestamps and they make no sense.
    fn seconds(&self, ready: &Ready) -> Result<Option<f64>, Error> {
        let wall = self.step(&ready.optimizer, ready.steps, self.clock.as_ref())?;
        let time = match &self.clock {
            None => Some(wall),
            Some(clock) => clock.read(self.gpu, 1)?.and_then(|spans| Timestamps::plausible(spans[0], wall)),
        };
        Ok(time.map(|time| time.as_secs_f64() / ready.steps as f64))
    }

    fn ns_per_param(&self, seconds: f64) -> f64 {
        1e9 * seconds / self.elements as f64
    }

    /// Seconds of a step in a few samples: the median.
    fn alone(&self, ready: &Ready) -> Result<f64, Error> {
        let mut samples = Vec::with_capacity(SAMPLES);
        for _ in 0..SAMPLES {
            samples.extend(self.seconds(ready)?);
        }
        median(samples.into_iter()).ok_or_else(no_sense)
    }

    /// How long a geometry takes as a share of the best so far, in alternating samples: the median of the pairs, for what else goes
    /// on hits both of a pair alike.
    fn ratio(&self, ready: &Ready, best: &Ready) -> Result<f64, Error> {
        let mut ratios = Vec::with_capacity(SAMPLES);
        for _ in 0..SAMPLES {
            let pair = self.seconds(ready)?.zip(self.seconds(best)?);
            ratios.extend(pair.map(|(this, best)| this / best));
            // Out of the race already.
            if ratios.first().is_some_and(|&ratio| ratio > 3.0) {
                break;
            }
        }
        median(ratios.into_iter()).ok_or_else(no_sense)
    }

    /// Times two geometries in turn, at least three rounds, more while there is time: ns per parameter of each.
    fn alternate(&self, tunings: [Tuning; 2], end: Instant) -> Result<Vec<[f64; 2]>, Error> {
        let [first, second] = tunings.map(|tuning| self.ready(tuning));
        let pair = [first?, second?];
        let mut rounds = Vec::new();
        for round in 0..*ROUNDS.end() {
            if round >= *ROUNDS.start() && Instant::now() >= end {
                break;
            }
            let [first, second] = [self.seconds(&pair[0])?, self.seconds(&pair[1])?];
            rounds
                .extend(first.zip(second).map(|(first, second)| [self.ns_per_param(first), self.ns_per_param(second)]));
        }
        Ok(rounds)
    }
}

fn no_sense() -> Error {
    Error::from(DeviceError::Failed {
        what: "this geometry".to_owned(),
        message: "its timestamps make no sense".to_owned(),
    })
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// The same kernels over numbers that stay moderate: a gradient that never changes agrees with itself, and the usual gain would
/// carry the parameters off.
fn moderate(regime: Regime) -> Regime {
    const GAIN: f32 = 1e-9;
    const RATE: f32 = 1e-3;
    match regime {
        Regime::Seesaw(_) => Regime::Seesaw(Seesaw { gain: GAIN, early_steps: 0.0, ..Seesaw::default() }),
        Regime::Hypergradient(_) => {
            Regime::Hypergradient(Hypergradient { gain: GAIN, early_steps: 0.0, ..Hypergradient::default() })
        }
        Regime::NormRatio(NormRatio { initial_rate, .. }) => {
            Regime::NormRatio(NormRatio { initial_rate: initial_rate.map(|_| RATE), ..NormRatio::default() })
        }
        Regime::Fixed { .. } => Regime::fixed(RATE),
        // Rates that fall, that are bounded by what they are given or by the largest there is, or that start tiny.
        other => other,
    }
}

/// Elements that are computed and uploaded; the rest are copies.
const PIECE_ELEMENTS: u64 = 1 << 18;

/// Between a half and one, of either sign: neither zero nor denormal.
fn gradient(index: u64) -> f32 {
    let bits = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let magnitude = 0.5 + (bits >> 1) as f32 / (1u32 << 24) as f32;
    if bits & 1 == 0 { magnitude } else { -magnitude }
}

fn filled(gpu: &Gpu, label: &str, elements: u64, piece: &[f32]) -> wgpu::Buffer {
    let create = |label, bytes: u64| {
        gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes.next_multiple_of(16),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    };
    let source = create("values", 4 * piece.len() as u64);
    let buffer = create(label, 4 * elements);
    gpu.queue().write_buffer(&source, 0, bytemuck::cast_slice(piece));
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    for start in (0..elements).step_by(PIECE_ELEMENTS as usize) {
        let bytes = 4 * PIECE_ELEMENTS.min(elements - start);
        encoder.copy_buffer_to_buffer(&source, 0, &buffer, 4 * start, bytes);
    }
    gpu.queue().submit([encoder.finish()]);
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_neither_zero_nor_denormal() {
        let mut negative = 0;
        for index in 0..10_000 {
            let g = gradient(index);
            assert!((0.5..1.0).contains(&g.abs()), "{g}");
            negative += usize::from(g < 0.0);
        }
        assert!((4000..6000).contains(&negative), "{negative}");
    }

    /// Whatever adapters there are.
    fn gpus() -> Vec<Gpu> {
        let adapters = pollster::block_on(Gpu::adapters(None));
        assert!(!adapters.is_empty(), "no adapter: install a software driver");
        adapters.iter().map(|adapter| pollster::block_on(Gpu::open(adapter)).expect("opens")).collect()
    }

    fn options(elements: u64) -> TuneOptions {
        TuneOptions { elements, budget: Duration::from_secs(2), ..TuneOptions::default() }
    }

    /// No preset is as bad as one invocation per workgroup with a quad each: whoever misses something better does not search.
    #[test]
    fn a_bad_start_is_left_behind() {
        for gpu in gpus() {
            let bad = Tuning {
                workgroup_size: 1,
                quads_per_invocation: 1,
                partials: Partials::PerWorkgroup,
                finish_workgroup_size: 1,
            };
            // Time enough for a look around on a machine that has other things to do.
            let patient = TuneOptions { budget: Duration::from_secs(15), ..options(1 << 17) };
            let report = gpu.tune_from(bad, &patient).expect("tunes");
            let bad_ns = report.preset_ns_per_param.expect("slow, but right");
            assert_ne!(report.best, bad);
            assert!(report.best_ns_per_param < 0.5 * bad_ns, "{report:?}");
        }
    }

    #[test]
    fn a_start_that_fails_is_only_one_candidate() {
        let gpu = &gpus()[0];
        let never = Tuning { workgroup_size: 3, ..gpu.tuning() };
        // On a busy machine a short search gets no farther than the start.
        let searches = [1, 5, 25].map(|seconds| TuneOptions { budget: Duration::from_secs(seconds), ..options(1000) });
        let mut reports = searches.iter().map(|search| gpu.tune_from(never, search));
        let report = reports.find_map(Result::ok).expect("tunes");
        assert_eq!(report.preset_ns_per_param, None);
        let problem = report.candidates[0].ns_per_param.as_ref();
        assert!(problem.is_err_and(|problem| problem.contains("workgroup_size is 3")));
        assert!(gpu.clone().with_tuning(report.best).is_ok(), "{report:?}");
        let without_time = TuneOptions { budget: Duration::ZERO, ..options(1000) };
        let error = gpu.tune_from(never, &without_time).expect_err("nothing else was tried");
        assert!(error.to_string().contains("workgroup_size is 3"), "{error}");
    }

    /// As where a driver gives up on a loop: the time is short and the sum is wrong.
    #[test]
    fn a_wrong_norm_is_no_candidate() {
        let gpu = &gpus()[0];
        let mut bench = Bench::new(gpu, &options(5000)).expect("room");
        assert!(bench.ready(gpu.tuning()).is_ok());
        bench.square *= 1.01;
        let error = bench.ready(gpu.tuning()).err().expect("refused");
        assert!(error.to_string().contains("Σ g² came out as"), "{error}");
    }

    #[test]
    fn moves_stay_in_range() {
        assert_eq!(scaled(8, 1, 1024), 16);
        assert_eq!(scaled(8, -2, 1024), 2);
        assert_eq!(scaled(1, -1, 1024), 1);
        assert_eq!(scaled(1024, 2, 1024), 1024);
        assert_eq!(scaled(3, 0, 1024), 3);
    }
}
