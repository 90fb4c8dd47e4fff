//! Sums of two ranks with some words replaced are refused, or can be combined and applied, which leaves the parameters finite.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wgpu_optim::{CpuOptimizer, Group, OptimizerBuilder, Regime, Rule, ShardSums};

const G: [f32; 6] = [0.5, -1.0, 0.25, 2.0, 0.0, 1e-3];

fn rank(rank: u32, rule: Rule, regime: Regime) -> CpuOptimizer {
    OptimizerBuilder::new(rule)
        .regime(regime)
        .group(Group::new("first").clip_norm(0.5).tensor("a", &G[..4], &G[..4]))
        .group(Group::new("second").tensor("b", &G[4..], &G[4..]))
        .sharded(rank, 2)
        .record_steps(2)
        .build_cpu()
        .expect("builds")
}

fuzz_target!(|bytes: &[u8]| {
    let [choice, bytes @ ..] = bytes else { return };
    let rules: Vec<Rule> = Rule::all().into_iter().filter(|rule| !rule.owns_passes()).collect();
    let regimes: Vec<Regime> = Regime::all().into_iter().filter(|regime| !regime.needs_loss()).collect();
    let rule = rules[usize::from(choice % 8) % rules.len()];
    let regime = regimes[usize::from(choice / 8) % regimes.len()];
    let mut ranks = [0, 1].map(|index| rank(index, rule, regime));
    let mut w = [1.0f32; 6];
    for step in 0..2 {
        let sums = ranks.each_mut().map(|rank| {
            let (a, b) = w.split_at(4);
            rank.measure(&[a, b], &[&G[..4], &G[4..]]).expect("measures").to_bytes()
        });
        let mut sums = sums.concat();
        // A change takes six bytes: its place and its value. Only the first step is changed.
        for change in bytes.chunks_exact(6).filter(|_| step == 0) {
            let word = usize::from(u16::from_le_bytes([change[0], change[1]])) % (sums.len() / 4);
            sums[4 * word..4 * word + 4].copy_from_slice(&change[2..]);
        }
        let Ok(combined) = ShardSums::combine_bytes(&sums) else { return };
        let (a, b) = w.split_at_mut(4);
        let _ = ranks[0].apply(&mut [a, b], &[&G[..4], &G[4..]], &combined);
        assert!(w.iter().all(|w| w.is_finite()));
        // The other rank takes the step too.
        let mut other = w;
        let (a, b) = other.split_at_mut(4);
        let _ = ranks[1].apply(&mut [a, b], &[&G[..4], &G[4..]], &combined);
    }
});
