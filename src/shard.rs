//! Sums that the ranks of one optimizer exchange between passes 2 and 3, and their combination. See [`ShardSums`].

use bytemuck::{Pod, Zeroable};

use crate::error::{BuildError, CallError, Error, require};
use crate::layout::{GroupConstants, LOSS_ELEMENT, ScopeSums, Squares};
use crate::plan::Plan;

/// Rank of an optimizer, and the index of each rank's first element.
#[derive(Debug, Clone)]
pub(crate) struct Shard {
    pub(crate) rank: u32,
    pub(crate) ranks: u32,
    /// Hash of all settings that must be the same on all ranks.
    fingerprint: u64,
    /// Number of elements that this rank has of each scope.
    elements: Vec<u32>,
    /// Index of the first element of each rank, with all elements counted in the order of the ranks, and the end. It is
    /// empty until the first sums are combined.
    starts: Vec<u64>,
}

/// Stage of a step on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing of the next step has been recorded.
    Idle,
    /// Passes 1 and 2 have been recorded.
    Measured,
    /// The sums have been returned to the caller.
    Read,
}

impl Shard {
    pub(crate) fn new(rank: u32, ranks: u32, plan: &Plan) -> Self {
        let mut elements = vec![0; plan.scopes.len()];
        for tensor in &plan.tensors {
            // A plan has fewer than 2^32 elements.
            elements[plan.groups[tensor.group].scope as usize] += tensor.elements as u32;
        }
        let same = (
            env!("CARGO_PKG_VERSION"),
            &plan.configs,
            &plan.safeguards.nonfinite,
            &plan.safeguards.loss_scaler,
            plan.accumulation.micro_batches,
        );
        Shard { rank, ranks, fingerprint: fnv1a(format!("{same:?}").as_bytes()), elements, starts: Vec::new() }
    }

    pub(crate) fn validate(rank: u32, ranks: u32) -> Result<(), Error> {
        let owner = || "optimizer".to_owned();
        require(ranks >= 1, owner, "ranks", ranks, "at least 1")?;
        require(rank < ranks, owner, "rank", rank, "below the number of ranks")
    }

    /// Returns the rank that has an element, and the element's index on that rank.
    pub(crate) fn locate(&self, element: u64) -> Option<(u32, u64)> {
        // Ranks without elements begin where the next rank does.
        let after = self.starts.partition_point(|&start| start <= element);
        let rank = after.checked_sub(1)?;
        let end = self.starts.get(rank + 1)?;
        (element < *end).then(|| (rank as u32, element - self.starts[rank]))
    }
}

/// Computes the 64-bit hash FNV-1a.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Header of a rank's sums in bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
struct Head {
    magic: u32,
    /// Lower half of [`Shard::fingerprint`].
    fingerprint_low: u32,
    fingerprint_high: u32,
    rank: u32,
    ranks: u32,
    /// Lower half of the number of steps attempted before this one.
    step_low: u32,
    step_high: u32,
    scopes: u32,
}

/// Sums of one norm in bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
struct Row {
    sums: ScopeSums,
    /// Number of elements that the rank has of the norm.
    elements: u32,
}

/// Magic number, which identifies the format, its version and the byte order.
const MAGIC: u32 = u32::from_le_bytes(*b"WGS1");

/// Sums of passes 1 and 2 over one rank's shard, one entry for each norm.
///
/// A rank owns a shard of every tensor, or some of the tensors. It has the gradients of its shard, already summed or
/// averaged over the ranks' data. A step over all ranks is:
///
/// 1. [`Optimizer::encode_measure`](crate::Optimizer::encode_measure) on each rank runs passes 1 and 2 over its shard.
/// 2. [`Optimizer::read_shard_sums`](crate::Optimizer::read_shard_sums) reads the sums back: 32 bytes, and 56 for every
///    norm. No other mode of this crate has a readback in the step.
/// 3. The caller does an all-gather of these bytes.
/// 4. [`ShardSums::combine`] has the same result on every rank, for any order of the bytes.
/// 5. [`Optimizer::encode_apply`](crate::Optimizer::encode_apply) runs passes 3 and 4.
///
/// [`CpuOptimizer::measure`](crate::CpuOptimizer::measure) and [`CpuOptimizer::apply`](crate::CpuOptimizer::apply) do
/// the same on the host.
///
/// The sums are gathered and not reduced on the way, because the order of additions in an all-reduce is unspecified.
/// `combine` adds them in the order of the ranks. On ranks of one kind (path, adapter and driver), sums, learning rate,
/// record, skips, halts and loss scale therefore have the same bits. Ranks of different kinds agree to a few units in
/// the last place, as the CPU path and a device do.
#[derive(Debug, Clone, PartialEq)]
pub struct ShardSums {
    head: Head,
    rows: Vec<Row>,
}

/// Largest exponent of a sum of squares, in powers of 4: twice that of the largest f32 with the smallest loss scale.
const MOST_EXPONENT: u32 = 512;

impl ShardSums {
    /// Returns the sums of a rank that has measured `sums` in step `step`.
    pub(crate) fn new(shard: &Shard, step: u64, sums: &[ScopeSums]) -> Self {
        ShardSums {
            head: Head {
                magic: MAGIC,
                fingerprint_low: shard.fingerprint as u32,
                fingerprint_high: (shard.fingerprint >> 32) as u32,
                rank: shard.rank,
                ranks: shard.ranks,
                step_low: step as u32,
                step_high: (step >> 32) as u32,
                scopes: sums.len() as u32,
            },
            rows: sums.iter().zip(&shard.elements).map(|(&sums, &elements)| Row { sums, elements }).collect(),
        }
    }

    /// Returns the rank that measured the sums.
    #[doc(hidden)]
    pub fn rank(&self) -> u32 {
        self.head.rank
    }

    /// Returns the number of steps attempted before this one.
    #[doc(hidden)]
    pub fn step(&self) -> u64 {
        u64::from(self.head.step_high) << 32 | u64::from(self.head.step_low)
    }

    /// Returns the sums, one entry for each norm.
    #[doc(hidden)]
    pub fn sums(&self) -> impl Iterator<Item = &ScopeSums> {
        self.rows.iter().map(|row| &row.sums)
    }

    /// Returns the bytes to send: 32, and 56 for every norm. Every rank sends the same number of bytes. They are 4-byte
    /// words in the machine's byte order. Ranks of the other byte order are refused.
    pub fn to_bytes(&self) -> Vec<u8> {
        let rows = bytemuck::cast_slice(&self.rows);
        [bytemuck::bytes_of(&self.head), rows].concat()
    }

    /// Reads the bytes that [`ShardSums::to_bytes`] made.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) for other bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let (sums, rest) = Self::first_of(bytes)?;
        if rest.is_empty() {
            Ok(sums)
        } else {
            Err(refused(format!(
                "{} bytes follow those of rank {}: hand over as many as were sent",
                rest.len(),
                sums.rank()
            )))
        }
    }

    /// Reads the first rank's sums, and returns them with the remaining bytes.
    fn first_of(bytes: &[u8]) -> Result<(Self, &[u8]), Error> {
        let cut_short = |needed: usize| {
            refused(format!(
                "{} bytes are left where a rank's sums take {needed}: hand over all that were sent",
                bytes.len()
            ))
        };
        let head_bytes = size_of::<Head>();
        let Some((head, rest)) = bytes.split_at_checked(head_bytes) else {
            return Err(cut_short(head_bytes));
        };
        let head: Head = bytemuck::pod_read_unaligned(head);
        if head.magic != MAGIC {
            return Err(refused(format!(
                "the bytes begin with {:08x} and not with {MAGIC:08x}: they are of another version, another byte order, or none of ShardSums::to_bytes",
                head.magic
            )));
        }
        let needed = head.scopes as usize * size_of::<Row>();
        let Some((rows, rest)) = rest.split_at_checked(needed) else {
            return Err(cut_short(head_bytes + needed));
        };
        let rows = rows.chunks_exact(size_of::<Row>());
        let rows: Vec<Row> = rows.map(bytemuck::pod_read_unaligned).collect();
        let elements = rows.iter().map(|row| u64::from(row.elements)).sum();
        if let Some(problem) = rows.iter().find_map(|row| implausible(&row.sums, elements)) {
            return Err(refused(format!(
                "those of rank {} have {problem}, which no gradients leave: they were damaged on their way",
                head.rank
            )));
        }
        Ok((ShardSums { head, rows }, rest))
    }

    /// Combines the sums of all ranks, given in any order. They are added in the order of the ranks, in f64, so that
    /// the result has the same bits wherever it is computed. Losses are averaged. A loss that all ranks share keeps its
    /// bits.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) if a rank is missing or appears twice, or if ranks differ in
    /// the step, in the number of ranks or in anything that affects the learning rate: groups, rules, regimes, norms,
    /// safeguards or the version of this crate. Returns [`ErrorKind::Limit`](crate::ErrorKind::Limit) if all ranks
    /// together have more parameters than one optimizer can have.
    pub fn combine(ranks: &[ShardSums]) -> Result<CombinedSums, Error> {
        let mut in_order: Vec<&ShardSums> = ranks.iter().collect();
        in_order.sort_by_key(|sums| sums.head.rank);
        let Some(first) = in_order.first() else {
            return Err(refused("there are none: hand over those of every rank".to_owned()));
        };
        for (place, sums) in (0u32..).zip(&in_order) {
            let (head, expected) = (sums.head, first.head);
            let differs = |what: &str, here: u64, there: u64, way_out: &str| {
                refused(format!(
                    "rank {} has {what} {here}, but rank {} has {there}: {way_out}",
                    head.rank, expected.rank
                ))
            };
            if head.ranks != expected.ranks {
                return Err(differs(
                    "a number of ranks of",
                    head.ranks.into(),
                    expected.ranks.into(),
                    "give all of them the same in OptimizerBuilder::sharded",
                ));
            }
            if head.rank != place {
                return Err(refused(if head.rank < place {
                    format!("rank {} is there twice: hand over each one once", head.rank)
                } else {
                    format!("rank {place} is missing: hand over all {}", head.ranks)
                }));
            }
            if sums.step() != first.step() {
                return Err(differs(
                    "step",
                    sums.step(),
                    first.step(),
                    "let all of them take the same steps, and go on from checkpoints of one step",
                ));
            }
            if sums.fingerprint() != first.fingerprint() || head.scopes != expected.scopes {
                return Err(refused(format!(
                    "rank {} was built otherwise than rank {}: give all of them the same groups, rules, regimes, norms, decay, clips, schedules, averages and safeguards, and the same version of wgpu-optim; only the tensors may differ",
                    head.rank, expected.rank
                )));
            }
        }
        if in_order.len() != first.head.ranks as usize {
            return Err(refused(format!("rank {} is missing: hand over all {}", in_order.len(), first.head.ranks)));
        }

        let mut starts = vec![0u64];
        let mut end = 0;
        for sums in &in_order {
            end += sums.rows.iter().map(|row| u64::from(row.elements)).sum::<u64>();
            starts.push(end);
        }
        let limit = u64::from(u32::MAX) - 1;
        if end > limit {
            return Err(Error::from(BuildError::Limit {
                what: "the number of parameters of all ranks of one optimizer".to_owned(),
                value: end,
                limit,
                way_out: "split them over several optimizers",
            }));
        }
        let scopes = 0..first.rows.len();
        let rows_of = |scope: usize| in_order.iter().map(move |sums| &sums.rows[scope]);
        let sums = scopes.clone().map(|scope| {
            let parts = rows_of(scope).map(|row| &row.sums).zip(&starts);
            add_up(&parts.collect::<Vec<_>>())
        });
        let elements = scopes.clone().map(|scope| rows_of(scope).map(|row| u64::from(row.elements)).sum());
        Ok(CombinedSums {
            fingerprint: first.fingerprint(),
            step: first.step(),
            sums: sums.collect(),
            elements: elements.collect(),
            starts,
        })
    }

    /// Combines the sums of all ranks from their concatenated bytes, in any order, as an all-gather returns them.
    ///
    /// # Errors
    /// See [`ShardSums::combine`] and [`ShardSums::from_bytes`].
    pub fn combine_bytes(mut bytes: &[u8]) -> Result<CombinedSums, Error> {
        let mut ranks = Vec::new();
        while !bytes.is_empty() {
            let (sums, rest) = Self::first_of(bytes)?;
            ranks.push(sums);
            bytes = rest;
        }
        Self::combine(&ranks)
    }

    fn fingerprint(&self) -> u64 {
        u64::from(self.head.fingerprint_high) << 32 | u64::from(self.head.fingerprint_low)
    }
}

/// Sums of a step over all ranks. [`ShardSums::combine`] makes them for
/// [`Optimizer::encode_apply`](crate::Optimizer::encode_apply) and [`CpuOptimizer::apply`](crate::CpuOptimizer::apply).
#[derive(Debug, Clone, PartialEq)]
pub struct CombinedSums {
    fingerprint: u64,
    step: u64,
    sums: Vec<ScopeSums>,
    /// Number of elements of each scope.
    elements: Vec<u64>,
    /// First element of each rank. See [`Shard::starts`].
    starts: Vec<u64>,
}

impl CombinedSums {
    /// Returns the number of ranks.
    #[doc(hidden)]
    pub fn ranks(&self) -> usize {
        self.starts.len() - 1
    }

    /// Returns the number of steps attempted before this one.
    #[doc(hidden)]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Returns the sums, one entry for each norm. [`ScopeSums::first_nonfinite`] counts all elements in the order of
    /// the ranks.
    #[doc(hidden)]
    pub fn sums(&self) -> &[ScopeSums] {
        &self.sums
    }

    /// Returns an error if the sums belong to another optimizer or another step.
    pub(crate) fn check(&self, shard: &Shard, step: u64) -> Result<(), Error> {
        if self.fingerprint != shard.fingerprint || self.ranks() != shard.ranks as usize {
            return Err(refused(format!(
                "they are of an optimizer of {} ranks that was built otherwise than this one of {}: apply those that this one's sums went into",
                self.ranks(),
                shard.ranks
            )));
        }
        if self.step != step {
            return Err(refused(format!(
                "they are of step {}, but this rank has measured step {step}: apply each step's own, once",
                self.step
            )));
        }
        Ok(())
    }

    /// Stores the values that depend on all ranks: √d of each group's norm from the global number of elements, and the
    /// first element of each rank. Returns true if a group's constants have changed and must be uploaded again.
    pub(crate) fn teach(&self, groups: &mut [GroupConstants], shard: &mut Shard) -> bool {
        shard.starts.clone_from(&self.starts);
        let mut changed = false;
        for group in groups {
            let root = (self.elements[group.scope as usize] as f64).sqrt() as f32;
            changed |= root != group.direction_length;
            group.direction_length = root;
        }
        changed
    }
}

/// Describes a sum that no gradients can have produced, if there is one. Sums of squares are finite, because they carry
/// their scale. Inner products are not checked: they carry no scale and may overflow, in which case the alignment is
/// ignored.
fn implausible(sums: &ScopeSums, elements: u64) -> Option<String> {
    let squares = [
        ("a sum of squares", sums.square),
        ("a sum of raw squares", sums.raw_square),
        ("a sum of squares of the parameters", sums.initial_square),
    ];
    for (what, Squares { sum, exponent }) in squares {
        if !(0.0..f32::INFINITY).contains(&sum) || exponent.unsigned_abs() > MOST_EXPONENT {
            return Some(format!("{what} of {sum} · 4^{exponent}"));
        }
    }
    let first = sums.first_nonfinite;
    (first < LOSS_ELEMENT && u64::from(first) >= elements)
        .then(|| format!("an element {first} that is not finite, of {elements} elements"))
}

fn refused(problem: String) -> Error {
    Error::from(CallError::ShardSums { problem })
}

/// Adds one scope's sums over the ranks. Each rank has the index of its first element.
fn add_up(ranks: &[(&ScopeSums, &u64)]) -> ScopeSums {
    let sum = |of: fn(&ScopeSums) -> f32| -> f32 {
        let terms = ranks.iter().map(|(sums, _)| f64::from(of(sums)));
        terms.sum::<f64>() as f32
    };
    let squares = |of: fn(&ScopeSums) -> Squares| add_squares(ranks.iter().map(|(sums, _)| of(sums)));
    // The index of a rank's element counts from the rank's first element. The codes for the loss and for no element are
    // the same on all ranks.
    let first = ranks.iter().map(|(sums, start)| match sums.first_nonfinite {
        none if none >= LOSS_ELEMENT => none,
        element => element + **start as u32,
    });
    let losses = ranks.iter().map(|(sums, _)| f64::from(sums.loss));
    ScopeSums {
        square: squares(|sums| sums.square),
        raw_square: squares(|sums| sums.raw_square),
        initial_square: squares(|sums| sums.initial_square),
        absolute: sum(|sums| sums.absolute),
        slow_dot: sum(|sums| sums.slow_dot),
        fast_dot: sum(|sums| sums.fast_dot),
        direction_square: sum(|sums| sums.direction_square),
        nonfinite: ranks.iter().fold(0u32, |all, (sums, _)| all.saturating_add(sums.nonfinite)),
        first_nonfinite: first.min().unwrap_or(u32::MAX),
        loss: (losses.sum::<f64>() / ranks.len() as f64) as f32,
    }
}

/// Adds squares in f64 and rounds the result once, at any scale, so that a loss that is multiplied by a power of two
/// changes no bit.
fn add_squares(ranks: impl Iterator<Item = Squares> + Clone) -> Squares {
    let all: f64 = ranks.clone().map(Squares::value).sum();
    // Scale of the largest term, at which the sum is within the range of f32.
    let largest = ranks.filter(|squares| squares.sum > 0.0).max_by(|a, b| a.value().total_cmp(&b.value()));
    let exponent = largest.map_or(0, |squares| squares.exponent);
    Squares { sum: (all * f64::from(-2 * exponent).exp2()) as f32, exponent }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn squares(sum: f32, exponent: i32) -> Squares {
        Squares { sum, exponent }
    }

    #[test]
    fn squares_of_any_scale_add_up() {
        for (parts, expected) in [
            (vec![squares(0.0, 0), squares(0.0, 5)], squares(0.0, 0)),
            (vec![squares(1.5, 0), squares(2.0, 0)], squares(3.5, 0)),
            (vec![squares(1.0, 1), squares(1.0, 0)], squares(1.25, 1)),
            (vec![squares(1.0, -126), squares(1.0, 126)], squares(1.0, 126)),
            (vec![squares(3.0, -126), squares(1.0, -125)], squares(1.75, -125)),
        ] {
            assert_eq!(add_squares(parts.iter().copied()), expected, "{parts:?}");
        }
    }

    #[test]
    fn a_power_of_two_changes_no_bit_of_a_sum() {
        let parts = [1.1f32, 0.3, 7.7e-5];
        let plain = add_squares(parts.iter().map(|&sum| squares(sum, 0)));
        let scaled = add_squares(parts.iter().map(|&sum| squares(sum * 4.0, 60)));
        assert_eq!(scaled, squares(plain.sum * 4.0, 60));
    }

    #[test]
    fn an_element_is_found_on_its_rank() {
        let mut shard = Shard { rank: 0, ranks: 3, fingerprint: 0, elements: vec![10], starts: vec![] };
        assert_eq!(shard.locate(0), None);
        shard.starts = vec![0, 10, 10, 13];
        assert_eq!(shard.locate(0), Some((0, 0)));
        assert_eq!(shard.locate(9), Some((0, 9)));
        assert_eq!(shard.locate(10), Some((2, 0)));
        assert_eq!(shard.locate(12), Some((2, 2)));
        assert_eq!(shard.locate(13), None);
    }
}
