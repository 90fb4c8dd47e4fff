//! Compares Seesaw without tuning with tuned fixed rates.

use std::error::Error;
use std::ops::{Range, RangeInclusive};

use wgpu_optim::Regime;

use crate::chart::Line;
use crate::fit::{Norms, TENSORS};
use crate::{Outcome, Task};

/// Grid of fixed rates, in half decades.
const HALF_DECADES: RangeInclusive<i32> = -8..=4;

/// Fixed rates of the groups, in half decades.
type Rates = [i32; 4];

fn rate(half_decades: i32) -> f32 {
    10f32.powf(0.5 * half_decades as f32)
}

fn fixed(rates: Rates) -> [Regime; 4] {
    rates.map(|half_decades| Regime::fixed(rate(half_decades)))
}

/// Fixed rates that were found with one seed.
struct Found {
    rates: Rates,
    outcome: Outcome,
    runs: usize,
}

impl Found {
    /// Keeps these rates if their result is better. NaN, the result of a diverging run, is never better.
    fn try_rates(&mut self, task: &Task, seed: u64, rates: Rates) -> Result<bool, Box<dyn Error>> {
        self.runs += 1;
        let outcome = task.run(seed, fixed(rates), Norms::ByGroup)?;
        let is_better = outcome.psnr() > self.outcome.psnr();
        if is_better {
            (self.rates, self.outcome) = (rates, outcome);
        }
        Ok(is_better)
    }

    /// Tunes one group after the other, upwards while this helps, or else downwards, until no group changes.
    fn tune_each_group(&mut self, task: &Task, seed: u64) -> Result<(), Box<dyn Error>> {
        let mut still = 0;
        for group in (0..TENSORS.len()).cycle() {
            let before = self.rates;
            for direction in [1, -1] {
                let mut next = self.rates;
                next[group] += direction;
                while self.try_rates(task, seed, next)? {
                    next[group] += direction;
                }
                if self.rates != before {
                    break;
                }
            }
            still = if self.rates == before { still + 1 } else { 0 };
            if still == TENSORS.len() {
                break;
            }
        }
        Ok(())
    }
}

/// Returns the mean PSNR over the seeds.
fn mean(task: &Task, seeds: Range<u64>, regimes: [Regime; 4], norms: Norms) -> Result<f64, Box<dyn Error>> {
    let count = (seeds.end - seeds.start) as f64;
    let mut sum = 0.0;
    for seed in seeds {
        sum += task.run(seed, regimes, norms)?.psnr();
    }
    Ok(sum / count)
}

/// Runs the comparison, prints it as a table, and returns the PSNR over the steps with the best fixed rates. Rates are tuned with the
/// first seed. The table has means over all seeds.
pub fn compare(task: &Task, seed: u64, seeds: u64) -> Result<Vec<Line>, Box<dyn Error>> {
    let all = seed..seed + seeds;
    println!("\n| learning rates | runs to tune them | PSNR in dB, mean of {seeds} |\n|---|---|---|");
    for (name, norms) in [("a rate for each group", Norms::ByGroup), ("one rate for all", Norms::Shared)] {
        let psnr = mean(task, all.clone(), [Regime::seesaw(); 4], norms)?;
        println!("| Seesaw, {name} | 0 | {psnr:.2} |");
    }

    let lowest = [*HALF_DECADES.start(); 4];
    let mut found = Found { rates: lowest, outcome: task.run(seed, fixed(lowest), Norms::ByGroup)?, runs: 1 };
    for half_decades in HALF_DECADES.skip(1) {
        found.try_rates(task, seed, [half_decades; 4])?;
    }
    let psnr = mean(task, all.clone(), fixed(found.rates), Norms::ByGroup)?;
    let (one, runs) = (rate(found.rates[0]), found.runs);
    println!("| fixed, one rate for all: {one:.1e} | {runs} | {psnr:.2} |");
    let best_for_all = found.outcome.quality("best fixed rate for all");

    found.tune_each_group(task, seed)?;
    let psnr = mean(task, all, fixed(found.rates), Norms::ByGroup)?;
    let named: Vec<String> = TENSORS
        .iter()
        .zip(found.rates)
        .map(|((name, _), half_decades)| format!("{name} {:.1e}", rate(half_decades)))
        .collect();
    let (named, runs) = (named.join(", "), found.runs);
    println!("| fixed, a rate for each group: {named} | {runs} | {psnr:.2} |");
    Ok(vec![best_for_all, found.outcome.quality("fixed, tuned for each group")])
}
