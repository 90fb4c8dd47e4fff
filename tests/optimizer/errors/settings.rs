//! Errors of settings: numbers out of their range, and settings that do not fit together. Numbers at the ends of their ranges are accepted.

use super::{Host, W, host_error, on_host};
use wgpu_optim::{
    AdamW, AutoSgd, Averaging, ErrorKind, Group, Hypergradient, Lion, LossScaler, Mechanic, NonFinitePolicy, NormRatio,
    OptimizerBuilder, Prodigy, Regime, Rounding, Rule, ScheduleFreePlus, Seesaw, Sgdm, TrustRatio,
};
use wgpu_optim_conformance::run::devices;
use wgpu_optim_conformance::{assert_refused, upload};

fn with_regime(regime: Regime) -> Host {
    on_host(Rule::sgd()).regime(regime)
}

fn seesaw(change: impl FnOnce(&mut Seesaw)) -> Host {
    let mut seesaw = Seesaw::default();
    change(&mut seesaw);
    with_regime(Regime::Seesaw(seesaw))
}

fn scaler(change: impl FnOnce(&mut LossScaler)) -> Host {
    let mut scaler = LossScaler::default();
    change(&mut scaler);
    on_host(Rule::sgd()).loss_scaler(scaler)
}

fn adamw(beta1: f32, beta2: f32, epsilon: f32) -> Host {
    on_host(Rule::AdamW(AdamW { beta1, beta2, epsilon }))
}

fn lion(beta1: f32, beta2: f32) -> Host {
    on_host(Rule::Lion(Lion { beta1, beta2 }))
}

fn sgdm(momentum: f32, dampening: f32, nesterov: bool) -> Host {
    on_host(Rule::Sgdm(Sgdm { momentum, dampening, nesterov }))
}

/// Every number of rules, regimes and groups is refused on both sides of its range, and as NaN.
#[test]
fn numbers_out_of_range() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let mut cases: Vec<(Host, &str, &str)> = Vec::new();
    let mut refuse = |owner, field, bad: &[f32], build: &dyn Fn(f32) -> Host| {
        cases.extend(bad.iter().map(|&bad| (build(bad), owner, field)));
    };
    let no_share = [-0.1, 1.0, inf, nan];
    refuse("rule sgdm", "momentum", &no_share, &|x| sgdm(x, 0.0, false));
    refuse("rule sgdm", "dampening", &no_share, &|x| sgdm(0.9, x, false));
    refuse("rule nesterov", "momentum", &[0.0], &|x| sgdm(x, 0.0, true));
    refuse("rule nesterov", "dampening", &[0.1], &|x| sgdm(0.9, x, true));
    refuse("rule signum", "momentum", &no_share, &|x| on_host(Rule::signum(x)));
    refuse("rule adamw", "beta1", &no_share, &|x| adamw(x, 0.9, 1e-8));
    refuse("rule adamw", "beta2", &no_share, &|x| adamw(0.9, x, 1e-8));
    refuse("rule adamw", "epsilon", &[-1e-8, 0.0, 1e-39, inf, nan], &|x| adamw(0.9, 0.999, x));
    refuse("rule lion", "beta1", &no_share, &|x| lion(x, 0.9));
    refuse("rule lion", "beta2", &[-0.1, 0.0, 1.0, inf, nan], &|x| lion(0.9, x));

    let no_factor = [-0.5, 1.1e6, f32::MAX, inf, nan];
    refuse("regime seesaw", "exponent", &no_factor, &|x| seesaw(|s| s.exponent = x));
    refuse("regime seesaw", "exponent_above", &no_factor, &|x| seesaw(|s| s.exponent_above = x));
    refuse("regime seesaw", "gain", &no_factor, &|x| seesaw(|s| s.gain = x));
    let no_size = [-0.5, inf, nan];
    refuse("regime seesaw", "early_steps", &no_size, &|x| seesaw(|s| s.early_steps = x));
    refuse("regime seesaw", "brake_slack", &no_size, &|x| seesaw(|s| s.brake_slack = x));
    refuse("regime seesaw", "smoothing", &[-0.5, 1.0, nan], &|x| seesaw(|s| s.smoothing = x));
    refuse("regime seesaw", "first_step", &[-1.0, 0.0, inf, nan], &|x| seesaw(|s| s.first_step = Some(x)));
    let no_rate = [-1.0, 0.0, 0.9e-30, 1.1e30, inf, nan];
    refuse("regime fixed", "learning rate", &no_rate, &|x| with_regime(Regime::fixed(x)));
    let ratio = |ratio| with_regime(Regime::NormRatio(ratio));
    refuse("regime norm-ratio", "exponent", &no_size, &|exponent| ratio(NormRatio { exponent, ..Default::default() }));
    refuse("regime norm-ratio", "learning rate", &no_rate, &|rate| {
        ratio(NormRatio { initial_rate: Some(rate), ..Default::default() })
    });
    refuse("regime hypergradient", "gain", &no_size, &|gain| {
        with_regime(Regime::Hypergradient(Hypergradient { gain, ..Default::default() }))
    });

    let plus = |plus| with_regime(Regime::ScheduleFreePlus(plus)).schedule_free();
    refuse("regime schedule-free-plus", "optimum", &[inf, nan], &|optimum| {
        plus(ScheduleFreePlus { optimum, ..Default::default() })
    });
    refuse("regime schedule-free-plus", "factor", &[-1.0, 0.0, 1e-39, inf, nan], &|factor| {
        plus(ScheduleFreePlus { factor, ..Default::default() })
    });

    let prodigy = |change: &dyn Fn(&mut Prodigy)| {
        let mut prodigy = Prodigy::default();
        change(&mut prodigy);
        on_host(Rule::adamw()).regime(Regime::Prodigy(prodigy))
    };
    let owner = "regime prodigy";
    refuse(owner, "learning_rate", &[-1.0, 0.0, 1e9, inf, nan], &|x| prodigy(&|p| p.learning_rate = x));
    refuse(owner, "initial_estimate", &[-1.0, 0.0, 1e-21, inf, nan], &|x| prodigy(&|p| p.initial_estimate = x));
    refuse(owner, "coefficient", &[-1.0, 0.0, inf, nan], &|x| prodigy(&|p| p.coefficient = x));
    refuse(owner, "growth", &[-1.0, 0.99, nan], &|x| prodigy(&|p| p.growth = x));
    refuse(owner, "beta3", &[-0.5, 1.0, nan], &|x| prodigy(&|p| p.beta3 = Some(x)));
    let mechanic = |change: &dyn Fn(&mut Mechanic)| {
        let mut mechanic = Mechanic::default();
        change(&mut mechanic);
        with_regime(Regime::Mechanic(mechanic))
    };
    let owner = "regime mechanic";
    refuse(owner, "learning_rate", &[-1.0, 0.0, 1e9, inf, nan], &|x| mechanic(&|m| m.learning_rate = x));
    refuse(owner, "decay", &[-0.5, inf, nan], &|x| mechanic(&|m| m.decay = x));
    refuse(owner, "initial_scale", &[-1.0, 0.0, 1.5, nan], &|x| mechanic(&|m| m.initial_scale = x));
    refuse(owner, "epsilon", &[-1.0, 0.0, 0.1, nan], &|x| mechanic(&|m| m.epsilon = x));

    let sgd = || on_host(Rule::sgd());
    let no_decay = [-1e-3, inf, nan];
    refuse("group \"all\"", "weight_decay", &no_decay, &|x| sgd().weight_decay(x));
    refuse("group \"all\"", "weight_decay", &no_decay, &|x| sgd().decoupled_weight_decay(x));
    refuse("group \"all\"", "clip_norm", &[-1.0, 0.0, nan], &|x| sgd().clip_norm(x));
    // The error also names a group's own setting.
    refuse("group \"own\"", "clip_norm", &[-2.0], &|x| sgd().group(Group::new("own").clip_norm(x)));
    refuse("averaging exponential", "decay", &no_share, &|decay| {
        sgd().averaging(Averaging::Exponential { decay, start: 0 })
    });
    refuse("averaging polynomial", "eta", &[-0.1, inf, nan], &|eta| {
        sgd().averaging(Averaging::PolynomialDecay { eta, start: 0 })
    });
    let no_scale = [-1.0, 0.0, 0.5, 3.0, 1.5e38, inf, nan];
    refuse("loss scaler", "min_scale", &no_scale, &|x| scaler(|s| s.min_scale = x));
    refuse("loss scaler", "max_scale", &no_scale, &|x| scaler(|s| s.max_scale = x));
    refuse("loss scaler", "initial_scale", &no_scale, &|x| scaler(|s| s.initial_scale = x));
    // The initial scale is below the smallest scale, and above the largest one.
    refuse("loss scaler", "initial_scale", &[2.0, 16.0], &|x| {
        scaler(|s| (s.min_scale, s.initial_scale, s.max_scale) = (4.0, x, 8.0))
    });
    refuse("loss scaler", "growth_interval", &[0.0], &|_| scaler(|s| s.growth_interval = 0));
    refuse("optimizer", "record_steps", &[0.0], &|_| sgd().record_steps(0));
    refuse("optimizer", "NonFinitePolicy::Error::after", &[0.0], &|_| {
        sgd().nonfinite_policy(NonFinitePolicy::Error { after: 0 })
    });
    assert!(cases.len() > 50);
    for (builder, owner, field) in cases {
        let error = host_error(builder, &["must be"]);
        assert_eq!(error.kind(), ErrorKind::Build, "{error}");
        assert!(error.to_string().starts_with(&format!("{owner}: {field} is ")), "{error}");
    }
}

/// Every range includes its ends, where they belong to it.
#[test]
fn numbers_just_within_range() {
    let below_one = f32::from_bits(1f32.to_bits() - 1);
    let extreme = Seesaw {
        exponent_above: 1e6,
        exponent: 0.0,
        gain: 0.0,
        early_steps: 0.0,
        smoothing: 0.0,
        norm_floor: 0.0,
        brake_slack: 0.0,
        first_step: Some(f32::MIN_POSITIVE),
    };
    let other = Seesaw { smoothing: below_one, exponent: 1e6, gain: 1e6, early_steps: f32::MAX, ..Seesaw::default() };
    let sgd = || on_host(Rule::sgd());
    for builder in [
        on_host(Rule::signum(0.0)).regime(Regime::Seesaw(extreme)),
        sgdm(below_one, below_one, false).regime(Regime::Seesaw(other)),
        on_host(Rule::nesterov(f32::MIN_POSITIVE)).regime(Regime::fixed(1e-30)),
        adamw(0.0, 0.0, f32::MIN_POSITIVE).regime(Regime::fixed(1e-30)),
        adamw(below_one, below_one, f32::MAX),
        lion(0.0, f32::MIN_POSITIVE),
        lion(below_one, below_one),
        with_regime(Regime::fixed(1e30)),
        with_regime(auto(|a| (a.factor, a.certainty, a.rounds) = (10.0, 0.0, 65_536))),
        sgd()
            .weight_decay(0.0)
            .clip_norm(f32::INFINITY)
            .loss_scaler(LossScaler::fixed(1.0))
            .nonfinite_policy(NonFinitePolicy::Error { after: u32::MAX })
            .record_steps(1),
        sgd()
            .decoupled_weight_decay(f32::MAX)
            .loss_scaler(LossScaler::fixed(2f32.powi(126)))
            .clip_norm(f32::MIN_POSITIVE),
        sgd().averaging(Averaging::Running { start: u32::MAX }),
        sgd().averaging(Averaging::Exponential { decay: below_one, start: 0 }),
        sgd().averaging(Averaging::Exponential { decay: 0.0, start: 0 }),
        sgd().averaging(Averaging::PolynomialDecay { eta: f32::MAX, start: 0 }),
        sgd().sharded(0, 2),
    ] {
        builder.build_cpu().expect("within range");
    }
}

fn auto(change: impl FnOnce(&mut AutoSgd)) -> Regime {
    let mut regime = AutoSgd::default();
    change(&mut regime);
    Regime::AutoSgd(regime)
}

/// Returns two groups, of which the first uses streams and the second this regime.
fn streams_beside(regime: Regime, maximize: bool) -> Host {
    with_regime(Regime::auto_sgd()).group(Group::new("second").regime(regime).maximize(maximize).tensor("b", W, W))
}

/// Returns two groups that share a norm: one compares its gradient with counters, the other with a momentum.
fn counters_beside_momentum(regime: Regime) -> Host {
    OptimizerBuilder::new(Rule::sgd())
        .regime(regime)
        .group(Group::new("plain").share_norm("all").tensor("a", W, W))
        .group(Group::new("heavy").rule(Rule::sgdm(0.9)).share_norm("all").tensor("b", W, W))
}

/// Returns two groups that share a norm in schedule-free training: one with ScheduleFree+, the other with this regime.
fn plus_beside(regime: Regime) -> Host {
    let second = Group::new("second").regime(regime).share_norm("both").tensor("b", W, W);
    let first = Group::new("first").regime(Regime::schedule_free_plus()).share_norm("both").tensor("a", W, W);
    OptimizerBuilder::new(Rule::sgd()).schedule_free().group(first).group(second)
}

#[test]
fn settings_that_do_not_go_together() {
    let sgd = || on_host(Rule::sgd());
    let trust = |coefficient| sgd().trust_ratio(TrustRatio { coefficient, ..TrustRatio::default() });
    let streams = || with_regime(Regime::auto_sgd());
    let sums = "OptimizerBuilder::sharded";
    let mut cases: Vec<(Host, Vec<&str>)> = vec![
        // All of the optimizer's groups take turns with three streams of parameters, each of which would need a momentum.
        (on_host(Rule::signum(0.0)).regime(Regime::auto_sgd()), vec!["\"all\"", "signum", "signsgd", "auto-sgd"]),
        (streams_beside(Regime::auto_sgd(), true), vec!["\"second\"", "several optimizers", "auto-sgd"]),
        (streams_beside(Regime::seesaw(), false), vec!["\"second\"", "several optimizers", "seesaw"]),
        // These settings would mix the streams.
        (streams().averaging(Averaging::Running { start: 0 }), vec!["\"all\"", "averaging", "auto-sgd"]),
        (streams().schedule_free(), vec!["\"all\"", "auto-sgd"]),
        (streams().trust_ratio(TrustRatio::default()), vec!["\"all\"", "trust_ratio", "auto-sgd"]),
        // ScheduleFree+ computes a rate for schedule-free training only, and its sums differ from those of other regimes.
        (
            with_regime(Regime::schedule_free_plus()),
            vec!["\"all\"", "averaging is off", "averaging(Averaging::ScheduleFree)"],
        ),
        (
            with_regime(Regime::schedule_free_plus()).averaging(Averaging::polynomial_decay()),
            vec!["\"all\"", "averaging is polynomial", "averaging(Averaging::ScheduleFree)"],
        ),
        // The steps are not taken from the point at which the gradient is computed.
        (
            on_host(Rule::adamw_without_momentum()).regime(Regime::prodigy()).schedule_free(),
            vec!["\"all\"", "averaging is schedule-free", "Averaging::polynomial_decay()"],
        ),
        (
            with_regime(Regime::mechanic()).schedule_free(),
            vec!["\"all\"", "averaging is schedule-free", "Averaging::polynomial_decay()"],
        ),
        (plus_beside(Regime::seesaw()), vec!["\"first\"", "\"second\"", "share the norm \"both\""]),
        (trust(0.0), vec!["coefficient"]),
        (trust(f32::NAN), vec!["coefficient"]),
        (trust(1.0).global_norm(), vec!["shared"]),
        (
            sgd().global_norm().group(Group::new("apart").share_norm("global").tensor("v", W, W)),
            vec!["\"apart\"", "share_norm is \"global\"", "another name"],
        ),
        // Ranks would have to exchange more sums for these settings.
        (sgd().sharded(0, 2).telemetry(true), vec!["telemetry is on", sums]),
        (sgd().sharded(0, 2).trust_ratio(TrustRatio::default()), vec!["trust_ratio is on", sums]),
        (sgd().sharded(2, 2), vec!["rank is 2", "below the number of ranks"]),
        (sgd().sharded(0, 0), vec!["ranks is 0", "at least 1"]),
        (sgd().micro_batches(0), vec!["micro_batches", "0", "at least 1"]),
        (sgd().clear_gradients(), vec!["clear_gradients", "CPU path"]),
        (counters_beside_momentum(Regime::seesaw()), vec!["\"plain\"", "\"heavy\"", "\"all\""]),
    ];
    for regime in [auto(|a| a.factor = 3.0), auto(|a| a.certainty = 4.0), auto(|a| a.rounds = 5)] {
        cases.push((streams_beside(regime, false), vec!["\"second\"", "several optimizers", "auto-sgd"]));
    }
    for (field, regime) in [
        ("factor", auto(|a| a.factor = 1.0)),
        ("factor", auto(|a| a.factor = 10.5)),
        ("factor", auto(|a| a.factor = f32::NAN)),
        ("certainty", auto(|a| a.certainty = -1.0)),
        ("certainty", auto(|a| a.certainty = f32::INFINITY)),
        ("rounds", auto(|a| a.rounds = 3)),
        ("rounds", auto(|a| a.rounds = 65_537)),
        ("learning rate", auto(|a| a.initial_rate = Some(0.0))),
        ("first_step", auto(|a| a.first_step = 0.0)),
    ] {
        cases.push((with_regime(regime), vec!["regime auto-sgd", field, "must be"]));
    }
    for rule in [Rule::sgd(), Rule::sgdm(0.9), Rule::amsgrad()] {
        let words = ["\"all\"", "rule is", rule.name(), "adamw", "Regime::mechanic()"];
        cases.push((on_host(rule).regime(Regime::prodigy()), words.to_vec()));
    }
    for rule in Rule::all().into_iter().filter(Rule::has_momentum) {
        let instead = ["Averaging::polynomial_decay()", "Rule::adamw_without_momentum()"];
        let words = ["group \"all\" with rule", rule.name(), "schedule-free"];
        cases.push((on_host(rule).schedule_free(), [&words[..], &instead].concat()));
    }
    for (builder, words) in cases {
        host_error(builder, &words);
    }
    host_error(counters_beside_momentum(Regime::seesaw()), &["share the norm \"all\"", "sign counters"]);

    // These settings differ from the refused ones by one word and fit together.
    let averaged = Group::new("averaged").rule(Rule::sgdm(0.9)).averaging(Averaging::polynomial_decay());
    for builder in [
        // Each group may have its own first rate.
        streams_beside(auto(|a| a.initial_rate = Some(0.1)), false),
        // Without alignment no inner products are shared.
        counters_beside_momentum(Regime::norm_ratio()),
        // One group may be schedule-free and another may not.
        sgd().schedule_free().group(averaged.tensor("v", W, W)),
        on_host(Rule::sign_sgd()).schedule_free(),
        plus_beside(Regime::schedule_free_plus()),
        on_host(Rule::adamw_without_momentum()).schedule_free(),
    ] {
        builder.build_cpu().expect("they go together");
    }
    for rule in [Rule::all(), vec![Rule::adamw_without_momentum()]].concat() {
        assert_eq!(Averaging::ScheduleFree.fits(&rule), !rule.has_momentum());
        assert!(Averaging::polynomial_decay().fits(&rule) && Averaging::Off.fits(&rule));
    }
}

/// An average is that of the numbers that steps are taken with: masters, or f32 parameters.
#[test]
fn averages_of_rounded_parameters_are_refused() {
    let halves = vec![half::f16::ONE; 5];
    let floats = vec![1.0f32; 5];
    for rounding in [Rounding::Nearest, Rounding::Stochastic { seed: 1 }] {
        let words = ["\"w\"", rounding.name(), "masters"];
        for averaging in [Averaging::Running { start: 0 }, Averaging::ScheduleFree] {
            let builder = || OptimizerBuilder::new(Rule::sgd()).rounding(rounding).averaging(averaging);
            host_error(builder().group(Group::new("all").tensor("w", &halves, &halves)), &words);
            // f32 parameters are not rounded.
            let group = Group::new("all").tensor("w", &floats, &halves);
            builder().group(group).build_cpu().expect("builds");
            for gpu in &devices() {
                let buffers = [(); 2].map(|()| upload(gpu, &[0.0; 16]));
                let [w, g] = [0, 1].map(|at| wgpu_optim::Element::F16.of(buffers[at].slice(..10)));
                let group = Group::new("all").tensor("w", w, g).averaging(averaging).rounding(rounding);
                assert_refused(OptimizerBuilder::new(Rule::sgd()).group(group).build(gpu), &words);
            }
        }
    }
}

#[test]
fn numbers_of_micro_batches_that_the_device_refuses() {
    for gpu in &devices() {
        let (w, g) = (upload(gpu, W), upload(gpu, W));
        let builder = super::on_device(w.slice(..16), g.slice(..16)).micro_batches(0);
        super::build_error(builder, gpu, &["micro_batches", "at least 1"]);
    }
}
