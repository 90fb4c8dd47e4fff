//! Scopes: which groups share a norm, what is measured for them, and the constants that their kernels read.

use super::{Alignment, Geometry, Kernel, TensorInfo, Window};
use crate::averaging::Averaging;
use crate::error::{BuildError, Error};
use crate::group::GroupConfig;
use crate::layout::{Block, GroupConstants, NO_TENSOR, ScopeTable, StepUnit, group_flags};
use crate::rule::LARGEST_SQUARED;

/// A scope while the plan is being made.
pub(super) struct Scope<'a> {
    pub(super) groups: Vec<usize>,
    pub(super) name: Option<&'a str>,
}

/// Collects the groups of each norm, in the order of declaration.
pub(super) fn scopes_of(configs: &[GroupConfig]) -> Vec<Scope<'_>> {
    let mut scopes: Vec<Scope> = Vec::new();
    for (group, config) in configs.iter().enumerate() {
        let name = config.scope.as_deref();
        match scopes.iter_mut().find(|scope| name.is_some() && scope.name == name) {
            Some(scope) => scope.groups.push(group),
            None => scopes.push(Scope { groups: vec![group], name }),
        }
    }
    scopes
}

/// Returns the key for which a group's passes are compiled. The scope decides what is measured, because every group of it contributes.
pub(super) fn kernel_of(config: &GroupConfig, scope: &Scope, configs: &[GroupConfig]) -> Result<Kernel, Error> {
    let members = || scope.groups.iter().map(|&group| &configs[group]);
    let measured = members().any(|member| member.regime.needs_alignment());
    let secant = members().any(|member| member.regime.needs_last_gradient());
    let distance = members().any(|member| member.regime.needs_first_parameters());
    let alignment = match (secant, distance, measured, config.rule.has_momentum()) {
        // All groups have streams or none has (`OptimizerBuilder::resolve`).
        _ if config.regime.needs_streams() => Alignment::Streams,
        (true, ..) => Alignment::LastGradient,
        (_, true, ..) => Alignment::FirstParameters,
        (.., false, _) => Alignment::None,
        (.., true, true) => Alignment::Momentum,
        // All groups of a scope add up the same products.
        _ if members().all(GroupConfig::can_compare_iterates) => Alignment::Iterates,
        (.., true, false) => Alignment::Counters,
    };
    if (secant || distance)
        && let Some(other) = members().find(|member| {
            member.regime.needs_last_gradient() != config.regime.needs_last_gradient()
                || member.regime.needs_first_parameters() != config.regime.needs_first_parameters()
                || secant && member.rule.kind() != config.rule.kind()
        })
    {
        return Err(Error::from(BuildError::MixedMemory {
            first: config.name.clone(),
            second: other.name.clone(),
            scope: scope.name.unwrap_or_default().to_owned(),
        }));
    }
    if measured && let Some(other) = members().find(|member| member.rule.has_momentum() != config.rule.has_momentum()) {
        let (first, second) = if config.rule.has_momentum() { (config, other) } else { (other, config) };
        return Err(Error::from(BuildError::MixedScope {
            first: first.name.clone(),
            second: second.name.clone(),
            scope: scope.name.unwrap_or_default().to_owned(),
        }));
    }
    let coupled_decay = config.weight_decay.coupled() > 0.0;
    Ok(Kernel {
        rule: config.rule.kind(),
        alignment,
        coupled_decay,
        raw_norm: needs_raw_norm(members()),
        initial_norm: members().any(|member| member.regime.needs_initial_norm() || member.trust_ratio.is_some()),
        averages: config.averaging.is_on(),
        schedule_free: config.averaging == Averaging::ScheduleFree,
        step_sums: config.measures_step(),
        // What is left is set by `Plan::new` and `Kernel::at`.
        ..Kernel::PLAIN
    })
}

/// A clip goes by the gradient's own norm, as in PyTorch, where the regime goes by that of the regularised loss: they differ as
/// soon as one group of the scope clips and one, perhaps another, has coupled decay.
pub(super) fn needs_raw_norm<'a>(mut members: impl Iterator<Item = &'a GroupConfig> + Clone) -> bool {
    members.clone().any(|member| member.clip_norm.is_finite())
        && members.any(|member| member.weight_decay.coupled() > 0.0)
}

pub(super) fn constants_of(
    config: &GroupConfig,
    kernel: Kernel,
    scope_index: usize,
    scope: &Scope,
    configs: &[GroupConfig],
    scope_elements: u64,
) -> GroupConstants {
    let members = || scope.groups.iter().map(|&group| &configs[group]);
    let flag = |set: bool, bit: u32| if set { bit } else { 0 };
    let regime = config.regime.regime();
    let clip = |config: &GroupConfig| config.clip_norm.min(f32::MAX);
    let sqrt_elements = (scope_elements as f64).sqrt() as f32;
    let reach = |config: &GroupConfig| match config.rule.has_second_moment() {
        true => clip(config).min(LARGEST_SQUARED * sqrt_elements.max(1.0)),
        false => clip(config),
    };
    GroupConstants {
        scope: scope_index as u32,
        flags: flag(config.rule.is_scale_free(), group_flags::SIGN_RULE)
            | flag(regime.initial_rate().is_some(), group_flags::INITIAL_RATE)
            | flag(config.rule.traits().momentum_from_gradient, group_flags::MOMENTUM_FROM_GRADIENT)
            | flag(kernel.alignment == Alignment::Counters, group_flags::BRAKE)
            | flag(kernel.compares_iterates(), group_flags::ITERATES)
            | flag(kernel.raw_norm, group_flags::RAW_NORM_CLIP),
        sign: if config.maximize { -1.0 } else { 1.0 },
        gradient_factor: 0.0, // set by `Plan::new`
        coupled_decay: config.weight_decay.coupled(),
        decoupled_decay: config.weight_decay.decoupled(),
        clip_norm: clip(config),
        halt_after: 0, // set by `Safeguards::write_to`, as the next four
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
        schedule: config.schedule.kind(),
        schedule_rise: config.schedule.rise(),
        schedule_steps: config.schedule.steps(),
        schedule_first: config.schedule.first(),
        schedule_last: config.schedule.last(),
        average: config.averaging.kind(),
        average_start: config.averaging.start(),
        average_gain: config.averaging.gain(),
        trust_coefficient: config.trust_ratio.map_or(0.0, |trust| trust.coefficient),
        sqrt_elements,
        scope_momentum: members().map(|member| member.rule.momentum()).fold(0.0, f32::max),
        scope_clip: members().map(reach).fold(0.0, f32::max),
        rounding_seed: config.rounding.seed(),
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
            partials: rows as u32 * geometry.partials_per_block,
            group: scope.groups[0] as u32,
        })
        .collect();
    // In the order of declaration, so that the blocks of a tensor lie side by side, whichever windows they are in.
    let mut blocks: Vec<&mut Block> = windows.iter_mut().flat_map(|window| &mut window.blocks).collect();
    blocks.sort_by_key(|block| block.first_element);
    for block in blocks {
        let row = &mut next[scope_of_group[block.group as usize]];
        block.row = *row;
        *row += 1;
    }
    Ok((table, partials as u32))
}

/// What pass 5 adds up.
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
    for (group, config) in configs.iter().enumerate() {
        if config.trust_ratio.is_some() {
            let own = || tensors.iter().filter(|tensor| tensor.group == group);
            let first = own().next().map_or(0, |tensor| tensor.first_element);
            let elements: u64 = own().map(|tensor| tensor.elements).sum();
            units.push(unit(group, NO_TENSOR, first..first + elements));
        }
    }
    units
}
