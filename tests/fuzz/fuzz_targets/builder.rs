//! Settings with any numbers are refused in one line, or steps along any gradients leave the parameters finite.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wgpu_optim::{
    AdGd, AdaGradNorm, Adafactor, Adagrad, AdamW, AmsGrad, AutoSgd, Averaging, BarzilaiBorwein, Curvature,
    CurvatureForm, DecayShape, DoG, DoWG, FixedRate, Group, Hypergradient, Lion, LossScaler, Mechanic, Muon,
    MuonPrecision, MuonScale, NAdamW, Ngn, NonFinitePolicy, NormRatio, OptimizerBuilder, Polyak, Prodigy, RateFactors,
    Regime, RmsProp, Rule, Schedule, ScheduleFreePlus, SecantForm, Seesaw, Sgdm, Signum, TrustRatio, WnGrad,
};

/// Numbers at and beyond the ends of ranges.
const NUMBERS: [f32; 24] = [
    0.0,
    -0.0,
    0.01,
    0.1,
    0.5,
    0.9,
    0.99,
    0.999_999_94,
    1.0,
    -1.0,
    2.0,
    10.0,
    1e3,
    1e6,
    1e-6,
    1e-30,
    1e30,
    -1e30,
    3e38,
    f32::MIN_POSITIVE,
    1e-45,
    f32::INFINITY,
    f32::NAN,
    64.0,
];

struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn flag(&mut self) -> bool {
        self.byte().is_multiple_of(2)
    }

    fn count(&mut self) -> u32 {
        match self.byte() {
            255 => u32::from_le_bytes([(); 4].map(|()| self.byte())),
            small => small.into(),
        }
    }

    fn number(&mut self) -> f32 {
        match self.byte() {
            byte @ 0..192 => NUMBERS[usize::from(byte) % NUMBERS.len()],
            _ => f32::from_bits(u32::from_le_bytes([(); 4].map(|()| self.byte()))),
        }
    }

    fn optional(&mut self) -> Option<f32> {
        self.flag().then(|| self.number())
    }

    fn rule(&mut self) -> Rule {
        match self.byte() % 12 {
            0 => Rule::sgd(),
            1 => {
                let (momentum, dampening) = (self.number(), self.number());
                Rule::Sgdm(Sgdm { momentum, dampening, nesterov: self.flag() })
            }
            2 => Rule::sign_sgd(),
            3 => Rule::Signum(Signum { momentum: self.number() }),
            4 => Rule::AdamW(AdamW { beta1: self.number(), beta2: self.number(), epsilon: self.number() }),
            5 => Rule::NAdamW(NAdamW { beta1: self.number(), beta2: self.number(), epsilon: self.number() }),
            6 => Rule::RmsProp(RmsProp { alpha: self.number(), epsilon: self.number() }),
            7 => Rule::Adagrad(Adagrad { epsilon: self.number() }),
            8 => Rule::AmsGrad(AmsGrad { beta1: self.number(), beta2: self.number(), epsilon: self.number() }),
            9 => Rule::Muon(Muon {
                momentum: self.number(),
                nesterov: self.flag(),
                coefficients: [(); 3].map(|()| self.number()),
                iterations: self.count(),
                epsilon: self.number(),
                scale: [MuonScale::Original, MuonScale::MatchRmsAdamW, MuonScale::Spectral]
                    [usize::from(self.byte() % 3)],
                precision: [MuonPrecision::F32, MuonPrecision::F16][usize::from(self.byte() % 2)],
            }),
            10 => Rule::Adafactor(Adafactor { fall: self.number(), epsilon: self.number(), limit: self.number() }),
            _ => Rule::Lion(Lion { beta1: self.number(), beta2: self.number() }),
        }
    }

    /// Returns a shape for this number of elements, or for another number.
    fn shape(&mut self, elements: usize) -> Vec<usize> {
        match self.byte() % 8 {
            0..4 => vec![elements, 1],
            4 => vec![1, elements],
            5 => Vec::new(),
            6 => vec![elements],
            _ => [(); 3].map(|()| [0, 1, 2, elements, usize::MAX][usize::from(self.byte() % 5)]).into(),
        }
    }

    fn regime(&mut self) -> Regime {
        let form = [SecantForm::Long, SecantForm::Short, SecantForm::Geometric][usize::from(self.byte() % 3)];
        match self.byte() % 17 {
            0 => Regime::Seesaw(Seesaw {
                exponent: self.number(),
                exponent_above: self.number(),
                gain: self.number(),
                early_steps: self.number(),
                smoothing: self.number(),
                norm_floor: self.number(),
                brake_slack: self.number(),
                first_step: self.optional(),
            }),
            1 => Regime::NormRatio(NormRatio {
                initial_rate: self.optional(),
                exponent: self.number(),
                smoothing: self.number(),
                norm_floor: self.number(),
                first_step: self.optional(),
            }),
            2 => Regime::Hypergradient(Hypergradient {
                gain: self.number(),
                early_steps: self.number(),
                smoothing: self.number(),
                norm_floor: self.number(),
                first_step: self.optional(),
            }),
            3 => Regime::Fixed(FixedRate { learning_rate: self.number() }),
            4 => Regime::AdaGradNorm(AdaGradNorm { scale: self.number(), offset: self.number() }),
            5 => Regime::WnGrad(WnGrad { scale: self.number(), offset: self.number() }),
            6 => Regime::BarzilaiBorwein(BarzilaiBorwein {
                form,
                max_change: self.number(),
                initial_rate: self.optional(),
                first_step: self.number(),
            }),
            7 => Regime::AdGd(AdGd { initial_rate: self.optional(), first_step: self.number() }),
            8 => Regime::DoG(DoG { initial_distance: self.number() }),
            9 => Regime::DoWG(DoWG { initial_distance: self.number() }),
            10 => Regime::Polyak(Polyak { optimum: self.number(), factor: self.number(), max_rate: self.number() }),
            11 => Regime::Ngn(Ngn { rate: self.number() }),
            12 => Regime::Curvature(Curvature {
                form: [CurvatureForm::Short, CurvatureForm::Long, CurvatureForm::Geometric, CurvatureForm::Newton]
                    [usize::from(self.byte() % 4)],
                smoothing: self.number(),
                max_change: self.number(),
                initial_rate: self.optional(),
                first_step: self.number(),
            }),
            13 => Regime::ScheduleFreePlus(ScheduleFreePlus { optimum: self.number(), factor: self.number() }),
            14 => Regime::Prodigy(Prodigy {
                learning_rate: self.number(),
                initial_estimate: self.number(),
                coefficient: self.number(),
                growth: self.number(),
                beta3: self.optional(),
                bias_correction: self.byte() % 2 == 1,
                safeguard_warmup: self.byte() % 2 == 1,
            }),
            15 => Regime::Mechanic(Mechanic {
                learning_rate: self.number(),
                decay: self.number(),
                initial_scale: self.number(),
                epsilon: self.number(),
            }),
            _ => Regime::AutoSgd(AutoSgd {
                factor: self.number(),
                certainty: self.number(),
                rounds: self.count(),
                initial_rate: self.optional(),
                first_step: self.number(),
            }),
        }
    }

    fn schedule(&mut self) -> Schedule {
        let (kind, warmup, steps, other) = (self.byte() % 12, self.count(), self.count(), self.count());
        let (last, number) = (self.number(), self.number());
        match kind {
            0 => Schedule::Constant,
            1 => Schedule::WarmupConstant { warmup },
            2 => Schedule::WarmupCosine { warmup, steps, last },
            3 => Schedule::Linear { warmup, steps, last },
            4 => Schedule::Polynomial { warmup, steps, power: number, last },
            5 => Schedule::Exponential { warmup, every: steps, factor: number },
            6 => Schedule::CosineRestarts { warmup, period: steps, growth: other, last },
            7 => {
                let shapes = [DecayShape::OneMinusSqrt, DecayShape::Linear, DecayShape::Cosine];
                let shape = shapes[usize::from(self.byte() % 3)];
                Schedule::WarmupStableDecay { warmup, steps, decay: other, last, shape }
            }
            8 => Schedule::InverseSqrt { warmup },
            9 => Schedule::Step { every: steps, factor: number },
            10 => Schedule::OneCycle { rise: warmup, steps, first: number, last },
            _ => Schedule::Table { factors: (0..other % 5000).map(|_| number).collect(), every: steps },
        }
    }

    fn averaging(&mut self) -> Averaging {
        match self.byte() % 5 {
            0 => Averaging::Off,
            1 => Averaging::ScheduleFree,
            2 => Averaging::Running { start: self.count() },
            3 => Averaging::Exponential { decay: self.number(), start: self.count() },
            _ => Averaging::PolynomialDecay { eta: self.number(), start: self.count() },
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut source = Source(bytes);
    let mut w = [1.0f32, -2.0, 0.5, 0.0, 1e-3];
    let mut builder = OptimizerBuilder::new(source.rule()).record_steps(3);
    let options = source.byte();
    if options & 1 != 0 {
        builder = builder.nonfinite_policy(NonFinitePolicy::Error { after: source.count() });
    }
    if options & 2 != 0 {
        let (initial_scale, min_scale, max_scale) = (source.number(), source.number(), source.number());
        builder =
            builder.loss_scaler(LossScaler { initial_scale, growth_interval: source.count(), min_scale, max_scale });
    }
    if options & 16 != 0 {
        builder = builder.other_tensors(source.rule());
    }
    if options & 4 != 0 {
        builder = builder.global_norm();
    }
    if options & 8 != 0 {
        builder = builder.micro_batches(source.count());
    }
    for (name, range) in [("first", 0..3), ("second", 3..5)] {
        let mut group = Group::new(name).regime(source.regime()).schedule(source.schedule());
        group = group.averaging(source.averaging()).clip_norm(source.number()).maximize(source.flag());
        group = if source.flag() {
            group.weight_decay(source.number())
        } else {
            group.decoupled_weight_decay(source.number())
        };
        if source.flag() {
            group = group.trust_ratio(TrustRatio {
                coefficient: source.number(),
                least: source.optional(),
                cap: source.flag(),
            });
        }
        group = group.telemetry(source.flag()).lazy_rows(source.flag());
        if source.flag() {
            let factors = (0..source.byte() % 4).map(|_| source.number()).collect();
            group = group.rate_factors(match source.flag() {
                true => RateFactors::Columns(factors),
                false => RateFactors::Rows(factors),
            });
        }
        builder = builder.group(group.shaped_tensor(name, &source.shape(range.len()), &w[range.clone()], &w[range]));
    }
    let _ = builder.warnings();
    let mut optimizer = match builder.build_cpu() {
        Ok(optimizer) => optimizer,
        Err(error) => {
            let error = error.to_string();
            assert!(!error.is_empty() && !error.contains('\n'), "{error}");
            return;
        }
    };
    for _ in 0..4 {
        let g = [(); 5].map(|()| source.number());
        let (first, second) = w.split_at_mut(3);
        let _ = optimizer.step_with_loss(&mut [first, second], &[&g[..3], &g[3..]], source.number());
        assert!(w.iter().all(|w| w.is_finite()), "{w:?}");
    }
    for record in optimizer.drain_records().records {
        assert!(!record.to_string().is_empty());
    }
});
