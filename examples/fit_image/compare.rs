//! Seesaw, which nobody tuned, against fixed rates that somebody did.

use std::error::Error;

use wgpu_optim::Regime;

use crate::chart::Line;
use crate::fit::TENSORS;
use crate::{Outcome, Task};

/// Exponents of the grid, in half decades.
const HALF_DECADES: std::ops::RangeInclusive<i32> = -8..=4;

/// The fixed rates of the groups, in half decades.
type Rates = [i32; 4];

fn rate(half_decades: i32) -> f32 {
    10f32.powf(0.5 * half_decades as f32)
}

/// Runs over the same seeds.
struct Runs<'a> {
    task: &'a Task,
    seeds: std::ops::Range<u64>,
    count: usize,
}

/// A mean over seeds, and the run of the first.
struct Mean {
    psnr: f64,
    first: Outcome,
}

impl Runs<'_> {
    fn mean(&mut self, regimes: [Regime; 4]) -> Result<Mean, wgpu_optim::Error> {
        let mut outcomes = Vec::new();
        for seed in self.seeds.clone() {
            outcomes.push(self.task.run(seed, regimes)?);
            self.count += 1;
        }
        let psnr = outcomes.iter().map(Outcome::psnr).sum::<f64>() / outcomes.len() as f64;
        Ok(Mean {
            psnr,
            first: outcomes.swap_remove(0),
        })
    }

    fn fixed(&mut self, rates: Rates) -> Result<Mean, wgpu_optim::Error> {
        self.mean(rates.map(|half_decades| Regime::fixed(rate(half_decades))))
    }
}

/// Runs the comparison, prints it as a table, and gives back the course of the best fixed rates with the first seed.
pub fn compare(task: &Task, seed: u64, seeds: u64) -> Result<Vec<Line>, Box<dyn Error>> {
    let mut runs = Runs {
        task,
        seeds: seed..seed + seeds,
        count: 0,
    };
    let seesaw = runs.mean([Regime::seesaw(); 4])?;
    println!("\n| learning rates | runs per seed | PSNR in dB, mean of {seeds} |\n|---|---|---|");
    println!("| Seesaw, nothing tuned | 1 | {:.2} |", seesaw.psnr);

    runs.count = 0;
    let mut best: Option<(Rates, Mean)> = None;
    let mut grid = Vec::new();
    for half_decades in HALF_DECADES {
        let rates = [half_decades; 4];
        let mean = runs.fixed(rates)?;
        grid.push(format!("{:.3e}: {:.2}", rate(half_decades), mean.psnr));
        if best.as_ref().is_none_or(|(_, best)| mean.psnr > best.psnr) {
            best = Some((rates, mean));
        }
    }
    let (mut rates, mut best) = best.ok_or("an empty grid")?;
    println!(
        "| one fixed rate, the best of {}: {:.3e} | {} | {:.2} |",
        grid.len(),
        rate(rates[0]),
        runs.count as u64 / seeds,
        best.psnr
    );
    let one = best.first.quality("best fixed rate for all");

    // One group after the other, up as long as it helps, or else down.
    for group in 0..TENSORS.len() {
        for direction in [1, -1] {
            let mut moved = false;
            loop {
                let mut next = rates;
                next[group] += direction;
                let mean = runs.fixed(next)?;
                if mean.psnr > best.psnr {
                    (rates, best, moved) = (next, mean, true);
                } else {
                    break;
                }
            }
            if moved {
                break;
            }
        }
    }
    let named: Vec<String> = TENSORS
        .iter()
        .zip(rates)
        .map(|((name, _), half_decades)| format!("{name} {:.3e}", rate(half_decades)))
        .collect();
    println!(
        "| fixed rates tuned for each group: {} | {} | {:.2} |",
        named.join(", "),
        runs.count as u64 / seeds,
        best.psnr
    );
    println!("\nfixed rates for all groups: {}", grid.join(", "));
    Ok(vec![one, best.first.quality("fixed, tuned for each group")])
}
