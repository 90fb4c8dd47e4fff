//! Parameter groups and the optimizer builder. They do not depend on the device: the type `T` of the tensors is [`gpu::Tensor`](crate::gpu::Tensor)
//! or [`cpu::Tensor`](crate::cpu::Tensor).

mod config;

use std::collections::HashSet;

use crate::averaging::Averaging;
use crate::element::Rounding;
use crate::error::{BuildError, Error, require};
use crate::layout::{RawRecord, RawTensorRecord};
use crate::plan::Accumulation;
use crate::rates::RateFactors;
use crate::regime::Regime;
use crate::rule::{Rule, WeightDecay};
use crate::safeguards::{LossScaler, NonFinitePolicy, NormOutliers, Safeguards};
use crate::schedule::Schedule;
use crate::shard::Shard;
use crate::state::State;
use crate::trust::TrustRatio;
use crate::warning::Warning;
pub use config::GroupConfig;
pub(crate) use config::ResolvedGroup;

/// Slice of parameters or gradients, which [`Group::tensor`] takes. On the device it is a [`wgpu::BufferSlice`] of f32, or a slice of another
/// [`Element`](crate::Element) made with [`Element::of`](crate::Element::of). On the CPU it is a reference to [`cpu::Values`](crate::cpu::Values).
///
/// The trait is sealed: no other type can implement it.
pub trait TensorSlice: sealed::Sealed {
    /// Type of the tensors: [`gpu::Tensor`](crate::gpu::Tensor) or [`cpu::Tensor`](crate::cpu::Tensor).
    type Tensor;

    #[doc(hidden)]
    fn tensor(self) -> Self::Tensor;
}

pub(crate) mod sealed {
    pub trait Sealed {}
}

/// Tensors that share a rule, a regime, weight decay and a learning rate.
#[must_use = "a group does nothing until it is given to an OptimizerBuilder; its setters return it"]
#[derive(Debug, Clone)]
pub struct Group<T> {
    pub(crate) name: String,
    pub(crate) rule: Option<Rule>,
    pub(crate) settings: Settings,
    pub(crate) shared_norm: Option<String>,
    pub(crate) per_tensor: bool,
    /// Rule of tensors that the group's rule does not support.
    pub(crate) other_tensors: Option<Rule>,
    /// Tensors with their parameters and gradients.
    pub(crate) tensors: Vec<NamedTensor<[T; 2]>>,
}

/// Tensor as the caller declares it.
#[derive(Debug, Clone)]
pub(crate) struct NamedTensor<T> {
    pub(crate) name: String,
    /// Lengths of the dimensions, empty for a tensor without a shape.
    pub(crate) shape: Vec<usize>,
    pub(crate) tensor: T,
}

impl<T> NamedTensor<T> {
    /// Returns the same tensor at another place.
    pub(crate) fn with<U>(self, tensor: U) -> NamedTensor<U> {
        NamedTensor { name: self.name, shape: self.shape, tensor }
    }
}

/// Settings of a group, or of the builder for all groups. A setting of a group that is `None` is the builder's.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    pub(crate) regime: Option<Regime>,
    pub(crate) weight_decay: Option<WeightDecay>,
    pub(crate) clip_norm: Option<f32>,
    pub(crate) maximize: Option<bool>,
    pub(crate) schedule: Option<Schedule>,
    pub(crate) averaging: Option<Averaging>,
    pub(crate) trust_ratio: Option<TrustRatio>,
    pub(crate) rate_factors: Option<RateFactors>,
    pub(crate) lazy_rows: bool,
    pub(crate) telemetry: Option<bool>,
    pub(crate) rounding: Option<Rounding>,
    pub(crate) state: Option<State>,
}

impl<T> Group<T> {
    /// Returns an empty group. Messages and records refer to it by this name.
    pub fn new(name: impl Into<String>) -> Self {
        Group {
            name: name.into(),
            rule: None,
            settings: Settings::default(),
            shared_norm: None,
            per_tensor: false,
            other_tensors: None,
            tensors: Vec::new(),
        }
    }

    /// Sets this group's rule instead of the builder's.
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rule = Some(rule);
        self
    }

    /// Sets the rule of the group's tensors that are not matrices, such as biases, gains, and tensors that were added without a shape. It is used if
    /// the group's rule needs matrices, as [`Rule::muon`] does.
    ///
    /// These tensors become a separate group named `group/others` with the group's settings. Without this call, and without
    /// [`OptimizerBuilder::other_tensors`], such a tensor is an error. The call has no effect if the group's rule supports every tensor.
    pub fn other_tensors(mut self, rule: Rule) -> Self {
        self.other_tensors = Some(rule);
        self
    }

    /// Sets this group's regime instead of the builder's.
    pub fn regime(mut self, regime: Regime) -> Self {
        self.settings.regime = Some(regime);
        self
    }

    /// Sets a coupled weight decay λ, as in `torch.optim.SGD(weight_decay=λ)`. It replaces a decoupled one. 0 disables the builder's weight decay.
    pub fn weight_decay(mut self, lambda: f32) -> Self {
        self.settings.weight_decay = Some(WeightDecay::Coupled(lambda));
        self
    }

    /// Sets a decoupled weight decay λ, as in AdamW. It replaces a coupled one.
    pub fn decoupled_weight_decay(mut self, lambda: f32) -> Self {
        self.settings.weight_decay = Some(WeightDecay::Decoupled(lambda));
        self
    }

    /// Clips the gradient to norm `C`: `g ← g min(1, C/‖g‖)`, with the norm over this group, or over all groups that share it. The regime uses the
    /// unclipped norm. `f32::INFINITY` disables the builder's clip.
    pub fn clip_norm(mut self, max_norm: f32) -> Self {
        self.settings.clip_norm = Some(max_norm);
        self
    }

    /// Maximizes instead of minimizing: the gradient's sign is flipped before everything else.
    pub fn maximize(mut self, maximize: bool) -> Self {
        self.settings.maximize = Some(maximize);
        self
    }

    /// Computes the gradient norm and the alignment jointly over all groups with the same `scope` name.
    ///
    /// Groups that share a norm and have the same rule and regime have one learning rate, as if they were a single group. Without this call a group
    /// has its own norm.
    pub fn share_norm(mut self, scope: impl Into<String>) -> Self {
        self.shared_norm = Some(scope.into());
        self
    }

    /// Sets this group's schedule: a factor of its learning rate that depends on the number of the step.
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.settings.schedule = Some(schedule);
        self
    }

    /// Keeps an average of this group's parameters. [`Averaging::Off`] disables the builder's average.
    pub fn averaging(mut self, averaging: Averaging) -> Self {
        self.settings.averaging = Some(averaging);
        self
    }

    /// Trains this group schedule-free. [`Averaging::ScheduleFree`] explains what the caller's buffer then holds.
    pub fn schedule_free(self) -> Self {
        self.averaging(Averaging::ScheduleFree)
    }

    /// Makes steps proportional to the norm of the parameters, see [`TrustRatio`]. It is meant for [`Group::per_tensor`].
    pub fn trust_ratio(mut self, trust_ratio: TrustRatio) -> Self {
        self.settings.trust_ratio = Some(trust_ratio);
        self
    }

    /// Sets factors of the learning rate for the rows or columns of the group's tensors, see [`RateFactors`]. Each tensor must be added with a
    /// [`shape`](Group::shaped_tensor) that has as many rows or columns. Tensors of [`other_tensors`](Group::other_tensors) have no factors.
    ///
    /// Regimes that use all elements of earlier steps do not support rate factors: `BarzilaiBorwein`, `AdGd`, `Curvature`, `AutoSgd`, `Prodigy`,
    /// `Mechanic`.
    pub fn rate_factors(mut self, factors: RateFactors) -> Self {
        self.settings.rate_factors = Some(factors);
        self
    }

    /// Leaves rows without a gradient unchanged: their parameters, momentum and second moments. `torch.optim.SparseAdam` does the same with rows that
    /// a sparse gradient does not contain. It is meant for embeddings of which a batch uses few, or for Gaussians of which many are not in the
    /// picture.
    ///
    /// A row has no gradient if all elements of its gradient are 0. Weight decay is then not applied to it. Bias corrections count the steps of the
    /// group, and averages of the parameters are still updated. The gradient itself is dense, and the optimizer reads all of it. The row is only
    /// spared the decay of its momentum and the motion along it. The tensors must be added with a [`shape`](Group::shaped_tensor). Those of
    /// [`other_tensors`](Group::other_tensors) are not affected.
    ///
    /// Regimes that use all elements of earlier steps do not support lazy rows: `BarzilaiBorwein`, `AdGd`, `Curvature`, `AutoSgd`, `Prodigy`,
    /// `Mechanic`. [`Muon`](crate::Muon) and [`Adafactor`](crate::Adafactor) do not, because they compute a direction from all rows together, and
    /// [`State::Bits8`](crate::State::Bits8) does not, because several rows share a scale.
    pub fn lazy_rows(mut self, on: bool) -> Self {
        self.settings.lazy_rows = on;
        self
    }

    /// Records the norm of every tensor and of its steps, see [`OptimizerBuilder::telemetry`].
    pub fn telemetry(mut self, on: bool) -> Self {
        self.settings.telemetry = Some(on);
        self
    }

    /// Sets the rounding of this group's 16-bit parameters. f32 parameters are not affected.
    pub fn rounding(mut self, rounding: Rounding) -> Self {
        self.settings.rounding = Some(rounding);
        self
    }

    /// Sets the storage of the memory of this group's rule: f32, or 8 bits with block scales ([`State::Bits8`]). It also determines the storage of
    /// the remainders of master weights.
    pub fn state(mut self, state: State) -> Self {
        self.settings.state = Some(state);
        self
    }

    /// Gives every tensor its own learning rate, computed from its own norm, instead of one for the group. It needs no additional dispatch. With
    /// [`Curvature`](crate::Curvature) these are layer-wise rates from the curvature.
    ///
    /// Each tensor becomes a separate group named `group/tensor` in [`groups`](crate::Optimizer::groups), in the learning rates and in the records.
    /// With a shared norm the tensors keep that norm, and then have the same rate.
    pub fn per_tensor(mut self) -> Self {
        self.per_tensor = true;
        self
    }

    /// Adds a tensor: its parameters and its gradients, which must have the same length. The length may be 0.
    ///
    /// On the device both are [`wgpu::BufferSlice`]s of f32, or slices of another [`Element`](crate::Element) made with
    /// [`Element::of`](crate::Element::of). On the CPU both are slices, vectors or arrays of f32, f16 or bf16. Only their length is kept, because
    /// they are passed to each step. Parameters and gradients may have different element types.
    pub fn tensor<P, G>(self, name: impl Into<String>, params: P, grads: G) -> Self
    where
        P: TensorSlice<Tensor = T>,
        G: TensorSlice<Tensor = T>,
    {
        self.shaped_tensor(name, &[], params, grads)
    }

    /// Adds a tensor as [`Group::tensor`] does, with the lengths of its dimensions, outermost first. The elements are in row-major order, and their
    /// number must be the product of the lengths.
    ///
    /// Rules that work on matrices need the shape. They use the first dimension as the rows and the product of the others as the columns, so that a
    /// convolution of shape `[out, in, height, width]` has one row for each output channel. Other rules ignore the shape.
    pub fn shaped_tensor<P, G>(mut self, name: impl Into<String>, shape: &[usize], params: P, grads: G) -> Self
    where
        P: TensorSlice<Tensor = T>,
        G: TensorSlice<Tensor = T>,
    {
        let tensor = [params.tensor(), grads.tensor()];
        self.tensors.push(NamedTensor { name: name.into(), shape: shape.to_vec(), tensor });
        self
    }

    /// Returns the group's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the largest number of learning rates that the group can have.
    fn rates(&self) -> usize {
        // One rate for the group, and one for the group of its other tensors.
        if self.per_tensor { self.tensors.len().max(1) } else { self.tensors.len().clamp(1, 2) }
    }

    /// Returns the name of the group of this group's other tensors.
    fn others_name(&self) -> String {
        format!("{}/others", self.name)
    }

    /// Splits the group if its rule needs matrices: into a group of the matrices, and a group of the other tensors with another rule.
    fn by_rule(mut self, all: Rule, others: Option<Rule>) -> Result<Vec<Self>, Error> {
        let rule = self.rule.unwrap_or(all);
        if !rule.needs_matrices() {
            return Ok(vec![self]);
        }
        let tensors = std::mem::take(&mut self.tensors);
        let (matrices, rest): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|tensor| tensor.shape.len() >= 2);
        let mut groups = Vec::new();
        if let Some(first) = rest.first() {
            let other = self.other_tensors.or(others).filter(|other| !other.needs_matrices()).ok_or_else(|| {
                BuildError::NoMatrix { tensor: first.name.clone(), shape: first.shape.clone(), rule: rule.name() }
            })?;
            groups.push(Group {
                name: self.others_name(),
                rule: Some(other),
                settings: Settings { rate_factors: None, lazy_rows: false, ..self.settings.clone() },
                shared_norm: self.shared_norm.clone(),
                per_tensor: self.per_tensor,
                other_tensors: None,
                tensors: rest,
            });
        }
        if !matrices.is_empty() || groups.is_empty() {
            self.tensors = matrices;
            groups.insert(0, self);
        }
        Ok(groups)
    }

    /// Returns a group for each learning rate.
    fn by_rate(mut self) -> Vec<Self> {
        if !self.per_tensor || self.tensors.is_empty() {
            return vec![self];
        }
        std::mem::take(&mut self.tensors)
            .into_iter()
            .map(|tensor| Group {
                name: format!("{}/{}", self.name, tensor.name),
                rule: self.rule,
                settings: self.settings.clone(),
                shared_norm: self.shared_norm.clone(),
                per_tensor: false,
                other_tensors: None,
                tensors: vec![tensor],
            })
            .collect()
    }
}

/// Description of an optimizer, from which `build` makes it. See [`Optimizer`](crate::Optimizer) (device) and [`CpuOptimizer`](crate::CpuOptimizer).
#[derive(Debug, Clone)]
#[must_use = "an optimizer is made by build or build_cpu; the setters return the builder"]
pub struct OptimizerBuilder<T> {
    pub(crate) rule: Rule,
    /// Rule of tensors that are not matrices, for groups that do not set one.
    pub(crate) other_tensors: Option<Rule>,
    pub(crate) settings: Settings,
    pub(crate) global_norm: bool,
    pub(crate) safeguards: Safeguards,
    pub(crate) accumulation: Accumulation,
    pub(crate) record_steps: Option<u32>,
    pub(crate) rebindable: bool,
    /// True if no two tensors share a block, so that each tensor can be left out of a step.
    pub(crate) absent_gradients: bool,
    /// True if every pass of a step is a separate dispatch, even if the model is small.
    pub(crate) separate_passes: bool,
    /// Rank and number of ranks.
    pub(crate) shard: Option<(u32, u32)>,
    /// Slice on the device that holds the loss.
    pub(crate) loss: Option<T>,
    pub(crate) groups: Vec<Group<T>>,
}

/// Default number of steps that the record ring holds.
const DEFAULT_RECORD_STEPS: u32 = 1024;

/// Smallest number of steps that the ring holds. A step reads the record of the previous step.
const FEWEST_RECORD_STEPS: u64 = 2;

/// Name of the norm that [`OptimizerBuilder::global_norm`] gives to every group without another one.
const GLOBAL_SCOPE: &str = "global";

impl<T> OptimizerBuilder<T> {
    /// Returns a builder with this rule for every group that sets none, [`Regime::Seesaw`] and no clip. There is no weight decay, with these
    /// exceptions: [`AdamW`](crate::AdamW), [`AmsGrad`](crate::AmsGrad) and [`NAdamW`](crate::NAdamW) have a decoupled one of 0.01, and
    /// [`Muon`](crate::Muon) has one of 0.1.
    pub fn new(rule: Rule) -> Self {
        OptimizerBuilder {
            rule,
            other_tensors: None,
            settings: Settings::default(),
            global_norm: false,
            safeguards: Safeguards::default(),
            accumulation: Accumulation { micro_batches: 1, clears: false },
            record_steps: None,
            rebindable: false,
            absent_gradients: false,
            separate_passes: false,
            shard: None,
            loss: None,
            groups: Vec::new(),
        }
    }

    /// Sets the rule of tensors that are not matrices, in every group that sets none and whose rule needs matrices. See [`Group::other_tensors`].
    pub fn other_tensors(mut self, rule: Rule) -> Self {
        self.other_tensors = Some(rule);
        self
    }

    /// Sets the regime of every group that sets none.
    pub fn regime(mut self, regime: Regime) -> Self {
        self.settings.regime = Some(regime);
        self
    }

    /// Sets the coupled weight decay λ of every group that sets none. Replaces a decoupled one.
    pub fn weight_decay(mut self, lambda: f32) -> Self {
        self.settings.weight_decay = Some(WeightDecay::Coupled(lambda));
        self
    }

    /// Sets the decoupled weight decay λ of every group that sets none. Replaces a coupled one.
    pub fn decoupled_weight_decay(mut self, lambda: f32) -> Self {
        self.settings.weight_decay = Some(WeightDecay::Decoupled(lambda));
        self
    }

    /// Clips every group's gradient by its own norm, see [`Group::clip_norm`].
    pub fn clip_norm(mut self, max_norm: f32) -> Self {
        self.settings.clip_norm = Some(max_norm);
        self
    }

    /// Clips the gradients of all groups together to norm `C`: `g ← g min(1, C/‖all g‖)`, for any rules and norms of the groups. It corresponds to
    /// `torch.nn.utils.clip_grad_norm_` over all parameters, without its readback, and without the 1e-6 that PyTorch adds to the norm. The groups
    /// keep their own learning rates, unlike with [`OptimizerBuilder::global_norm`]. If a group also has its own clip, the smaller of the two factors
    /// applies.
    ///
    /// For sign rules and AdamW a shorter gradient does not make the step shorter. A clip then only evens out the gradients that enter the momentum.
    pub fn global_clip_norm(mut self, max_norm: f32) -> Self {
        self.safeguards.global_clip_norm = Some(max_norm);
        self
    }

    /// Maximizes instead of minimizing, in every group that does not set it.
    pub fn maximize(mut self, maximize: bool) -> Self {
        self.settings.maximize = Some(maximize);
        self
    }

    /// Sets the schedule of every group that sets none. The default is [`Schedule::Constant`].
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.settings.schedule = Some(schedule);
        self
    }

    /// Sets the average of every group that sets none. The default is [`Averaging::Off`].
    pub fn averaging(mut self, averaging: Averaging) -> Self {
        self.settings.averaging = Some(averaging);
        self
    }

    /// Trains every group that sets no average schedule-free. [`Averaging::ScheduleFree`] explains what the caller's buffers then hold.
    pub fn schedule_free(self) -> Self {
        self.averaging(Averaging::ScheduleFree)
    }

    /// Sets the trust ratio of every group that sets none, see [`TrustRatio`].
    pub fn trust_ratio(mut self, trust_ratio: TrustRatio) -> Self {
        self.settings.trust_ratio = Some(trust_ratio);
        self
    }

    /// Records the norm of the parameters and of the step, for every step and tensor ([`TensorRecord`](crate::TensorRecord)), in every group that
    /// does not set it. The default is off.
    ///
    /// It needs no additional memory traffic per parameter, because the update pass has both values already. It costs arithmetic, one small dispatch,
    /// a ring of 28 bytes per tensor and step, and one more block for every tensor that is next to another tensor in one buffer.
    pub fn telemetry(mut self, on: bool) -> Self {
        self.settings.telemetry = Some(on);
        self
    }

    /// Computes one norm over all groups that do not set another, see [`Group::share_norm`].
    pub fn global_norm(mut self) -> Self {
        self.global_norm = true;
        self
    }

    /// Sets the policy for steps with gradients that are not finite. The default is [`NonFinitePolicy::Skip`].
    pub fn nonfinite_policy(mut self, policy: NonFinitePolicy) -> Self {
        self.safeguards.nonfinite = policy;
        self
    }

    /// Keeps a dynamic loss scale on the device. The caller multiplies the loss by it and the step divides it out, see [`LossScaler`]. The loss that
    /// a regime uses must not be multiplied by it.
    pub fn loss_scaler(mut self, scaler: LossScaler) -> Self {
        self.safeguards.loss_scaler = Some(scaler);
        self
    }

    /// Sets the rounding of 16-bit parameters in every group that sets none. The default is [`Rounding::Masters`].
    pub fn rounding(mut self, rounding: Rounding) -> Self {
        self.settings.rounding = Some(rounding);
        self
    }

    /// Sets the storage of the rule's memory, and of remainders of master weights, in every group that sets none. The default is
    /// [`State::F32`].
    ///
    /// ```
    /// use wgpu_optim::half::bf16;
    /// use wgpu_optim::{Group, OptimizerBuilder, Rule, State};
    ///
    /// let (mut w, g) = (vec![bf16::ONE; 100], vec![bf16::from_f32(0.5); 100]);
    /// // 5.125 bytes per parameter: 2 of bf16, 1 of its remainder, 2.125 of m and v. The gradient has 2 more.
    /// let mut optimizer = OptimizerBuilder::new(Rule::adamw())
    ///     .state(State::Bits8)
    ///     .group(Group::new("all").tensor("w", &w, &g))
    ///     .build_cpu()?;
    /// optimizer.step(&mut [&mut w], &[&g])?;
    /// # Ok::<(), wgpu_optim::Error>(())
    /// ```
    pub fn state(mut self, state: State) -> Self {
        self.settings.state = Some(state);
        self
    }

    /// Sets the number of micro-batches whose gradients the caller adds up before each step. The step uses their mean, as if each loss had been
    /// divided by this number. It is at least 1, which is the default. [`Controls::micro_batches`](crate::Controls::micro_batches) changes it later,
    /// for example for the last step of an epoch.
    ///
    /// The division is part of a factor that every gradient is multiplied by anyway, so that it costs no memory traffic.
    pub fn micro_batches(mut self, micro_batches: u32) -> Self {
        self.accumulation.micro_batches = micro_batches;
        self
    }

    /// Sets the gradients to zero after each step, so that the next ones can be added up in place (PyTorch's `zero_grad`). The last pass that reads
    /// them does it, so that there is no further pass over memory. Skipped steps do it too.
    ///
    /// This is for the device only. On the CPU path a step borrows the gradients, and the caller clears them.
    pub fn clear_gradients(mut self) -> Self {
        self.accumulation.clears = true;
        self
    }

    /// Sets the number of steps that the record ring holds before the oldest are overwritten. It is at least 1, and a ring of 1 step holds 2. The
    /// default is 1024, or fewer if there are so many groups that the device could not bind the ring.
    pub fn record_steps(mut self, steps: u32) -> Self {
        self.record_steps = Some(steps);
        self
    }

    /// Allows parameters and gradients to move to other places between steps, see [`Optimizer::rebind`](crate::Optimizer::rebind). It is meant for
    /// buffers that belong to the allocator of a framework. The CPU path does not need it, because every step is given the slices.
    ///
    /// A step has two dispatches for all tensors whose parameters lie in one buffer and whose gradients lie in one buffer, and two more if the
    /// lengths of some are not multiples of 4. Tensors that a rule processes as a whole ([`Muon`](crate::Muon), [`Adafactor`](crate::Adafactor)), and
    /// those with [`rate_factors`](crate::Group::rate_factors) or [`lazy_rows`](crate::Group::lazy_rows), have separate dispatches. A step in one
    /// dispatch is not possible. Every tensor must start at a multiple of
    /// [`min_storage_buffer_offset_alignment`](wgpu::Limits::min_storage_buffer_offset_alignment) in both buffers.
    pub fn rebindable(mut self) -> Self {
        self.rebindable = true;
        self
    }

    /// Allows every tensor to be without gradients in some steps, see [`Optimizer::encode_step_without`](crate::Optimizer::encode_step_without).
    /// Without this call it is allowed for whole groups, and for tensors that are not next to another tensor of their group in both buffers.
    ///
    /// It costs one more block for every tensor that is next to another one. The CPU path does not need this call.
    pub fn absent_gradients(mut self) -> Self {
        self.absent_gradients = true;
        self
    }

    /// Makes every pass of a step a separate dispatch on the device, even if the model is small. This is for tests and for measurements of the
    /// passes.
    #[doc(hidden)]
    pub fn separate_passes(mut self) -> Self {
        self.separate_passes = true;
        self
    }

    /// Skips or clips steps whose gradient norm is far above the previous ones, see [`NormOutliers`]. The default is neither.
    pub fn norm_outliers(mut self, outliers: NormOutliers) -> Self {
        self.safeguards.norm_outliers = Some(outliers);
        self
    }

    /// Makes this optimizer rank `rank` of `ranks` that share one optimization. Each rank owns a shard of every tensor, or some of the tensors. All
    /// ranks declare the same groups, each with the tensors that the rank owns, which may be none.
    ///
    /// A step is measured, combined and applied, see [`ShardSums`](crate::ShardSums). The learning rate, the record, skips, halts and the
    /// loss scale are the same on all ranks.
    ///
    /// [`TrustRatio`] and telemetry are refused, because they would need further sums.
    pub fn sharded(mut self, rank: u32, ranks: u32) -> Self {
        self.shard = Some((rank, ranks));
        self
    }

    /// Adds a group.
    pub fn group(mut self, group: Group<T>) -> Self {
        self.groups.push(group);
        self
    }

    /// Returns a warning for every group whose rule and regime are known to fail together, with what to use instead. `build` also writes the warnings
    /// to the log.
    ///
    /// ```
    /// use wgpu_optim::{Group, OptimizerBuilder, Regime, Rule};
    ///
    /// let (weights, gradients) = ([0.0f32; 8], [0.0f32; 8]);
    /// let builder = OptimizerBuilder::new(Rule::sgdm(0.9))
    ///     .regime(Regime::dog())
    ///     .group(Group::new("all").tensor("w", &weights[..], &gradients[..]));
    /// for warning in builder.warnings() {
    ///     eprintln!("{warning}"); // group "all": regime dog is known to fail with rule sgdm, …: use rule sgd, …
    /// }
    /// # assert_eq!(builder.warnings().len(), 1);
    /// ```
    pub fn warnings(&self) -> Vec<Warning> {
        let all = &self.settings;
        let of = |group: &Group<T>| {
            let regime = group.settings.regime.or(all.regime).unwrap_or_default();
            let rule = group.rule.unwrap_or(self.rule);
            let has_others = rule.needs_matrices() && group.tensors.iter().any(|tensor| tensor.shape.len() < 2);
            let others = group.other_tensors.or(self.other_tensors).filter(|_| has_others);
            let of_others = others.map(|rule| Warning::of(&group.others_name(), rule, regime));
            Warning::of(&group.name, rule, regime)
                .into_iter()
                .chain(of_others.into_iter().flatten())
                .collect::<Vec<_>>()
        };
        self.groups.iter().flat_map(of).collect()
    }

    /// Returns the number of steps for a ring of at most `ring_bytes` bytes.
    pub(crate) fn record_steps_for(&self, ring_bytes: u64) -> Result<u32, Error> {
        let groups: usize = self.groups.iter().map(Group::rates).sum();
        let has_telemetry = |group: &&Group<T>| group.settings.telemetry.or(self.settings.telemetry).unwrap_or(false);
        let tensors: usize = self.groups.iter().filter(has_telemetry).map(|group| group.tensors.len()).sum();
        let of_groups = ring_bytes / (groups.max(1) * size_of::<RawRecord>()) as u64;
        let of_tensors = ring_bytes / (tensors.max(1) * size_of::<RawTensorRecord>()) as u64;
        let most = of_groups.min(of_tensors);
        match self.record_steps {
            None => Ok(u64::from(DEFAULT_RECORD_STEPS).min(most).max(FEWEST_RECORD_STEPS) as u32),
            Some(steps) if u64::from(steps) <= most => Ok(steps.max(FEWEST_RECORD_STEPS as u32)),
            Some(steps) => Err(Error::from(BuildError::Limit {
                what: "the number of steps in the record ring".to_owned(),
                value: u64::from(steps),
                limit: most,
                way_out: "ask for fewer steps with OptimizerBuilder::record_steps, or for telemetry of fewer groups",
            })),
        }
    }

    /// Fills in every default and validates all settings.
    pub(crate) fn resolve(self) -> Result<Vec<ResolvedGroup<[T; 2]>>, Error> {
        if self.groups.is_empty() {
            return Err(Error::from(BuildError::NoGroups));
        }
        if let Some(steps) = self.record_steps {
            require(steps >= 1, || "optimizer".to_owned(), "record_steps", steps, "at least 1")?;
        }
        self.safeguards.validate()?;
        let micro_batches = self.accumulation.micro_batches;
        require(micro_batches >= 1, || "optimizer".to_owned(), "micro_batches", micro_batches, "at least 1")?;
        if let Some((rank, ranks)) = self.shard {
            Shard::validate(rank, ranks)?;
        }
        let warnings = self.warnings();
        let mut group_names = HashSet::new();
        let mut tensor_names = HashSet::new();
        let mut resolved = Vec::with_capacity(self.groups.len());
        let mut groups = Vec::with_capacity(self.groups.len());
        for group in self.groups {
            groups.extend(group.by_rule(self.rule, self.other_tensors)?.into_iter().flat_map(Group::by_rate));
        }
        for group in groups {
            if !group_names.insert(group.name.clone()) {
                return Err(Error::from(BuildError::DuplicateName { what: "group", name: group.name }));
            }
            for NamedTensor { name, .. } in &group.tensors {
                if !tensor_names.insert(name.clone()) {
                    return Err(Error::from(BuildError::DuplicateName { what: "tensor", name: name.clone() }));
                }
            }
            let own = group.settings;
            let all = &self.settings;
            require(
                !self.global_norm || group.shared_norm.as_deref() != Some(GLOBAL_SCOPE),
                || format!("group \"{}\"", group.name),
                "share_norm",
                format!("\"{GLOBAL_SCOPE}\""),
                "another name beside global_norm, whose norm is called so (or left out)",
            )?;
            let scope = match (group.shared_norm, self.global_norm) {
                (Some(scope), _) => Some(scope),
                (None, true) => Some(GLOBAL_SCOPE.to_owned()),
                (None, false) => None,
            };
            let rule = group.rule.unwrap_or(self.rule);
            let config = GroupConfig {
                name: group.name,
                rule,
                regime: own.regime.or(all.regime).unwrap_or_default(),
                weight_decay: own.weight_decay.or(all.weight_decay).unwrap_or_else(|| rule.default_weight_decay()),
                clip_norm: own.clip_norm.or(all.clip_norm).unwrap_or(f32::INFINITY),
                maximize: own.maximize.or(all.maximize).unwrap_or(false),
                schedule: own.schedule.or_else(|| all.schedule.clone()).unwrap_or_default(),
                averaging: own.averaging.or(all.averaging).unwrap_or_default(),
                trust_ratio: own.trust_ratio.or(all.trust_ratio),
                rate_factors: own.rate_factors,
                lazy_rows: own.lazy_rows,
                telemetry: own.telemetry.or(all.telemetry).unwrap_or(false),
                rounding: own.rounding.or(all.rounding).unwrap_or_default(),
                state: own.state.or(all.state).unwrap_or_default(),
                scope,
            };
            config.validate()?;
            require(
                !(self.safeguards.norm_outliers.is_some() && config.regime.needs_streams()),
                || format!("group \"{}\"", config.name),
                "norm_outliers",
                "on",
                "off with regime auto-sgd, whose streams take turns in the parameters",
            )?;
            require(
                config.trust_ratio.is_none() || config.scope.is_none(),
                || format!("group \"{}\"", config.name),
                "trust_ratio",
                "a ratio to a norm that is shared",
                "used with a norm of the group's own (leave share_norm and global_norm out)",
            )?;
            require(
                self.shard.is_none() || !config.measures_step(),
                || format!("group \"{}\"", config.name),
                if config.telemetry { "telemetry" } else { "trust_ratio" },
                "on",
                "off with OptimizerBuilder::sharded, whose ranks do not hear the norm of the others' parameters",
            )?;
            require(
                self.shard.is_none() || !config.rule.owns_passes(),
                || format!("group \"{}\"", config.name),
                "rule",
                config.rule.name(),
                "a rule that works element by element with OptimizerBuilder::sharded, whose ranks do not hear of the others' parts of a tensor",
            )?;
            if let Some(ResolvedGroup { config: first, .. }) = resolved.first() {
                config.check_beside(first)?;
            }
            resolved.push(ResolvedGroup { config, tensors: group.tensors });
        }
        // The warnings are written only if all settings are valid, because an error says more than a warning.
        for warning in warnings {
            log::warn!(target: Warning::LOG_TARGET, "{warning}");
        }
        Ok(resolved)
    }
}
