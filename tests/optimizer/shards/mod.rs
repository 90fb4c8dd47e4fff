//! Tests of an optimizer over several ranks. Together they take the step of one optimizer with all parameters, and every rank has the same rates,
//! records, skips, halts and loss scales. Sums that do not belong together are refused.

mod refusals;
mod steps;

use wgpu_optim::{CombinedSums, Error, Record, ShardSums};
use wgpu_optim_conformance::run::{CpuRun, Run, Setup, Spec, bits, devices, gpu_run_with, lengths};
use wgpu_optim_conformance::ulps;

/// The path of a rank.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Cpu,
    Device(usize),
}

/// Returns every kind by itself, and ranks of different kinds.
fn kinds() -> Vec<Vec<Kind>> {
    let devices = || (0..devices().len()).map(Kind::Device);
    let mut kinds = vec![vec![Kind::Cpu]];
    kinds.extend(devices().map(|device| vec![device]));
    kinds.push([Kind::Cpu].into_iter().chain(devices()).collect());
    kinds
}

/// The distribution of the parameters over the ranks.
#[derive(Debug, Clone, Copy)]
enum Deal {
    /// Every rank has a piece of every tensor.
    Pieces,
    /// Every tensor is whole on one rank.
    Tensors,
    /// The last rank has all tensors.
    Last,
}

impl Deal {
    /// Returns the part of a tensor of this length that belongs to a rank.
    fn range(self, tensor: usize, len: usize, rank: usize, ranks: usize) -> std::ops::Range<usize> {
        let owner = match self {
            // The pieces end at any element.
            Deal::Pieces => return len * rank / ranks..len * (rank + 1) / ranks,
            Deal::Tensors => tensor % ranks,
            Deal::Last => ranks - 1,
        };
        if owner == rank { 0..len } else { 0..0 }
    }

    fn part(self, tensors: &[Vec<f32>], rank: usize, ranks: usize) -> Vec<Vec<f32>> {
        let tensors = tensors.iter().enumerate();
        tensors.map(|(index, values)| values[self.range(index, values.len(), rank, ranks)].to_vec()).collect()
    }
}

/// Several ranks in one process.
struct Ranks {
    deal: Deal,
    lengths: Vec<usize>,
    ranks: Vec<Box<dyn Run>>,
}

impl Ranks {
    fn new(kinds: &[Kind], count: usize, deal: Deal, specs: &[Spec], setup: Setup) -> Self {
        let ranks = (0..count).map(|rank| {
            let mut parts =
                deal.part(&specs.iter().flat_map(|spec| spec.tensors.clone()).collect::<Vec<_>>(), rank, count);
            let own: Vec<Spec> = specs
                .iter()
                .map(|spec| Spec { tensors: parts.drain(..spec.tensors.len()).collect(), ..spec.clone() })
                .collect();
            let shard = Some((rank as u32, count as u32));
            run(kinds[rank % kinds.len()], &own, Setup { shard, ..setup })
        });
        Ranks { deal, lengths: lengths(specs).collect(), ranks: ranks.collect() }
    }

    fn parts(&self, grads: &[Vec<f32>]) -> Vec<Vec<Vec<f32>>> {
        let count = self.ranks.len();
        (0..count).map(|rank| self.deal.part(grads, rank, count)).collect()
    }

    /// Returns the sums of the ranks.
    fn measure(&mut self, grads: &[Vec<f32>]) -> Vec<ShardSums> {
        let parts = self.parts(grads);
        self.ranks.iter_mut().zip(&parts).map(|(rank, grads)| rank.measure(grads)).collect()
    }

    fn try_step(&mut self, grads: &[Vec<f32>]) -> Vec<Result<(), Error>> {
        let combined: CombinedSums = ShardSums::combine(&self.measure(grads)).expect("combine");
        let parts = self.parts(grads);
        self.ranks.iter_mut().zip(&parts).map(|(rank, grads)| rank.try_apply(grads, &combined)).collect()
    }

    fn step(&mut self, grads: &[Vec<f32>]) {
        for stepped in self.try_step(grads) {
            stepped.expect("steps");
        }
    }

    /// Returns the parts of all ranks combined.
    fn whole(&self, of: impl Fn(&dyn Run) -> Vec<Vec<f32>>) -> Vec<Vec<f32>> {
        let mut whole: Vec<Vec<f32>> = self.lengths.iter().map(|&len| vec![0.0; len]).collect();
        for (rank, run) in self.ranks.iter().enumerate() {
            for (index, part) in of(&**run).iter().enumerate() {
                let range = self.deal.range(index, whole[index].len(), rank, self.ranks.len());
                whole[index][range].copy_from_slice(part);
            }
        }
        whole
    }

    fn params(&self) -> Vec<Vec<f32>> {
        self.whole(|run| run.params())
    }
}

fn run(kind: Kind, specs: &[Spec], setup: Setup) -> Box<dyn Run> {
    match kind {
        Kind::Cpu => Box::new(CpuRun::with(specs, setup)),
        Kind::Device(index) => Box::new(gpu_run_with(&devices()[index], specs, setup)),
    }
}

/// The tolerance in units of the last place, for the largest parameter and the rates. The ranks add the sums of norms in another order, and the error
/// accumulates over the steps. The largest differences so far are 11 and 4.
const ULPS: f64 = 32.0;

/// Returns the records as text, in which a NaN equals a NaN.
fn in_words(records: &[Record]) -> Vec<String> {
    let same = |record: &Record| {
        let mut record = record.clone();
        record.nonfinite = None;
        record
    };
    records.iter().map(|record| format!("{:?}", same(record))).collect()
}

/// Asserts that rates are equal up to the order of sums.
#[track_caller]
fn assert_same_rates(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (group, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let distance = ulps(got, expected.into());
        assert!(distance <= ULPS, "{what}, group {group}: {distance} ulps");
    }
}

/// Asserts that the ranks agree, and returns the records of every rank since the last call.
#[track_caller]
fn assert_ranks_agree(kinds: &[Kind], ranks: &mut Ranks, what: &str) -> Vec<Vec<Record>> {
    let rates: Vec<Vec<f32>> = ranks.ranks.iter().map(|rank| rank.rates()).collect();
    let records: Vec<Vec<Record>> = ranks.ranks.iter_mut().map(|rank| rank.records().records).collect();
    for rank in 1..ranks.ranks.len() {
        // Ranks of the same kind have the same bits. The others are compared with the first rank.
        let like = rank % kinds.len();
        assert_eq!(bits(&rates[rank..=rank]), bits(&rates[like..=like]), "{what}, rank {rank}");
        assert_eq!(in_words(&records[rank]), in_words(&records[like]), "{what}, rank {rank}");
        assert_same_rates(&format!("{what}, rank {rank}"), &rates[rank], &rates[0]);
    }
    records
}
