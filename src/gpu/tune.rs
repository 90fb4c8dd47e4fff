//! Search for the fastest geometry on a device at a given size, by measuring real steps.

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
    /// Regime of the optimizer. Only its kind matters. Its constants are replaced by values that keep the parameters
    /// finite.
    pub regime: Regime,
    /// Time to spend, including compilation. A candidate whose measurement has begun is finished, and the preset is
    /// always measured.
    pub budget: Duration,
}

impl Default for TuneOptions {
    /// Returns options for a million parameters, momentum 0.9, Seesaw and five seconds.
    fn default() -> Self {
        TuneOptions {
            elements: 1 << 20,
            rule: Rule::sgdm(0.9),
            regime: Regime::seesaw(),
            budget: Duration::from_secs(5),
        }
    }
}

/// Geometry that was tried.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Candidate {
    /// Geometry of the candidate.
    pub tuning: Tuning,
    /// Nanoseconds per parameter and step, or the reason why the geometry cannot be used. Because a machine's speed
    /// drifts, each candidate is measured in turn with the best one so far and only their ratio counts. All figures are
    /// therefore on the scale of the first candidate.
    pub ns_per_param: Result<f64, String>,
}

/// Result of [`Gpu::tune`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TuneReport {
    /// Geometry to use: the preset, unless another one is faster by more than the noise.
    pub best: Tuning,
    /// Nanoseconds per parameter and step with `best`: the preset's time, multiplied by the median ratio of the
    /// alternating rounds.
    pub best_ns_per_param: f64,
    /// Preset for the adapter.
    pub preset: Tuning,
    /// Nanoseconds per parameter and step with the preset, in the same alternating rounds. `None` if the preset failed.
    pub preset_ns_per_param: Option<f64>,
    /// All candidates in the order of the search. The preset comes first.
    pub candidates: Vec<Candidate>,
    /// True if times are the device's timestamps. Otherwise they are wall-clock times, which include submitting and waiting.
    pub timestamps: bool,
}

impl Gpu {
    /// Finds the fastest geometry for an optimizer of this size by measuring steps on this device. Pass the result to
    /// [`Gpu::with_tuning`], or store it in a `TuningCache` for the next run.
    ///
    /// The search starts from the adapter's preset and a few other points, then changes one or two numbers at a time
    /// while that helps. Finally the best geometry and the preset are measured alternately, and the preset is kept
    /// unless the other is faster by more than 3 %. A geometry that the device refuses, or whose gradient norm is
    /// wrong, is excluded.
    ///
    /// The method uses its own buffers: two of 4 bytes per parameter, and those of two optimizers. It blocks the
    /// thread, so that browsers cannot use it. Other work on the device or, with a software driver, on the host
    /// disturbs the measurement.
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
    /// Returns [`ErrorKind::Build`](crate::ErrorKind::Build) or [`ErrorKind::Limit`](crate::ErrorKind::Limit) if no
    /// optimizer can have this size or rule, [`ErrorKind::DeviceRefused`](crate::ErrorKind::DeviceRefused) if the
    /// device lacks memory, or [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
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
            // The remaining time is for the last rounds.
            end: start + options.budget.mul_f64(0.75),
        };
        search.run(preset)?;
        let Some((best, ns)) = search.best else {
            // Every candidate has failed, including the preset, so that there is a first error.
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
            // This frees memory for two other optimizers.
            search.ready = None;
            let end = start + options.budget;
            let rounds = match search.bench.alternate([preset, best], end) {
                Err(error) if is_final(&error) => return Err(error),
                // A geometry that cannot be compared cannot win.
                rounds => rounds.unwrap_or_default(),
            };
            let preset_ns = median(rounds.iter().map(|[preset, _]| *preset));
            // The ratio is taken within each round, because disturbances affect both of a pair alike.
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

/// Fraction of the preset's time below which another geometry replaces it.
const WINS_BELOW: f64 = 0.97;
/// Fraction of the time below which a step of the search counts as an improvement.
const BETTER_BELOW: f64 = 0.99;
/// Number of samples of each candidate.
const SAMPLES: usize = 5;
/// Number of alternating rounds at the end.
const ROUNDS: std::ops::RangeInclusive<usize> = 5..=25;
/// Largest number of steps in one submit.
const MOST_STEPS: usize = 256;

/// State of the search.
struct Search<'a> {
    bench: Bench<'a>,
    seen: HashMap<Tuning, Option<f64>>,
    candidates: Vec<Candidate>,
    best: Option<(Tuning, f64)>,
    /// Optimizer with the best geometry.
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
        // Geometries that are fast on some kind of device, in case the preset is near another local minimum.
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

    /// Moves in one direction while that helps.
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
        // Blocks of at least twice the size make one block, as blocks of the size do.
        while u64::from(tuning.block_elements()) >= 2 * self.bench.elements && tuning.quads_per_invocation > 1 {
            tuning.quads_per_invocation /= 2;
        }
        // The result is also used for sizes around this one.
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

    /// Returns nanoseconds per parameter, on the scale of the first measurement. The best geometry is replaced only by
    /// one that is better twice, because the best of many single measurements is the luckiest one.
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

/// Returns true if no other candidate can succeed after this error.
fn is_final(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::DeviceLost | ErrorKind::Readback)
}

/// Changes of workgroup size, quads per invocation and finishing workgroup size, as powers of two.
const MOVES: [(i32, i32, i32); 14] = [
    (0, 2, 0),
    (0, -2, 0),
    (0, 1, 0),
    (0, -1, 0),
    // These keep the block size and change the number of invocations.
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

/// Multiplies by a power of two and clamps to 1..=most.
fn scaled(value: u32, powers: i32, most: u32) -> u32 {
    let power = (value.max(1).ilog2() as i32 + powers).clamp(0, most.ilog2() as i32);
    if powers == 0 { value } else { 1 << power }
}

/// Buffers that the measured steps use.
struct Bench<'a> {
    gpu: &'a Gpu,
    rule: Rule,
    regime: Regime,
    elements: u64,
    params: wgpu::Buffer,
    grads: wgpu::Buffer,
    /// Σ g² of the gradients.
    square: f64,
    /// Target duration of a sample.
    sample: Duration,
    /// `None` without timestamps, or after they were implausible.
    clock: Option<Timestamps>,
}

/// Optimizer that has been warmed up.
struct Ready {
    optimizer: Optimizer,
    /// Number of steps of a sample.
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
                way_out: "tune for a smaller size, since a geometry also suits similar sizes",
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

    /// Selects one clock for all candidates: the device's if it is plausible now.
    fn check_clock(&mut self) -> Result<(), Error> {
        if self.clock.is_none() {
            return Ok(());
        }
        let preset = match self.ready(Tuning::for_device(self.gpu.device())) {
            Ok(preset) => preset,
            Err(error) if is_final(&error) => return Err(error),
            // The search will report the error.
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

    /// Builds an optimizer, takes a step and checks its norm. A driver that stops a long loop early looks fast.
    fn ready(&self, tuning: Tuning) -> Result<Ready, Error> {
        let gpu = self.gpu.clone().with_tuning(tuning)?;
        let bytes = ..4 * self.elements;
        let optimizer = OptimizerBuilder::new(self.rule)
            .regime(self.regime)
            .record_steps(1)
            .separate_passes()
            // Regimes that use the loss accept any number here.
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

    /// Submits steps, waits for them, and returns the wall-clock time.
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

    /// Returns the seconds of a step, or `None` if its timestamps are implausible.
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

    /// Returns the median seconds of a step over a few samples.
    fn alone(&self, ready: &Ready) -> Result<f64, Error> {
        let mut samples = Vec::with_capacity(SAMPLES);
        for _ in 0..SAMPLES {
            samples.extend(self.seconds(ready)?);
        }
        median(samples.into_iter()).ok_or_else(no_sense)
    }

    /// Returns the time of a geometry as a fraction of the best one's, in alternating samples. It is the median of the
    /// pairs, because disturbances affect both of a pair alike.
    fn ratio(&self, ready: &Ready, best: &Ready) -> Result<f64, Error> {
        let mut ratios = Vec::with_capacity(SAMPLES);
        for _ in 0..SAMPLES {
            let pair = self.seconds(ready)?.zip(self.seconds(best)?);
            ratios.extend(pair.map(|(this, best)| this / best));
            // The geometry is too slow to win.
            if ratios.first().is_some_and(|&ratio| ratio > 3.0) {
                break;
            }
        }
        median(ratios.into_iter()).ok_or_else(no_sense)
    }

    /// Measures two geometries in turn, in at least three rounds, and more while there is time. Returns the ns per
    /// parameter of each.
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
        message: "its timestamps are implausible".to_owned(),
    })
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Returns a regime with the same kernels and constants that keep the numbers moderate. A gradient that never changes
/// agrees with itself, and with the usual gain the parameters would grow without bound.
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
        // Rates of the other regimes fall, are bounded by given numbers or by the largest rate, or start tiny.
        other => other,
    }
}

/// Number of elements that are computed and uploaded. The remaining ones are copies.
const PIECE_ELEMENTS: u64 = 1 << 18;

/// Returns a gradient element of either sign with a magnitude from a half to one, so that it is neither zero nor
/// denormal.
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

    /// Returns all adapters.
    fn gpus() -> Vec<Gpu> {
        let adapters = pollster::block_on(Gpu::adapters(None));
        assert!(!adapters.is_empty(), "no adapter: install a software driver");
        adapters.iter().map(|adapter| pollster::block_on(Gpu::open(adapter)).expect("opens")).collect()
    }

    fn options(elements: u64) -> TuneOptions {
        options_within(2, elements)
    }

    fn options_within(seconds: u64, elements: u64) -> TuneOptions {
        TuneOptions { elements, budget: Duration::from_secs(seconds), ..TuneOptions::default() }
    }

    /// One invocation per workgroup with one quad each is worse than any preset. A search that finds nothing better
    /// does not work.
    #[test]
    fn a_bad_start_is_left_behind() {
        for gpu in gpus() {
            let bad = Tuning {
                workgroup_size: 1,
                quads_per_invocation: 1,
                partials: Partials::PerWorkgroup,
                finish_workgroup_size: 1,
            };
            // On a busy machine a short search may not get beyond the start.
            let searches = [2, 10, 50].map(|seconds| options_within(seconds, 1 << 17));
            let mut reports = searches.iter().map(|search| gpu.tune_from(bad, search).expect("tunes"));
            let report = reports.find(|report| report.best != bad).expect("something better");
            assert!(report.best_ns_per_param < report.preset_ns_per_param.expect("slow, but right"), "{report:?}");
        }
    }

    #[test]
    fn a_start_that_fails_is_only_one_candidate() {
        let gpu = &gpus()[0];
        let never = Tuning { workgroup_size: 3, ..gpu.tuning() };
        // On a busy machine a short search may not get beyond the start.
        let searches = [1, 5, 25].map(|seconds| options_within(seconds, 1000));
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

    /// A driver that stops a loop early gives a short time and a wrong sum.
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
