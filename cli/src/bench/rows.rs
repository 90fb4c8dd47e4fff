//! Rows: measurements at one size, compared with copy and triad.

use serde::{Serialize, Serializer};
use wgpu_optim::{Element, Error, ErrorKind, NonFinitePolicy, Regime, Rule};

use wgpu_optim_conformance::bench::measure::{Bench, Effort, Measured, Seconds, measure};
use wgpu_optim_conformance::bench::workload::{COPY_BYTES, Mode, Spec, TRIAD_BYTES, many_tensors};

/// Clock of a row's figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    Timestamps,
    Wall,
}

/// One measurement. Times are medians over the rounds. Rule, regime and mode are empty if nothing is optimized.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// `copy`, `triad`, `step`, `step+clip`, `many-tensors`, `many-tensors-odd`, `overhead-step` or `overhead-submit-wait`.
    pub what: &'static str,
    /// Method of the copy, which is the fastest one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<&'static str>,
    pub rule: &'static str,
    pub regime: &'static str,
    pub mode: &'static str,
    /// Number of parameters over all tensors.
    pub elements: usize,
    pub tensors: usize,
    pub ns_per_param: f64,
    /// Fastest and slowest round, in nanoseconds per parameter.
    pub spread_low: f64,
    pub spread_high: f64,
    /// Clock of these three figures and of those derived from them.
    pub clock: Clock,
    /// Wall-clock time per parameter, including recording and waiting.
    pub wall_ns_per_param: f64,
    pub us_per_step: f64,
    /// Bytes that the step must move, per nanosecond.
    pub gb_per_s: f64,
    /// Percentage of the bandwidth of copy and triad at this size, by the same clock.
    pub percent_of_copy: f64,
    pub percent_of_triad: f64,
    /// Host time of `encode_step`, and the step's part of `CommandEncoder::finish`, if steps are recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encode_us_per_step: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish_us_per_step: Option<f64>,
    /// Device time of each pass, by its stem. Each pass is timed in a compute pass of its own, so that at small sizes
    /// their sum exceeds the time of the step.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_object")]
    pub pass_ns_per_param: Vec<(&'static str, f64)>,
}

fn as_object<S: Serializer>(passes: &[(&'static str, f64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(passes.iter().copied())
}

#[derive(Debug, Clone)]
pub struct Selection {
    pub rules: Vec<Rule>,
    pub regimes: Vec<Regime>,
    pub modes: Vec<Mode>,
}

#[derive(Debug)]
pub struct Entry {
    what: &'static str,
    pub spec: Spec,
}

/// Number of elements of the tensor in the overhead rows: one quad.
pub const OVERHEAD_ELEMENTS: usize = 4;
const SUBMIT_WAIT: &str = "overhead-submit-wait";
const OVERHEADS: [&str; 2] = ["overhead-step", SUBMIT_WAIT];

impl Selection {
    /// Returns the optimizers that are measured at one size.
    pub fn entries(&self, elements: usize) -> Vec<Entry> {
        let mut entries = Vec::new();
        for &mode in &self.modes {
            for rule in self.rules.iter().filter_map(|&rule| mode.rule(rule)) {
                for &regime in self.regimes.iter().filter(|&&regime| mode.fits(rule, regime)) {
                    entries.push(Entry { what: "step", spec: Spec { mode, ..Spec::new(rule, regime, elements) } });
                }
            }
            entries.extend(self.clipped(mode, elements));
            entries.extend(self.many(mode, elements));
        }
        entries
    }

    /// Returns entries with a clip, comparable to `clip_grad_norm_` and a step of SGD: a fixed rate, and a norm that
    /// the gradient exceeds.
    fn clipped(&self, mode: Mode, elements: usize) -> Vec<Entry> {
        let Some(&regime) = self.regimes.iter().find(|regime| matches!(regime, Regime::Fixed(_))) else {
            return Vec::new();
        };
        if mode.policy == NonFinitePolicy::Unchecked {
            // With a clip, the policy makes no difference.
            return Vec::new();
        }
        let rules = self.rules.iter().filter(|rule| !rule.is_sign()).filter_map(|&rule| mode.rule(rule));
        let spec = |rule| Spec { mode, clip_norm: 1.0, ..Spec::new(rule, regime, elements) };
        rules.map(|rule| Entry { what: "step+clip", spec: spec(rule) }).collect()
    }

    /// Returns the first rule and regime over many tensors, for comparison with the same over one.
    fn many(&self, mode: Mode, elements: usize) -> Vec<Entry> {
        let entry = |(what, odd)| {
            let (rule, regime) = self.first(mode)?;
            let tensors = many_tensors(elements, odd)?;
            Some(Entry { what, spec: Spec { mode, tensors, ..Spec::new(rule, regime, elements) } })
        };
        [("many-tensors", false), ("many-tensors-odd", true)].into_iter().filter_map(entry).collect()
    }

    /// Returns steps over almost nothing: in a batch, and each submitted and awaited.
    pub fn overhead_entries(&self) -> Vec<Entry> {
        let firsts = self.modes.iter().filter_map(|&mode| Some((mode, self.first(mode)?)));
        let entries = firsts.flat_map(|(mode, (rule, regime))| {
            OVERHEADS.map(|what| Entry { what, spec: Spec { mode, ..Spec::new(rule, regime, OVERHEAD_ELEMENTS) } })
        });
        entries.collect()
    }

    /// Returns the first rule that a mode supports, and the first regime.
    fn first(&self, mode: Mode) -> Option<(Rule, Regime)> {
        let rule = self.rules.iter().find_map(|&rule| mode.rule(rule))?;
        Some((rule, *self.regimes.iter().find(|&&regime| mode.fits(rule, regime))?))
    }
}

/// Returns the number of bytes that the entries of one size need at once, including arrays.
pub fn bytes_of(elements: usize, entries: &[Entry]) -> f64 {
    let state = |Entry { spec: Spec { rule, regime, mode, .. }, .. }: &Entry| {
        mode.state_bytes_per_param(*rule, *regime) + mode.remainder_bytes() + mode.average_bytes(*regime)
    };
    // These arrays are in addition to the f32 arrays of copy and triad.
    let of_16_bits = [Element::F16, Element::Bf16].into_iter();
    let arrays = of_16_bits.filter(|&element| entries.iter().any(|entry| entry.spec.mode.element == element));
    let arrays: f64 = arrays.map(|element| 2.0 * element.bytes() as f64).sum();
    elements as f64 * (TRIAD_BYTES + arrays + entries.iter().map(state).sum::<f64>())
}

/// Measures the entries of one size together with copy and triad. Entries that do not fit the device's memory become
/// notes.
pub fn measure_size<B: Bench>(
    bench: &mut B,
    elements: usize,
    entries: Vec<Entry>,
    effort: Effort,
    notes: &mut Vec<String>,
    done: impl FnMut(),
) -> Result<Vec<Row>, Error> {
    let mut jobs = Vec::new();
    let mut labels: Vec<Label> = Vec::new();
    for (by, job) in bench.copies()? {
        labels.push(Label { what: "copy", by: Some(by), bytes_per_param: COPY_BYTES, spec: None });
        jobs.push(job);
    }
    let copy_count = jobs.len();
    labels.push(Label { what: "triad", by: None, bytes_per_param: TRIAD_BYTES, spec: None });
    jobs.push(bench.triad()?);
    for Entry { what, spec } in entries {
        let job = if what == SUBMIT_WAIT { bench.lone_step(&spec) } else { bench.step(&spec).map(Some) };
        match job {
            Ok(Some(job)) => {
                jobs.push(job);
                let bytes_per_param = spec.mode.bytes_per_param(spec.rule, spec.regime);
                labels.push(Label { what, by: None, bytes_per_param, spec: Some(spec) });
            }
            Ok(None) => {}
            Err(error) if matches!(error.kind(), ErrorKind::Limit | ErrorKind::DeviceRefused) => {
                let (rule, regime, mode) = (spec.rule.name(), spec.regime.name(), spec.mode.name);
                notes.push(format!("{what} of {rule}, {regime}, {mode} and {elements} parameters skipped: {error}"));
            }
            Err(error) => return Err(error),
        }
    }
    let measured = measure(bench, &mut jobs, effort, done)?;

    let (copies, rest) = measured.split_at(copy_count);
    let roofs = Roofs::new(elements, copies, rest.first());
    let mut rows: Vec<Row> =
        labels.iter().zip(&measured).map(|(label, measured)| label.row(elements, measured, &roofs)).collect();
    // Only the fastest copy is kept, by the device's clock if one of them has it.
    let fastest = (0..copy_count).max_by(|&a, &b| {
        let by_device = |row: &Row| row.clock == Clock::Timestamps;
        by_device(&rows[a]).cmp(&by_device(&rows[b])).then(rows[a].percent_of_copy.total_cmp(&rows[b].percent_of_copy))
    });
    if let Some(fastest) = fastest {
        rows.swap(fastest, 0);
        rows.drain(1..copy_count);
    }
    Ok(rows)
}

struct Label {
    what: &'static str,
    by: Option<&'static str>,
    bytes_per_param: f64,
    spec: Option<Spec>,
}

/// Bandwidth of copy and triad in bytes per second, by each clock that both have.
struct Roofs {
    wall: [f64; 2],
    device: Option<[f64; 2]>,
}

impl Roofs {
    fn new(elements: usize, copies: &[Measured], triad: Option<&Measured>) -> Self {
        let bandwidth = |bytes: f64, seconds: &Seconds| bytes * elements as f64 / seconds.median;
        let by = |clock: fn(&Measured) -> Option<&Seconds>| {
            let copies = copies.iter().filter_map(clock).map(|seconds| bandwidth(COPY_BYTES, seconds));
            Some([copies.max_by(f64::total_cmp)?, bandwidth(TRIAD_BYTES, clock(triad?)?)])
        };
        Roofs {
            // There is always a copy, a triad and a wall clock.
            wall: by(|measured| Some(&measured.wall)).unwrap_or([f64::NAN; 2]),
            device: by(|measured| measured.device.as_ref()),
        }
    }
}

impl Label {
    fn row(&self, elements: usize, measured: &Measured, roofs: &Roofs) -> Row {
        let (clock, seconds, [copy, triad]) = match (&measured.device, roofs.device) {
            // An overhead is measured in host time.
            (Some(seconds), Some(roof)) if !OVERHEADS.contains(&self.what) => (Clock::Timestamps, seconds, roof),
            _ => (Clock::Wall, &measured.wall, roofs.wall),
        };
        let ns_per_param = |seconds: f64| 1e9 * seconds / elements as f64;
        let bytes_per_s = self.bytes_per_param * elements as f64 / seconds.median;
        let names = |spec: &Spec| (spec.rule.name(), spec.regime.name(), spec.mode.name, spec.tensors.concat().len());
        let (rule, regime, mode, tensors) = self.spec.as_ref().map_or(("", "", "", 1), names);
        Row {
            what: self.what,
            by: self.by,
            rule,
            regime,
            mode,
            elements,
            tensors,
            ns_per_param: ns_per_param(seconds.median),
            spread_low: ns_per_param(seconds.low),
            spread_high: ns_per_param(seconds.high),
            clock,
            wall_ns_per_param: ns_per_param(measured.wall.median),
            us_per_step: 1e6 * seconds.median,
            gb_per_s: 1e-9 * bytes_per_s,
            percent_of_copy: 100.0 * bytes_per_s / copy,
            percent_of_triad: 100.0 * bytes_per_s / triad,
            encode_us_per_step: measured.recording.map(|(encode, _)| 1e6 * encode),
            finish_us_per_step: measured.recording.map(|(_, finish)| 1e6 * finish),
            pass_ns_per_param: measured.passes.iter().map(|&(pass, seconds)| (pass, ns_per_param(seconds))).collect(),
        }
    }
}
