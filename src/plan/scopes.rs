//! Scopes: the groups that share a norm, the sums that are measured for them, and the constants that their kernels read.

use std::collections::HashMap;

use super::{Alignment, Geometry, Kernel, Place, TensorInfo, Window};
use crate::averaging::Averaging;
use crate::error::{BuildError, Error};
use crate::group::{GroupConfig, NamedTensor, ResolvedGroup};
use crate::layout::{Block, GroupConstants, GroupControls, NO_TENSOR, ScopeTable, StepUnit, group_flags};
use crate::rates::RateFactors;
use crate::regime::Needs;
use crate::rule::LARGEST_SQUARED;
use crate::safeguards::Safeguards;

/// Size of a group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    elements: u64,
    /// The squared length of a direction that does not shrink with the gradient.
    direction_square: f64,
}

impl Extent {
    pub(super) fn of(group: &ResolvedGroup<Place>) -> Self {
        let square = |tensor: &NamedTensor<Place>| {
            group.config.rule.direction_square(&tensor.shape, tensor.tensor.elements as usize)
        };
        Extent {
            elements: group.tensors.iter().map(|tensor| tensor.tensor.elements).sum(),
            direction_square: group.tensors.iter().map(square).sum(),
        }
    }
}

/// A scope while the plan is being made: its groups and their common properties. It is computed once for each scope, so the time for a plan
/// is linear in the number of groups.
pub(super) struct Scope<'a> {
    pub(super) groups: Vec<usize>,
    /// The group that was declared first. The others must agree with it.
    first: &'a GroupConfig,
    /// Number of elements of all groups.
    elements: u64,
    /// Squared length of a direction that does not shrink with the gradient.
    direction_square: f64,
    /// True if a regime compares the gradient with the momentum or the direction counters.
    needs_alignment: bool,
    /// True if every group can compare the iterates instead.
    compares_iterates: bool,
    /// True if pass 1 runs over the groups, because a regime, a clip, a trust ratio or a policy uses its sums.
    pub(super) is_measured: bool,
    /// True if a regime or a trust ratio uses the norm of the parameters.
    initial_norm: bool,
    clips: bool,
    coupled_decay: bool,
    /// The largest momentum coefficient.
    momentum: f32,
    /// Largest gradient norm that a clip or the limit of second moments allows.
    clip: f32,
}

/// Collects the groups of each norm, in the order of declaration.
pub(super) fn scopes_of<'a>(configs: &'a [GroupConfig], extents: &[Extent], safeguards: &Safeguards) -> Vec<Scope<'a>> {
    let global_clip = safeguards.global_clip();
    let mut scopes: Vec<Scope> = Vec::new();
    let mut by_name: HashMap<&str, usize> = HashMap::new();
    for (group, config) in configs.iter().enumerate() {
        let next = scopes.len();
        let index = config.scope.as_deref().map_or(next, |name| *by_name.entry(name).or_insert(next));
        if index == next {
            scopes.push(Scope {
                groups: Vec::new(),
                first: config,
                elements: 0,
                direction_square: 0.0,
                needs_alignment: false,
                compares_iterates: true,
                is_measured: safeguards.measures_every_group(),
                initial_norm: false,
                clips: false,
                coupled_decay: false,
                momentum: 0.0,
                clip: 0.0,
            });
        }
        let scope = &mut scopes[index];
        scope.groups.push(group);
        scope.elements += extents[group].elements;
        scope.direction_square += extents[group].direction_square;
        scope.needs_alignment |= config.regime.needs_alignment();
        scope.compares_iterates &= config.can_compare_iterates();
        scope.initial_norm |= config.regime.needs_initial_norm() || config.trust_ratio.is_some();
        scope.clips |= config.clip_norm.is_finite();
        scope.is_measured |=
            config.regime.goes_by_gradients() || config.clip_norm.is_finite() || config.trust_ratio.is_some();
        scope.coupled_decay |= is_decayed(config);
        scope.momentum = scope.momentum.max(config.rule.momentum());
    }
    // The total norm adds up the same kind of sum from each scope.
    if global_clip < f32::MAX && configs.iter().any(is_decayed) {
        for scope in &mut scopes {
            (scope.clips, scope.coupled_decay) = (true, true);
        }
    }
    for scope in &mut scopes {
        let second_moments = LARGEST_SQUARED * (scope.elements.max(1) as f64).sqrt() as f32;
        let reach = |config: &GroupConfig| match config.rule.has_second_moment() {
            true => clip_of(config).min(second_moments),
            false => clip_of(config),
        };
        scope.clip = scope.groups.iter().map(|&group| reach(&configs[group])).fold(0.0, f32::max).min(global_clip);
    }
    scopes
}

impl Scope<'_> {
    fn direction_length(&self) -> f32 {
        self.direction_square.sqrt() as f32
    }

    fn name(&self) -> String {
        self.first.scope.clone().unwrap_or_default()
    }

    /// Returns true if the clip needs a separate sum. A clip uses the norm of the gradient itself, as in PyTorch. The regime uses the norm of the
    /// regularised loss's gradient. The two differ if a group of the scope clips and the same or another group has coupled decay.
    fn needs_raw_norm(&self) -> bool {
        self.clips && self.coupled_decay
    }
}

fn is_decayed(config: &GroupConfig) -> bool {
    config.weight_decay.coupled() > 0.0
}

fn clip_of(config: &GroupConfig) -> f32 {
    config.clip_norm.min(f32::MAX)
}

/// Returns the key for which a group's passes are compiled. The scope decides what is measured, because every group of it contributes.
pub(super) fn kernel_of(config: &GroupConfig, scope: &Scope) -> Result<Kernel, Error> {
    let first = scope.first;
    let secant = config.regime.needs_last_gradient();
    let distance = config.regime.needs_first_parameters();
    let remembers = |config: &GroupConfig| {
        let Needs { last_gradient, looks, first_parameters, schedule_free, estimate, displacement, .. } =
            config.regime.regime().needs();
        (last_gradient, looks, first_parameters, schedule_free, estimate, displacement)
    };
    if remembers(config) != remembers(first) || secant && config.rule.kind() != first.rule.kind() {
        return Err(Error::from(BuildError::MixedMemory {
            first: first.name.clone(),
            second: config.name.clone(),
            scope: scope.name(),
        }));
    }
    if scope.needs_alignment && config.rule.has_momentum() != first.rule.has_momentum() {
        let (with, without) = if first.rule.has_momentum() { (first, config) } else { (config, first) };
        return Err(Error::from(BuildError::MixedScope {
            first: with.name.clone(),
            second: without.name.clone(),
            scope: scope.name(),
        }));
    }
    let alignment = match (secant, distance, scope.needs_alignment, config.rule.has_momentum()) {
        // All groups have streams or none has (`OptimizerBuilder::resolve`).
        _ if config.regime.needs_streams() => Alignment::Streams,
        _ if config.regime.needs_schedule_free() => Alignment::Magnitudes,
        _ if config.regime.needs_estimate() => Alignment::Estimate,
        _ if config.regime.needs_displacement() => Alignment::Displacement,
        (true, ..) if config.regime.needs_looks() => Alignment::NextLook,
        (true, ..) => Alignment::LastGradient,
        (_, true, ..) => Alignment::FirstParameters,
        (.., false, _) => Alignment::None,
        (.., true, true) => Alignment::Momentum,
        // All groups of a scope add up the same products.
        _ if scope.compares_iterates => Alignment::Iterates,
        (.., true, false) => Alignment::Counters,
    };
    Ok(Kernel {
        rule: config.rule.kind(),
        alignment,
        coupled_decay: config.weight_decay.coupled() > 0.0,
        raw_norm: scope.needs_raw_norm(),
        initial_norm: scope.initial_norm,
        averages: config.averaging.is_on(),
        schedule_free: config.averaging == Averaging::ScheduleFree,
        step_sums: config.measures_step(),
        bits8: config.keeps_codes(),
        iterations: config.rule.iterations(),
        half_iterates: config.rule.half_iterates(),
        rates: config.rate_factors.as_ref().map(RateFactors::axis),
        lazy_rows: config.lazy_rows,
        is_measured: scope.is_measured,
        // `Plan::new` and `Kernel::at` set the other fields.
        ..Kernel::PLAIN
    })
}

pub(super) fn constants_of(config: &GroupConfig, kernel: Kernel, scope_index: usize, scope: &Scope) -> GroupConstants {
    let flag = |set: bool, bit: u32| if set { bit } else { 0 };
    let regime = config.regime.regime();
    GroupConstants {
        controls: GroupControls {
            learning_rate_factor: 1.0,
            gradient_factor: 0.0, // set by `Plan::new`
            weight_decay: config.weight_decay.lambda(),
            clip_norm: clip_of(config),
            frozen: 0,
            present: 1,
        },
        scope: scope_index as u32,
        flags: flag(config.rule.is_scale_free(), group_flags::SIGN_RULE)
            | flag(regime.initial_rate().is_some(), group_flags::INITIAL_RATE)
            | flag(config.rule.traits().momentum_from_gradient, group_flags::MOMENTUM_FROM_GRADIENT)
            | flag(kernel.alignment == Alignment::Counters, group_flags::BRAKE)
            | flag(kernel.compares_iterates(), group_flags::ITERATES)
            | flag(kernel.coupled_decay, group_flags::COUPLES_DECAY)
            | flag(kernel.raw_norm, group_flags::RAW_NORM_CLIP)
            | flag(config.trust_ratio.is_some_and(|trust| trust.cap), group_flags::TRUST_CAPS)
            | flag(!kernel.is_measured, group_flags::NOT_MEASURED),
        sign: if config.maximize { -1.0 } else { 1.0 },
        halt_after: 0, // set by `Safeguards::write_to`, as the next five, the global clip and the outliers' numbers
        halt_after_overflows: 0,
        loss_scale_first: 0,
        loss_scale_least: 0,
        loss_scale_most: 0,
        growth_interval: 0,
        rule: config.rule.numbers(),
        smoothing: regime.smoothing(),
        norm_floor: regime.norm_floor(),
        first_step: regime.first_step(&config.rule, &config.averaging),
        initial_rate: regime.initial_rate().unwrap_or(0.0),
        regime: regime.kernel().number(),
        regime_constants: regime.constants(&config.rule),
        schedule: 0, // set by `Schedule::write_to`, as the next five
        schedule_rise: 0,
        schedule_steps: 0,
        schedule_fall: 0,
        schedule_first: 0.0,
        schedule_last: 0.0,
        average: config.averaging.kind(),
        average_start: config.averaging.start(),
        average_gain: config.averaging.gain(),
        trust_coefficient: config.trust_ratio.map_or(0.0, |trust| trust.coefficient),
        trust_least: config.trust_ratio.and_then(|trust| trust.least).unwrap_or(0.0),
        direction_length: scope.direction_length(),
        scope_momentum: scope.momentum,
        scope_clip: scope.clip,
        rounding_seed: config.rounding.seed(),
        global_clip: 0.0,
        outlier_deviations: 0.0,
        outlier_window: 0,
    }
}

/// Gives every block its row in the partials, scope by scope.
pub(super) fn number_rows(
    scopes: &[Scope],
    scope_of_group: &[usize],
    windows: &mut [Window],
    geometry: &Geometry,
) -> Result<(Vec<ScopeTable>, u32), Error> {
    let mut rows = vec![0u64; scopes.len()];
    for block in windows.iter().flat_map(|window| &window.blocks) {
        rows[scope_of_group[block.group as usize]] += 1;
    }
    let total: u64 = rows.iter().sum();
    let partials = total * u64::from(geometry.partials_per_block);
    let words = partials * u64::from(crate::layout::PARTIAL_WORDS);
    let limit = geometry.binding_elements.min(u64::from(u32::MAX));
    if words > limit {
        return Err(Error::from(BuildError::Limit {
            what: "the number of words of partial sums".to_owned(),
            value: words,
            limit,
            way_out: "use larger blocks in the tuning, or pack many small tensors side by side in one buffer",
        }));
    }
    let most = rows.iter().max().copied().unwrap_or(0) * u64::from(geometry.partials_per_block);
    if most > geometry.scope_partials {
        return Err(Error::from(BuildError::Limit {
            what: "the number of partial sums of one norm".to_owned(),
            value: most,
            limit: geometry.scope_partials,
            way_out: "use larger blocks or a larger finish_workgroup_size in the tuning",
        }));
    }
    let mut first = 0u32;
    let mut next: Vec<u32> = Vec::with_capacity(rows.len());
    for &rows in &rows {
        next.push(first);
        first += rows as u32;
    }
    let table = scopes
        .iter()
        .zip(next.iter().zip(&rows))
        .map(|(scope, (&first, &rows))| ScopeTable {
            first_partial: first * geometry.partials_per_block,
            partials: if scope.is_measured { rows as u32 * geometry.partials_per_block } else { 0 },
            group: scope.groups[0] as u32,
        })
        .collect();
    // Rows follow the order of declaration. The blocks of a tensor therefore have adjacent rows, even if they are in different windows.
    let mut blocks: Vec<&mut Block> = windows.iter_mut().flat_map(|window| &mut window.blocks).collect();
    blocks.sort_by_key(|block| block.first_element);
    for block in blocks {
        let row = &mut next[scope_of_group[block.group as usize]];
        block.row = *row;
        *row += 1;
    }
    Ok((table, partials as u32))
}

/// Returns the tensors and groups whose sums pass 5 computes.
pub(super) fn units_of(configs: &[GroupConfig], tensors: &[TensorInfo], windows: &[Window]) -> Vec<StepUnit> {
    if !configs.iter().any(GroupConfig::measures_step) {
        return Vec::new();
    }
    let mut blocks: Vec<&Block> = windows.iter().flat_map(|window| &window.blocks).collect();
    blocks.sort_by_key(|block| block.first_element);
    let unit = |group: usize, tensor: u32, elements: std::ops::Range<u64>| {
        let at = |element: u64| blocks.partition_point(|block| u64::from(block.first_element) < element);
        let own = &blocks[at(elements.start)..at(elements.end)];
        StepUnit {
            first_row: own.first().map_or(0, |block| block.row),
            rows: own.len() as u32,
            group: group as u32,
            tensor,
        }
    };
    let recorded = (0u32..).zip(tensors).filter(|(_, tensor)| configs[tensor.group].telemetry);
    let mut units: Vec<StepUnit> = recorded
        .map(|(index, tensor)| {
            let elements = tensor.first_element..tensor.first_element + tensor.elements;
            unit(tensor.group, index, elements)
        })
        .collect();
    // Tensors come in the order of their groups.
    let mut rest = tensors;
    for (group, config) in configs.iter().enumerate() {
        let (own, after) = rest.split_at(rest.partition_point(|tensor| tensor.group <= group));
        rest = after;
        if config.trust_ratio.is_some() {
            let first = own.first().map_or(0, |tensor| tensor.first_element);
            let elements: u64 = own.iter().map(|tensor| tensor.elements).sum();
            units.push(unit(group, NO_TENSOR, first..first + elements));
        }
    }
    units
}
