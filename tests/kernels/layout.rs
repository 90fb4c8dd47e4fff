//! Promise: every struct and constant that crosses to the shaders is the same in `src/layout.rs` and in
//! `shaders/shared/layout.wgsl`. naga says what the WGSL means; Rust says what it means itself.

use std::any::type_name_of_val;
use std::collections::BTreeMap;
use std::mem::{offset_of, size_of, size_of_val};

use naga::{Expression, Literal, ScalarKind, TypeInner};
use wgpu_optim::layout::*;

const WGSL: &str = include_str!("../../shaders/shared/layout.wgsl");
const RUST: &str = include_str!("../../src/layout.rs");

/// A field: name, offset, size, element type.
type Field = (String, usize, usize, String);

#[derive(Debug, Clone, PartialEq)]
struct Struct {
    size: usize,
    fields: Vec<Field>,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct Layout {
    structs: BTreeMap<String, Struct>,
    constants: BTreeMap<String, u32>,
}

/// The fields of a struct; the pattern does not compile when one is left out.
macro_rules! fields_of {
    ($layout:ident, $name:ident { $($field:ident),* $(,)? }) => {
        let $name { $($field),* } = <$name as bytemuck::Zeroable>::zeroed();
        let fields = vec![$((
            stringify!($field).to_owned(),
            offset_of!($name, $field),
            size_of_val(&$field),
            type_name_of_val(&$field).rsplit("::").next().expect("a name").to_owned(),
        )),*];
        $layout.structs.insert(stringify!($name).to_owned(), Struct { size: size_of::<$name>(), fields });
    };
}

fn rust_layout() -> Layout {
    let mut layout = Layout::default();
    fields_of!(layout, Block { params_start, grads_start, state_quad, elements, group, row, first_element });
    fields_of!(
        layout,
        GroupConstants {
            scope,
            flags,
            sign,
            gradient_factor,
            coupled_decay,
            decoupled_decay,
            clip_norm,
            halt_after,
            loss_scale_first,
            loss_scale_least,
            loss_scale_most,
            growth_interval,
            momentum,
            gradient_share,
            direction_momentum,
            square_keep,
            first_decay,
            second_decay,
            epsilon,
            exponent,
            exponent_above,
            gain,
            early_steps,
            smoothing,
            norm_floor,
            brake_slack,
            first_step,
            initial_rate,
            regime,
            scale,
            offset,
            rounds,
            max_change,
            max_rate,
            schedule,
            schedule_rise,
            schedule_steps,
            schedule_first,
            schedule_last,
            average,
            average_start,
            average_gain,
            trust_coefficient,
            sqrt_elements,
            scope_momentum,
            scope_clip,
            rounding_seed,
        }
    );
    fields_of!(
        layout,
        GroupState {
            steps_low,
            steps_high,
            record_slot,
            skipped,
            skips_in_row,
            halted,
            last_nonfinite,
            last_first_nonfinite,
            loss_scale_exponent,
            good_steps,
            started,
            momentum_started,
            learning_rate,
            regime_rate,
            ln_schedule,
            trust,
            ln_trust,
            parameter_mantissa,
            parameter_exponent,
            first_rate_mantissa,
            first_rate_exponent,
            ln_first_rate_int,
            ln_first_rate_fraction,
            change_int,
            change_fraction,
            agreement_int,
            agreement_fraction,
            least_agreement_int,
            least_agreement_fraction,
            anchor_norm_mantissa,
            anchor_norm_exponent,
            mean_fast,
            mean_fast_weight,
            mean_square_mantissa,
            mean_square_exponent,
            mean_norm_mantissa,
            mean_norm_exponent,
            mean_steps,
            smoothing_power,
            smoothed_mantissa,
            smoothed_exponent,
            gradient_exponent,
            direction_exponent,
            last_norm_mantissa,
            last_norm_exponent,
            last_loss,
            history_mantissa,
            history_exponent,
            distance_mantissa,
            distance_exponent,
            last_growth,
            last_clip,
            first_correction,
            second_correction,
            weight_sum_mantissa,
            weight_sum_exponent,
            streams,
        }
    );
    fields_of!(
        layout,
        StreamsState {
            episode,
            turn,
            moved,
            lost,
            heard,
            rounds,
            outcome,
            start_loss,
            middle_loss,
            slower_loss,
            slower_sum,
            slower_squares,
            faster_sum,
            faster_squares,
        }
    );
    fields_of!(layout, ScopeTable { first_partial, partials, group });
    fields_of!(layout, Squares { sum, exponent });
    fields_of!(
        layout,
        ScopeSums {
            square,
            raw_square,
            initial_square,
            absolute,
            slow_dot,
            fast_dot,
            direction_square,
            nonfinite,
            first_nonfinite,
            loss,
        }
    );
    fields_of!(
        layout,
        Update {
            skip,
            learning_rate,
            gradient_factor,
            micro_share,
            unscale,
            coupled_decay,
            shrink,
            momentum_keep,
            gradient_share,
            momentum,
            square_keep,
            first_correction,
            second_correction,
            epsilon,
            first,
            average_weight,
            put,
            take,
            rounding_key,
        }
    );
    fields_of!(
        layout,
        RawRecord {
            step_low,
            step_high,
            group,
            flags,
            norm,
            smoothed_norm,
            slow_alignment,
            fast_alignment,
            learning_rate,
            ln_rate_int,
            ln_rate_fraction,
            norm_term,
            alignment_term,
            brake_term,
            held_term,
            clamp_term,
            schedule_term,
            curvature_term,
            distance_term,
            history_term,
            loss_term,
            gate_term,
            trust_term,
            trust_ratio,
            episode_term,
            episode,
            stream,
            outcome,
            clip_factor,
            nonfinite,
            first_nonfinite,
            skipped,
            skips_in_row,
            loss_scale_exponent,
        }
    );
    fields_of!(layout, StepSums { parameters, step });
    fields_of!(layout, StepUnit { first_row, rows, group, tensor });
    fields_of!(
        layout,
        RawTensorRecord { step_low, step_high, tensor, flags, parameter_norm, step_norm, learning_rate }
    );
    let word = |offset: usize| offset as u32 / 4;
    for (name, value) in [
        ("SIGN_RULE", group_flags::SIGN_RULE),
        ("INITIAL_RATE", group_flags::INITIAL_RATE),
        ("MOMENTUM_FROM_GRADIENT", group_flags::MOMENTUM_FROM_GRADIENT),
        ("BRAKE", group_flags::BRAKE),
        // The override constant of pass 1 has the short name.
        ("RAW_NORM_CLIP", group_flags::RAW_NORM),
        ("ITERATES", group_flags::ITERATES),
        ("SEESAW", regime_kinds::SEESAW),
        ("ADAGRAD_NORM", regime_kinds::ADAGRAD_NORM),
        ("SECANT_LONG", regime_kinds::SECANT_LONG),
        ("SECANT_SHORT", regime_kinds::SECANT_SHORT),
        ("SECANT_GEOMETRIC", regime_kinds::SECANT_GEOMETRIC),
        ("ADGD", regime_kinds::ADGD),
        ("DOG", regime_kinds::DOG),
        ("DOWG", regime_kinds::DOWG),
        ("POLYAK", regime_kinds::POLYAK),
        ("NGN", regime_kinds::NGN),
        ("AUTO_SGD", regime_kinds::AUTO_SGD),
        ("SLOWER", streams::SLOWER),
        ("MIDDLE", streams::MIDDLE),
        ("FASTER", streams::FASTER),
        ("UNDECIDED", outcomes::UNDECIDED),
        ("INCREASE", outcomes::INCREASE),
        ("STAY", outcomes::STAY),
        ("DECREASE", outcomes::DECREASE),
        ("RESTART", outcomes::RESTART),
        ("START_SLOT", slots::START_SLOT),
        ("NO_SLOT", slots::NO_SLOT),
        ("STREAM_SLOTS", slots::STREAM_SLOTS),
        ("SKIP_ALL", skips::SKIP_ALL),
        ("SKIP_STEP", skips::SKIP_STEP),
        ("SCHEDULE_CONSTANT", schedule_kinds::CONSTANT),
        ("SCHEDULE_WARMUP_COSINE", schedule_kinds::WARMUP_COSINE),
        ("SCHEDULE_INVERSE_SQRT", schedule_kinds::INVERSE_SQRT),
        ("SCHEDULE_STEP", schedule_kinds::STEP),
        ("SCHEDULE_ONE_CYCLE", schedule_kinds::ONE_CYCLE),
        ("AVERAGE_OFF", average_kinds::OFF),
        ("AVERAGE_POLYNOMIAL", average_kinds::POLYNOMIAL),
        ("AVERAGE_EXPONENTIAL", average_kinds::EXPONENTIAL),
        ("AVERAGE_SCHEDULE_FREE", average_kinds::SCHEDULE_FREE),
        ("MEAN_STEPS", MEAN_STEPS),
        ("MEAN_OUTLIER", MEAN_OUTLIER),
        ("FIRST", record_flags::FIRST),
        ("ZERO_GRADIENT", record_flags::ZERO_GRADIENT),
        ("SKIPPED", record_flags::SKIPPED),
        ("CLIPPED", record_flags::CLIPPED),
        ("CLAMPED_CHANGE", record_flags::CLAMPED_CHANGE),
        ("CLAMPED_RATE", record_flags::CLAMPED_RATE),
        ("WAITING", record_flags::WAITING),
        ("WRITTEN", record_flags::WRITTEN),
        ("NONFINITE_LOSS", record_flags::NONFINITE_LOSS),
        ("HALTED", record_flags::HALTED),
        ("SCALE_CHANGED", record_flags::SCALE_CHANGED),
        ("STREAM_LOST", record_flags::STREAM_LOST),
        ("EPISODE_ENDS", record_flags::EPISODE_ENDS),
        // A partial is a ScopeSums, word by word.
        ("SQUARE", word(offset_of!(ScopeSums, square))),
        ("RAW_SQUARE", word(offset_of!(ScopeSums, raw_square))),
        ("INITIAL_SQUARE", word(offset_of!(ScopeSums, initial_square))),
        ("ABSOLUTE", word(offset_of!(ScopeSums, absolute))),
        ("SLOW_DOT", word(offset_of!(ScopeSums, slow_dot))),
        ("FAST_DOT", word(offset_of!(ScopeSums, fast_dot))),
        ("DIRECTION_SQUARE", word(offset_of!(ScopeSums, direction_square))),
        ("PARTIAL_WORDS", PARTIAL_WORDS),
        ("NONFINITE", word(offset_of!(ScopeSums, nonfinite))),
        ("FIRST_NONFINITE", word(offset_of!(ScopeSums, first_nonfinite))),
        ("INFINITY_BITS", f32::INFINITY.to_bits()),
        ("MAGNITUDE_BITS", i32::MAX as u32),
        ("NO_ELEMENT", u32::MAX),
        ("NO_TENSOR", NO_TENSOR),
        ("LOSS_ELEMENT", LOSS_ELEMENT),
    ] {
        layout.constants.insert(name.to_owned(), value);
    }
    layout
}

fn wgsl_layout(source: &str) -> Layout {
    let module = naga::front::wgsl::parse_str(source).expect("layout.wgsl is valid WGSL");
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).expect("types have layouts");
    let mut layout = Layout::default();
    for (_, ty) in module.types.iter() {
        if let (Some(name), TypeInner::Struct { members, span }) = (&ty.name, &ty.inner) {
            let fields = members
                .iter()
                .map(|member| {
                    (
                        member.name.clone().expect("members have names"),
                        member.offset as usize,
                        layouter[member.ty].size as usize,
                        type_name(&module.types[member.ty]),
                    )
                })
                .collect();
            let size = *span as usize;
            layout.structs.insert(name.clone(), Struct { size, fields });
        }
    }
    for (_, constant) in module.constants.iter() {
        let name = constant.name.clone().expect("constants have names");
        let Expression::Literal(Literal::U32(value)) = module.global_expressions[constant.init] else {
            panic!("{name} is not a u32");
        };
        layout.constants.insert(name, value);
    }
    layout
}

fn type_name(ty: &naga::Type) -> String {
    match &ty.inner {
        TypeInner::Scalar(scalar) => match scalar.kind {
            ScalarKind::Float => "f32".to_owned(),
            ScalarKind::Uint => "u32".to_owned(),
            ScalarKind::Sint => "i32".to_owned(),
            kind => panic!("a {kind:?} cannot cross"),
        },
        TypeInner::Struct { .. } => ty.name.clone().expect("structs have names"),
        other => format!("{other:?}"),
    }
}

/// Every difference, in words.
fn differences(rust: &Layout, wgsl: &Layout) -> Vec<String> {
    let mut found = Vec::new();
    for name in rust.structs.keys().chain(wgsl.structs.keys()) {
        if rust.structs.get(name) != wgsl.structs.get(name) {
            found.push(format!("{name}: {:?} in Rust, {:?} in WGSL", rust.structs.get(name), wgsl.structs.get(name)));
        }
    }
    for name in rust.constants.keys().chain(wgsl.constants.keys()) {
        if rust.constants.get(name) != wgsl.constants.get(name) {
            found.push(format!(
                "{name}: {:?} in Rust, {:?} in WGSL",
                rust.constants.get(name),
                wgsl.constants.get(name)
            ));
        }
    }
    found
}

#[test]
fn structs_and_constants_agree() {
    let (rust, wgsl) = (rust_layout(), wgsl_layout(WGSL));
    assert_eq!(rust.structs.len(), 12);
    assert_eq!(differences(&rust, &wgsl), Vec::<String>::new());
    assert_eq!(PARTIAL_WORDS as usize, offset_of!(ScopeSums, loss) / 4);
}

/// Nothing public in src/layout.rs is missing from the comparison above.
#[test]
fn every_rust_struct_and_constant_is_compared() {
    let layout = rust_layout();
    let names = |prefix: &str| -> Vec<&str> {
        RUST.lines()
            .filter_map(|line| line.trim_start().strip_prefix(prefix))
            .map(|rest| rest.split([':', ' ']).next().expect("a name"))
            .collect()
    };
    let structs = names("pub struct ");
    assert_eq!(structs.len(), layout.structs.len(), "{structs:?}");
    for name in structs {
        assert!(layout.structs.contains_key(name), "struct {name} is not compared");
    }
    let constants = names("pub const ");
    assert!(constants.len() >= 14);
    for name in constants {
        let known = layout.constants.contains_key(name)
            || layout.constants.contains_key(&format!("SCHEDULE_{name}"))
            || layout.constants.contains_key(&format!("AVERAGE_{name}"))
            || name == "RAW_NORM";
        assert!(known, "constant {name} is not compared");
    }
}

/// Seeded faults: each must be reported, and under its own name.
#[test]
fn the_comparison_sees_a_swap_a_type_a_missing_field_and_a_flag() {
    let rust = rust_layout();
    for (name, right, wrong) in [
        ("Block", "    params_start: u32,\n    grads_start: u32,", "    grads_start: u32,\n    params_start: u32,"),
        ("GroupState", "first_rate_exponent: i32", "first_rate_exponent: u32"),
        ("GroupConstants", "    scope_clip: f32,\n", ""),
        ("ScopeSums", "raw_square: Squares", "raw_square: vec2<f32>"),
        ("Update", "    skip: u32,\n    learning_rate: f32,", "    skip: u32,\n    learning_rate: i32,"),
        ("RawRecord", "    schedule_term: f32,\n", "    schedule_term: f32,\n    extra: f32,\n"),
        ("CLIPPED", "const CLIPPED = 8u", "const CLIPPED = 4u"),
        ("FAST_DOT", "const FAST_DOT = 8u", "const FAST_DOT = 10u"),
        ("BRAKE", "const BRAKE = 8u;\n", ""),
    ] {
        let faulty = WGSL.replace(right, wrong);
        assert_ne!(faulty, WGSL, "the fault in {name} was not seeded");
        let wgsl = wgsl_layout(&faulty);
        let found = differences(&rust, &wgsl);
        assert!(
            !found.is_empty() && found.iter().all(|line| line.starts_with(name)),
            "the fault in {name} was reported as {found:?}"
        );
    }
}
