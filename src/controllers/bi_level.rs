//! Gradients of weight decay and learning rate from a validation loss: settings, arithmetic, and the CPU path. The device's code is in
//! `src/gpu/controllers/bi_level.rs`.

use std::fmt;

use crate::controllers::products::{add_up_rows, push_rows};
use crate::cpu::optimizer::{CpuOptimizer, Snapshot};
use crate::cpu::values::{Slice, Values};
use crate::error::{CallError, Error, require};
use crate::layout::numbers::{RATE_MAX, RATE_MIN};
use crate::layout::shared_structs;
use crate::plan::Plan;

shared_structs! {
    /// Inputs of `controllers/bi_level.wgsl` for a group.
    pub struct BiLevelConstants {
        /// The group's first row of partial sums.
        pub first_row: u32,
        pub rows: u32,
        pub decay_least: f32,
        pub decay_most: f32,
        /// Factors of λ, both 1 if it does not change.
        pub decay_down: f32,
        pub decay_up: f32,
        pub factor_least: f32,
        pub factor_most: f32,
        /// Factors of the learning-rate factor, both 1 if it does not change.
        pub factor_down: f32,
        pub factor_up: f32,
    }

    /// Values that the last call has set and measured.
    pub struct BiLevelState {
        pub weight_decay: f32,
        pub learning_rate_factor: f32,
        /// Σ g w.
        pub along_parameters: f32,
        /// Σ g s.
        pub along_step: f32,
    }
}

/// Settings of a controller that moves the weight decay λ, the learning-rate factor, or both, against the loss of validation data:
/// [`BiLevel`](crate::BiLevel) on the device, [`CpuBiLevel`] on the host.
///
/// With the step `w' = w - η (u + λ w)` the validation loss changes with ln λ by `-η λ ⟨g, w⟩`, and with ln η by `⟨g, w' - w⟩`, where g is the
/// gradient of the validation loss at w'. The controller measures both inner products on the device, and changes ln λ and ln of the factor by a fixed
/// amount in the direction that lowers the validation loss. The idea of training hyperparameters by stochastic samples of both losses is that of Kim
/// & Hospedales (arXiv:2410.10417). **The formula is this project's own**: the one-step form, without the paper's recursion and its Langevin noise.
/// [`guide::beyond`](crate::guide::beyond) explains when it misleads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BiLevelConfig {
    /// Change of ln λ, or 0 for none.
    decay_step: f32,
    /// Change of ln of the learning-rate factor, or 0 for none.
    rate_step: f32,
    decay_bounds: [f32; 2],
    rate_bounds: [f32; 2],
}

impl BiLevelConfig {
    /// Returns settings that move the weight decay, in steps of 0.02 in ln λ, between 1e-8 and 10.
    pub fn weight_decay() -> Self {
        BiLevelConfig { decay_step: 0.02, rate_step: 0.0, decay_bounds: [1e-8, 10.0], rate_bounds: [1e-6, 1e6] }
    }

    /// Returns settings that move the learning-rate factor, in steps of 0.02 in its ln, between 1e-6 and 1e6.
    pub fn learning_rate() -> Self {
        BiLevelConfig { decay_step: 0.0, rate_step: 0.02, ..Self::weight_decay() }
    }

    /// Returns settings that move both the weight decay and the learning-rate factor.
    pub fn both() -> Self {
        BiLevelConfig { rate_step: 0.02, ..Self::weight_decay() }
    }

    /// Sets the change of ln λ and of ln of the learning-rate factor, above 0 and at most 1. It applies to those of the two that move.
    pub fn step(mut self, step: f32) -> Self {
        for own in [&mut self.decay_step, &mut self.rate_step] {
            if *own != 0.0 {
                *own = step;
            }
        }
        self
    }

    /// Sets the bounds of λ, above 0.
    pub fn decay_bounds(mut self, least: f32, most: f32) -> Self {
        self.decay_bounds = [least, most];
        self
    }

    /// Sets the bounds of the learning-rate factor, between 1e-30 and 1e30.
    pub fn rate_bounds(mut self, least: f32, most: f32) -> Self {
        self.rate_bounds = [least, most];
        self
    }

    fn moves_decay(&self) -> bool {
        self.decay_step != 0.0
    }

    /// Returns true if the direction of the step is needed, and with it a copy of the parameters.
    pub(crate) fn moves_rate(&self) -> bool {
        self.rate_step != 0.0
    }

    pub(crate) fn check(&self, plan: &Plan) -> Result<(), Error> {
        let owner = || "the bi-level controller".to_owned();
        for step in [self.decay_step, self.rate_step] {
            // The change of a control that does not move is 0. The check below finds a change that was set to 0.
            require((0.0..=1.0).contains(&step), owner, "step", step, "above 0 and at most 1")?;
        }
        require(self.moves_decay() || self.moves_rate(), owner, "step", 0, "above 0 and at most 1")?;
        let [least, most] = self.decay_bounds;
        let is_decay = least > 0.0 && least <= most && most.is_finite();
        let bounds = |[least, most]: [f32; 2]| format!("{least:e} to {most:e}");
        require(is_decay, owner, "decay_bounds", bounds(self.decay_bounds), "finite, above 0 and in order")?;
        let [least, most] = self.rate_bounds;
        let is_rate = least >= RATE_MIN && least <= most && most <= RATE_MAX;
        require(is_rate, owner, "rate_bounds", bounds(self.rate_bounds), "between 1e-30 and 1e30 and in order")?;
        plan.check_controllable("a bi-level controller")?;
        for (config, group) in plan.configs.iter().zip(&plan.groups) {
            let refused = |problem: String, way_out: &str| {
                let call = "a bi-level controller";
                Err(Error::from(CallError::Controller { call, problem, way_out: way_out.to_owned() }))
            };
            if self.moves_decay() && group.controls.weight_decay <= 0.0 {
                return refused(
                    format!("cannot move the weight decay of group \"{}\", which is 0", config.name),
                    "build the group with a small weight decay, such as 1e-4, or move only the learning rate",
                );
            }
            if self.moves_rate() && config.averaging == crate::Averaging::ScheduleFree {
                return refused(
                    format!(
                        "cannot move the learning rate of group \"{}\", whose buffer holds no single step",
                        config.name
                    ),
                    "use another averaging than schedule-free, or move only the weight decay",
                );
            }
        }
        Ok(())
    }

    /// Returns the inputs of the kernel or of the CPU path for a group.
    pub(crate) fn constants(&self, first_row: u32, rows: u32) -> BiLevelConstants {
        let wide = |moves: bool, bounds: [f32; 2]| if moves { bounds } else { [0.0, f32::MAX] };
        let [decay_least, decay_most] = wide(self.moves_decay(), self.decay_bounds);
        let [factor_least, factor_most] = wide(self.moves_rate(), self.rate_bounds);
        BiLevelConstants {
            first_row,
            rows,
            decay_least,
            decay_most,
            decay_down: (-self.decay_step).exp(),
            decay_up: self.decay_step.exp(),
            factor_least,
            factor_most,
            factor_down: (-self.rate_step).exp(),
            factor_up: self.rate_step.exp(),
        }
    }
}

/// Returns the value times `below` if the slope is below 0, or times `above` if it is above. A slope that is 0 or not finite changes nothing, and a
/// value of 0 stays.
fn stepped(value: f32, slope: f32, [least, most]: [f32; 2], [below, above]: [f32; 2]) -> f32 {
    if value == 0.0 || slope == 0.0 || !slope.is_finite() {
        return value;
    }
    (value * if slope > 0.0 { above } else { below }).clamp(least, most)
}

impl BiLevelConstants {
    /// Returns the decay and the factor after a step. Twin of `controllers/bi_level.wgsl`.
    fn follow(&self, decay: f32, factor: f32, [along_parameters, along_step]: [f32; 2]) -> BiLevelState {
        let c = self;
        // A larger decay moves the parameters towards zero, and a larger rate moves them along the step.
        BiLevelState {
            weight_decay: stepped(decay, along_parameters, [c.decay_least, c.decay_most], [c.decay_down, c.decay_up]),
            learning_rate_factor: stepped(
                factor,
                along_step,
                [c.factor_least, c.factor_most],
                [c.factor_up, c.factor_down],
            ),
            along_parameters,
            along_step,
        }
    }
}

/// Result of the last call of a bi-level controller for a group. [`Display`](fmt::Display) writes a sentence.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BiLevelRecord {
    /// Name of the group.
    pub group: String,
    /// λ that was set.
    pub weight_decay: f32,
    /// Learning-rate factor that was set.
    pub learning_rate_factor: f32,
    /// ⟨g, w'⟩ of the validation gradient and the parameters. λ rises if it is above 0.
    pub along_parameters: f32,
    /// ⟨g, w' - w⟩ of the validation gradient and the step, if the learning rate moves. The factor rises if it is below 0.
    pub along_step: Option<f32>,
}

impl BiLevelRecord {
    pub(crate) fn of(group: &str, config: &BiLevelConfig, state: &BiLevelState) -> Self {
        BiLevelRecord {
            group: group.to_owned(),
            weight_decay: state.weight_decay,
            learning_rate_factor: state.learning_rate_factor,
            along_parameters: state.along_parameters,
            along_step: config.moves_rate().then_some(state.along_step),
        }
    }
}

impl fmt::Display for BiLevelRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BiLevelRecord { group, weight_decay, learning_rate_factor, along_parameters, along_step } = self;
        write!(
            f,
            "group \"{group}\": weight decay {weight_decay:.3e}, learning-rate factor {learning_rate_factor:.3e}; "
        )?;
        let (sign, would) = if *along_parameters > 0.0 { ("above", "lowers") } else { ("not above", "does not lower") };
        write!(f, "⟨g, w⟩ is {sign} 0: more decay {would} the validation loss")?;
        if let Some(along_step) = along_step {
            let would = if *along_step < 0.0 { "lowers" } else { "does not lower" };
            write!(f, "; the step {would} it")?;
        }
        Ok(())
    }
}

/// Bi-level controller on the CPU path, with the arithmetic of [`BiLevel`](crate::BiLevel), which documents the calls.
///
/// ```
/// use wgpu_optim::{BiLevelConfig, CpuBiLevel, Group, OptimizerBuilder, Regime, Rule};
///
/// // The training loss ½ (w - 2)² overshoots, and the validation loss ½ (w - 1)² does not: with the decay λ the training loss ends at
/// // w = 2 / (1 + λ), so that λ = 1 is the best.
/// let mut w = [0.0f32];
/// let mut optimizer = OptimizerBuilder::new(Rule::sgd())
///     .regime(Regime::fixed(0.1))
///     .weight_decay(1e-3)
///     .group(Group::new("all").tensor("w", &w, &w))
///     .build_cpu()?;
/// let mut bi_level = CpuBiLevel::new(&optimizer, BiLevelConfig::weight_decay())?;
/// for _ in 0..2000 {
///     let g = [w[0] - 2.0];
///     optimizer.step(&mut [&mut w], &[&g])?;
///     let validation = [w[0] - 1.0];
///     bi_level.validation(&mut optimizer, &[&w], &[&validation])?;
/// }
/// let decay = optimizer.controls("all")?.weight_decay;
/// assert!((decay - 1.0).abs() < 0.1);
/// # Ok::<(), wgpu_optim::Error>(())
/// ```
#[derive(Debug)]
pub struct CpuBiLevel {
    config: BiLevelConfig,
    rows: Vec<[f32; 2]>,
    /// Parameters before the step, if the rate moves.
    before: Option<Snapshot>,
}

impl CpuBiLevel {
    /// Creates a controller for an optimizer. It controls every group, each from the group's own parameters.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Build`](crate::ErrorKind::Build) for a setting outside its range. Returns [`ErrorKind::Call`](crate::ErrorKind::Call) for
    /// a group without weight decay if the decay is to move, for a group with schedule-free training if the rate is to move, and for an optimizer of
    /// several ranks or with regime AutoSgd.
    pub fn new(optimizer: &CpuOptimizer, config: BiLevelConfig) -> Result<Self, Error> {
        config.check(optimizer.plan())?;
        Ok(CpuBiLevel { config, rows: Vec::new(), before: None })
    }

    /// Stores the parameters before a step. Only a controller that moves the learning rate needs this call.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) if the slices are not those of the optimizer's tensors, and while its averages are swapped
    /// in.
    pub fn before_step(&mut self, optimizer: &CpuOptimizer, params: &[impl Values]) -> Result<(), Error> {
        optimizer.check_controlled(params)?;
        if self.config.moves_rate() {
            self.before = Some(Snapshot::of_parameters(params));
        }
        Ok(())
    }

    /// Changes the controls, from the gradients of a validation loss at the parameters after the step. Returns a record for each group.
    ///
    /// # Errors
    /// Returns the errors of [`CpuBiLevel::before_step`], and [`ErrorKind::Call`](crate::ErrorKind::Call) if that call is needed but was not made
    /// before the step.
    pub fn validation(
        &mut self,
        optimizer: &mut CpuOptimizer,
        params: &[impl Values],
        grads: &[impl Values],
    ) -> Result<Vec<BiLevelRecord>, Error> {
        optimizer.check_controlled(params)?;
        optimizer.check_gradients(grads)?;
        let before = self.before.take();
        check_before(self.config, before.is_some(), "CpuBiLevel::validation", "CpuBiLevel::before_step")?;
        let mut records = Vec::new();
        for group in 0..optimizer.groups().len() {
            self.rows.clear();
            let tensors = optimizer.tensors().iter().enumerate().filter(|(_, tensor)| tensor.group == group);
            for (tensor, _) in tensors {
                let (x, g) = (params[tensor].values(), grads[tensor].values());
                match &before {
                    Some(before) => push_rows(&mut self.rows, [x, before.params[tensor].values(), g], |[x, z, g]| {
                        [g * x, g * (x - z)]
                    }),
                    None => push_rows(&mut self.rows, [x, Slice::F32(&[]), g], |[x, _, g]| [g * x, 0.0]),
                }
            }
            let constants = self.config.constants(0, 0);
            let name = optimizer.groups()[group].name.clone();
            let controls = optimizer.controls(&name)?;
            let sums = add_up_rows(&self.rows);
            let state = constants.follow(controls.weight_decay, controls.learning_rate_factor, sums);
            optimizer.control(&name, |group| {
                group.weight_decay = state.weight_decay;
                group.learning_rate_factor = state.learning_rate_factor;
            })?;
            records.push(BiLevelRecord::of(&name, &self.config, &state));
        }
        Ok(records)
    }
}

/// Returns an error for a validation without the parameters before the step, if the rate moves.
pub(crate) fn check_before(
    config: BiLevelConfig,
    has_before: bool,
    call: &'static str,
    before: &'static str,
) -> Result<(), Error> {
    if config.moves_rate() && !has_before {
        let problem = "was called without the parameters before the step".to_owned();
        let way_out = format!("call {before} before each step that a validation follows");
        return Err(Error::from(CallError::Controller { call, problem, way_out }));
    }
    Ok(())
}
