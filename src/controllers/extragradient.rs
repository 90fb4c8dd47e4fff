//! Extragradient on the host, and what both paths check. The device's kernel is
//! `shaders/controllers/extragradient.wgsl`.

use super::element_pairs::{check_elements, slices, slices_mut};
use crate::averaging::Averaging;
use crate::cpu::optimizer::CpuOptimizer;
use crate::cpu::values::{Values, ValuesMut};
use crate::error::{CallError, Error, require};
use crate::plan::Plan;
use crate::rule::Rule;

/// Returns an error for an optimizer whose step is not a rate times the gradient.
pub(crate) fn check_optimizer(plan: &Plan) -> Result<(), Error> {
    check_elements(plan, "extragradient")?;
    for config in &plan.configs {
        let owner = || format!("extragradient for group \"{}\"", config.name);
        let rule = config.rule.name();
        require(
            matches!(config.rule, Rule::Sgd(_)),
            owner,
            "rule",
            rule,
            "sgd, whose step follows the gradient alone",
        )?;
        let regime = config.regime.name();
        let streams = "one without streams of parameters, which take turns in the buffer";
        require(!config.regime.needs_streams(), owner, "regime", regime, streams)?;
        let averaging = config.averaging.name();
        let free = "other than schedule-free, whose parameters are no iterates";
        require(config.averaging != Averaging::ScheduleFree, owner, "averaging", averaging, free)?;
        require(config.rate_factors.is_none(), owner, "rate_factors", "set", "left out: there is one rate per group")?;
    }
    let owner = || "extragradient".to_owned();
    let scaler = plan.safeguards.loss_scaler;
    require(scaler.is_none(), owner, "loss_scaler", "set", "left out: gradients are taken as they are")
}

/// Returns an error for a call that is out of turn.
pub(crate) fn check_turn(is_ahead: bool, should_be: bool, call: &'static str) -> Result<(), Error> {
    if is_ahead == should_be {
        return Ok(());
    }
    let (problem, way_out) = if should_be {
        ("was called without a look-ahead", "look ahead, compute the gradient there, and then go back")
    } else {
        ("was called twice without going back", "go back to the kept parameters first")
    };
    Err(Error::from(CallError::Controller { call, problem: problem.to_owned(), way_out: way_out.to_owned() }))
}

/// Extragradient on the host (Korpelevich 1976): a step with the gradient of a point ahead, for games and other
/// problems with groups that [`maximize`](crate::Group::maximize), where plain simultaneous steps circle or spiral out.
///
/// ```text
/// w̄ = w - η g(w)         look_ahead
/// w ← w - η g(w̄)         go_back, then the optimizer's step with the gradient at w̄
/// ```
///
/// **A look-ahead changes nothing of the optimizer.** It uses the rate η that the optimizer used last, or its first
/// rate, and not the optimizer's step: no step is counted, schedules and bias corrections do not advance, and momentum,
/// averages, the regime's state and the records do not change. With [`Regime::fixed`](crate::Regime::fixed) both halves
/// have the same rate, and the arithmetic is exactly that of the definition. With a regime that finds its rate, η of
/// the look-ahead is one step old, and 0 before the first step: this is the project's own choice. Weight decay and
/// clips apply to the step alone. Frozen groups do not move. Every tensor has a gradient in both halves: with
/// [`step_without`](CpuOptimizer::step_without), fill the gradients of the tensors that are left out with 0. A gradient
/// that is not finite leaves no trace, since the gradient ahead is not finite either: the parameters are restored, and
/// the optimizer skips the step.
///
/// It keeps 4 bytes per parameter. A step costs two gradients, usually of the same batch.
///
/// ```
/// use wgpu_optim::{CpuExtragradient, Group, OptimizerBuilder, Regime, Rule};
///
/// // min over x, max over y of x y.
/// let (mut x, mut y) = ([1.0f32], [1.0f32]);
/// let mut optimizer = OptimizerBuilder::new(Rule::sgd())
///     .regime(Regime::fixed(0.3))
///     .group(Group::new("x").tensor("x", &x, &x))
///     .group(Group::new("y").maximize(true).tensor("y", &y, &y))
///     .build_cpu()?;
/// let mut extragradient = CpuExtragradient::new(&optimizer)?;
/// for _ in 0..200 {
///     let gradients = [y, x];
///     extragradient.look_ahead(&optimizer, &mut [&mut x, &mut y], &gradients)?;
///     let gradients = [y, x];
///     extragradient.go_back(&mut [&mut x, &mut y])?;
///     optimizer.step(&mut [&mut x, &mut y], &gradients)?;
/// }
/// assert!(x[0].abs() < 1e-3 && y[0].abs() < 1e-3);
/// # Ok::<(), wgpu_optim::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct CpuExtragradient {
    plan: Plan,
    /// Parameters of each tensor before the look-ahead.
    kept: Vec<Vec<f32>>,
    is_ahead: bool,
}

impl CpuExtragradient {
    /// Creates an extragradient for the tensors of an optimizer.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Build`](crate::ErrorKind::Build) for an optimizer with a rule other than [`Rule::sgd`],
    /// 16-bit elements, [`AutoSgd`](crate::AutoSgd), schedule-free training, rate factors or a loss scaler.
    pub fn new(optimizer: &CpuOptimizer) -> Result<Self, Error> {
        let plan = &optimizer.plan;
        check_optimizer(plan)?;
        let kept = plan.tensors.iter().map(|tensor| vec![0.0; tensor.elements as usize]).collect();
        Ok(CpuExtragradient { plan: plan.clone(), kept, is_ahead: false })
    }

    /// Keeps the parameters and moves them by -η g. The optimizer must be the one that it was created for.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) for slices that are not those of the optimizer's tensors,
    /// and after a look-ahead without [`CpuExtragradient::go_back`].
    pub fn look_ahead(
        &mut self,
        optimizer: &CpuOptimizer,
        params: &mut [impl ValuesMut],
        grads: &[impl Values],
    ) -> Result<(), Error> {
        check_turn(self.is_ahead, false, "CpuExtragradient::look_ahead")?;
        if optimizer.plan.tensors != self.plan.tensors || optimizer.plan.groups.len() != self.plan.groups.len() {
            return Err(Error::from(CallError::Controller {
                call: "CpuExtragradient::look_ahead",
                problem: "was given an optimizer with other tensors".to_owned(),
                way_out: "give it the optimizer that it was created for".to_owned(),
            }));
        }
        let grads = slices(&self.plan, "gradient", grads)?;
        let params = slices_mut(&self.plan, "parameter", params)?;
        for (tensor, (params, grads)) in params.into_iter().zip(grads).enumerate() {
            self.kept[tensor].copy_from_slice(params);
            let group = self.plan.tensors[tensor].group;
            let controls = &optimizer.plan.groups[group].controls;
            if controls.frozen == 0 {
                let step = optimizer.learning_rates()[group] * controls.gradient_factor;
                params.iter_mut().zip(grads).for_each(|(w, g)| *w -= step * g);
            }
        }
        self.is_ahead = true;
        Ok(())
    }

    /// Restores the parameters, bit for bit. The optimizer's step follows, with the gradient that was computed ahead.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) for slices that are not those of the optimizer's tensors,
    /// and without a look-ahead.
    pub fn go_back(&mut self, params: &mut [impl ValuesMut]) -> Result<(), Error> {
        check_turn(self.is_ahead, true, "CpuExtragradient::go_back")?;
        for (params, kept) in slices_mut(&self.plan, "parameter", params)?.into_iter().zip(&self.kept) {
            params.copy_from_slice(kept);
        }
        self.is_ahead = false;
        Ok(())
    }
}
