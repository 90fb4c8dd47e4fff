//! The step of a Gaussian-splat trainer. One tensor has a row for each Gaussian. Its columns have different learning rates, and its rows are
//! added and removed during training. The example fits an image with wgpu-optim's Adam, and with an Adam made of burn's tensor operations, as
//! in splat trainers. See ../README.md.
#![forbid(unsafe_code)]

use std::time::Instant;

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::activation::sigmoid;
use burn::tensor::{Device, Tensor, TensorData};
use clap::Parser;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use wgpu_optim_burn::wgpu_optim::{AdamW, Group, OptimizerBuilder, RateFactors, Regime, Rule, Schedule};
use wgpu_optim_burn::{WgpuOptim, WgpuOptimConfig, share_burns};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Fits an image with Gaussians.
#[derive(Debug, Parser)]
struct Args {
    /// Rows of the tensor: the most Gaussians there can be
    #[arg(long, default_value_t = 256)]
    capacity: usize,
    /// Pixels along a side of the image
    #[arg(long, default_value_t = 32)]
    side: usize,
    /// Steps
    #[arg(long, default_value_t = 300)]
    steps: usize,
    /// Steps between two changes of the rows
    #[arg(long, default_value_t = 50)]
    refine: usize,
}

/// Number of columns: x, y, ln of the radius, red, green, blue, and opacity before the sigmoid.
const COLUMNS: usize = 7;
/// Learning rate of each column.
const RATES: [f32; COLUMNS] = [2e-3, 2e-3, 2e-2, 2e-2, 2e-2, 2e-2, 5e-2];
/// Factor of all learning rates per step.
const DECAY: f32 = 0.998;
const BETAS: [f32; 2] = [0.9, 0.999];
const EPSILON: f32 = 1e-15;

#[derive(Module, Debug)]
struct Splats {
    rows: Param<Tensor<2>>,
    /// 1 for rows that are in use, 0 for free ones. Free rows have gradients of 0, and the optimizer does not change them.
    live: Tensor<2>,
}

impl Splats {
    fn render(&self, pixels: &[Tensor<2>; 2]) -> Tensor<2> {
        let rows = self.rows.val();
        // The tensor is transposed before it is sliced, because burn 0.22.1 with fusion mixes up the elements in the other order.
        let columns = rows.clone().transpose();
        let column = |at: usize| columns.clone().slice([at..at + 1, 0..rows.dims()[0]]);
        let distance = (pixels[0].clone() - column(0)).square() + (pixels[1].clone() - column(1)).square();
        let sharpness = (column(2) * -2.0).exp() * -0.5;
        let opacity = sigmoid(column(6)) * Tensor::from_inner(self.live.clone()).transpose();
        let weights = (distance * sharpness).exp() * opacity;
        let colours = sigmoid(rows.clone().slice([0..rows.dims()[0], 3..6]));
        let total = weights.clone().sum_dim(1) + 1e-4;
        weights.matmul(colours) / total
    }
}

enum Optimizer {
    Ours(Box<WgpuOptim>),
    /// Adam made of tensor operations, with a row of learning rates.
    Operations {
        moments: Box<Option<[Tensor<2>; 2]>>,
        rates: Box<Tensor<2>>,
        step: i32,
    },
}

impl Optimizer {
    fn step(&mut self, splats: Splats, mut gradients: GradientsParams) -> Result<Splats> {
        match self {
            Optimizer::Ours(optim) => Ok(optim.step(splats, gradients)?),
            Optimizer::Operations { moments, rates, step } => {
                let Splats { rows, live } = splats;
                let g = gradients.remove::<2>(rows.id).ok_or("no gradient")?;
                let [m, v] = match moments.take() {
                    Some([m, v]) => {
                        [m * BETAS[0] + g.clone() * (1.0 - BETAS[0]), v * BETAS[1] + g.square() * (1.0 - BETAS[1])]
                    }
                    None => [g.clone() * (1.0 - BETAS[0]), g.square() * (1.0 - BETAS[1])],
                };
                **moments = Some([m.clone(), v.clone()]);
                *step += 1;
                let [first, second] = BETAS.map(|beta| 1.0 - beta.powi(*step));
                let direction = m / first / ((v / second).sqrt() + EPSILON);
                let rates = (**rates).clone() * DECAY.powi(*step - 1);
                let rows = rows.map(|rows| Tensor::from_inner(rows.inner() - direction * rates).require_grad());
                Ok(Splats { rows, live })
            }
        }
    }
}

/// Copy of the rows on the host, which adds and removes Gaussians.
struct Rows {
    values: Vec<f32>,
    live: Vec<f32>,
}

impl Rows {
    /// Returns rows of which a quarter are in use, at random places.
    fn new(capacity: usize, random: &mut ChaCha8Rng) -> Self {
        let mut values = vec![0.0; capacity * COLUMNS];
        let live: Vec<f32> = (0..capacity).map(|row| if row < capacity / 4 { 1.0 } else { 0.0 }).collect();
        for row in values.chunks_exact_mut(COLUMNS) {
            row[0] = random.random();
            row[1] = random.random();
            row[2] = 0.1f32.ln();
        }
        Rows { values, live }
    }

    /// Removes faint Gaussians, and fills free rows with smaller copies of the others at slightly different places.
    fn refine(&mut self, random: &mut ChaCha8Rng) {
        let rows = self.live.len();
        for row in 0..rows {
            if self.values[row * COLUMNS + 6] < -3.0 {
                self.live[row] = 0.0;
            }
        }
        let parents: Vec<usize> = (0..rows).filter(|&row| self.live[row] > 0.0).collect();
        let free: Vec<usize> = (0..rows).filter(|&row| self.live[row] == 0.0).take(parents.len() / 2).collect();
        for (child, &parent) in
            free.into_iter().zip(parents.iter().cycle().skip(random.random_range(0..parents.len().max(1))))
        {
            self.values.copy_within(parent * COLUMNS..(parent + 1) * COLUMNS, child * COLUMNS);
            self.live[child] = 1.0;
            for at in [0, 1] {
                self.values[child * COLUMNS + at] += 0.05 * (random.random::<f32>() - 0.5);
            }
            self.values[child * COLUMNS + 2] -= 0.3;
        }
    }

    fn upload(&self, device: &Device) -> [Tensor<2>; 2] {
        let rows = self.live.len();
        let plain = device.clone().inner();
        [(&self.values, COLUMNS), (&self.live, 1)]
            .map(|(values, columns)| Tensor::from_data(TensorData::new(values.clone(), [rows, columns]), &plain))
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (plain, gpu) = share_burns(Device::wgpu_options())?;
    let device = plain.clone().autodiff();
    println!("{} rows at most, {} pixels; {}", args.capacity, args.side * args.side, gpu.describe());
    println!("| Adam | Gaussians in the end | PSNR | ms per step | of that the optimizer |\n|---|---|---|---|---|");
    for ours in [true, false] {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut rows = Rows::new(args.capacity, &mut random);
        let [values, live] = rows.upload(&device);
        let mut splats = Splats { rows: Param::from_tensor(Tensor::from_inner(values).require_grad()), live };
        let mut optimizer = if ours {
            // There is one group with one tensor, whose columns have factors of the learning rate.
            let rule = Rule::AdamW(AdamW { beta1: BETAS[0], beta2: BETAS[1], epsilon: EPSILON });
            let builder = OptimizerBuilder::new(rule)
                .regime(Regime::fixed(1.0))
                .decoupled_weight_decay(0.0)
                .schedule(Schedule::Exponential { every: 1, factor: DECAY, warmup: 0 });
            let group = Group::new("splats").rate_factors(RateFactors::Columns(RATES.into())).lazy_rows(true);
            Optimizer::Ours(Box::new(WgpuOptimConfig::new(builder).with_default_group(group).init(&splats, &gpu)?))
        } else {
            let rates = Tensor::from_data(TensorData::new(RATES.to_vec(), [1, COLUMNS]), &plain);
            Optimizer::Operations { moments: Box::default(), rates: Box::new(rates), step: 0 }
        };
        let (pixels, image) = image(args.side, &device);
        let loss = |splats: &Splats| (splats.render(&pixels) - image.clone()).square().mean();
        let (mut start, mut seconds, mut optimizing) = (Instant::now(), 0.0, Vec::new());
        for step in 0..args.steps {
            let gradients = GradientsParams::from_grads(loss(&splats).backward(), &splats);
            // In some steps, the optimizer is timed between two waits for the device.
            let probe = step % 10 == 5;
            if probe {
                plain.sync()?;
            }
            let begun = Instant::now();
            splats = optimizer.step(splats, gradients)?;
            if probe {
                plain.sync()?;
                optimizing.push(1e3 * begun.elapsed().as_secs_f64());
            }
            if step == 0 {
                // The first step, which compiles and tunes kernels, is not timed.
                plain.sync()?;
                start = Instant::now();
            }
            if (step + 1) % args.refine == 0 && step + 1 < args.steps {
                seconds += start.elapsed().as_secs_f64();
                rows.values = splats.rows.val().into_data().try_to_vec().map_err(|error| format!("{error:?}"))?;
                rows.refine(&mut random);
                let [values, live] = rows.upload(&device);
                // The parameter is the same and has other values, so that the optimizer keeps the state of every row.
                let rows = splats.rows.map(|_| Tensor::from_inner(values).require_grad());
                splats = Splats { rows, live };
                start = Instant::now();
            }
        }
        plain.sync()?;
        seconds += start.elapsed().as_secs_f64();
        let error = loss(&splats).inner().into_scalar::<f32>();
        optimizing.sort_by(f64::total_cmp);
        println!(
            "| {} | {} | {:.2} dB | {:.2} | {:.2} |",
            if ours { "wgpu-optim" } else { "burn's tensor operations" },
            rows.live.iter().filter(|&&live| live > 0.0).count(),
            -10.0 * error.log10(),
            1e3 * seconds / args.steps as f64,
            optimizing.get(optimizing.len() / 2).copied().unwrap_or(f64::NAN),
        );
    }
    Ok(())
}

/// Returns the positions of the pixels and their colours, which are discs and a gradient.
fn image(side: usize, device: &Device) -> ([Tensor<2>; 2], Tensor<2>) {
    let pixels = side * side;
    let at = |pixel: usize| {
        let centre = |index: usize| (index as f32 + 0.5) / side as f32;
        [centre(pixel % side), centre(pixel / side)]
    };
    let column = |axis: usize| {
        let values: Vec<f32> = (0..pixels).map(|pixel| at(pixel)[axis]).collect();
        Tensor::from_data(TensorData::new(values, [pixels, 1]), device)
    };
    let colours: Vec<f32> = (0..pixels)
        .flat_map(|pixel| {
            let [x, y] = at(pixel);
            let disc = |cx: f32, cy: f32, r: f32| if (x - cx).hypot(y - cy) < r { 0.8 } else { 0.1 };
            [disc(0.3, 0.35, 0.2), disc(0.7, 0.6, 0.25), 0.1 + 0.8 * x * y]
        })
        .collect();
    ([column(0), column(1)], Tensor::from_data(TensorData::new(colours, [pixels, 3]), device))
}
