//! Optimizers without gradients (zeroth order): their description, and the plan from which both paths are built.

pub(crate) mod method;
pub(crate) mod record;
pub(crate) mod tables;

use crate::element::{Element, Rounding};
use crate::error::{CallError, Error, require};
use crate::group::{Group, NamedTensor, OptimizerBuilder, ResolvedGroup, TensorSlice};
use crate::layout::group_flags;
use crate::plan::{Geometry, Place, Plan};
use crate::regime::Regime;
use crate::rule::{Rule, WeightDecay};
use method::ZerothOrderMethod;
use tables::Tables;

/// Description of an optimizer that needs no gradients, for models whose backward pass does not fit into memory or does
/// not exist.
///
/// Each step draws a random direction `z` from the seed, asks the caller for the loss at `w + εz` and at `w - εz`, and
/// moves along `z`:
///
/// ```text
/// c = (ℓ₊ - ℓ₋) / (2ε)
/// w ← w - η (c z + λ w)
/// ```
///
/// [`ZerothOrderMethod`] says how `z` is drawn. `c` is the slope of the loss along `z`, so that `c z` is on average the
/// gradient (MeZO), or the gradient times the rank (LOZO). A single `c z` is a noisy gradient: about d times as much
/// noise as signal for d parameters. The methods are meant for fine-tuning, where few directions matter, and need many
/// steps elsewhere.
///
/// There is no gradient buffer, and no memory in proportion to the parameters: `z` is made again from the seed whenever
/// it is needed. A step moves 24 bytes for each parameter: three passes read and write `w` in place, and restoring it
/// is part of the third. LOZO keeps its factors beside that, `4 r (m + n)` bytes for a matrix of m rows and n columns,
/// and LOZO-M `4 r m` more and 8 for each element of a vector.
///
/// The parameters are f32. They return to `w` only up to rounding, about half a unit in the last place of each element
/// in each pass.
///
/// ```
/// use wgpu_optim::{Regime, ZerothOrderBuilder, ZerothOrderMethod};
///
/// // Minimise the mean of (w - 1)² without its gradient.
/// let loss = |w: &[f32]| w.iter().map(|w| (w - 1.0).powi(2)).sum::<f32>() / w.len() as f32;
/// let mut w = vec![3.0f32; 20];
/// let mut optimizer = ZerothOrderBuilder::new(ZerothOrderMethod::mezo(), Regime::fixed(0.2))
///     .seed(7)
///     .tensor("w", &w)
///     .build_cpu()?;
/// for _ in 0..1000 {
///     optimizer.perturb(&mut [&mut w])?; // w + εz
///     let above = loss(&w);
///     optimizer.reverse(&mut [&mut w], above)?; // w - εz
///     let below = loss(&w);
///     optimizer.step(&mut [&mut w], below)?; // w - ηcz
/// }
/// assert!(loss(&w) < 1e-3);
/// println!("{}", optimizer.drain_records().records[9]);
/// # Ok::<(), wgpu_optim::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "an optimizer is made by build or build_cpu; the setters return the builder"]
pub struct ZerothOrderBuilder<T> {
    method: ZerothOrderMethod,
    regime: Regime,
    epsilon: f32,
    seed: u32,
    weight_decay: f32,
    tensors: Vec<NamedTensor<T>>,
}

impl<T> ZerothOrderBuilder<T> {
    /// Returns a description without tensors. The regime is [`Regime::fixed`], as in both papers, or a
    /// [`NormRatio`](crate::NormRatio).
    ///
    /// The latter is this project's own addition. It follows the norm `n = |c| √E‖z‖²`, which estimates the length of
    /// `c z`: `E‖z‖²` is the number of parameters for MeZO, and `Σ r m n` over the matrices plus the lengths of the
    /// vectors for LOZO. One step of rate η is then as long on average as a gradient step of the same rate and norm.
    pub fn new(method: ZerothOrderMethod, regime: Regime) -> Self {
        ZerothOrderBuilder { method, regime, epsilon: 1e-3, seed: 0, weight_decay: 0.0, tensors: Vec::new() }
    }

    /// Sets ε, the distance of both losses from the parameters in units of `z`. The default is 1e-3, as in both papers.
    ///
    /// Too small a value loses the difference of the losses in the rounding of f32, and with it c. Too large a value
    /// measures the slope of another place.
    pub fn epsilon(mut self, epsilon: f32) -> Self {
        self.epsilon = epsilon;
        self
    }

    /// Sets the seed of all directions. The default is 0. The same seed, tensors and losses give the same bits on one
    /// adapter.
    pub fn seed(mut self, seed: u32) -> Self {
        self.seed = seed;
        self
    }

    /// Sets the weight decay λ, `w ← w - η λ w`. The default is 0. It does not apply to tensors of one dimension,
    /// because the authors' codes exclude biases and the gains of normalisation layers by their names. A tensor without
    /// a shape is decayed by MeZO but not by LOZO, which treats it as a vector.
    pub fn weight_decay(mut self, lambda: f32) -> Self {
        self.weight_decay = lambda;
        self
    }

    /// Adds a tensor without a shape: its parameters, in f32. The length may be 0. LOZO treats the tensor as a vector.
    ///
    /// On the device `params` is a [`wgpu::BufferSlice`]. On the CPU it is a slice, vector or array, of which only the
    /// length is kept.
    pub fn tensor<P: TensorSlice<Tensor = T>>(self, name: impl Into<String>, params: P) -> Self {
        self.shaped_tensor(name, &[], params)
    }

    /// Adds a tensor with the lengths of its dimensions, outermost first, as [`Group::shaped_tensor`] does. LOZO uses
    /// the first dimension as the rows of a matrix and the product of the others as its columns. A tensor of one
    /// dimension is a vector.
    pub fn shaped_tensor<P: TensorSlice<Tensor = T>>(
        mut self,
        name: impl Into<String>,
        shape: &[usize],
        params: P,
    ) -> Self {
        self.tensors.push(NamedTensor { name: name.into(), shape: shape.to_vec(), tensor: params.tensor() });
        self
    }

    /// Checks the settings and plans the tensors. `place` checks a tensor by itself and returns its place. It is called
    /// in the order of declaration.
    pub(crate) fn plan(
        self,
        geometry: &Geometry,
        mut place: impl FnMut(&str, T) -> Result<Place, Error>,
    ) -> Result<Planned, Error> {
        let owner = || format!("zeroth-order optimizer ({})", self.method.name());
        self.method.validate()?;
        require(
            matches!(self.regime, Regime::Fixed(_) | Regime::NormRatio(_)),
            owner,
            "regime",
            self.regime.name(),
            "fixed or norm-ratio, which need nothing but the slope: use Regime::fixed(rate) or Regime::norm_ratio()",
        )?;
        require(
            (1e-20..=1e6).contains(&self.epsilon),
            owner,
            "epsilon",
            self.epsilon,
            "between 1e-20 and 1e6 (1e-3 is usual)",
        )?;
        WeightDecay::check(self.weight_decay, owner)?;
        let mut group = Group::new("parameters");
        for NamedTensor { name, shape, tensor } in self.tensors {
            let place = place(&name, tensor)?;
            require(
                place.params == Element::F32,
                || format!("tensor \"{name}\""),
                "element",
                place.params.name(),
                "f32 in a zeroth-order optimizer, which perturbs the parameters in place: 16 bits would round the perturbation away",
            )?;
            group.tensors.push(NamedTensor { name, shape, tensor: [place; 2] });
        }
        let is_dense = self.method.low_rank().is_none();
        require(
            is_dense || group.tensors.is_empty() || group.tensors.iter().any(|tensor| tensor.shape.len() >= 2),
            owner,
            "tensors",
            "without a matrix",
            "with a matrix at least, since vectors are perturbed as by MeZO: give shapes of two or more dimensions with shaped_tensor, or use ZerothOrderMethod::mezo()",
        )?;
        // Names, shapes and the constants of pass 3 are those of an optimizer along the gradient. Pass 3 is given n in
        // place of its norm.
        let builder = OptimizerBuilder::new(Rule::sgd())
            .regime(self.regime)
            .decoupled_weight_decay(self.weight_decay)
            .rounding(Rounding::Stochastic { seed: self.seed })
            .group(group);
        let record_steps = builder.record_steps_for(4 * geometry.binding_elements.min(u64::from(u32::MAX)))?;
        let (safeguards, accumulation) = (builder.safeguards, builder.accumulation);
        let resolved = builder.resolve()?.into_iter().map(|ResolvedGroup { config, tensors }| {
            let tensors = tensors.into_iter().map(|named| {
                let place = named.tensor[0];
                named.with(place)
            });
            ResolvedGroup { config, tensors: tensors.collect() }
        });
        let mut plan = Plan::new(resolved.collect(), safeguards, accumulation, geometry)?;
        for group in &mut plan.groups {
            group.flags &= !group_flags::NOT_MEASURED;
        }
        let tables = Tables::new(&self.method, &plan.tensors, self.epsilon, self.seed)?;
        Ok(Planned { needs_initial_norm: self.regime.needs_initial_norm(), plan, tables, record_steps })
    }
}

/// Plan and tables from which both paths are built.
pub(crate) struct Planned {
    pub(crate) plan: Plan,
    pub(crate) tables: Tables,
    pub(crate) record_steps: u32,
    /// True if ‖w₀‖ sets the first rate.
    pub(crate) needs_initial_norm: bool,
}

/// Stage of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The parameters are w.
    Ready,
    /// The parameters are w + εz.
    Perturbed,
    /// The parameters are w - εz.
    Reversed,
}

impl Stage {
    /// Advances to the next stage. Returns an error unless `call` leads to it.
    pub(crate) fn go_on(&mut self, call: &'static str, calls: [&'static str; 3]) -> Result<(), Error> {
        let way_out = match self {
            Stage::Ready => "a step begins with perturb, which is followed by reverse and by step",
            Stage::Perturbed => "perturb was the last call: reverse comes next, after the forward pass",
            Stage::Reversed => "reverse was the last call: step comes next, after the second forward pass",
        };
        if calls[*self as usize] != call {
            return Err(Error::from(CallError::OutOfTurn { call, way_out }));
        }
        *self = match self {
            Stage::Ready => Stage::Perturbed,
            Stage::Perturbed => Stage::Reversed,
            Stage::Reversed => Stage::Ready,
        };
        Ok(())
    }
}
