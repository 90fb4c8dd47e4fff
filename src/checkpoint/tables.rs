//! Tables of a checkpoint, with rows of named fields for each group or tensor.

use super::{about, recorded_tensors};
use crate::layout::{Field, GroupControls, GroupState, MEAN_STEPS, RawTensorRecord, Update};
use crate::plan::Plan;
use crate::regime::Kernel;

/// Table with one row of state for each group or tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Table {
    /// [`GroupState`] of each group, word by word.
    States,
    /// [`Update`] of each group, word by word. Averages need it.
    Updates,
    /// [`GroupControls`] of each group, word by word.
    Controls,
    /// Last [`RawTensorRecord`] of each tensor with telemetry, word by word. A skipped step takes its norm from it.
    TensorRecords,
}

impl Table {
    /// Returns the tables that a plan has.
    pub(crate) fn all(plan: &Plan) -> impl Iterator<Item = Table> + use<> {
        let records = (recorded_tensors(plan) > 0).then_some(Table::TensorRecords);
        let always = [Table::States, Table::Updates, Table::Controls];
        always.into_iter().chain(records)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Table::States => "groups/state",
            Table::Updates => "groups/update",
            Table::Controls => "groups/controls",
            Table::TensorRecords => "tensors/record",
        }
    }

    pub(crate) fn rows(self, plan: &Plan) -> usize {
        match self {
            Table::States | Table::Updates | Table::Controls => plan.groups.len(),
            Table::TensorRecords => recorded_tensors(plan),
        }
    }

    pub(crate) fn row_bytes(self) -> usize {
        match self {
            Table::States => size_of::<GroupState>(),
            Table::Updates => size_of::<Update>(),
            Table::Controls => size_of::<GroupControls>(),
            Table::TensorRecords => size_of::<RawTensorRecord>(),
        }
    }

    pub(super) fn words(self) -> usize {
        self.row_bytes() / size_of::<u32>()
    }

    /// Returns the rows before the first step, word by word.
    pub(super) fn first_rows(self, plan: &Plan) -> Vec<u32> {
        match self {
            Table::States => {
                let states = plan.first_states();
                bytemuck::cast_slice(&states).to_vec()
            }
            Table::Updates => {
                let updates = vec![<Update as bytemuck::Zeroable>::zeroed(); plan.groups.len()];
                bytemuck::cast_slice(&updates).to_vec()
            }
            Table::Controls => {
                let controls: Vec<GroupControls> = plan.groups.iter().map(|group| group.controls).collect();
                bytemuck::cast_slice(&controls).to_vec()
            }
            Table::TensorRecords => vec![0; self.rows(plan) * self.words()],
        }
    }

    /// Returns the fields of a row. Fields of a group's regime have numbers here, and names in
    /// [`Table::fields_of_row`].
    pub(super) fn fields(self) -> Vec<Field> {
        let declared = match self {
            Table::States => GroupState::DECLARED,
            Table::Updates => Update::DECLARED,
            Table::Controls => GroupControls::DECLARED,
            Table::TensorRecords => RawTensorRecord::DECLARED,
        };
        (declared.fields)()
    }

    /// Returns the fields of one row.
    pub(super) fn fields_of_row(self, plan: &Plan, row: usize) -> Vec<Field> {
        let fields = self.fields();
        if self != Table::States {
            return fields;
        }
        about::with_regime(fields, about::state_of(self.kernel_of_row(plan, row)))
    }

    /// Returns the kernel of the regime in a group's row. For a tensor's row it returns an arbitrary kernel.
    pub(super) fn kernel_of_row(self, plan: &Plan, row: usize) -> &'static Kernel {
        let group = if self == Table::TensorRecords { 0 } else { row };
        plan.configs[group].regime.regime().kernel()
    }
}

/// Returns the reason why a field cannot have this value, if there is one. Exponents and sums of logarithms must be so
/// far from the limits of their types that adding two does not overflow.
pub(super) fn impossible(field: &Field, word: u32) -> Option<String> {
    const MOST: i32 = 4096;
    let largest = match field.name.as_str() {
        "ln_schedule" | "ln_trust" | "ln_control" | "mean_ln_norm" | "ln_norm_variance" => MOST as f32,
        "seesaw.mean_fast" | "seesaw.mean_fast_weight" => 1.0,
        _ => f32::MAX,
    };
    let most = match field.name.as_str() {
        "started" | "momentum_started" | "halted" | "frozen" | "present" => 1,
        "mean_steps" => MEAN_STEPS,
        "good_steps" | "auto_sgd.rounds" => u32::MAX / 2 - 1,
        // Three streams with two turns each.
        "auto_sgd.turn" => 5,
        "curvature.look" => 3,
        "auto_sgd.moved" | "auto_sgd.lost" | "auto_sgd.heard" => 7,
        _ => u32::MAX,
    };
    let float = f32::from_bits(word);
    let is_mantissa = float == 0.0 || (1.0..2.0).contains(&float);
    match field.kind.as_str() {
        "f32" if !float.is_finite() => Some(format!("{float}, not finite")),
        "f32" if float.abs() > largest => Some(format!("{float}, beyond {largest}")),
        "f32" if field.name.ends_with(".mantissa") && !is_mantissa => {
            Some(format!("{float}, neither 0 nor from 1 to 2"))
        }
        "i32" if !(-MOST..=MOST).contains(&word.cast_signed()) => {
            Some(format!("{}, beyond {MOST}", word.cast_signed()))
        }
        "u32" if word > most => Some(format!("{word}, above {most}")),
        _ => None,
    }
}
