//! Data of a zeroth-order optimizer for its kernels and its CPU path. A test writes
//! `shaders/zeroth_order/layout.wgsl` from this file.

use super::method::ZerothOrderMethod;
use crate::error::{BuildError, Error};
use crate::layout::shared_structs;
use crate::plan::{QUAD, Shape, TensorInfo};

shared_structs! {
    /// A tensor and where its factors are.
    pub(crate) struct PerturbedTensor {
        /// m. A vector of LOZO-M has as many as elements.
        pub(crate) rows: u32,
        /// n; 0 where z is drawn element by element and has no factors. A vector of LOZO-M has 1.
        pub(crate) columns: u32,
        /// r.
        pub(crate) rank: u32,
        /// Index of the first element of U, row by row. M lies at the same index.
        pub(crate) left_first: u32,
        /// Index of the first element of V, row by row.
        pub(crate) right_first: u32,
        /// Index of the first element of V_oldᵀ V_new / n, row by row.
        pub(crate) turn_first: u32,
        /// 1 where V is drawn anew from time to time, else 0.
        pub(crate) turns: u32,
        /// 1 where weight decay reaches the tensor, else 0.
        pub(crate) decays: u32,
        /// Number of the first four normal numbers, where z is drawn element by element.
        pub(crate) first_quad: u32,
    }

    /// A stretch of one tensor's elements that one workgroup walks, within one dispatch.
    pub(crate) struct PerturbedBlock {
        /// First element in the window's binding.
        pub(crate) params_start: u32,
        /// Number of elements.
        pub(crate) elements: u32,
        /// First element in the tensor, a multiple of 4.
        pub(crate) first: u32,
        /// The tensor.
        pub(crate) tensor: u32,
        /// Number of the block among those of all windows.
        pub(crate) number: u32,
    }

    /// Motion of all parameters along z: s w + (s restore + pull) z, where s is `shrink` if weight decay reaches the
    /// tensor, else 1.
    pub(crate) struct Motion {
        pub(crate) restore: f32,
        pub(crate) pull: f32,
        pub(crate) shrink: f32,
    }

    /// Constants and state beside those of pass 3.
    pub(crate) struct Probe {
        /// ε.
        pub(crate) epsilon: f32,
        /// Seed of all keys.
        pub(crate) seed: u32,
        /// ν; 0 without low rank.
        pub(crate) interval: u32,
        /// β.
        pub(crate) momentum: f32,
        /// E‖z‖².
        pub(crate) square: f32,
        /// Key of this step's U and z.
        pub(crate) key: u32,
        /// Key of V.
        pub(crate) columns_key: u32,
        /// Steps since V was drawn; [`NEVER`] before the first.
        pub(crate) age: u32,
        /// Number of the V, counted from 0.
        pub(crate) period: u32,
        /// 1 in a step with a new V, else 0.
        pub(crate) draws: u32,
        /// 1 in a step whose momentum is of an older V, else 0.
        pub(crate) turns: u32,
        /// ℓ₊, as bits.
        pub(crate) first_loss: u32,
        /// ℓ₋, as bits.
        pub(crate) second_loss: u32,
        /// c.
        pub(crate) slope: f32,
        /// Factor of M.
        pub(crate) keep: f32,
        /// Factor of U in M.
        pub(crate) share: f32,
        /// η with a momentum.
        pub(crate) rate: f32,
        /// 1 - ηλ.
        pub(crate) shrink: f32,
    }

    /// One step, in a ring beside that of the records of pass 3.
    pub(crate) struct RawProbeRecord {
        /// ℓ₊ and ℓ₋, as bits.
        pub(crate) losses: [u32; 2],
        /// c.
        pub(crate) slope: f32,
    }
}

#[cfg_attr(not(test), allow(dead_code, reason = "a test writes the text for the kernels"))]
mod numbers {
    crate::layout::shared_constants! { ""
        /// [`Probe::age`](super::Probe::age) before the first step.
        pub const NEVER: u32 = u32::MAX;
        /// Difference between the seeds of V and of U.
        pub const COLUMNS_SEED: u32 = 0x5bd1_e995;
        /// Largest slope; a larger one is skipped as a loss that is not finite is.
        pub const LARGEST_SLOPE: f32 = 1e30;
        /// Largest motion in units of z.
        pub const LARGEST_PULL: f32 = 1e36;
        /// Largest rank. The kernel that follows the momentum of LOZO-M keeps a row of it in registers.
        pub const MOST_RANK: u32 = 32;
    }
}
pub(crate) use numbers::{COLUMNS_SEED, LARGEST_PULL, LARGEST_SLOPE, MOST_RANK, NEVER};

/// The tensors with their factors.
#[derive(Debug, Clone)]
pub(crate) struct Tables {
    pub(crate) tensors: Vec<PerturbedTensor>,
    /// Number of elements of U (and M), a multiple of 4.
    pub(crate) left: u64,
    /// Number of elements of V, a multiple of 4. The first four elements are 1.
    pub(crate) right: u64,
    /// Number of elements of all V_oldᵀ V_new.
    pub(crate) turned: u64,
    pub(crate) probe: Probe,
    /// True if z has factors.
    pub(crate) is_low_rank: bool,
    /// True if there is an M.
    pub(crate) has_momentum: bool,
}

impl Tables {
    pub(crate) fn new(
        method: &ZerothOrderMethod,
        tensors: &[TensorInfo],
        epsilon: f32,
        seed: u32,
    ) -> Result<Self, Error> {
        let quad = u64::from(QUAD);
        let (rank, interval) = method.low_rank().unwrap_or((0, 0));
        let has_momentum = method.momentum().is_some();
        // The first quad of V is 1, for vectors with a momentum.
        let (mut left, mut right, mut turned, mut square) = (0u64, quad, 0u64, 0.0f64);
        let mut table = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let shape = Shape::of(&tensor.shape).filter(|_| rank > 0);
            // Tensors with one dimension are biases and gains and do not decay. For LOZO all vectors are such tensors, while MeZO needs no shapes.
            let decays = shape.is_some() || rank == 0 && tensor.shape.len() != 1;
            let mut entry = PerturbedTensor { decays: u32::from(decays), ..PerturbedTensor::default() };
            square += tensor.elements as f64 * shape.map_or(1.0, |_| f64::from(rank));
            if tensor.elements > 0 {
                let factors = match shape {
                    Some(Shape { rows, columns }) => Some((rows as u64, columns as u64, u64::from(rank))),
                    None if has_momentum => Some((tensor.elements, 1, 1)),
                    None => None,
                };
                if let Some((rows, columns, rank)) = factors {
                    entry.rows = rows as u32;
                    entry.columns = columns as u32;
                    entry.rank = rank as u32;
                    entry.left_first = left as u32;
                    left += rows * rank;
                    if shape.is_some() {
                        entry.turns = 1;
                        entry.right_first = right as u32;
                        entry.turn_first = turned as u32;
                        right += columns * rank;
                        turned += rank * rank;
                    }
                }
            }
            table.push(entry);
        }
        let (left, right) = (left.next_multiple_of(quad), right.next_multiple_of(quad));
        let mut quads = left / quad;
        for (entry, tensor) in table.iter_mut().zip(tensors) {
            if entry.columns == 0 {
                entry.first_quad = quads as u32;
                quads += tensor.elements.div_ceil(quad);
            }
        }
        for (value, what) in [(left, "of all U"), (right, "of all V"), (quads * quad, "that are drawn at random")] {
            if value > u64::from(u32::MAX) {
                return Err(Error::from(BuildError::Limit {
                    what: format!("the number of elements {what}"),
                    value,
                    limit: u64::from(u32::MAX),
                    way_out: "use a smaller rank, or several optimizers",
                }));
            }
        }
        Ok(Tables {
            tensors: table,
            left,
            right,
            turned,
            is_low_rank: rank > 0,
            has_momentum,
            probe: Probe {
                epsilon,
                seed,
                interval,
                momentum: method.momentum().unwrap_or(0.0),
                square: square as f32,
                age: NEVER,
                period: u32::MAX,
                shrink: 1.0,
                ..Probe::default()
            },
        })
    }

    /// Returns the two constant motions: to w + εz, and from there to w - εz.
    pub(crate) fn motions(&self) -> [Motion; 2] {
        let epsilon = self.probe.epsilon;
        [epsilon, -2.0 * epsilon].map(|restore| Motion { restore, pull: 0.0, shrink: 1.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Declared;

    /// Returns the structs and constants in WGSL.
    fn wgsl() -> String {
        let mut text =
            "// Structs and constants of zeroth-order optimizers. Written by a test from src/zeroth_order/tables.rs, which explains them.\n\n"
                .to_owned();
        for Declared { name, members, .. } in [
            PerturbedTensor::DECLARED,
            PerturbedBlock::DECLARED,
            Motion::DECLARED,
            Probe::DECLARED,
            RawProbeRecord::DECLARED,
        ] {
            let members = members().into_iter().map(|(name, kind)| format!("    {name}: {kind},\n"));
            text += &format!("struct {name} {{\n{}}}\n\n", members.collect::<String>());
        }
        text + &numbers::wgsl()
    }

    #[test]
    fn the_shaders_have_these_structs_and_constants() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/zeroth_order/layout.wgsl");
        if std::env::var_os("UPDATE_LAYOUT").is_some() {
            std::fs::write(path, wgsl()).expect("written");
        }
        let there = std::fs::read_to_string(path).expect("read");
        assert!(there == wgsl(), "{path} is out of date: UPDATE_LAYOUT=1 cargo test --lib zeroth_order writes it");
    }
}
