//! Settings of a group that may change between steps.

use crate::error::{CallError, Error, require};
use crate::group::GroupConfig;
use crate::layout::numbers::{RATE_MAX, RATE_MIN};
use crate::layout::{GroupConstants, GroupControls, group_flags};
use crate::plan::Plan;
use crate::rule::WeightDecay;

/// Settings of a group that may change from step to step, set with [`Optimizer::control`](crate::Optimizer::control) or
/// [`CpuOptimizer::control`](crate::CpuOptimizer::control). A checkpoint contains them.
///
/// All ranks of a [`sharded`](crate::OptimizerBuilder::sharded) optimizer must have the same controls.
///
/// | PyTorch | here |
/// |---|---|
/// | `group["lr"] *= x`, `LambdaLR` | `learning_rate_factor` |
/// | `group["weight_decay"] = x` | `weight_decay` |
/// | `clip_grad_norm_(parameters, x)` | `clip_norm` |
/// | `requires_grad_(False)` | `frozen` |
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Controls {
    /// Factor of the learning rate: 0, or from 1e-30 to 1e30. The default is 1. With
    /// [`Regime::fixed`](crate::Regime::fixed) of 1 it is the learning rate itself. In the record,
    /// [`Term::Control`](crate::Term::Control) is the change of its ln.
    ///
    /// With 0 the gradient does not move the parameters. Momentum, averages and the regime's state are still updated,
    /// as in PyTorch.
    ///
    /// Regimes that measure the alignment of successive steps, such as [`Seesaw`](crate::Seesaw), notice the longer or
    /// shorter steps and gradually counteract the factor.
    pub learning_rate_factor: f32,
    /// Weight decay λ, finite and at least 0. It is coupled if the group was built with a coupled decay above 0, else
    /// decoupled.
    pub weight_decay: f32,
    /// Largest gradient norm, as in [`Group::clip_norm`](crate::Group::clip_norm). `f32::INFINITY` disables the clip.
    /// In two cases the clip can change only if the group was built with a clip: if the group has coupled decay,
    /// because the clip then needs a separate norm, and if the group is not measured
    /// ([`NonFinitePolicy::Unchecked`](crate::NonFinitePolicy::Unchecked)).
    pub clip_norm: f32,
    /// True to freeze the group. Its gradients are not read, do not enter a shared norm and may have any value. Nothing
    /// of the group is written: parameters, momentum, averages and the regime's memory keep their bits. The schedule
    /// advances. If the group shares a norm, its rate follows the norm of the other groups.
    pub frozen: bool,
    /// Number of micro-batches whose gradients are summed for the next steps, at least 1. The last step of an epoch
    /// often has fewer.
    pub micro_batches: u32,
}

impl Controls {
    /// Returns the controls that the host set last for a group.
    pub(crate) fn of(constants: &GroupConstants) -> Self {
        let words = &constants.controls;
        Controls {
            learning_rate_factor: words.learning_rate_factor,
            weight_decay: words.weight_decay,
            clip_norm: if words.clip_norm < f32::MAX { words.clip_norm } else { f32::INFINITY },
            frozen: words.frozen != 0,
            micro_batches: words.gradient_factor.abs().recip().round() as u32,
        }
    }

    fn words(self, constants: &GroupConstants) -> GroupControls {
        GroupControls {
            learning_rate_factor: self.learning_rate_factor,
            gradient_factor: constants.sign / self.micro_batches as f32,
            weight_decay: self.weight_decay,
            clip_norm: self.clip_norm.min(f32::MAX),
            frozen: self.frozen.into(),
            present: constants.controls.present,
        }
    }

    fn validate(&self, config: &GroupConfig, constants: &GroupConstants) -> Result<(), Error> {
        let owner = || format!("group \"{}\"", config.name);
        let factor = self.learning_rate_factor;
        require(
            factor == 0.0 || (RATE_MIN..=RATE_MAX).contains(&factor),
            owner,
            "learning_rate_factor",
            factor,
            "0, or between 1e-30 and 1e30",
        )?;
        WeightDecay::check(self.weight_decay, owner)?;
        GroupConfig::check_clip(self.clip_norm, owner)?;
        let has_clip_norm =
            constants.flags & (group_flags::RAW_NORM_CLIP | group_flags::COUPLES_DECAY) != group_flags::COUPLES_DECAY;
        require(
            has_clip_norm || self.clip_norm == f32::INFINITY,
            owner,
            "clip_norm",
            self.clip_norm,
            "infinite in a group with coupled weight decay that was built without a clip: build it with a clip, however large",
        )?;
        require(
            constants.flags & group_flags::NOT_MEASURED == 0 || self.clip_norm == f32::INFINITY,
            owner,
            "clip_norm",
            self.clip_norm,
            "infinite in a group that is not measured (NonFinitePolicy::Unchecked): build it with a clip, however large",
        )?;
        require(
            !(self.frozen && config.regime.needs_streams()),
            owner,
            "frozen",
            self.frozen,
            "false with regime auto-sgd, whose streams take turns in the parameters",
        )?;
        require(self.micro_batches >= 1, owner, "micro_batches", self.micro_batches, "at least 1")
    }
}

impl Plan {
    /// Returns the groups that a name stands for: the group of this name, or the groups that
    /// [`Group::per_tensor`](crate::Group::per_tensor) made from it.
    fn groups_named(&self, name: &str) -> Result<Vec<usize>, Error> {
        let of = |is_it: &dyn Fn(&str) -> bool| -> Vec<usize> {
            let groups = self.configs.iter().enumerate();
            groups.filter(|(_, config)| is_it(&config.name)).map(|(index, _)| index).collect()
        };
        let exact = of(&|other| other == name);
        let found = if exact.is_empty() {
            of(&|other| other.strip_prefix(name).is_some_and(|rest| rest.starts_with('/')))
        } else {
            exact
        };
        if found.is_empty() {
            let names: Vec<String> = self.configs.iter().map(|config| format!("\"{}\"", config.name)).collect();
            return Err(Error::from(CallError::UnknownGroup { name: name.to_owned(), groups: names.join(", ") }));
        }
        Ok(found)
    }

    /// Returns the controls that the host set last for a group.
    pub(crate) fn controls(&self, group: &str) -> Result<Controls, Error> {
        Ok(Controls::of(&self.groups[self.groups_named(group)?[0]]))
    }

    /// Changes the controls of a group, or of all groups if none is named. Calls `write` with every group whose
    /// controls changed and with its old controls. If any change is refused, nothing changes.
    pub(crate) fn control(
        &mut self,
        group: Option<&str>,
        mut change: impl FnMut(&mut Controls),
        mut write: impl FnMut(usize, &GroupControls, &GroupControls),
    ) -> Result<(), Error> {
        let groups = match group {
            Some(name) => self.groups_named(name)?,
            None => (0..self.groups.len()).collect(),
        };
        let mut changed = Vec::with_capacity(groups.len());
        for group in groups {
            let constants = &self.groups[group];
            let mut controls = Controls::of(constants);
            change(&mut controls);
            controls.validate(&self.configs[group], constants)?;
            changed.push((group, controls.words(constants)));
        }
        for (group, words) in changed {
            let before = std::mem::replace(&mut self.groups[group].controls, words);
            if before != words {
                write(group, &before, &words);
            }
        }
        Ok(())
    }

    /// Marks the tensors that a step leaves out.
    pub(crate) fn mark_absent(&self, tensors: &[usize], absent: &mut [bool]) -> Result<(), Error> {
        absent.fill(false);
        for &tensor in tensors {
            let Some(mark) = absent.get_mut(tensor) else {
                return Err(Error::from(CallError::UnknownTensor { index: tensor, tensors: self.tensors.len() }));
            };
            *mark = true;
            if self.configs[self.tensors[tensor].group].regime.needs_streams() {
                return Err(Error::from(CallError::NotAlone {
                    tensor: self.tensors[tensor].name.clone(),
                    way_out: "the streams of regime auto-sgd take turns in the parameters: use another regime",
                }));
            }
        }
        Ok(())
    }

    /// Returns true if all tensors of a group except empty ones are marked, and at least one is.
    pub(crate) fn is_absent(&self, group: usize, absent: &[bool]) -> bool {
        // Tensors are in the order of their groups.
        let first = self.tensors.partition_point(|tensor| tensor.group < group);
        let of_group = self.tensors[first..].iter().take_while(|tensor| tensor.group == group);
        let mut of_group = of_group.zip(&absent[first..]);
        of_group.clone().any(|(_, absent)| *absent) && of_group.all(|(tensor, absent)| *absent || tensor.elements == 0)
    }
}
