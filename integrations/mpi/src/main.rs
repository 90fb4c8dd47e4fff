//! Trains an MLP on handwritten digits over the ranks of an MPI program, as ZeRO does. Every rank computes the gradients of its rows of the
//! batch and owns a shard of the parameters. It receives the gradients of this shard from all ranks, steps, and sends the new parameters of
//! the shard to all ranks. Rank 0 also trains the same model with one optimizer for all parameters. At every step all ranks must have the same
//! bits of the learning rate. At the end the parameters of both must agree within [`ULPS`]. Otherwise the exit code is 1. (The last place of
//! a parameter may decide whether a unit of the network is active, and the gradients then differ by far more. Both therefore get the same
//! gradients, computed at the parameters of the ranks.)
//!
//! `mpirun -n 4 wgpu-optim-mpi --path cpu`

use std::ops::Range;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use mpi::datatype::{Partition, PartitionMut};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use wgpu_optim::{
    CombinedSums, CpuOptimizer, Gpu, GpuOptions, Group, Optimizer, OptimizerBuilder, Rule, ShardSums, cpu, gpu, wgpu,
};
use wgpu_optim_cli::data;
use wgpu_optim_cli::model::cpu::CpuModel;
use wgpu_optim_cli::model::{Model, ModelKind};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Largest allowed difference of a parameter at the end, in units in the last place of the largest parameter. The sums of a norm are added
/// in another order, so that rates differ in their last place. Over 220 steps the difference grew to 3.4.
const ULPS: f64 = 16.0;

/// Number of parts of a batch. One rank computes each part. Their gradients are added in the same order for any number of ranks.
const PARTS: usize = 4;

/// Number of rows in a batch.
const BATCH: usize = 64;

#[derive(Debug, Parser)]
struct Args {
    /// Where the optimizers are
    #[arg(long, value_enum, default_value = "cpu")]
    path: Path,
    /// Hidden units
    #[arg(long, default_value_t = 128)]
    hidden: usize,
    /// Passes over the data
    #[arg(long, default_value_t = 10)]
    epochs: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Path {
    /// The CPU path
    Cpu,
    /// A device, which may be a software driver
    Device,
}

fn main() {
    let Some(universe) = mpi::initialize() else {
        eprintln!("MPI does not start");
        std::process::exit(1);
    };
    let world = universe.world();
    let args = Args::parse();
    match run(&world, &args) {
        Ok(true) => {}
        Ok(false) => world.abort(1),
        Err(error) => {
            eprintln!("rank {}: {error}", world.rank());
            world.abort(2);
        }
    }
}

/// Returns whether all ranks agree with each other and with one optimizer.
fn run(world: &SimpleCommunicator, args: &Args) -> Outcome<bool> {
    let ranks = world.size() as usize;
    if !PARTS.is_multiple_of(ranks) {
        return Err(format!("{ranks} ranks cannot share {PARTS} parts of a batch evenly: start 1, 2 or 4").into());
    }
    let gpu = match args.path {
        Path::Cpu => None,
        Path::Device => {
            Some(pollster::block_on(Gpu::request(&GpuOptions { allow_software: true, ..GpuOptions::default() }))?)
        }
    };
    let mut agree = true;
    for rule in [Rule::sgd(), Rule::sgdm(0.9), Rule::sign_sgd()] {
        agree &= train(world, args, gpu.as_ref(), rule)?;
    }
    Ok(agree)
}

fn train(world: &SimpleCommunicator, args: &Args, gpu: Option<&Gpu>, rule: Rule) -> Outcome<bool> {
    let (rank, ranks) = (world.rank() as usize, world.size() as usize);
    let data = data::load("digits")?;
    let model = Model { kind: ModelKind::Mlp, features: data.features, classes: data.classes, hidden: args.hidden };
    let first = model.initial_parameters(0);
    let elements = first.len();
    let shard_of = |rank: usize| elements * rank / ranks..elements * (rank + 1) / ranks;
    let shard = shard_of(rank);
    let mut compute = CpuModel::new(&model, BATCH / PARTS);
    let mut host = PathOptimizer::new(gpu, rule, &model, &first, shard.clone(), Some((rank, ranks)))?;
    let mut one = match rank {
        0 => Some(PathOptimizer::new(gpu, rule, &model, &first, 0..elements, None)?),
        _ => None,
    };

    let mut parameters = first.clone();
    let mut expected = first;
    let mut parts = vec![vec![0.0f32; elements]; PARTS];
    let own_parts = PARTS / ranks * rank..PARTS / ranks * (rank + 1);
    let mut times = Times::default();
    let mut same_rates = true;
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut order: Vec<u32> = (0..data.train.rows() as u32).collect();
    let mut steps = 0usize;
    for _ in 0..args.epochs {
        order.shuffle(&mut random);
        for rows in order.chunks_exact(BATCH) {
            if let Some(one) = &mut one {
                gradients(&mut compute, &parameters, &data.train, rows, 0..PARTS, &mut parts);
                let whole = add_up(parts.iter().map(Vec::as_slice), elements);
                let start = Instant::now();
                one.step(&whole)?;
                times.alone.push(start.elapsed());
                one.parameters_into(&mut expected)?;
            }
            let wanted = own_parts.clone();
            gradients(&mut compute, &parameters, &data.train, rows, wanted, &mut parts);
            let own = exchange(world, &parts[own_parts.clone()], &shard, shard_of);

            // All ranks start together. Otherwise the time of the all-gather would contain the wait for gradients of other ranks.
            world.barrier();
            let start = Instant::now();
            let measured = host.measure(&own)?;
            let measured_at = start.elapsed();
            let combined = wgpu_optim_mpi::combine(world, &measured)?;
            let combined_at = start.elapsed();
            host.apply(&own, &combined)?;
            times.measure.push(measured_at);
            times.gather.push(combined_at - measured_at);
            times.apply.push(start.elapsed() - combined_at);

            let rate = [host.rate()?];
            let mut rates = vec![0.0f32; ranks];
            world.all_gather_into(&rate[..], &mut rates[..]);
            same_rates &= rates.iter().all(|other| other.to_bits() == rate[0].to_bits());

            let mut piece = vec![0.0; shard.len()];
            host.parameters_into(&mut piece)?;
            gather(world, &piece, &mut parameters, shard_of);
            steps += 1;
        }
    }

    let mut agree = [same_rates];
    if let Some(one) = &mut one {
        let largest = expected.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        let unit = f64::from(largest) * f64::from(f32::EPSILON);
        let off = parameters.iter().zip(&expected);
        let off = off.map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs() / unit);
        let ulps = off.fold(0.0, f64::max);
        let rate_ulps = {
            let (a, b) = (f64::from(host.rate()?), f64::from(one.rate()?));
            (a - b).abs() / (b * f64::from(f32::EPSILON))
        };
        agree[0] &= ulps <= ULPS;
        let accuracy = compute.evaluate(&parameters, &data.test.x, &data.test.y).accuracy;
        println!(
            "{ranks} rank{}, {}, {} on {elements} parameters, {steps} steps: accuracy {:.2} %; rates {} on all ranks at every step; \
             from one optimizer of everything: parameters {ulps:.1} ulps of the largest (at most {ULPS}), last rate {rate_ulps:.1} ulps",
            if ranks == 1 { "" } else { "s" },
            host.name(),
            rule.name(),
            100.0 * accuracy,
            if same_rates { "have the same bits" } else { "DIFFER" },
        );
        println!("    {}", times.in_words(32 + 56, ranks));
        if !agree[0] {
            println!("    FAILED");
        }
    }
    world.process_at_rank(0).broadcast_into(&mut agree[..]);
    Ok(agree[0] && same_rates)
}

/// Computes the gradients of some parts of a batch. The gradient of the batch is the sum over all parts.
fn gradients(
    compute: &mut CpuModel,
    parameters: &[f32],
    train: &data::Split,
    batch: &[u32],
    wanted: Range<usize>,
    parts: &mut [Vec<f32>],
) {
    let rows = BATCH / PARTS;
    for (part, out) in parts.iter_mut().enumerate().take(wanted.end).skip(wanted.start) {
        let batch = &batch[part * rows..(part + 1) * rows];
        compute.loss_and_gradients(parameters, &train.x, &train.y, batch, out);
        out.iter_mut().for_each(|g| *g /= PARTS as f32);
    }
}

/// Adds parts in their order.
fn add_up<'a>(parts: impl IntoIterator<Item = &'a [f32]>, elements: usize) -> Vec<f32> {
    let mut sum = vec![0.0; elements];
    for part in parts {
        for (sum, g) in sum.iter_mut().zip(part) {
            *sum += g;
        }
    }
    sum
}

/// Returns the sum of the gradients of this rank's shard over the parts of all ranks: a reduce-scatter whose order is always the same.
fn exchange(
    world: &SimpleCommunicator,
    own: &[Vec<f32>],
    shard: &Range<usize>,
    shard_of: impl Fn(usize) -> Range<usize>,
) -> Vec<f32> {
    let ranks = world.size() as usize;
    let mut sent = Vec::new();
    for rank in 0..ranks {
        for part in own {
            sent.extend_from_slice(&part[shard_of(rank)]);
        }
    }
    let counts: Vec<i32> = (0..ranks).map(|rank| (own.len() * shard_of(rank).len()) as i32).collect();
    let received_counts = vec![(own.len() * shard.len()) as i32; ranks];
    let mut received = vec![0.0f32; PARTS * shard.len()];
    {
        let sent = Partition::new(&sent[..], counts.clone(), displacements(&counts));
        let places = displacements(&received_counts);
        let mut received = PartitionMut::new(&mut received[..], received_counts, places);
        world.all_to_all_varcount_into(&sent, &mut received);
    }
    add_up(received.chunks_exact(shard.len()), shard.len())
}

/// Gathers the parameters of all shards.
fn gather(world: &SimpleCommunicator, own: &[f32], all: &mut [f32], shard_of: impl Fn(usize) -> Range<usize>) {
    let counts: Vec<i32> = (0..world.size() as usize).map(|rank| shard_of(rank).len() as i32).collect();
    let places = displacements(&counts);
    let mut all = PartitionMut::new(all, counts, places);
    world.all_gather_varcount_into(own, &mut all);
}

fn displacements(counts: &[i32]) -> Vec<i32> {
    let mut at = 0;
    counts
        .iter()
        .map(|count| {
            let start = at;
            at += count;
            start
        })
        .collect()
}

/// Optimizer for a range of the flat parameters, on either path.
#[expect(clippy::large_enum_variant, reason = "there are two of them")]
enum PathOptimizer {
    Host {
        optimizer: CpuOptimizer,
        parameters: Vec<f32>,
        /// Ranges of the tensors within the range.
        tensors: Vec<Range<usize>>,
    },
    Device {
        gpu: Gpu,
        optimizer: Optimizer,
        parameters: wgpu::Buffer,
        gradients: wgpu::Buffer,
    },
}

impl PathOptimizer {
    fn new(
        gpu: Option<&Gpu>,
        rule: Rule,
        model: &Model,
        flat: &[f32],
        stretch: Range<usize>,
        rank: Option<(usize, usize)>,
    ) -> Outcome<Self> {
        // The part of each tensor within the range, which is empty for some tensors.
        let tensors: Vec<(&str, Range<usize>)> = model
            .tensors()
            .iter()
            .map(|tensor| {
                let start = tensor.range().start.clamp(stretch.start, stretch.end);
                let end = tensor.range().end.clamp(stretch.start, stretch.end);
                (tensor.name, start - stretch.start..end - stretch.start)
            })
            .collect();
        let flat = &flat[stretch];
        let Some(gpu) = gpu else {
            let group = tensors.iter().fold(Group::new("all"), |group, (name, range)| {
                group.tensor(*name, &flat[range.clone()], &flat[range.clone()])
            });
            let builder: OptimizerBuilder<cpu::Tensor> = OptimizerBuilder::new(rule).group(group);
            return Ok(PathOptimizer::Host {
                optimizer: of_rank(builder, rank).build_cpu()?,
                parameters: flat.to_vec(),
                tensors: tensors.into_iter().map(|(_, range)| range).collect(),
            });
        };
        let buffer = |label| {
            gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: (4 * flat.len().max(4) as u64).next_multiple_of(16),
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        };
        let (parameters, gradients) = (buffer("parameters"), buffer("gradients"));
        gpu.queue().write_buffer(&parameters, 0, bytemuck::cast_slice(flat));
        let group = tensors.iter().fold(Group::new("all"), |group, (name, range)| {
            let bytes = 4 * range.start as u64..4 * range.end as u64;
            group.tensor(*name, parameters.slice(bytes.clone()), gradients.slice(bytes))
        });
        let builder: OptimizerBuilder<gpu::Tensor> = OptimizerBuilder::new(rule).group(group);
        Ok(PathOptimizer::Device {
            gpu: gpu.clone(),
            optimizer: of_rank(builder, rank).build(gpu)?,
            parameters,
            gradients,
        })
    }

    fn name(&self) -> String {
        match self {
            PathOptimizer::Host { .. } => "CPU path".to_owned(),
            PathOptimizer::Device { gpu, .. } => gpu.describe(),
        }
    }

    /// Takes a step of an optimizer that is not sharded.
    fn step(&mut self, gradients: &[f32]) -> Outcome<()> {
        match self {
            PathOptimizer::Host { optimizer, parameters, tensors } => {
                let mut params = cut_mut(parameters, tensors);
                Ok(optimizer.step(&mut params, &cut(gradients, tensors))?)
            }
            PathOptimizer::Device { gpu, optimizer, gradients: buffer, .. } => {
                let mut encoder = encoder_after_writing(gpu, buffer, gradients);
                optimizer.encode_step(&mut encoder)?;
                finish(gpu, encoder)
            }
        }
    }

    fn measure(&mut self, gradients: &[f32]) -> Outcome<ShardSums> {
        match self {
            PathOptimizer::Host { optimizer, parameters, tensors } => {
                Ok(optimizer.measure(&cut(parameters, tensors), &cut(gradients, tensors))?)
            }
            PathOptimizer::Device { gpu, optimizer, gradients: buffer, .. } => {
                let mut encoder = encoder_after_writing(gpu, buffer, gradients);
                optimizer.encode_measure(&mut encoder)?;
                gpu.queue().submit([encoder.finish()]);
                Ok(pollster::block_on(optimizer.read_shard_sums())?)
            }
        }
    }

    fn apply(&mut self, gradients: &[f32], combined: &CombinedSums) -> Outcome<()> {
        match self {
            PathOptimizer::Host { optimizer, parameters, tensors } => {
                let mut params = cut_mut(parameters, tensors);
                Ok(optimizer.apply(&mut params, &cut(gradients, tensors), combined)?)
            }
            PathOptimizer::Device { gpu, optimizer, .. } => {
                let mut encoder = encoder(gpu);
                optimizer.encode_apply(&mut encoder, combined)?;
                finish(gpu, encoder)
            }
        }
    }

    fn rate(&self) -> Outcome<f32> {
        match self {
            PathOptimizer::Host { optimizer, .. } => Ok(optimizer.learning_rates()[0]),
            PathOptimizer::Device { gpu, optimizer, .. } => {
                let rates = gpu.read_buffer("learning rates", optimizer.learning_rates());
                let rates: Vec<f32> = pollster::block_on(rates)?;
                Ok(rates[0])
            }
        }
    }

    fn parameters_into(&self, out: &mut [f32]) -> Outcome<()> {
        match self {
            PathOptimizer::Host { parameters, .. } => out.copy_from_slice(parameters),
            PathOptimizer::Device { gpu, parameters, .. } => {
                let all: Vec<f32> = pollster::block_on(gpu.read_buffer("parameters", parameters))?;
                out.copy_from_slice(&all[..out.len()]);
            }
        }
        Ok(())
    }
}

fn of_rank<T>(builder: OptimizerBuilder<T>, rank: Option<(usize, usize)>) -> OptimizerBuilder<T> {
    match rank {
        Some((rank, ranks)) => builder.sharded(rank as u32, ranks as u32),
        None => builder,
    }
}

fn cut<'a>(flat: &'a [f32], tensors: &[Range<usize>]) -> Vec<&'a [f32]> {
    tensors.iter().map(|range| &flat[range.clone()]).collect()
}

/// Splits the flat parameters. The tensors are in the order of their ranges.
fn cut_mut<'a>(mut flat: &'a mut [f32], tensors: &[Range<usize>]) -> Vec<&'a mut [f32]> {
    let mut at = 0;
    let mut slices = Vec::with_capacity(tensors.len());
    for range in tensors {
        let (_, after) = flat.split_at_mut(range.start.saturating_sub(at));
        let (slice, after) = after.split_at_mut(range.len());
        slices.push(slice);
        flat = after;
        at = at.max(range.start) + range.len();
    }
    slices
}

fn encoder(gpu: &Gpu) -> wgpu::CommandEncoder {
    gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
}

/// Writes gradients to the buffer, and returns an encoder for commands that read them.
fn encoder_after_writing(gpu: &Gpu, buffer: &wgpu::Buffer, gradients: &[f32]) -> wgpu::CommandEncoder {
    gpu.queue().write_buffer(buffer, 0, bytemuck::cast_slice(gradients));
    encoder(gpu)
}

/// Submits and waits, so that times include the work on the device.
fn finish(gpu: &Gpu, encoder: wgpu::CommandEncoder) -> Outcome<()> {
    let submission = gpu.queue().submit([encoder.finish()]);
    Ok(gpu.finish("a step", &submission)?)
}

#[derive(Default)]
struct Times {
    alone: Vec<Duration>,
    measure: Vec<Duration>,
    gather: Vec<Duration>,
    apply: Vec<Duration>,
}

impl Times {
    fn in_words(&mut self, bytes: usize, ranks: usize) -> String {
        let [alone, measure, gather, apply] = [&mut self.alone, &mut self.measure, &mut self.gather, &mut self.apply]
            .map(|times| {
                times.sort_unstable();
                times.get(times.len() / 2).map_or(f64::NAN, |time| 1e6 * time.as_secs_f64())
            });
        format!(
            "median µs: measure and read back {measure:.0}, all-gather of {ranks} x {bytes} bytes and combine {gather:.0}, apply {apply:.0}; \
             the step of one optimizer of everything {alone:.0}"
        )
    }
}
