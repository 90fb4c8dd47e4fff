//! Reference in f64: one parameter group, one step at a time. The formulas of rules and regimes are in the files of the
//! library, beside their other forms, and are written from the papers.

use crate::schedule::factor_at;
use crate::spec::shape_for;
use wgpu_optim::internals::reference::{
    Moments, Rate, RegimeLook, RegimeReference, RegimeStep, RuleStep, dot, norm, sign,
};
use wgpu_optim::{AutoSgd, Averaging, Regime, Rule, Schedule, WeightDecay};

/// One group in f64.
pub struct Oracle {
    /// Update rule.
    pub rule: Rule,
    /// Regime.
    pub regime: Regime,
    /// Reference of the regime, from the first step on.
    reference: Option<Box<dyn RegimeReference>>,
    /// Weight decay.
    pub decay: WeightDecay,
    /// Clip by norm, infinite for none.
    pub clip: f64,
    /// True if the group maximizes.
    pub maximize: bool,
    /// Parameters of all tensors, concatenated.
    pub w: Vec<f64>,
    /// Dimensions of each tensor.
    pub shapes: Vec<Vec<usize>>,
    moments: Moments,
    /// True if momentum and its inputs are zero where f32 would be denormal, for devices that flush such numbers to
    /// zero.
    pub flushes: bool,
    q: Vec<f64>,
    last_sign: Vec<f64>,
    w0_norm: f64,
    mean_square: f64,
    mean_norm: f64,
    ln_first_rate: f64,
    /// Loss of the next step, for regimes that use it.
    pub loss: f64,
    /// Schedule.
    pub schedule: Schedule,
    /// Factor of the rate that the caller has set.
    pub factor: f64,
    /// Factor of the previous step, including steps in which the group was frozen.
    pub last_factor: f64,
    /// Factor of each element's rate, empty if all are 1.
    pub rate_factors: Vec<f64>,
    /// Number of columns of each element's tensor if rows without a gradient are skipped, else empty.
    pub lazy_columns: Vec<usize>,
    /// Coefficient of the trust ratio.
    pub trust: Option<f64>,
    /// Smallest value of the trust ratio.
    pub trust_least: Option<f64>,
    /// True if the trust ratio only lowers the rate.
    pub trust_caps: bool,
    last_trust: f64,
    w_0: Vec<f64>,
    last_seen: Vec<f64>,
    last_direction: Vec<f64>,
    /// True if a look at the last step is still missing.
    is_look_due: bool,
    taken: u32,
    /// Averaging.
    pub averaging: Averaging,
    /// Average of the parameters, once it has started.
    pub average: Option<Vec<f64>>,
    /// z of schedule-free training, and the sum of its weights.
    base: Option<Vec<f64>>,
    weight_sum: f64,
    /// Largest rate of a step of schedule-free training.
    largest_rate: f64,
    /// Size of the rate. See [`RegimeReference::rate_size`].
    rate_size: f64,
    /// η of the last step that was not skipped, with the schedule.
    last_rate: Option<f64>,
    k: i32,
    /// n̂, the smoothed norm that regimes use, after the last step.
    pub smoothed: f64,
    /// ln η before the schedule, once there is a rate.
    pub ln_rate: Option<f64>,
    streams: Option<Streams>,
}

/// The three streams of AutoSgd in the order of their turns: middle, slower, faster.
struct Streams {
    regime: AutoSgd,
    turn: usize,
    start: Vec<f64>,
    w: [Vec<f64>; 3],
    steps: [u32; 3],
    lost: [bool; 3],
    start_losses: Vec<f64>,
    losses: [Option<f64>; 3],
    /// Relative differences of the slower and the faster stream's losses from the middle one's, round by round.
    slower: Vec<f64>,
    faster: Vec<f64>,
    /// Exponent of the factor that changes the rate at the next step.
    pending: f64,
}

const MIDDLE: usize = 0;
const SLOWER: usize = 1;
const FASTER: usize = 2;

impl Streams {
    fn new(regime: AutoSgd, w: &[f64]) -> Self {
        Streams {
            regime,
            turn: 0,
            start: w.to_vec(),
            w: [(); 3].map(|()| w.to_vec()),
            steps: [0; 3],
            lost: [false; 3],
            start_losses: Vec::new(),
            losses: [None; 3],
            slower: Vec::new(),
            faster: Vec::new(),
            pending: 0.0,
        }
    }

    /// Returns the factor of η for the stream whose turn it is.
    fn factor(&self) -> f64 {
        f64::from(self.regime.factor).powi([0, -1, 1][self.turn])
    }

    /// Ends a turn with these parameters and this loss, which is minimized. The loss is `None` for a skipped step.
    /// Returns the parameters that the caller sees next.
    fn pass(&mut self, w: &[f64], loss: Option<f64>) -> Vec<f64> {
        let turn = self.turn;
        self.turn = (turn + 1) % 3;
        match loss {
            Some(loss) if self.steps[turn] == 0 => self.start_losses.push(loss),
            Some(loss) => self.losses[turn] = Some(loss),
            None => self.lost[turn] |= self.steps[turn] > 0,
        }
        self.w[turn] = w.to_vec();
        self.steps[turn] += u32::from(loss.is_some());
        if turn == FASTER {
            let relative = |a: f64, b: f64| {
                let sum = a.abs() + b.abs();
                if sum > 0.0 { (a - b) / sum } else { 0.0 }
            };
            let slower_last = self.losses[SLOWER];
            let mut is_look = false;
            if let [Some(middle), Some(slower), Some(faster)] = self.losses {
                self.slower.push(relative(slower, middle));
                self.faster.push(relative(faster, middle));
                let k = self.slower.len() as u32;
                is_look = k >= 4 && (k.is_power_of_two() || k >= self.regime.rounds);
            }
            self.losses = [None; 3];
            let risen = || {
                let start = self.start_losses.iter().sum::<f64>() / self.start_losses.len() as f64;
                slower_last.is_some_and(|loss| relative(loss, start) > 1.0 / 3.0)
            };
            let certainty = f64::from(self.regime.certainty);
            let (slower, faster) = (t_value(&self.slower), t_value(&self.faster));
            let faster_wins = faster <= -certainty && !self.lost[FASTER];
            let slower_wins = slower <= -certainty && !self.lost[SLOWER];
            let end = if !is_look && self.lost == [false; 3] {
                None
            } else if self.lost[MIDDLE] || slower_wins && !faster_wins {
                if self.lost[SLOWER] || risen() {
                    Some((self.start.clone(), -1.0))
                } else {
                    Some((self.w[SLOWER].clone(), -1.0))
                }
            } else if faster_wins {
                Some((self.w[FASTER].clone(), 1.0))
            } else {
                let ends = slower >= certainty && faster >= certainty
                    || self.lost != [false; 3]
                    || self.slower.len() as u32 >= self.regime.rounds;
                ends.then(|| (self.w[MIDDLE].clone(), 0.0))
            };
            if let Some((w, factors)) = end {
                *self = Streams { pending: factors, ..Streams::new(self.regime, &w) };
            }
        }
        self.w[self.turn].clone()
    }
}

/// Returns the mean divided by the standard error, or 0 for too few values.
fn t_value(differences: &[f64]) -> f64 {
    let k = differences.len() as f64;
    if differences.len() < 4 {
        return 0.0;
    }
    let mean = differences.iter().sum::<f64>() / k;
    let square: f64 = differences.iter().map(|d| (d - mean).powi(2)).sum();
    if mean == 0.0 {
        return 0.0;
    }
    mean / (square / (k - 1.0) / k).sqrt()
}

/// Result of a reference step.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// True if the gradient or the loss was not finite.
    pub skipped: bool,
    /// True if the gradient was zero.
    pub zero: bool,
    /// True for the step that sets the first rate.
    pub first: bool,
    /// Norm of the gradient, with coupled decay.
    pub norm: f64,
    /// a_slow, the cosine of the gradient and the memory of directions.
    pub slow: f64,
    /// a_fast, the cosine of the gradient and the previous one.
    pub fast: f64,
    /// Part of the change of ln η that comes from the norm.
    pub norm_term: f64,
    /// Part that comes from a_slow, the alignment.
    pub alignment_term: f64,
    /// Part that comes from the average of a_fast, the brake.
    pub brake_term: f64,
    /// Part of a fall that the floor of the agreement held back.
    pub held_term: f64,
    /// Part that limits took away or gave back.
    pub clamp_term: f64,
    /// η with schedule and trust ratio, as in a record.
    pub rate: f64,
    /// Size that rounding errors of the rate are relative to: η, or larger terms whose difference it is.
    pub rate_size: f64,
}

impl Oracle {
    /// Creates a group with these parameters and default settings.
    pub fn new(rule: Rule, regime: Regime, w: &[f32]) -> Self {
        let w: Vec<f64> = w.iter().map(|&x| f64::from(x)).collect();
        Oracle {
            rule,
            regime,
            reference: None,
            decay: WeightDecay::Coupled(0.0),
            clip: f64::INFINITY,
            maximize: false,
            moments: Moments::default(),
            shapes: vec![shape_for(&rule, w.len())],
            flushes: false,
            q: vec![0.0; w.len()],
            last_sign: vec![0.0; w.len()],
            w0_norm: norm(&w),
            mean_square: 0.0,
            mean_norm: 0.0,
            ln_first_rate: 0.0,
            loss: 1.0,
            schedule: Schedule::Constant,
            factor: 1.0,
            last_factor: 1.0,
            rate_factors: Vec::new(),
            lazy_columns: Vec::new(),
            trust: None,
            trust_least: None,
            trust_caps: false,
            last_trust: 1.0,
            w_0: w.clone(),
            last_seen: Vec::new(),
            last_direction: Vec::new(),
            is_look_due: false,
            taken: 0,
            averaging: Averaging::Off,
            average: None,
            base: None,
            weight_sum: 0.0,
            largest_rate: 0.0,
            rate_size: 0.0,
            last_rate: None,
            k: 0,
            smoothed: 0.0,
            ln_rate: regime.initial_rate().map(|rate| f64::from(rate).ln()),
            streams: match regime {
                Regime::AutoSgd(regime) => Some(Streams::new(regime, &w)),
                _ => None,
            },
            w,
        }
    }

    /// Returns the factor of each element's rate, or `None` if its row is skipped.
    fn factors(&self, raw: &[f64]) -> Vec<Option<f64>> {
        let mut factors: Vec<Option<f64>> = match self.rate_factors.is_empty() {
            true => vec![Some(1.0); raw.len()],
            false => self.rate_factors.iter().copied().map(Some).collect(),
        };
        let mut start = 0;
        while let Some(&columns) = self.lazy_columns.get(start) {
            let row = start..start + columns;
            if raw[row.clone()].iter().all(|&g| g == 0.0) {
                factors[row].fill(None);
            }
            start += columns;
        }
        factors
    }

    /// Returns the length of a direction that does not shrink with the gradient.
    fn direction_length(&self) -> f64 {
        let flat = [self.w.len()];
        let shapes = if self.rule.needs_matrices() { self.shapes.as_slice() } else { &[Vec::from(flat)] };
        let squares = shapes.iter().map(|shape| self.rule.direction_square(shape, shape.iter().product()));
        squares.sum::<f64>().sqrt()
    }

    /// Returns η of the next step before the schedule, or 0 before the first step.
    pub fn rate(&self) -> f64 {
        self.ln_rate.map_or(0.0, f64::exp)
    }

    /// Takes one step with these gradients.
    pub fn step(&mut self, raw: &[f32]) -> Outcome {
        let sign_of_climb = if self.maximize { -1.0 } else { 1.0 };
        let coupled = f64::from(self.decay.coupled());
        let raw: Vec<f64> = raw.iter().map(|&g| sign_of_climb * f64::from(g)).collect();
        let seen: Vec<f64> = raw.iter().zip(&self.w).map(|(g, w)| g + coupled * w).collect();
        let mut out = Outcome::default();
        self.is_look_due = false;
        if seen.iter().any(|g| !g.is_finite()) || !self.loss.is_finite() {
            out.skipped = true;
            out.rate = self.last_rate.unwrap_or_else(|| self.rate());
            if let Some(streams) = &mut self.streams {
                self.w = streams.pass(&self.w, None);
                out.rate = self.rate();
            }
            out.rate_size = self.rate_size.max(out.rate);
            return out;
        }
        let mut share = 1.0;
        if let Some(streams) = &mut self.streams {
            share = streams.factor();
            let change = std::mem::take(&mut streams.pending) * f64::from(streams.regime.factor).ln();
            let limit = 1e30_f64.ln();
            self.ln_rate = self.ln_rate.map(|rate| (rate + change).clamp(-limit, limit));
        }
        out.norm = norm(&seen);
        if out.norm == 0.0 {
            out.zero = true;
        } else {
            self.change_rate(&seen, &mut out);
            self.is_look_due = true;
        }
        if !out.zero {
            self.last_trust = self.trust_ratio(out.norm, self.rate() * factor_at(&self.schedule, self.taken));
        }
        let factor = factor_at(&self.schedule, self.taken) * self.last_trust * self.factor;
        out.rate = self.rate() * factor;
        out.rate_size = (self.rate_size * factor).max(out.rate);
        self.last_factor = self.factor;
        self.last_rate = Some(out.rate);
        self.taken += 1;
        let rate = share * out.rate;
        let factor = self.clip_factor(&raw);
        let g: Vec<f64> = raw.iter().zip(&self.w).map(|(g, w)| factor * g + coupled * w).collect();
        let last = self.moments.clone();
        let mut k = f64::from(self.taken);
        if let Some(reference) = &mut self.reference {
            if !out.zero {
                reference.settle(out.rate, k);
            }
            let ratio = reference.moment_ratio();
            let moments = [(&mut self.moments.m, ratio), (&mut self.moments.v, ratio * ratio)];
            for (moment, ratio) in moments.into_iter().filter_map(|(moment, ratio)| Some((moment.as_mut()?, ratio))) {
                moment.iter_mut().for_each(|x| *x *= ratio);
            }
            if !reference.corrects_bias() {
                // This makes all powers of β 0.
                k = f64::INFINITY;
            }
        }
        let mut step = RuleStep { g: &g, k, moments: &mut self.moments, flushes: self.flushes, shapes: &self.shapes };
        let direction = self.rule.reference(&mut step);
        let factors = self.factors(&raw);
        // Skipped rows keep their moments.
        let Moments { m, v, largest_v } = &mut self.moments;
        for (new, old) in [(m, last.m), (v, last.v), (largest_v, last.largest_v)] {
            let pairs = new.iter_mut().flatten().enumerate().zip(&factors);
            for ((index, new), _) in pairs.filter(|(_, factor)| factor.is_none()) {
                *new = old.as_ref().map_or(0.0, |old| old[index]);
            }
        }
        for ((q, last), g) in self.q.iter_mut().zip(&mut self.last_sign).zip(&g) {
            *q = (*q + sign(*g)).clamp(-7.0, 7.0);
            *last = sign(*g);
        }
        self.last_seen = seen;
        self.last_direction = direction.clone();
        let shrink = 1.0 - rate * f64::from(self.decay.decoupled());
        if self.averaging == Averaging::ScheduleFree {
            self.move_schedule_free(shrink, rate, &direction, &factors);
        } else {
            let decay = f64::from(self.decay.decoupled());
            let steps: Vec<f64> = self.w.iter().zip(&direction).map(|(w, u)| rate * (u + decay * w)).collect();
            if let Some(places) = self.reference.as_mut().and_then(|reference| reference.place(&self.w_0, &steps)) {
                self.w = places;
            } else {
                for ((w, u), factor) in self.w.iter_mut().zip(&direction).zip(&factors) {
                    if let Some(factor) = factor {
                        *w = (1.0 - factor * (1.0 - shrink)) * *w - rate * factor * u;
                    }
                }
            }
            self.average_iterate();
        }
        if let Some(streams) = &mut self.streams {
            self.w = streams.pass(&self.w, Some(sign_of_climb * self.loss));
        }
        out
    }

    /// Returns the memory of the rule.
    pub fn moments(&self) -> &Moments {
        &self.moments
    }

    /// Replaces the memory of the rule by the one that a path has stored, such as decoded 8-bit state.
    pub fn remember(&mut self, moments: Moments) {
        self.moments = moments;
    }

    /// Takes a look at the last step, with the gradients of its batch at the parameters after it. A look that is not
    /// finite is ignored.
    pub fn look(&mut self, raw: &[f32]) {
        let sign_of_climb = if self.maximize { -1.0 } else { 1.0 };
        let coupled = f64::from(self.decay.coupled());
        let seen = raw.iter().zip(&self.w).map(|(&g, w)| sign_of_climb * f64::from(g) + coupled * w);
        let y: Vec<f64> = seen.zip(&self.last_seen).map(|(g, last)| g - last).collect();
        let (Some(reference), Some(rate)) = (&mut self.reference, self.last_rate) else { return };
        if std::mem::take(&mut self.is_look_due) && y.iter().all(|y| y.is_finite()) {
            let s: Vec<f64> = self.last_direction.iter().map(|u| -rate * u).collect();
            reference.look(&RegimeLook { s: &s, y: &y, u: &self.last_direction, g: &self.last_seen, rate });
        }
    }

    /// Takes a step of schedule-free training. The average has memory of its own, and `w` is where gradients are taken.
    fn move_schedule_free(&mut self, shrink: f64, rate: f64, direction: &[f64], factors: &[Option<f64>]) {
        self.largest_rate = self.largest_rate.max(rate);
        let counted = if self.regime.needs_schedule_free() { self.largest_rate } else { rate };
        // Until there is a rate nothing moves, and the parameters equal their average.
        if counted == 0.0 {
            return;
        }
        let weight = (counted * f64::from(self.taken)).powi(2);
        self.weight_sum += weight;
        let share = weight / self.weight_sum;
        let average = self.average.get_or_insert_with(|| self.w.clone());
        let base = self.base.get_or_insert_with(|| self.w.clone());
        let elements = self.w.iter_mut().zip(average).zip(base).zip(direction).zip(factors);
        for ((((w, x), z), u), factor) in elements {
            let Some(factor) = factor else { continue };
            *z = (1.0 - factor * (1.0 - shrink)) * *z - rate * factor * u;
            *x = (1.0 - share) * *x + share * *z;
            *w = 0.85 * *x + 0.15 * *z;
        }
    }

    /// Adds the iterate of the last step to the average, by the formulas of the papers.
    fn average_iterate(&mut self) {
        let (start, weight): (u32, &dyn Fn(f64) -> f64) = match self.averaging {
            Averaging::Running { start } => (start, &|k| 1.0 / k),
            Averaging::Exponential { decay, start } => (start, &move |_| 1.0 - f64::from(decay)),
            Averaging::PolynomialDecay { eta, start } => {
                let eta = f64::from(eta);
                (start, &move |k| (1.0 + eta) / (k + eta))
            }
            _ => return,
        };
        if self.taken <= start {
            return;
        }
        self.average = Some(match self.average.take() {
            None => self.w.clone(),
            Some(average) => {
                let a = weight(f64::from(self.taken - start));
                let pairs = average.iter().zip(&self.w);
                pairs.map(|(average, w)| (1.0 - a) * average + a * w).collect()
            }
        });
    }

    /// Returns the factor of the clip, from the norm of the gradient without weight decay.
    fn clip_factor(&self, raw: &[f64]) -> f64 {
        (self.clip / norm(raw)).min(1.0)
    }

    fn change_rate(&mut self, g: &[f64], out: &mut Outcome) {
        let n = out.norm;
        let (beta, floor) = self.regime.smoothing();
        let beta = f64::from(beta);
        self.k += 1;
        let first = self.k == 1;
        self.mean_square = beta * self.mean_square + (1.0 - beta) * n * n;
        // The number of steps is below the mean's longest memory.
        let counted = if first { n } else { n.min(10.0 * self.smoothed) };
        self.mean_norm += (counted - self.mean_norm) / f64::from(self.k);
        let smoothed =
            (self.mean_square / (1.0 - beta.powi(self.k))).sqrt().max(n).max(f64::from(floor) * self.mean_norm);
        let last_smoothed = std::mem::replace(&mut self.smoothed, smoothed);
        out.first = first;
        let alignment = if first { (0.0, None) } else { self.alignment(g, n) };
        (out.slow, out.fast) = (alignment.0, alignment.1.unwrap_or(0.0));
        let step = RegimeStep {
            g,
            norm: n,
            smoothed,
            last_smoothed,
            first,
            k: f64::from(self.k),
            loss: self.loss,
            rate: self.rate(),
            w: &self.w,
            base: self.base.as_deref().unwrap_or(&self.w),
            first_w: &self.w_0,
            last_g: &self.last_seen,
            last_direction: &self.last_direction,
            first_length: f64::from(self.regime.first_step(&self.rule, &self.averaging)) * (1.0 + self.w0_norm),
            scale_free: self.rule.is_scale_free(),
            direction_length: self.direction_length(),
            scheduled_rise: self.scheduled_rise(),
            alignment,
        };
        let reference = self.reference.get_or_insert_with(|| self.regime.reference(&self.rule));
        let rate = reference.follow(&step);
        // A clamped rate has the errors of the previous one.
        self.rate_size = reference.rate_size().max(self.rate_size / 10.0);
        let limit = 1e30_f64.ln();
        match rate {
            Rate::Unchanged if first => {
                let length = f64::from(self.regime.first_step(&self.rule, &self.averaging)) * (1.0 + self.w0_norm);
                let direction = if self.rule.is_scale_free() { self.direction_length() } else { n };
                let length = if self.trust_caps { length } else { length / self.trust_ratio(n, 1.0) };
                self.ln_first_rate = *self.ln_rate.get_or_insert((length / direction).clamp(1e-30, 1e30).ln());
            }
            Rate::Unchanged => {}
            Rate::Wanted { rate, .. } if first => self.ln_rate = Some(rate.clamp(1e-30, 1e30).ln()),
            Rate::Wanted { rate, max_change, max_rate } => {
                let before = self.ln_rate.expect("started");
                let most = max_change.ln();
                let change = (rate.ln() - before).clamp(-most, most);
                self.ln_rate = Some((before + change).min(max_rate.ln()).max(-limit));
            }
            Rate::Change { total, norm, alignment, brake, held } => {
                let before = self.ln_rate.expect("started");
                let wanted = self.ln_first_rate + total;
                let after = wanted.min(before + std::f64::consts::LN_10).clamp(-limit, limit);
                (out.norm_term, out.alignment_term, out.brake_term, out.held_term) = (norm, alignment, brake, held);
                out.clamp_term = after - before - (norm + alignment + brake + held);
                self.ln_rate = Some(after);
            }
        }
    }

    /// Returns a_slow, and a_fast if there are direction counters.
    fn alignment(&self, g: &[f64], n: f64) -> (f64, Option<f64>) {
        let cosine = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        if !self.regime.needs_alignment() {
            return (0.0, None);
        }
        if self.rule.has_momentum() {
            let m = self.moments.m.as_ref();
            return (m.map_or(0.0, |m| cosine(dot(g, m), n * norm(m))), None);
        }
        if self.averaging == Averaging::ScheduleFree && !self.rule.has_second_moment() {
            let way = self.base.as_ref().filter(|_| self.k > 2);
            let way = way.map(|z| self.w.iter().zip(z).map(|(y, z)| y - z).collect::<Vec<_>>());
            return (way.map_or(0.0, |way| cosine(dot(g, &way), n * norm(&way))), None);
        }
        let fast = cosine(dot(g, &self.last_sign), g.iter().map(|g| g.abs()).sum::<f64>());
        (cosine(dot(g, &self.q), n * norm(&self.q)), Some(fast))
    }

    /// Computes the trust ratio of LARS, or the factor of a cap on a rate, from the parameters before the step.
    fn trust_ratio(&self, n: f64, rate: f64) -> f64 {
        let Some(coefficient) = self.trust else {
            return 1.0;
        };
        let parameters = norm(&self.w);
        let direction = if self.rule.is_scale_free() { self.direction_length() } else { n };
        let wanted = coefficient * parameters / direction;
        match self.trust_least {
            _ if direction == 0.0 => 1.0,
            None if parameters == 0.0 => 1.0,
            least if self.trust_caps => (wanted / rate).min(1.0).clamp(least.unwrap_or(1e-8), 1e8),
            least => wanted.clamp(least.unwrap_or(1e-8), 1e8),
        }
    }

    /// Returns the rise of ln η by schedule and controls at this step, which is 0 at the first step.
    fn scheduled_rise(&self) -> f64 {
        let Some(before) = self.taken.checked_sub(1) else {
            return 0.0;
        };
        let (now, last) = (factor_at(&self.schedule, self.taken), factor_at(&self.schedule, before));
        (now * self.factor / (last * self.last_factor)).ln().max(0.0)
    }
}
