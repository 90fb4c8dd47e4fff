//! Steps that ranks take together.

use super::{Deal, Kind, Ranks, ULPS, assert_ranks_agree, assert_same_rates, kinds, run};
use wgpu_optim::{
    AutoSgd, Averaging, BarzilaiBorwein, Controls, DoG, Element, ErrorKind, LossScaler, Mechanic, NonFinitePolicy,
    NormOutliers, Prodigy, RankNonFinite, Record, Regime, Rounding, Rule, Schedule, SecantForm, ShardSums, State,
    WeightDecay,
};
use wgpu_optim_conformance::run::{Setup, Spec, bits};
use wgpu_optim_conformance::stored::half_ulp;
use wgpu_optim_conformance::{
    Numbers, assert_close, assert_refused, assert_says, filled, noise, tensors, times, ulps_of_largest,
};

use crate::halves::kept;
use crate::schedule_free;

/// Returns groups with every kind of sum: norm, norm without decay, ‖w₀‖, alignment by counters and by momentum, √d of all ranks, secant, distance,
/// loss.
fn specs() -> Vec<Spec> {
    let mut numbers = Numbers(7);
    let mut spec = |name: &str, rule, regime, lengths: &[usize]| {
        Spec::new(rule, regime, lengths.iter().map(|&len| numbers.vec(len)).collect()).named(name)
    };
    let seesaw = Regime::seesaw();
    let secant = Regime::BarzilaiBorwein(BarzilaiBorwein::new(SecantForm::Geometric));
    let prodigy = Regime::Prodigy(Prodigy { initial_estimate: 1e-2, ..Prodigy::default() });
    let mechanic = Regime::Mechanic(Mechanic { initial_scale: 1e-2, ..Mechanic::default() });
    let mut specs = vec![
        spec("counters", Rule::sgd(), seesaw, &[5, 4103, 33]),
        spec("momentum", Rule::sgdm(0.9), seesaw, &[130, 2]),
        spec("signs", Rule::sign_sgd(), seesaw, &[97, 0, 1]),
        spec("secant", Rule::sgd(), secant, &[301]),
        spec("distance", Rule::sgd(), Regime::DoG(DoG::default()), &[8, 9]),
        spec("loss", Rule::sgd(), Regime::ngn(), &[64]),
        spec("estimate", Rule::adamw(), prodigy, &[31, 4]),
        spec("displacement", Rule::sgdm(0.9), mechanic, &[40]),
        spec("adamw", Rule::adamw(), seesaw, &[35, 6]),
        spec("lion", Rule::lion(), seesaw, &[29]),
        spec("a", Rule::sgdm(0.5), seesaw, &[11]).sharing("both"),
        spec("b", Rule::sgdm(0.5), seesaw, &[12]).sharing("both"),
    ];
    (specs[0].clip, specs[0].decay) = (2.0, WeightDecay::Coupled(0.01));
    specs[1].schedule = Schedule::Step { every: 3, factor: 0.5 };
    specs[1].averaging = Averaging::Running { start: 1 };
    specs
}

/// Returns half of the initial parameters plus noise.
fn grads(specs: &[Spec], step: u64) -> Vec<Vec<f32>> {
    let mut grads = noise(specs, 1000 + step);
    let start = specs.iter().flat_map(|spec| &spec.tensors).flatten();
    grads.iter_mut().flatten().zip(start).for_each(|(g, w)| *g = 0.5 * w + 0.3 * *g);
    grads
}

fn loss(step: u64) -> f32 {
    2.0 / (1.0 + step as f32)
}

#[track_caller]
fn assert_near(what: &str, got: &[Vec<f32>], expected: &[Vec<f32>]) {
    for (tensor, (got, expected)) in got.iter().zip(expected).enumerate() {
        let distance = ulps_of_largest(got, expected, f64::from(f32::MIN_POSITIVE));
        assert!(distance <= ULPS, "{what}, tensor {tensor}: {distance} ulps");
    }
}

#[test]
fn ranks_together_take_the_steps_of_one() {
    let every = [(1, Deal::Pieces), (2, Deal::Pieces), (3, Deal::Tensors), (4, Deal::Pieces), (4, Deal::Last)];
    let some = [(2, Deal::Pieces), (2, Deal::Tensors), (3, Deal::Pieces)];
    for kinds in kinds() {
        for (count, deal) in every {
            follow_one("every kind of sum", &kinds, count, deal, &specs(), 9);
        }
        for (count, deal) in some {
            follow_one("schedule-free", &kinds, count, deal, &schedule_free::every_rule(&[20, 12]), 12);
            for element in [Element::F16, Element::Bf16] {
                let of_masters = kept(element).into_iter().filter(|spec| spec.rounding == Rounding::Masters);
                let specs: Vec<Spec> = of_masters.collect();
                follow_one("masters", &kinds, count, deal, &specs, 12);
            }
        }
    }
}

/// Compares ranks with one optimizer that has all parameters.
fn follow_one(what: &str, kinds: &[Kind], count: usize, deal: Deal, specs: &[Spec], steps: u64) {
    let element = specs[0].params;
    let what = format!("{what} in {element:?}, {count} ranks of {kinds:?}, {deal:?}");
    let mut one = run(kinds[0], specs, Setup::default());
    let mut ranks = Ranks::new(kinds, count, deal, specs, Setup::default());
    for step in 0..steps {
        let grads = grads(specs, step);
        one.set_loss(loss(step));
        for (rank, run) in ranks.ranks.iter_mut().enumerate() {
            // The mean of the ranks' losses is the loss of the single optimizer.
            let share = 1.0 + (rank as f32 - (count - 1) as f32 / 2.0) / 8.0;
            run.set_loss(loss(step) * share);
        }
        one.step(&grads);
        ranks.step(&grads);
        let what = format!("{what}, step {step}");
        let records = assert_ranks_agree(kinds, &mut ranks, &what);
        assert_same_rates(&what, &ranks.ranks[0].rates(), &one.rates());
        if element != Element::F32 {
            // Here ranks of all kinds have the same bits.
            let of = |r: &Record| [r.norm, r.learning_rate, r.smoothed_norm, r.slow_alignment].map(f32::to_bits);
            let records: Vec<Vec<_>> = records.iter().map(|records| records.iter().map(of).collect()).collect();
            assert!(records.iter().all(|other| *other == records[0]), "{what}: {records:?}");
        }
    }
    if element == Element::F32 {
        assert_near(&format!("{what}, parameters"), &ranks.params(), &one.params());
        assert_near(&format!("{what}, averages"), &ranks.whole(|run| run.averages()), &one.averages());
    } else {
        for (got, expected) in ranks.params().concat().into_iter().zip(one.params().concat()) {
            // The rates agree up to rounding, and so do the masters.
            assert_close(&what, got, expected, 2.0 * half_ulp(element, expected.into()) + 1e-6);
        }
    }
    // The combined sums are those of the single optimizer, norm by norm.
    for (scope, (got, expected)) in ranks.ranks[0].sums().iter().zip(&one.sums()).enumerate() {
        let share = got.square.value() / expected.square.value();
        assert_close(format_args!("{what}, norm {scope}"), share, 1.0, 1e-6);
    }
}

#[test]
fn streams_take_their_turns_together() {
    let streams = Regime::AutoSgd(AutoSgd { rounds: 4, ..AutoSgd::default() });
    let specs = [Spec::new(Rule::sgd(), streams, vec![Numbers(3).vec(50), Numbers(4).vec(7)])];
    for kinds in kinds() {
        let mut one = run(kinds[0], &specs, Setup::default());
        let mut ranks = Ranks::new(&kinds, 3, Deal::Pieces, &specs, Setup::default());
        for step in 0..40 {
            let grads = grads(&specs, step);
            let loss = loss(step) + 0.1 * Numbers(step).next();
            one.set_loss(loss);
            ranks.ranks.iter_mut().for_each(|run| run.set_loss(loss));
            one.step(&grads);
            ranks.step(&grads);
            assert_ranks_agree(&kinds, &mut ranks, &format!("{kinds:?}, step {step}"));
        }
        let episodes = one.states()[0].regime.0[0];
        assert!(episodes >= 2, "{episodes} episodes");
        assert_eq!(ranks.ranks[2].states()[0].regime.0[0], episodes);
        assert_near(&format!("{kinds:?}"), &ranks.params(), &one.params());
    }
}

/// Ranks with equal pieces draw different random bits.
#[test]
fn ranks_draw_their_own_random_bits() {
    let spec = |rate| Spec::new(Rule::sgd(), Regime::fixed(rate), vec![vec![1.5; 3 * 4099]]);
    let at_random = spec(1.0 / 16384.0).stored(Element::Bf16, Element::Bf16, Rounding::Stochastic { seed: 5 });
    // The steps add up to half a unit of bf16 after 50 steps, so that about half of the parameters change.
    let masters = spec(1.0 / 12800.0).stored(Element::Bf16, Element::Bf16, Rounding::Masters);
    let masters = Spec { state: State::Bits8, ..masters };
    for (kinds, specs) in
        kinds().into_iter().flat_map(|kinds| [at_random.clone(), masters.clone()].map(|spec| (kinds.clone(), [spec])))
    {
        let mut ranks = Ranks::new(&kinds, 3, Deal::Pieces, &specs, Setup::default());
        for _ in 0..50 {
            ranks.step(&filled(&specs, 1.0));
        }
        let params: Vec<_> = ranks.ranks.iter().map(|rank| rank.params()).collect();
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            let apart = params[a][0].iter().zip(&params[b][0]).filter(|(a, b)| a != b).count();
            assert!(apart >= 1000, "{kinds:?}, ranks {a} and {b}: {apart} codes differ");
        }
    }
}

#[test]
fn what_is_not_finite_on_one_rank_is_skipped_on_all() {
    let specs = &specs()[..2];
    for kinds in kinds() {
        let mut ranks = Ranks::new(&kinds, 3, Deal::Pieces, specs, Setup::default());
        ranks.step(&grads(specs, 0));
        let before = (ranks.params(), ranks.ranks[0].rates());
        let mut bad = grads(specs, 1);
        // Rank 1 has the elements 1367 to 2734 of the second tensor, whose length is 4103, and two of the 5 of the first one.
        assert_eq!(Deal::Pieces.range(1, 4103, 1, 3), 1367..2735);
        assert_eq!(Deal::Pieces.range(0, 5, 1, 3), 1..3);
        bad[1][1370] = f32::NAN;
        bad[1][4000] = f32::INFINITY;
        ranks.step(&bad);
        assert_eq!(bits(&ranks.params()), bits(&before.0), "{kinds:?}");
        for (rank, run) in ranks.ranks.iter_mut().enumerate() {
            assert_eq!(run.rates(), before.1);
            let records = run.records().records;
            assert_eq!(records.len(), 4);
            for record in &records[2..] {
                assert!(record.flags.skipped(), "{kinds:?}, rank {rank}");
                assert_eq!(record.rank_nonfinite, Some(RankNonFinite { count: 2, rank: 1, element: 2 + 3 }));
                let found = record.nonfinite.map(|found| (found.tensor, found.element));
                assert_eq!(found, (rank == 1).then_some((1, 3)));
                let expected = match rank {
                    1 => "tensor \"counters/1\" at index 3",
                    _ => "2 non-finite elements, the first on rank 1 at index 5",
                };
                assert!(record.to_string().contains(expected), "{record}");
            }
        }
        ranks.step(&grads(specs, 2));
        assert_ne!(bits(&ranks.params()), bits(&before.0));
        assert_ranks_agree(&kinds, &mut ranks, "after the skip");
    }
}

#[test]
fn all_ranks_halt_and_resume_together() {
    let specs = &specs()[..1];
    let setup = Setup { policy: NonFinitePolicy::Error { after: 2 }, ..Setup::default() };
    for kinds in kinds() {
        let mut ranks = Ranks::new(&kinds, 2, Deal::Pieces, specs, setup);
        ranks.step(&grads(specs, 0));
        let before = ranks.params();
        let mut bad = grads(specs, 1);
        bad[2][30] = f32::NAN; // on rank 1
        ranks.step(&bad);
        let stepped = ranks.try_step(&bad);
        ranks.try_step(&grads(specs, 2));
        assert_eq!(bits(&ranks.params()), bits(&before));
        for (rank, (run, stepped)) in ranks.ranks.iter_mut().zip(stepped).enumerate() {
            // On the device the error comes with the records.
            let error = stepped.err().or_else(|| run.try_records().err());
            let error = error.unwrap_or_else(|| panic!("{kinds:?}, rank {rank}: no halt"));
            assert_eq!(error.kind(), ErrorKind::Halted);
            let place = if rank == 1 { "tensor \"counters/2\" at index 14" } else { "on rank 1" };
            assert_says(error, &["from step 1 on", place]);
            run.resume();
        }
        ranks.step(&grads(specs, 3));
        assert_ne!(bits(&ranks.params()), bits(&before));
    }
}

#[test]
fn the_loss_scale_is_the_same_on_every_rank() {
    let specs = &specs()[..3];
    let scaler = LossScaler { initial_scale: 1024.0, growth_interval: 3, ..LossScaler::default() };
    let setup = Setup { scaler: Some(scaler), ..Setup::default() };
    for kinds in kinds() {
        let mut one = run(kinds[0], specs, setup);
        let mut ranks = Ranks::new(&kinds, 3, Deal::Tensors, specs, setup);
        let mut scales = Vec::new();
        for step in 0..8 {
            let scale = one.loss_scale();
            scales.push(scale);
            for run in &ranks.ranks {
                assert_eq!(run.loss_scale(), scale, "{kinds:?}, step {step}");
            }
            let mut grads = times(scale, &grads(specs, step));
            if step == 1 {
                grads[1][77] = f32::INFINITY;
            }
            one.step(&grads);
            ranks.step(&grads);
        }
        assert_eq!(scales, [1024.0, 1024.0, 512.0, 512.0, 512.0, 1024.0, 1024.0, 1024.0]);
        assert_near(&format!("{kinds:?}"), &ranks.params(), &one.params());
    }
}

#[test]
fn a_loss_times_a_power_of_two_changes_no_bit() {
    let mut specs = specs()[..3].to_vec();
    (specs[0].clip, specs[0].decay) = (f32::INFINITY, WeightDecay::Coupled(0.0));
    for kinds in kinds() {
        let runs = [0, 46].map(|power| {
            let mut ranks = Ranks::new(&kinds, 3, Deal::Pieces, &specs, Setup::default());
            for step in 0..5 {
                ranks.step(&times(2f32.powi(power), &grads(&specs, step)));
            }
            bits(&ranks.params())
        });
        assert_eq!(runs[0], runs[1], "{kinds:?}");
    }
}

#[test]
fn a_shard_goes_on_from_its_checkpoint() {
    let specs = &specs()[..3];
    for kinds in kinds() {
        let new = || Ranks::new(&kinds, 2, Deal::Pieces, specs, Setup::default());
        let (mut ranks, mut again) = (new(), new());
        (0..3).for_each(|step| ranks.step(&grads(specs, step)));
        let saved: Vec<_> = ranks.ranks.iter().map(|run| run.checkpoint()).collect();
        let wrong = again.ranks[0].restore(&saved[1]);
        assert_refused(wrong, &["rank of the optimizer is 1 of 2 there, 0 of 2 here"]);
        for (run, saved) in again.ranks.iter_mut().zip(&saved) {
            run.restore(saved).expect("its own");
        }
        for step in 3..5 {
            ranks.step(&grads(specs, step));
            again.step(&grads(specs, step));
        }
        assert_eq!(bits(&again.params()), bits(&ranks.params()), "{kinds:?}");
        // A rank that was restored from another step is detected.
        again.ranks[1].restore(&saved[1]).expect("its own");
        let sums = again.measure(&grads(specs, 5));
        assert_refused(ShardSums::combine(&sums), &["rank 1 has step 3", "rank 0 has 5"]);
    }
}

/// With the same controls on every rank, a clip over all groups and outliers, ranks take the steps of one optimizer.
#[test]
fn ranks_follow_their_controls_together() {
    let specs = [
        Spec { clip: 1e6, ..Spec::new(Rule::sgdm(0.9), Regime::seesaw(), tensors(1, &[301, 7])).named("a") },
        Spec::new(Rule::adamw(), Regime::norm_ratio(), tensors(2, &[64])).named("b"),
    ];
    let outliers = Some(NormOutliers::Skip { deviations: 3.0, window: 4 });
    let setup = Setup { global_clip: Some(9.0), outliers, ..Setup::default() };
    for kinds in kinds() {
        let mut ranks = Ranks::new(&kinds, 2, Deal::Pieces, &specs, setup);
        let mut whole = run(kinds[0], &specs, setup);
        for t in 0..12u64 {
            let change = |group: &mut Controls| {
                group.frozen = t % 4 == 2;
                group.learning_rate_factor = if t > 5 { 0.5 } else { 1.0 };
                group.clip_norm = if t == 7 { 0.5 } else { f32::INFINITY };
            };
            whole.control("a", &change);
            for rank in &mut ranks.ranks {
                rank.control("a", &change);
            }
            let mut grads = noise(&specs, t);
            if t == 8 {
                grads.iter_mut().flatten().for_each(|g| *g *= 50.0);
            }
            whole.step(&grads);
            ranks.step(&grads);
        }
        let whole_records = whole.records().records;
        for rank in &mut ranks.ranks {
            let records = rank.records().records;
            let flags = |records: &[Record]| records.iter().map(|record| record.flags).collect::<Vec<_>>();
            assert_eq!(flags(&records), flags(&whole_records), "{kinds:?}");
        }
        assert!(whole_records.iter().any(|record| record.flags.outlier()));
        for (got, expected) in ranks.params().iter().zip(whole.params()) {
            let worst = ulps_of_largest(got, &expected, 1e-3);
            assert!(worst <= ULPS, "{kinds:?}: {worst} ulps");
        }
    }
}
