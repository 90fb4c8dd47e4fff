//! Muon over one square matrix, and burn's product of two such matrices, which burn tunes to the adapter.

use burn::optim::MuonConfig;
use burn::optim::momentum::MomentumConfig;
use burn::tensor::{Device, Tensor, TensorData};
use wgpu_optim::{Gpu, MuonScale, Regime, Rule};

use crate::{Args, Burn, Contestant, Ours, RATE, Result, Settings, take_turns};

/// Product of two matrices.
struct Product {
    device: Device,
    factors: [Tensor<2>; 2],
    product: Option<Tensor<2>>,
}

impl Contestant for Product {
    fn step(&mut self) -> Result<()> {
        let [left, right] = self.factors.clone();
        self.product = Some(left.matmul(right));
        Ok(self.device.flush()?)
    }

    fn wait(&mut self) -> Result<()> {
        Ok(self.device.sync()?)
    }

    fn parameters(&mut self) -> Result<Vec<f32>> {
        Err("a product has no parameters".into())
    }
}

/// Returns a matrix with singular values of many sizes.
fn values(side: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    (0..side * side).map(|_| next()).collect()
}

/// Takes three steps and returns the change of each parameter.
fn moves(contestant: &mut dyn Contestant, start: &[f32]) -> Result<Vec<f64>> {
    for _ in 0..3 {
        contestant.step()?;
    }
    let after = contestant.parameters()?;
    Ok(start.iter().zip(after).map(|(&before, after)| f64::from(after) - f64::from(before)).collect())
}

pub fn measure(args: &Args, device: &Device, gpu: &Gpu) -> Result<()> {
    println!("{}; burn 0.22.1; medians of {} rounds", gpu.describe(), args.rounds);
    println!("{:<14} {:>6} {:>10} {:>24} {:>10} {:>12}", "what", "side", "ms", "min to max", "GFLOP/s", "speed / ours");
    for &side in &args.matrices {
        let side = side as usize;
        let (start, gradient) = (values(side), values(side));
        let tensor = |values: &[f32]| Tensor::<2>::from_data(TensorData::new(values.to_vec(), [side, side]), device);
        let momentum = MomentumConfig { momentum: 0.95, dampening: 0.05, nesterov: true };
        let muon = MuonConfig::new().with_momentum(momentum).build();
        let mut burn = Burn::new(device, muon, [&start, &gradient], [side; 2], false);
        let rule = Rule::Muon(wgpu_optim::Muon { scale: MuonScale::Original, ..Default::default() });
        let settings = Settings { clip: false, checks: true };
        let mut ours = Ours::new(gpu, &start, &[side, side], rule, Regime::fixed(RATE), settings)?;
        // A constant gradient has the same direction in each step with any momentum.
        let (theirs, own) = (moves(&mut burn, &start)?, moves(&mut ours, &start)?);
        let distance = theirs.iter().zip(&own).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        let length = own.iter().map(|a| a.powi(2)).sum::<f64>().sqrt();
        if distance > 1e-2 * length {
            println!("{side}: burn's step differs from ours by {:.1} % of its length", 100.0 * distance / length);
        }
        let mut product =
            Product { device: device.clone(), factors: [tensor(&start), tensor(&gradient)], product: None };
        let times = take_turns(args, &mut [&mut burn, &mut ours, &mut product])?;
        let cube = (side as f64).powi(3);
        let rows = [("muon, burn", 30.0 * cube), ("muon, ours", 30.0 * cube), ("product, burn", 2.0 * cube)];
        let median = |mut numbers: Vec<f64>| {
            numbers.sort_by(f64::total_cmp);
            numbers[numbers.len() / 2]
        };
        for ((name, operations), taken) in rows.into_iter().zip(&times) {
            // Operations per second, divided by those of wgpu-optim's step in the same round.
            let share = |(time, own): (&f64, &f64)| operations / time / (30.0 * cube / own);
            let by_ours = median(taken.iter().zip(&times[1]).map(share).collect());
            let (least, most) = taken.iter().fold((f64::MAX, 0.0f64), |(a, b), &time| (a.min(time), b.max(time)));
            let time = median(taken.clone());
            let spread = format!("{:.2} to {:.2}", 1e3 * least, 1e3 * most);
            let speed = 1e-9 * operations / time;
            println!("{name:<14} {side:>6} {:>10.2} {spread:>24} {speed:>10.2} {by_ours:>12.2}", 1e3 * time);
        }
    }
    Ok(())
}
