//! Tests of the epoch watchdog: accepted epochs are those of the optimizer alone. The verdicts are those of the papers' tests on the CPU path and on
//! every adapter. An epoch that is taken back leaves no trace.

use wgpu_optim::Watchdog;
use wgpu_optim::{
    Averaging, CpuWatchdog, Element, EpochOutcome, EpochVerdict, ErrorKind, Group, OptimizerBuilder, Regime, Rounding,
    Rule, State, WatchdogConfig, wgpu,
};
use wgpu_optim_conformance::run::{CpuRun, GpuRun, Run, Setup, Spec, bits, devices, every_path, gpu_run_with, packed};
use wgpu_optim_conformance::{assert_close, assert_refused, assert_says, noise, tensors, times, upload};

use super::device_runs;
use crate::helpers::{assert_same_bits, rules_and_regimes};

/// Offset of the loss in its buffer. No binding may start there.
const LOSS_BYTE: u64 = 20;

/// A run and its watchdog.
enum Watched {
    Host(Box<CpuRun>, Box<CpuWatchdog>),
    Device(Box<GpuRun>, Box<Watchdog>, wgpu::Buffer),
}

fn watched(specs: &[Spec], config: WatchdogConfig) -> Vec<Watched> {
    let host = CpuRun::new(specs);
    let watchdog = CpuWatchdog::new(&host.optimizer, config).expect("a watchdog");
    let mut all = vec![Watched::Host(Box::new(host), Box::new(watchdog))];
    all.extend(device_runs(specs).into_iter().map(|run| {
        let losses = upload(&run.gpu, &[f32::NAN; 16]);
        let loss = losses.slice(LOSS_BYTE..LOSS_BYTE + 4);
        let watchdog = Watchdog::new(&run.optimizer, loss, config).expect("a watchdog");
        Watched::Device(Box::new(run), Box::new(watchdog), losses)
    }));
    all
}

impl Watched {
    fn run(&mut self) -> &mut dyn Run {
        match self {
            Watched::Host(run, _) => &mut **run,
            Watched::Device(run, ..) => &mut **run,
        }
    }

    fn start(&mut self) {
        match self {
            Watched::Host(run, watchdog) => {
                let (optimizer, params) = run.parts();
                watchdog.start(optimizer, &params).expect("started");
            }
            Watched::Device(run, watchdog, _) => {
                let mut encoder = run.encoder();
                watchdog.encode_start(&run.optimizer, &mut encoder).expect("started");
                run.gpu.queue().submit([encoder.finish()]);
            }
        }
    }

    fn batch(&mut self, weight: f32, loss: f32) {
        match self {
            Watched::Host(_, watchdog) => watchdog.add_batch(weight, loss).expect("added"),
            Watched::Device(run, watchdog, losses) => {
                run.gpu.queue().write_buffer(losses, LOSS_BYTE, bytemuck::bytes_of(&loss));
                let mut encoder = run.encoder();
                watchdog.encode_batch(&mut encoder, weight).expect("added");
                run.gpu.queue().submit([encoder.finish()]);
            }
        }
    }

    fn end(&mut self) -> EpochVerdict {
        match self {
            Watched::Host(run, watchdog) => {
                let (optimizer, mut params) = run.parts();
                watchdog.end_epoch(optimizer, &mut params).expect("ended")
            }
            Watched::Device(run, watchdog, _) => {
                let mut encoder = run.encoder();
                watchdog.encode_epoch_end(&run.optimizer, &mut encoder).expect("ended");
                run.gpu.queue().submit([encoder.finish()]);
                let mut verdicts = pollster::block_on(watchdog.read_verdicts()).expect("verdicts");
                assert_eq!(verdicts.len(), 1);
                verdicts.remove(0)
            }
        }
    }
}

fn spec(rule: Rule, regime: Regime) -> Spec {
    Spec::new(rule, regime, tensors(7, &[301, 7, 5000]))
}

#[test]
fn accepted_epochs_are_those_of_the_optimizer_alone() {
    let averaged = Spec { averaging: Averaging::polynomial_decay(), ..spec(Rule::adamw(), Regime::norm_ratio()) };
    for case in [spec(Rule::sgd(), Regime::fixed(0.05)), spec(Rule::sgdm(0.9), Regime::seesaw()), averaged] {
        let specs = [case];
        for config in [WatchdogConfig::light(), WatchdogConfig::nonmonotone(5).margin(0.0)] {
            let plain = every_path(&specs).into_iter();
            for (mut watched, mut plain) in watched(&specs, config).into_iter().zip(plain) {
                watched.start();
                for epoch in 0..3u16 {
                    for step in 0..4 {
                        let grads = noise(&specs, u64::from(4 * epoch + step));
                        plain.step(&grads);
                        watched.run().step(&grads);
                        watched.batch(64.0, 1.0 - f32::from(4 * epoch + step) / 20.0);
                    }
                    let verdict = watched.end();
                    assert_eq!(verdict.outcome, EpochOutcome::Accepted, "{}: {verdict}", plain.path());
                    assert_says(&verdict, &["accepted", "is below"]);
                }
                assert_same_bits(watched.run(), &*plain, "all epochs accepted");
                assert_eq!(watched.run().rates(), plain.rates());
                assert_eq!(watched.run().states(), plain.states());
            }
        }
    }
}

/// The losses of epochs after a loss of 1 at the start, with the verdicts of CMA Light and of NMCMA with a window of 2, computed by hand. NaN stands
/// for a batch whose loss is not finite. γ = 0, so that the limits are losses.
#[test]
fn verdicts_are_those_of_the_papers_tests() {
    use EpochOutcome::{Accepted, Slowed, TakenBack};
    // CMA Light accepts a loss below all earlier ones, and slows down up to the loss at the start.
    let light = [
        (0.9, Accepted, 1.0),
        (0.95, Slowed, 0.9),
        (1.25, TakenBack, 0.9),
        (f32::NAN, TakenBack, 0.9),
        (0.8, Accepted, 0.9),
        (f32::INFINITY, TakenBack, 0.8),
        (1.0, Slowed, 0.8),
        (0.7, Accepted, 0.8),
    ];
    // The limit is the larger of the last two accepted losses. After a failure the last one counts again.
    let nonmonotone = [
        (0.9, Accepted, 1.0),
        (0.95, Accepted, 1.0),
        (0.955, TakenBack, 0.95),
        (f32::NAN, TakenBack, 0.95),
        (0.8, Accepted, 0.95),
        (0.94, Accepted, 0.95),
        (0.95, TakenBack, 0.94),
        (0.93, Accepted, 0.94),
    ];
    let specs = [spec(Rule::sgd(), Regime::fixed(1.0))];
    for (config, expected) in [(WatchdogConfig::light(), light), (WatchdogConfig::nonmonotone(2), nonmonotone)] {
        for mut watched in watched(&specs, config.margin(0.0)) {
            let path = watched.run().path();
            // The weighted mean of the two losses is 1.
            watched.batch(30.0, 1.64);
            watched.batch(64.0, 0.7);
            watched.start();
            let mut rate = 1.0f32;
            for (epoch, (loss, outcome, limit)) in expected.into_iter().enumerate() {
                let before = watched.run().params();
                for (weight, off) in [(30.0, 0.64), (64.0, -0.3)] {
                    watched.run().step(&noise(&specs, epoch as u64));
                    watched.batch(weight, loss + off);
                }
                assert_eq!(watched.run().rates(), [rate], "{path}, epoch {epoch}");
                let verdict = watched.end();
                assert_eq!((verdict.epoch, verdict.outcome), (epoch as u64, outcome), "{path}: {verdict}");
                assert_close(&path, verdict.limit, limit, 1e-6);
                match verdict.loss {
                    Some(mean) => assert_close(&path, mean, loss, 1e-6),
                    None => assert!(!loss.is_finite(), "{path}"),
                }
                assert_eq!(verdict.rate, rate, "{path}");
                if outcome != Accepted {
                    rate /= 2.0;
                    assert_says(&verdict, &["lowered from"]);
                }
                assert_eq!(verdict.next_rate, rate, "{path}");
                let is_back = bits(&watched.run().params()) == bits(&before);
                assert_eq!(is_back, outcome == TakenBack, "{path}, epoch {epoch}");
            }
        }
    }
}

/// γ is in units of the rate, and in the nonmonotone test in units of the distance if that is longer.
#[test]
fn the_margin_goes_with_rate_and_distance() {
    for (rate, elements) in [(4.0, Element::F32), (0.125, Element::Bf16)] {
        let specs = [spec(Rule::sgd(), Regime::fixed(rate)).stored(elements, elements, Rounding::Nearest)];
        for config in [WatchdogConfig::light(), WatchdogConfig::nonmonotone(5)] {
            for mut watched in watched(&specs, config.margin(0.01)) {
                let path = watched.run().path();
                watched.batch(1.0, 1.0);
                watched.start();
                let before = watched.run().params().concat();
                for step in 0..3 {
                    watched.run().step(&noise(&specs, step));
                    watched.batch(1.0, 0.5);
                }
                let after = watched.run().params().concat();
                let squares = before.iter().zip(&after).map(|(&a, &b)| (f64::from(b) - f64::from(a)).powi(2));
                let distance = squares.sum::<f64>().sqrt();
                let length =
                    if config == WatchdogConfig::light() { rate.into() } else { f64::from(rate).max(distance) };
                assert!(distance > 1.0, "the distance counts");
                let verdict = watched.end();
                assert_close(format!("{path}, rate {rate}"), verdict.limit, 1.0 - 0.01 * length, 1e-6 * length);
            }
        }
    }
}

/// Without a measured loss at the start, the loss of the first batch is used if it is finite.
#[test]
fn the_first_batch_stands_for_the_start() {
    let specs = [spec(Rule::sgd(), Regime::fixed(1.0))];
    for mut watched in watched(&specs, WatchdogConfig::light().margin(0.0)) {
        watched.start();
        watched.batch(1.0, f32::NAN);
        watched.batch(1.0, 0.1);
        let verdict = watched.end();
        assert_eq!((verdict.outcome, verdict.loss), (EpochOutcome::TakenBack, None));
        assert!(verdict.limit.is_nan());
        assert_says(&verdict, &["epoch 0 taken back: a loss was not finite; learning rate lowered"]);
        watched.batch(1.0, 2.0);
        watched.batch(1.0, 0.5);
        let verdict = watched.end();
        assert_eq!((verdict.outcome, verdict.limit), (EpochOutcome::Accepted, 2.0));
    }
}

/// After an epoch is taken back, parameters and state are those from before it, and later steps are those of a run without it.
#[test]
fn an_epoch_that_is_taken_back_leaves_no_trace() {
    // Every second pair is enough, since compiling kernels takes nearly all of the time.
    let pairs = rules_and_regimes().into_iter().step_by(2);
    let mut cases: Vec<Spec> = pairs.map(|(rule, regime)| spec(rule, regime)).collect();
    for case in cases.iter_mut().step_by(3) {
        if case.regime.fits_averaging(&Averaging::polynomial_decay()) && case.averaging == Averaging::Off {
            case.averaging = Averaging::polynomial_decay();
        }
    }
    let free = |rule, regime| Spec { averaging: Averaging::ScheduleFree, ..spec(rule, regime) };
    cases.push(free(Rule::sgd(), Regime::seesaw()));
    for element in [Element::Bf16, Element::F16] {
        cases.push(spec(Rule::adamw(), Regime::seesaw()).stored(element, element, Rounding::Masters));
        cases.push(free(Rule::sgd(), Regime::fixed(0.1)).stored(element, element, Rounding::Masters));
    }
    for case in cases {
        let specs = [case];
        let what = format!("{} with {}, {:?}", specs[0].rule.name(), specs[0].regime.name(), specs[0].averaging);
        let plain = every_path(&specs).into_iter();
        for (mut watched, mut plain) in watched(&specs, WatchdogConfig::light()).into_iter().zip(plain) {
            watched.start();
            for step in 0..3 {
                plain.step(&noise(&specs, step));
                watched.run().step(&noise(&specs, step));
                watched.batch(1.0, 1.0 - step as f32 / 10.0);
            }
            assert_eq!(watched.end().outcome, EpochOutcome::Accepted);
            for step in 10..14 {
                let mut grads = times(100.0, &noise(&specs, step));
                if step == 12 {
                    grads[0][3] = f32::NAN;
                }
                watched.run().step(&grads);
                watched.batch(1.0, 5.0);
            }
            assert_eq!(watched.end().outcome, EpochOutcome::TakenBack);
            assert_same_bits(watched.run(), &*plain, format_args!("{what}: taken back"));
            plain.control("group", &|group| group.learning_rate_factor = 0.5);
            for step in 20..24 {
                plain.step(&noise(&specs, step));
                watched.run().step(&noise(&specs, step));
                assert_same_bits(watched.run(), &*plain, format_args!("{what}, step {step}"));
            }
            assert_eq!(watched.run().rates(), plain.rates(), "{what}");
            // The records continue: 3 + 4 + 4 steps, one of which was skipped.
            let records = watched.run().records().records;
            let steps: Vec<u64> = records.iter().map(|record| record.step).collect();
            assert_eq!(steps, (0..11).collect::<Vec<u64>>(), "{what}");
            assert_eq!(records.last().map(|record| record.skipped), Some(1), "{what}");
            if let Watched::Device(run, ..) = &watched {
                run.assert_surroundings_untouched();
            }
        }
    }
}

/// 8-bit state is rounded at random, and its random bits depend on the count of steps, so that the run then differs. The state that is taken back is
/// still the same: a checkpoint has the same tensors.
#[test]
fn memory_of_8_bits_is_taken_back_too() {
    for rule in [Rule::sgdm(0.9), Rule::adamw(), Rule::lion()] {
        let case = Spec { state: State::Bits8, ..spec(rule, Regime::seesaw()) };
        let specs = [case.stored(Element::Bf16, Element::F32, Rounding::Masters)];
        for mut watched in watched(&specs, WatchdogConfig::light()) {
            let memory = |run: &mut dyn Run| {
                let checkpoint = run.checkpoint().to_bytes();
                let file = safetensors::SafeTensors::deserialize(&checkpoint).expect("safetensors");
                // Leaves out the tables of groups and tensors, which count steps.
                let is_table = |name: &str| name.starts_with("groups/") || name.starts_with("tensors/");
                let of_parameters = file.tensors().into_iter().filter(|(name, _)| !is_table(name));
                let tensors = of_parameters.map(|(name, view)| (name, view.data().to_vec()));
                tensors.collect::<std::collections::BTreeMap<String, Vec<u8>>>()
            };
            watched.start();
            watched.run().step(&noise(&specs, 0));
            watched.batch(1.0, 1.0);
            watched.batch(1.0, 0.5);
            watched.end();
            let before = memory(watched.run());
            assert!(before.len() >= 3 * 3, "parameters, codes and scales: {:?}", before.keys());
            for step in 1..3 {
                watched.run().step(&noise(&specs, step));
            }
            assert!(memory(watched.run()) != before);
            watched.batch(1.0, 5.0);
            assert_eq!(watched.end().outcome, EpochOutcome::TakenBack);
            assert!(memory(watched.run()) == before, "{}, {}", watched.run().path(), rule.name());
        }
    }
}

/// Several groups have factors that the caller has set. Each is multiplied by the decrease, a factor of 0 stays, and none leaves its range.
#[test]
fn every_group_is_slowed_and_stays_in_range() {
    let named = |name| spec(Rule::sgd(), Regime::fixed(1.0)).named(name);
    let specs = [named("a"), named("b"), named("c")];
    for mut watched in watched(&specs, WatchdogConfig::light().decrease(1e-20)) {
        watched.run().control("a", &|group| group.learning_rate_factor = 0.5);
        watched.run().control("b", &|group| group.learning_rate_factor = 0.0);
        watched.start();
        let mut rates = Vec::new();
        for _ in 0..3 {
            watched.run().step(&noise(&specs, 1));
            rates.push(watched.run().rates()[..3].to_vec());
            watched.batch(1.0, 1.0);
            assert_eq!(watched.end().outcome, EpochOutcome::Slowed);
        }
        let expected = [[0.5f32, 0.0, 1.0], [5e-21, 0.0, 1e-20], [1e-30, 0.0, 1e-30]];
        for (rates, expected) in rates.iter().zip(expected) {
            for (&rate, expected) in rates.iter().zip(expected) {
                assert_close(watched.run().path(), rate, expected, 1e-6 * f64::from(expected));
            }
        }
    }
}

#[test]
fn verdicts_are_read_once_each() {
    let specs = [spec(Rule::sgd(), Regime::fixed(1.0))];
    for watched in watched(&specs, WatchdogConfig::light()) {
        let Watched::Device(run, mut watchdog, _) = watched else { continue };
        let gpu = &run.gpu;
        let losses = upload(gpu, &[1.0; 16]);
        let mut short = Watchdog::new(&run.optimizer, losses.slice(..4), WatchdogConfig::light()).expect("a watchdog");
        let mut encoder = run.encoder();
        short.encode_start(&run.optimizer, &mut encoder).expect("started");
        for _ in 0..300 {
            short.encode_batch(&mut encoder, 3.0).expect("added");
            short.encode_epoch_end(&run.optimizer, &mut encoder).expect("ended");
        }
        gpu.queue().submit([encoder.finish()]);
        let verdicts = pollster::block_on(short.read_verdicts()).expect("verdicts");
        let epochs: Vec<u64> = verdicts.iter().map(|verdict| verdict.epoch).collect();
        assert_eq!(epochs, (44..300).collect::<Vec<u64>>(), "the ring has the last 256");
        assert!(pollster::block_on(short.read_verdicts()).expect("none").is_empty());
        assert!(pollster::block_on(watchdog.read_verdicts()).expect("none").is_empty());
    }
}

#[test]
fn wrong_settings_and_calls_are_refused() {
    let specs = [spec(Rule::sgd(), Regime::fixed(1.0))];
    let light = WatchdogConfig::light();
    let settings = [
        (light.decrease(1.0), "decrease is 1"),
        (light.decrease(0.0), "decrease is 0"),
        (light.decrease(f32::NAN), "decrease is NaN"),
        (light.margin(-1.0), "margin is -1"),
        (light.margin(f32::INFINITY), "margin is inf"),
        (WatchdogConfig::nonmonotone(0), "epochs is 0"),
        (WatchdogConfig::nonmonotone(17), "epochs is 17"),
    ];
    let streams = [spec(Rule::sgd(), Regime::auto_sgd())];
    let host = CpuRun::new(&specs);
    for (config, word) in settings {
        assert_refused(CpuWatchdog::new(&host.optimizer, config), &["the watchdog", word]);
    }
    let refused = assert_refused(
        CpuWatchdog::new(&CpuRun::new(&streams).optimizer, light),
        &["a watchdog", "auto-sgd", "takes back by itself"],
    );
    assert_eq!(refused.kind(), ErrorKind::Call);
    let rank = CpuRun::with(&specs, Setup { shard: Some((0, 2)), ..Setup::default() });
    assert_refused(CpuWatchdog::new(&rank.optimizer, light), &["a watchdog", "several ranks"]);

    let mut host = host;
    let mut watchdog = CpuWatchdog::new(&host.optimizer, light).expect("a watchdog");
    assert_refused(watchdog.add_batch(0.0, 1.0), &["weight is 0"]);
    assert_refused(watchdog.add_batch(f32::NAN, 1.0), &["weight is NaN"]);
    watchdog.add_batch(1.0, 1.0).expect("the loss at the start");
    let (optimizer, mut params) = host.parts();
    let early = watchdog.end_epoch(optimizer, &mut params);
    assert_refused(early, &["CpuWatchdog::end_epoch was called out of turn", "CpuWatchdog::start"]);
    watchdog.start(optimizer, &params).expect("started");
    let empty = watchdog.end_epoch(optimizer, &mut params);
    assert_refused(empty, &["out of turn", "CpuWatchdog::add_batch after each step"]);
    assert_refused(watchdog.start(optimizer, &params[..2]), &["3 tensors"]);

    for gpu in &devices() {
        let averaged = [Spec { averaging: Averaging::polynomial_decay(), ..specs[0].clone() }];
        let mut run = gpu_run_with(gpu, &averaged, Setup::default());
        let other = gpu_run_with(gpu, &specs, Setup::default());
        let losses = upload(gpu, &[1.0; 16]);
        assert_refused(Watchdog::new(&run.optimizer, losses.slice(..8), light), &["\"loss\"", "one f32"]);
        assert_refused(Watchdog::new(&run.optimizer, losses.slice(..4), light.decrease(2.0)), &["decrease is 2"]);
        let mut watchdog = Watchdog::new(&run.optimizer, losses.slice(..4), light).expect("a watchdog");
        let mut encoder = run.encoder();
        assert_refused(watchdog.encode_epoch_end(&run.optimizer, &mut encoder), &["Watchdog::encode_start before"]);
        assert_refused(watchdog.encode_batch(&mut encoder, f32::INFINITY), &["weight is inf"]);
        assert_refused(watchdog.encode_start(&other.optimizer, &mut encoder), &["another optimizer"]);
        run.step(&noise(&averaged, 1));
        run.swap_averages();
        assert_refused(watchdog.encode_start(&run.optimizer, &mut encoder), &["averages are swapped in"]);
        run.swap_averages();
        watchdog.encode_start(&run.optimizer, &mut encoder).expect("started");
        assert_refused(watchdog.encode_epoch_end(&run.optimizer, &mut encoder), &["Watchdog::encode_batch after"]);

        let one = [Spec::new(Rule::sgd(), Regime::fixed(1.0), tensors(1, &[64]))];
        let moving = GpuRun::with(gpu, &one, packed(&one, 0, 0), |builder| builder.rebindable());
        let refused = Watchdog::new(&moving.optimizer, losses.slice(..4), light);
        assert_refused(refused, &["a watchdog", "buffers move", "OptimizerBuilder::rebindable"]);
    }
}

/// An optimizer without elements can have a watchdog.
#[test]
fn nothing_can_be_watched() {
    let empty: &mut [f32] = &mut [];
    let group = Group::new("empty").tensor("nothing", &*empty, &*empty);
    let mut optimizer = OptimizerBuilder::new(Rule::sgd()).group(group).build_cpu().expect("builds");
    let mut watchdog = CpuWatchdog::new(&optimizer, WatchdogConfig::nonmonotone(1)).expect("a watchdog");
    watchdog.start(&optimizer, &[&*empty]).expect("started");
    watchdog.add_batch(1.0, 1.0).expect("added");
    assert_eq!(watchdog.end_epoch(&mut optimizer, &mut [empty]).expect("ended").outcome, EpochOutcome::TakenBack);
}
