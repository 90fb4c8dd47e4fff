//! Tests of AutoSgd on every path: the three streams have the bits of three separate optimizers. An episode ends with the outcome of its test, and
//! the winner's parameters are then in the caller's buffer. A value that is not finite loses its stream and changes nothing else. All groups agree.

use wgpu_optim::{AutoSgd, Flags, LossScaler, NonFinitePolicy, Outcome, Record, Regime, Rule, Stream};
use wgpu_optim_conformance::run::{Run, Setup, Spec, bits, every_path, every_path_with, gpu_run_with};
use wgpu_optim_conformance::{Numbers, assert_close, assert_says, small_bindings, tensors, times};

use crate::helpers::at_odd_places;

/// Lengths around multiples of four, so that there are heads, bodies and tails.
const LENGTHS: [usize; 6] = [1, 3, 4, 5, 61, 300];

/// Returns numbers whose sums, and products with powers of two, are exact in f32, so that no device rounds them.
fn dyadic(numbers: &mut Numbers, len: usize) -> Vec<f32> {
    (0..len).map(|_| (numbers.next() * 64.0).round() / 64.0).collect()
}

fn gradients(numbers: &mut Numbers) -> Vec<Vec<f32>> {
    LENGTHS.map(|len| dyadic(numbers, len)).into()
}

fn spec(rule: Rule, regime: AutoSgd) -> Spec {
    Spec::new(rule, Regime::AutoSgd(regime), gradients(&mut Numbers(7)))
}

/// Returns a regime with a given first rate, so that all results are exact.
fn regime() -> AutoSgd {
    AutoSgd { initial_rate: Some(0.25), ..AutoSgd::default() }
}

/// Returns runs on the CPU path and on every adapter, with tensors at odd offsets and gaps between them.
fn paths(spec: &Spec) -> Vec<Box<dyn Run>> {
    at_odd_places(std::slice::from_ref(spec))
}

/// One stream by itself: its parameters, and SGD or sign-SGD steps at one rate.
#[derive(Clone)]
struct Alone {
    w: Vec<Vec<f32>>,
    rate: f32,
    signs: bool,
}

impl Alone {
    fn step(&mut self, gradients: &[Vec<f32>]) {
        for (w, g) in self.w.iter_mut().flatten().zip(gradients.iter().flatten()) {
            let sign = if *g == 0.0 { 0.0 } else { g.signum() };
            *w -= self.rate * if self.signs { sign } else { *g };
        }
    }
}

/// Returns the middle, the slower and the faster stream, in the order of their turns.
fn three(spec: &Spec, rate: f32) -> [Alone; 3] {
    [1.0, 0.5, 2.0].map(|share| Alone { w: spec.tensors.clone(), rate: share * rate, signs: spec.rule.is_sign() })
}

fn one_record(run: &mut dyn Run) -> Record {
    let records = run.records().records;
    assert_eq!(records.len(), 1);
    records[0].clone()
}

/// Takes a step along random gradients with the run and with the stream whose turn it is.
fn take_turn(run: &mut dyn Run, stream: &mut Alone, numbers: &mut Numbers) -> Record {
    let grads = gradients(numbers);
    run.step(&grads);
    stream.step(&grads);
    one_record(run)
}

const STREAMS: [Stream; 3] = [Stream::Middle, Stream::Slower, Stream::Faster];

#[test]
fn streams_that_take_turns_are_three_optimizers_bit_for_bit() {
    for rule in [Rule::sgd(), Rule::sign_sgd()] {
        let spec = spec(rule, AutoSgd { certainty: 1e9, ..regime() });
        for mut run in paths(&spec) {
            let mut streams = three(&spec, 0.25);
            let mut numbers = Numbers(11);
            for t in 0..14 {
                let turn = t % 3;
                let what = format!("{}, {}, before step {t}", run.path(), rule.name());
                assert_eq!(bits(&run.params()), bits(&streams[turn].w), "{what}");
                let record = take_turn(&mut *run, &mut streams[turn], &mut numbers);
                assert_eq!(record.stream, Some(STREAMS[turn]));
                assert_eq!((record.episode, record.outcome), (0, None));
                assert_eq!(record.learning_rate, 0.25);
            }
        }
    }
}

/// Returns the losses of the three streams in a round. The middle stream's is always 1.
fn loss_of(round: usize, slower: f32, faster: f32) -> [f32; 3] {
    // The differences need some noise, for a deviation above 0.
    let noise = [0.0, 0.01, -0.01, 0.02, -0.02][round % 5];
    [1.0, slower + noise, faster - noise]
}

#[test]
fn an_episode_ends_with_the_winners_parameters() {
    // The losses of the slower and the faster stream, the number of rounds, the outcome, and the factor of the rate.
    let cases = [
        (1.2, 0.8, 5, Outcome::Won(Stream::Faster), 2.0),
        (0.8, 0.7, 5, Outcome::Won(Stream::Faster), 2.0),
        (0.8, 1.2, 5, Outcome::Won(Stream::Slower), 0.5),
        (1.2, 1.2, 5, Outcome::Won(Stream::Middle), 1.0),
        // The test is certain of only one difference, or of none, so that the episode takes the largest number of rounds.
        (1.2, 1.0, 7, Outcome::Won(Stream::Middle), 1.0),
        (1.0, 1.0, 7, Outcome::Won(Stream::Middle), 1.0),
        // The slower stream's loss is lower than the middle one's, but more than twice the loss at the start, which is 0.25.
        (0.8, 1.2, 5, Outcome::TakenBack, 0.5),
    ];
    for (case, (slower, faster, rounds, outcome, factor)) in cases.into_iter().enumerate() {
        let spec = spec(Rule::sgd(), AutoSgd { rounds: 6, ..regime() });
        for mut run in paths(&spec) {
            let what = format!("{}, case {case}", run.path());
            let mut streams = three(&spec, 0.25);
            let mut numbers = Numbers(11);
            for t in 0..3 * rounds {
                let loss = match (t / 3, outcome) {
                    (0, Outcome::TakenBack) => 0.25,
                    (0, _) => 1.0,
                    (round, _) => loss_of(round, slower, faster)[t % 3],
                };
                run.set_loss(loss);
                let record = take_turn(&mut *run, &mut streams[t % 3], &mut numbers);
                assert_eq!(record.flags.episode_ends(), t == 3 * rounds - 1, "{what}, {t}");
                assert_eq!(record.episode, 0);
            }
            let winner = match outcome {
                Outcome::Won(stream) => {
                    let index = STREAMS.iter().position(|&other| other == stream);
                    streams[index.expect("a stream")].w.clone()
                }
                Outcome::TakenBack => spec.tensors.clone(),
            };
            assert_eq!(bits(&run.params()), bits(&winner), "{what}");
            // Every stream continues from there, at its multiple of the new rate.
            let mut streams = three(&Spec { tensors: winner, ..spec.clone() }, 0.25 * factor);
            for t in 0..9 {
                assert_eq!(bits(&run.params()), bits(&streams[t % 3].w), "{what}, {t} later");
                run.set_loss(1.0);
                let record = take_turn(&mut *run, &mut streams[t % 3], &mut numbers);
                assert_eq!(record.learning_rate, 0.25 * factor, "{what}");
                assert_eq!(record.episode, 1);
                assert_eq!(record.outcome, (t == 0).then_some(outcome), "{what}");
                assert_close(&what, record.change(), if t == 0 { factor.ln() } else { 0.0 }, 1e-6);
                if t == 0 {
                    let percent = format!("({:+.1} %)", 100.0 * (factor - 1.0));
                    assert_says(record, &[&format!("episode 0: {outcome} {percent}; middle stream")]);
                }
            }
        }
    }
}

/// A step that is not finite is only skipped before anything has moved. Later it loses the stream whose turn it is.
#[test]
fn what_is_not_finite_loses_a_stream_and_nothing_else() {
    // The streams that are lost, and the outcome of the episode.
    let cases = [
        (vec![2], Outcome::Won(Stream::Middle)),
        (vec![1], Outcome::Won(Stream::Middle)),
        (vec![1, 2], Outcome::Won(Stream::Middle)),
        (vec![0], Outcome::Won(Stream::Slower)),
        (vec![0, 2], Outcome::Won(Stream::Slower)),
        (vec![0, 1], Outcome::TakenBack),
        (vec![0, 1, 2], Outcome::TakenBack),
    ];
    for (lost, outcome) in cases {
        for by_loss in [false, true] {
            let spec = spec(Rule::sgd(), regime());
            for mut run in paths(&spec) {
                let what = format!("{}, {lost:?}, by the loss: {by_loss}", run.path());
                let mut streams = three(&spec, 0.25);
                let mut numbers = Numbers(11);
                for t in 0..9 {
                    let mut grads = gradients(&mut numbers);
                    // Step 0, before anything has moved, loses no stream. A bad step in the last round does.
                    let at_start = t == 0;
                    let bad = at_start || t >= 6 && lost.contains(&(t % 3));
                    if bad && by_loss {
                        run.set_loss(f32::INFINITY);
                    } else if bad {
                        grads[4][60] = f32::NAN;
                    } else {
                        streams[t % 3].step(&grads);
                    }
                    run.step(&grads);
                    run.set_loss(1.0);
                    let record = one_record(&mut *run);
                    assert_eq!(record.flags.skipped(), bad, "{what}, step {t}");
                    assert_eq!(record.flags.stream_lost(), bad && !at_start, "{what}, step {t}");
                    assert_eq!(record.flags.nonfinite_loss(), bad && by_loss, "{what}");
                    if record.flags.stream_lost() {
                        assert_says(&record, &[&format!("the {} stream is lost", STREAMS[t % 3].name())]);
                    }
                    assert_eq!(record.flags.episode_ends(), t == 8, "{what}, step {t}");
                    if t < 8 {
                        // A skipped turn leaves its stream unchanged.
                        let shown = &streams[(t + 1) % 3].w;
                        assert_eq!(bits(&run.params()), bits(shown), "{what}, after step {t}");
                    }
                }
                let (winner, rate) = match outcome {
                    Outcome::Won(Stream::Middle) => (&streams[0].w, 0.25),
                    Outcome::Won(_) => (&streams[1].w, 0.125),
                    Outcome::TakenBack => (&spec.tensors, 0.125),
                };
                assert_eq!(bits(&run.params()), bits(winner), "{what}");
                run.step(&gradients(&mut numbers));
                let record = one_record(&mut *run);
                assert_eq!(record.outcome, Some(outcome), "{what}");
                assert_eq!(record.learning_rate, rate, "{what}");
                assert_eq!(record.skipped as usize, 1 + lost.len(), "{what}");
            }
        }
    }
}

/// Steps are skipped at random. A skipped step still ends its turn. It loses a stream that has moved, and leaves one that has not at the start.
#[test]
fn skips_in_any_order_leave_every_stream_where_it_was() {
    let spec = spec(Rule::sgd(), AutoSgd { certainty: 1e9, ..regime() });
    // Counts of episodes that the middle stream won, that the slower one won, and that were taken back, and of those whose winner had not moved.
    let mut ends = [0; 3];
    let mut unmoved = [0; 3];
    for seed in 17..21 {
        for mut run in paths(&spec) {
            let mut numbers = Numbers(seed);
            let mut rate = 0.25;
            let mut start = spec.tensors.clone();
            let mut streams = three(&spec, rate);
            let (mut moved, mut lost) = ([false; 3], [false; 3]);
            for t in 0..150 {
                let turn = t % 3;
                let what = format!("{}, seed {seed}, step {t}", run.path());
                assert_eq!(bits(&run.params()), bits(&streams[turn].w), "{what}");
                let mut grads = gradients(&mut numbers);
                if numbers.next() < 0.0 {
                    grads[3][1] = f32::NAN;
                    lost[turn] |= moved[turn];
                } else {
                    streams[turn].step(&grads);
                    moved[turn] = true;
                }
                run.step(&grads);
                if turn < 2 || lost == [false; 3] {
                    continue;
                }
                let (case, end) = match lost {
                    [false, ..] => (0, streams[0].w.clone()),
                    [_, false, _] => (1, streams[1].w.clone()),
                    _ => (2, start.clone()),
                };
                ends[case] += 1;
                unmoved[case] += usize::from(!moved[case]);
                rate *= [1.0, 0.5, 0.5][case];
                start = end.clone();
                let next = Spec { tensors: end, ..spec.clone() };
                (streams, moved, lost) = (three(&next, rate), [false; 3], [false; 3]);
            }
        }
    }
    assert!(ends.iter().all(|&ends| ends >= 3), "{ends:?}");
    assert!(unmoved[..2].iter().all(|&ends| ends >= 3), "{unmoved:?}");
}

/// As long as nothing has moved, gradients that are not finite change neither parameters nor rate nor episode.
#[test]
fn a_start_that_is_not_finite_waits() {
    let spec = spec(Rule::sgd(), regime());
    for mut run in paths(&spec) {
        let mut bad = gradients(&mut Numbers(3));
        bad[0][0] = f32::NEG_INFINITY;
        for _ in 0..20 {
            run.step(&bad);
        }
        assert_eq!(bits(&run.params()), bits(&spec.tensors), "{}", run.path());
        let records = run.records().records;
        let is_quiet = |flags: Flags| flags.skipped() && !flags.stream_lost() && !flags.episode_ends();
        assert!(records.iter().all(|r| is_quiet(r.flags) && r.episode == 0));
        run.step(&gradients(&mut Numbers(3)));
        assert_eq!(one_record(&mut *run).learning_rate, 0.25);
    }
}

/// Scaling the loss by a power of two changes no bit: the test compares losses by their ratio, and the first rate follows from the gradient.
#[test]
fn the_scale_of_the_loss_changes_no_bit() {
    let run_at = |run: &mut dyn Run, scale: f32| {
        let mut numbers = Numbers(11);
        let mut outcomes = Vec::new();
        for t in 0..60 {
            run.set_loss(scale * (2.0 + 0.5 * numbers.next() + [0.0, 0.3, -0.3][t % 3]));
            let grads: Vec<Vec<f32>> = LENGTHS.map(|len| numbers.vec(len)).into();
            run.step(&times(scale, &grads));
            outcomes.extend(run.records().records[0].outcome);
        }
        assert!(outcomes.len() >= 2, "{outcomes:?}");
        (outcomes, bits(&run.params()))
    };
    let spec = spec(Rule::sgd(), AutoSgd { certainty: 1.0, rounds: 8, ..AutoSgd::default() });
    let [one, small, large] = [0, -40, 60]
        .map(|power| -> Vec<_> { paths(&spec).iter_mut().map(|run| run_at(&mut **run, 2f32.powi(power))).collect() });
    assert_eq!(one, small);
    assert_eq!(one, large);
}

#[test]
fn all_groups_walk_in_step_whatever_their_rates() {
    let regime = Regime::AutoSgd(AutoSgd { certainty: 1.0, rounds: 8, ..AutoSgd::default() });
    let spec = |name: &str, rule, seed, lengths: &[usize]| Spec::new(rule, regime, tensors(seed, lengths)).named(name);
    let specs = [
        Spec { per_tensor: true, ..spec("a", Rule::sgd(), 7, &[5, 61]) },
        spec("b", Rule::sign_sgd(), 8, &[7]).sharing("norm"),
        spec("c", Rule::sgd(), 9, &[64]).sharing("norm"),
    ];
    for mut run in every_path(&specs) {
        let mut noise = Numbers(13);
        let mut first = None;
        let mut ends = 0;
        for t in 0..60 {
            let mut grads: Vec<Vec<f32>> = [5, 61, 7, 64].map(|len| noise.vec(len)).into();
            if t < 2 {
                // A group without a rate still takes its turns.
                grads[2].fill(0.0);
                grads[3].fill(0.0);
            }
            if t == 20 {
                grads[1][3] = f32::NAN;
            }
            run.set_loss(2.0 + 0.5 * noise.next() + [0.0, 0.3, -0.3][t % 3]);
            run.step(&grads);
            let records = run.records().records;
            assert_eq!(records.len(), 4);
            for record in &records {
                let of = |r: &Record| (r.stream, r.episode, r.flags.episode_ends());
                assert_eq!(of(record), of(&records[0]), "{}, step {t}", run.path());
            }
            ends += usize::from(records[0].flags.episode_ends());
            let states = run.states();
            assert!(states.iter().take(4).all(|s| s.regime == states[0].regime));
            let rates = run.rates();
            if t == 2 {
                assert!(rates.windows(2).all(|pair| pair[0] != pair[1]), "{rates:?}");
                first = Some(rates);
            } else if let Some(first) = &first {
                let growth = rates[0] / first[0];
                for (rate, first) in rates.iter().zip(first) {
                    assert!((rate / first / growth - 1.0).abs() <= 1e-5, "{rates:?}");
                }
            }
        }
        assert!(ends >= 2, "{}", run.path());
    }
}

/// No turn passes after a halt. The skipped steps before the halt lose their streams as usual.
#[test]
fn a_halt_holds_every_stream() {
    let spec = spec(Rule::sgd(), regime());
    let setup = Setup { policy: NonFinitePolicy::Error { after: 2 }, ..Setup::default() };
    for mut run in every_path_with(std::slice::from_ref(&spec), setup) {
        let path = run.path();
        let mut streams = three(&spec, 0.25);
        let mut numbers = Numbers(11);
        for stream in [0, 1, 2, 0] {
            take_turn(&mut *run, &mut streams[stream], &mut numbers);
        }
        let mut bad = gradients(&mut numbers);
        bad[5][7] = f32::NAN;
        let mut halts = 0;
        for t in 0..6 {
            halts += usize::from(run.try_step(&bad).is_err());
            // The slower and the faster stream are lost, so that the middle one wins. Nothing changes after that.
            let shown = &streams[if t == 0 { 2 } else { 0 }].w;
            assert_eq!(bits(&run.params()), bits(shown), "{path}, {t}");
        }
        halts += usize::from(run.try_records().is_err());
        assert!(halts >= 1, "{path}");
        let [episode, turn, moved, ..] = run.states()[0].regime.0;
        assert_eq!((episode, turn, moved), (1, 0, 0));
        run.resume();
        run.records();
        let mut streams = three(&Spec { tensors: streams[0].w.clone(), ..spec.clone() }, 0.25);
        for t in 0..6 {
            assert_eq!(bits(&run.params()), bits(&streams[t % 3].w), "{path}, {t} later");
            take_turn(&mut *run, &mut streams[t % 3], &mut numbers);
        }
    }
}

/// A gradient that overflows because the loss scale is too large loses no stream.
#[test]
fn a_loss_scale_that_falls_loses_no_stream() {
    let spec = spec(Rule::sgd(), regime());
    let setup = Setup { scaler: Some(LossScaler { initial_scale: 2.0, ..LossScaler::default() }), ..Setup::default() };
    for mut run in every_path_with(std::slice::from_ref(&spec), setup) {
        let mut numbers = Numbers(11);
        for t in 0..9 {
            let scale = run.loss_scale();
            assert_eq!(scale, if t <= 4 { 2.0 } else { 1.0 });
            let mut grads = times(scale, &gradients(&mut numbers));
            // The first bad step lowers the scale. At the second one the scale is already at its minimum.
            if t == 4 || t == 7 {
                grads[0][0] = f32::INFINITY;
            }
            run.step(&grads);
            let record = one_record(&mut *run);
            assert_eq!(record.flags.skipped(), t == 4 || t == 7);
            assert_eq!(record.flags.stream_lost(), t == 7, "{}", run.path());
            assert_eq!(record.flags.episode_ends(), t == 8, "{}", run.path());
        }
    }
}

/// The streams take the memory that `build` states, 12 bytes per parameter, in bindings within the device's limits.
#[test]
fn a_tensor_whose_streams_do_not_fit_one_binding_is_cut() {
    let [w, g] = [5, 6].map(|seed| dyadic(&mut Numbers(seed), 12_000));
    let regime = Regime::AutoSgd(AutoSgd { rounds: 4, ..regime() });
    let specs = [Spec::new(Rule::sgd(), regime, vec![w.clone()])];
    for gpu in &small_bindings(1 << 16) {
        let setup = Setup { record_steps: Some(8), ..Setup::default() };
        let mut run = gpu_run_with(gpu, &specs, setup);
        for _ in 0..15 {
            run.step(std::slice::from_ref(&g));
        }
        // The middle stream wins after five steps along the same gradient.
        let expected: Vec<f32> = w.iter().zip(&g).map(|(w, g)| w - 5.0 * 0.25 * g).collect();
        assert_eq!(run.params(), [expected], "{}", run.path());
        run.assert_surroundings_untouched();
    }
}
