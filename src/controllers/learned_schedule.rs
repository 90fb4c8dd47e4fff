//! Learned schedules: the policy, and its twin on the host. The device's kernel is
//! `shaders/controllers/learned_schedule.wgsl`.

use crate::cpu::optimizer::CpuOptimizer;
use crate::error::{BuildError, Error, require};
use crate::layout::numbers::{RATE_MAX, RATE_MIN};
use crate::layout::{Scaled, shared_structs};
use crate::scaled::{LN_2_HIGH, LN_2_LOW, power_of_two};

pub(crate) mod numbers {
    crate::layout::shared_constants! { ""
        /// Largest number of units of the cell and of each hidden layer.
        pub const POLICY_UNITS: u32 = 256;
        /// Units of both hidden layers, which the kernel keeps in workgroup memory.
        pub const POLICY_HIDDEN: u32 = 512;
        /// Invocations of the kernel, whose order of addition the host follows.
        pub const POLICY_LANES: u32 = 64;
        /// Magnitude beyond which the policy sees every loss as this one.
        pub const POLICY_LARGEST_LOSS: f32 = 1e12;
    }
}
use numbers::{POLICY_HIDDEN, POLICY_LANES, POLICY_LARGEST_LOSS, POLICY_UNITS};

shared_structs! {
    /// Settings of `controllers/learned_schedule.wgsl`.
    pub(crate) struct PolicySettings {
        /// Units of the cell.
        pub(crate) cell: u32,
        /// Units of the layer that the loss enters.
        pub(crate) from_loss: u32,
        /// Units of the layer that h enters.
        pub(crate) from_state: u32,
        /// Number of groups.
        pub(crate) groups: u32,
        /// Index of the loss in its binding.
        pub(crate) loss_at: u32,
        /// 1 if γ is given, else 0.
        pub(crate) scale_is_given: u32,
        /// γ, or C^-1/4 / 4.
        pub(crate) scale_factor: f32,
        /// ln C.
        pub(crate) ln_classes: f32,
    }
}

/// Largest magnitude of a weight. With it and the largest loss no sum of the policy overflows.
const LARGEST_WEIGHT: f32 = 1e6;
/// γ in the state before it is known.
const UNKNOWN: f32 = -1.0;

/// Names of the weights, as PyTorch names them in the authors' files.
const NAMES: [&str; 10] = [
    "layer1.fc_i2h.0.weight",
    "layer1.fc_i2h.0.bias",
    "layer1.fc_i2h.2.weight",
    "layer1.fc_i2h.2.bias",
    "layer1.fc_h2h.0.weight",
    "layer1.fc_h2h.0.bias",
    "layer1.fc_h2h.2.weight",
    "layer1.fc_h2h.2.bias",
    "layer3.weight",
    "layer3.bias",
];

/// Factor γ of a learned schedule: η = γ · output, where the output of the policy is between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum PolicyScale {
    /// γ = |√L₀ ln(L₀ C) / C^¼ / 4| for C classes, as the authors' code computes it (arXiv:2007.14546). They take the
    /// mean loss over the training data before the first step as L₀. Here it is the first finite loss above 0 that the
    /// schedule sees, usually that of a batch.
    ///
    /// **γ is 0 at L₀ = 1 / C and small around it.** A model that is already trained may stand still with it: give
    /// [`PolicyScale::Given`].
    FirstLoss {
        /// Number of classes C, from 2 to 1,000,000.
        classes: u32,
    },
    /// γ itself, which is the largest rate, between 1e-30 and 1e30.
    Given(f32),
}

impl PolicyScale {
    fn check(self) -> Result<(), Error> {
        let owner = || "learned schedule".to_owned();
        match self {
            PolicyScale::FirstLoss { classes } => {
                require((2..=1_000_000).contains(&classes), owner, "classes", classes, "between 2 and 1000000")
            }
            PolicyScale::Given(scale) => {
                require((RATE_MIN..=RATE_MAX).contains(&scale), owner, "scale", scale, "between 1e-30 and 1e30")
            }
        }
    }

    /// Returns the numbers that γ is computed from: C^-¼ / 4 and ln C, or γ itself and `None`.
    pub(crate) fn terms(self) -> (f32, Option<f32>) {
        match self {
            PolicyScale::FirstLoss { classes } => {
                let classes = f64::from(classes);
                ((0.25 / classes.powf(0.25)) as f32, Some(classes.ln() as f32))
            }
            PolicyScale::Given(scale) => (scale, None),
        }
    }
}

/// Weights of a learned schedule, a small network whose input is the loss of each batch and whose output is the
/// learning rate (MLR-SNet, arXiv:2007.14546). [`LearnedSchedule`](crate::LearnedSchedule) runs it on the device and
/// [`CpuLearnedSchedule`] on the host.
///
/// **It does not beat [`Seesaw`](crate::Seesaw)** on the tasks of this repository. It is here for policies that were
/// trained for a task, and for comparisons. [`docs/beyond.md`](crate::guide::beyond) has the figures, and the program
/// that trains a policy.
///
/// For a loss L, with the cell's h and c from the step before:
///
/// ```text
/// gates = W₂ relu(W₁ L + b₁) + b₂ + W₄ relu(W₃ h + b₃) + b₄      in four parts: input i, forget f, candidate g, output o
/// c     ← σ(f) c + σ(i) tanh(g)
/// h     ← σ(o) tanh(c)
/// η     = γ σ(w h + b)
/// ```
///
/// The order of the gates is that of the authors' program for new tasks (`meta-test`), to which their files belong.
/// Their program for training has another order.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulePolicy {
    pub(crate) scale: PolicyScale,
    pub(crate) widths: Widths,
    /// In the order of [`NAMES`].
    tensors: Vec<Vec<f32>>,
}

/// Numbers of units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Widths {
    /// Units of the cell.
    pub(crate) cell: usize,
    /// Units of the layer that the loss enters.
    pub(crate) from_loss: usize,
    /// Units of the layer that h enters.
    pub(crate) from_state: usize,
}

impl Widths {
    /// Returns the shapes in the order of [`NAMES`].
    fn shapes(self) -> [Vec<usize>; 10] {
        let Widths { cell, from_loss, from_state } = self;
        [
            vec![from_loss, 1],
            vec![from_loss],
            vec![4 * cell, from_loss],
            vec![4 * cell],
            vec![from_state, cell],
            vec![from_state],
            vec![4 * cell, from_state],
            vec![4 * cell],
            vec![1, cell],
            vec![1],
        ]
    }

    /// Returns the number of floats of the state: h, c and γ.
    pub(crate) fn state(self) -> usize {
        2 * self.cell + 1
    }
}

fn refused<T>(tensor: &str, problem: String) -> Result<T, Error> {
    Err(Error::from(BuildError::Policy { what: format!("tensor \"{tensor}\""), problem }))
}

impl SchedulePolicy {
    /// Creates a policy from its weights: name, shape and values in row-major order of each tensor, in any order. The
    /// names are those of the authors' files.
    ///
    /// | name | shape | in the formula |
    /// |---|---|---|
    /// | `layer1.fc_i2h.0.weight`, `.bias` | A × 1, A | W₁, b₁ |
    /// | `layer1.fc_i2h.2.weight`, `.bias` | 4H × A, 4H | W₂, b₂ |
    /// | `layer1.fc_h2h.0.weight`, `.bias` | B × H, B | W₃, b₃ |
    /// | `layer1.fc_h2h.2.weight`, `.bias` | 4H × B, 4H | W₄, b₄ |
    /// | `layer3.weight`, `.bias` | 1 × H, 1 | w, b |
    ///
    /// The published policies have H = 50 and A = B = 25.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Build`](crate::ErrorKind::Build) for a tensor that is missing, unknown or given twice, has
    /// another shape or a value that is not finite or beyond ±1e6, for more than 256 units, and for a scale outside its
    /// range. The message names the tensor and the expected shape.
    pub fn new<'a>(
        scale: PolicyScale,
        tensors: impl IntoIterator<Item = (&'a str, &'a [usize], &'a [f32])>,
    ) -> Result<Self, Error> {
        scale.check()?;
        let mut given: [Option<(&[usize], &[f32])>; 10] = [None; 10];
        for (name, shape, values) in tensors {
            let Some(at) = NAMES.iter().position(|known| *known == name) else {
                return refused(name, format!("is not one of a policy, which are {}", NAMES.join(", ")));
            };
            if given[at].replace((shape, values)).is_some() {
                return refused(name, "is given twice: give each tensor once".to_owned());
            }
        }
        let tensor = |at: usize| match given[at] {
            Some(tensor) => Ok(tensor),
            None => refused(NAMES[at], "is missing: give all ten tensors of the policy".to_owned()),
        };
        let width = |at: usize, axis: usize, what: &str| {
            let shape = tensor(at)?.0;
            match shape.get(axis) {
                Some(&units) if shape.len() == 2 && (1..=POLICY_UNITS as usize).contains(&units) => Ok(units),
                _ => {
                    let limit = format!("{what} as its dimension {axis} of 2, between 1 and {POLICY_UNITS}");
                    refused(NAMES[at], format!("has the shape {shape:?}, but it must have the number of {limit}"))
                }
            }
        };
        let widths = Widths {
            cell: width(8, 1, "units of the cell")?,
            from_loss: width(0, 0, "units behind the loss")?,
            from_state: width(4, 0, "units behind h")?,
        };
        let mut checked = Vec::with_capacity(NAMES.len());
        for (at, expected) in widths.shapes().into_iter().enumerate() {
            let (shape, values) = tensor(at)?;
            let elements: usize = expected.iter().product();
            if shape != expected {
                return refused(NAMES[at], format!("has the shape {shape:?}, but it must be {expected:?}"));
            }
            if values.len() != elements {
                let count = values.len();
                return refused(NAMES[at], format!("has {count} values, but its shape {shape:?} has {elements}"));
            }
            let is_wrong = |value: &&f32| !value.is_finite() || value.abs() > LARGEST_WEIGHT;
            if let Some(value) = values.iter().find(is_wrong) {
                return refused(NAMES[at], format!("contains {value}, but weights must be finite and within ±1e6"));
            }
            checked.push(values.to_vec());
        }
        Ok(SchedulePolicy { scale, widths, tensors: checked })
    }

    /// Reads the weights from the bytes of a safetensors file, whose ten tensors of f32 are those of
    /// [`SchedulePolicy::new`]. `tests/golden/mlr_snet.py` writes such a file from one of the authors'.
    ///
    /// # Errors
    /// Returns the errors of [`SchedulePolicy::new`], and [`ErrorKind::Build`](crate::ErrorKind::Build) for bytes that
    /// are not safetensors and for elements other than f32.
    #[cfg(feature = "checkpoint")]
    pub fn from_safetensors(scale: PolicyScale, bytes: &[u8]) -> Result<Self, Error> {
        let file = safetensors::SafeTensors::deserialize(bytes).map_err(|error| BuildError::Policy {
            what: "file".to_owned(),
            problem: format!("cannot be read as safetensors: {error}"),
        })?;
        let mut tensors = Vec::new();
        for (name, view) in file.iter() {
            if view.dtype() != safetensors::Dtype::F32 {
                return refused(name, format!("has elements of {:?}: convert them to f32", view.dtype()));
            }
            let values: Vec<f32> = bytemuck::pod_collect_to_vec(view.data());
            tensors.push((name, view.shape().to_vec(), values));
        }
        Self::new(scale, tensors.iter().map(|(name, shape, values)| (*name, &shape[..], &values[..])))
    }

    /// Returns the weights as a safetensors file, which [`SchedulePolicy::from_safetensors`] reads.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Build`](crate::ErrorKind::Build) if the weights cannot be written as safetensors.
    #[cfg(feature = "checkpoint")]
    pub fn to_safetensors(&self) -> Result<Vec<u8>, Error> {
        let failed = |error: safetensors::SafeTensorError| {
            let problem = format!("cannot be written as safetensors: {error}");
            Error::from(BuildError::Policy { what: "file".to_owned(), problem })
        };
        let mut views = Vec::with_capacity(NAMES.len());
        for ((name, shape), values) in NAMES.into_iter().zip(self.widths.shapes()).zip(&self.tensors) {
            let bytes = bytemuck::cast_slice(values);
            views.push((
                name,
                safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, bytes).map_err(failed)?,
            ));
        }
        safetensors::serialize(views, None).map_err(failed)
    }

    /// Returns the weights in the order in which both paths read them, where the outputs of a layer lie side by side
    /// for each of its inputs: W₁, b₁, W₃, b₃, W₂, W₄, b₂ + b₄, w, b.
    pub(crate) fn packed(&self) -> Vec<f32> {
        let [w1, b1, w2, b2, w3, b3, w4, b4, w, b] = std::array::from_fn(|at| &self.tensors[at][..]);
        let Widths { cell, from_loss, from_state } = self.widths;
        let mut packed = [w1, b1].concat();
        transpose(w3, from_state, cell, &mut packed);
        packed.extend(b3);
        transpose(w2, 4 * cell, from_loss, &mut packed);
        transpose(w4, 4 * cell, from_state, &mut packed);
        packed.extend(b2.iter().zip(b4).map(|(b2, b4)| b2 + b4));
        packed.extend(w);
        packed.extend(b);
        packed
    }

    /// Returns the state of a schedule that has seen no loss.
    pub(crate) fn first_state(&self) -> Vec<f32> {
        let mut state = vec![0.0; self.widths.state()];
        if let Some(scale) = state.last_mut() {
            *scale = UNKNOWN;
        }
        state
    }

    /// Returns an error if a schedule cannot go on with another policy.
    pub(crate) fn check_successor(&self, other: &Self) -> Result<(), Error> {
        if self.widths == other.widths {
            return Ok(());
        }
        let shape = |widths: Widths| {
            format!("{} units and layers of {} and {}", widths.cell, widths.from_loss, widths.from_state)
        };
        let (new, old) = (shape(other.widths), shape(self.widths));
        let problem = format!("has {new}, but the schedule runs one of {old}: make a new schedule for it");
        Err(Error::from(BuildError::Policy { what: "successor".to_owned(), problem }))
    }

    /// Returns an error if these floats are not a state that was saved.
    pub(crate) fn check_state(&self, state: &[f32]) -> Result<(), Error> {
        let expected = self.widths.state();
        let refused = |problem| Err(Error::from(BuildError::Policy { what: "state".to_owned(), problem }));
        if state.len() != expected {
            let count = state.len();
            return refused(format!("has {count} floats, but this policy's has {expected}: h, c and γ"));
        }
        match state.iter().find(|value| !value.is_finite()) {
            Some(value) => refused(format!("contains {value}, but all must be finite: give one that was saved")),
            None => Ok(()),
        }
    }
}

/// Appends the transpose of a matrix in row-major order.
fn transpose(matrix: &[f32], rows: usize, columns: usize, to: &mut Vec<f32>) {
    to.extend((0..columns).flat_map(|column| (0..rows).map(move |row| matrix[row * columns + column])));
}

/// Takes the next numbers of the packed weights.
fn take<'a>(packed: &mut &'a [f32], count: usize) -> &'a [f32] {
    let (first, rest) = packed.split_at(count);
    *packed = rest;
    first
}

/// Computes e^x to about two ulps, with x clamped to ±87. WGSL's own function may be less accurate.
fn exponential(x: f32) -> f32 {
    let x = x.clamp(-87.0, 87.0);
    let k = (x * std::f32::consts::LOG2_E).round_ties_even();
    let rest = (x - k * LN_2_HIGH) - k * LN_2_LOW;
    let tail = rest
        * rest
        * (0.5
            + rest
                * (0.166_666_67
                    + rest
                        * (0.041_666_668
                            + rest * (0.008_333_334 + rest * (0.001_388_888_9 + rest * 0.000_198_412_7)))));
    (1.0 + (rest + tail)) * power_of_two(k as i32)
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exponential(-x))
}

fn hyperbolic_tangent(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exponential(2.0 * x))
}

/// Returns γ at the first loss.
fn scale_at(loss: f32, (factor, ln_classes): (f32, Option<f32>)) -> f32 {
    let Some(ln_classes) = ln_classes else {
        return factor;
    };
    let ln_loss = Scaled::new(loss, 0).ln_ratio(Scaled::ONE);
    (loss.sqrt() * (ln_loss + ln_classes) * factor).abs()
}

/// Learned schedule on the host, beside a [`CpuOptimizer`]. It has the same order of operations as
/// [`LearnedSchedule`](crate::LearnedSchedule).
///
/// With [`Regime::fixed(1.0)`](crate::Regime::fixed) the optimizer's rate is the policy's. Around another regime it is
/// a factor.
///
/// ```
/// use wgpu_optim::{CpuLearnedSchedule, Group, OptimizerBuilder, PolicyScale, Regime, Rule, SchedulePolicy};
///
/// // One unit in each layer. Policies that were trained come from files.
/// let gates = [0.5; 4];
/// let policy = SchedulePolicy::new(
///     PolicyScale::FirstLoss { classes: 10 },
///     [
///         ("layer1.fc_i2h.0.weight", &[1, 1][..], &[1.0][..]),
///         ("layer1.fc_i2h.0.bias", &[1], &[0.0]),
///         ("layer1.fc_i2h.2.weight", &[4, 1], &gates),
///         ("layer1.fc_i2h.2.bias", &[4], &gates),
///         ("layer1.fc_h2h.0.weight", &[1, 1], &[1.0]),
///         ("layer1.fc_h2h.0.bias", &[1], &[0.0]),
///         ("layer1.fc_h2h.2.weight", &[4, 1], &gates),
///         ("layer1.fc_h2h.2.bias", &[4], &gates),
///         ("layer3.weight", &[1, 1], &[1.0]),
///         ("layer3.bias", &[1], &[0.0]),
///     ],
/// )?;
/// let mut schedule = CpuLearnedSchedule::new(policy);
/// let (mut w, g) = (vec![1.0f32; 100], vec![0.5f32; 100]);
/// let mut optimizer = OptimizerBuilder::new(Rule::sgd())
///     .regime(Regime::fixed(1.0))
///     .group(Group::new("all").tensor("w", &w, &g))
///     .build_cpu()?;
/// // Before every step, with the loss of its batch.
/// schedule.set_rate(&mut optimizer, 2.3)?;
/// optimizer.step(&mut [&mut w], &[&g])?;
/// # Ok::<(), wgpu_optim::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct CpuLearnedSchedule {
    policy: SchedulePolicy,
    packed: Vec<f32>,
    /// h, c and γ.
    state: Vec<f32>,
}

impl CpuLearnedSchedule {
    /// Creates a schedule that has seen no loss.
    pub fn new(policy: SchedulePolicy) -> Self {
        CpuLearnedSchedule { packed: policy.packed(), state: policy.first_state(), policy }
    }

    /// Sets the [`learning_rate_factor`](crate::Controls::learning_rate_factor) of every group to the policy's rate for
    /// this loss. Call it before every step. It takes about 12,000 multiplications with the published policies, for a
    /// model of any size.
    ///
    /// A loss that is not finite, or that is not above 0 before γ is known, changes neither the factor nor the policy's
    /// state.
    ///
    /// # Errors
    /// Returns the errors of [`CpuOptimizer::control_all`].
    pub fn set_rate(&mut self, optimizer: &mut CpuOptimizer, loss: f32) -> Result<(), Error> {
        match self.advance(loss) {
            Some(rate) => optimizer.control_all(|controls| controls.learning_rate_factor = rate),
            None => Ok(()),
        }
    }

    /// Continues with other weights, as the authors do after each third of a run. h and c stay. γ is computed anew from
    /// the next loss.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Build`](crate::ErrorKind::Build) for a policy with other numbers of units.
    pub fn switch_policy(&mut self, policy: SchedulePolicy) -> Result<(), Error> {
        self.policy.check_successor(&policy)?;
        self.packed = policy.packed();
        self.policy = policy;
        self.state[2 * self.policy.widths.cell] = UNKNOWN;
        Ok(())
    }

    /// Returns the state that later rates depend on: h, c, and γ, which is negative before the first loss.
    pub fn state(&self) -> &[f32] {
        &self.state
    }

    /// Restores a state, which may come from [`LearnedSchedule::state`](crate::LearnedSchedule::state).
    ///
    /// # Errors
    /// Returns [`ErrorKind::Build`](crate::ErrorKind::Build) for another number of floats and for floats that are not
    /// finite.
    pub fn restore(&mut self, state: &[f32]) -> Result<(), Error> {
        self.policy.check_state(state)?;
        self.state.copy_from_slice(state);
        Ok(())
    }

    /// Returns the rate for a loss, or `None` if nothing changes.
    fn advance(&mut self, loss: f32) -> Option<f32> {
        let Widths { cell, from_loss, from_state } = self.policy.widths;
        let scale = self.state[2 * cell];
        if !loss.is_finite() || scale < 0.0 && loss < f32::MIN_POSITIVE {
            return None;
        }
        let loss = loss.clamp(-POLICY_LARGEST_LOSS, POLICY_LARGEST_LOSS);
        let scale = if scale < 0.0 { scale_at(loss, self.policy.scale.terms()) } else { scale };
        let mut rest = &self.packed[..];
        let [w1, b1] = [0; 2].map(|_| take(&mut rest, from_loss));
        let w3 = take(&mut rest, cell * from_state);
        let b3 = take(&mut rest, from_state);
        let w2 = take(&mut rest, from_loss * 4 * cell);
        let w4 = take(&mut rest, from_state * 4 * cell);
        let biases = take(&mut rest, 4 * cell);
        let w = take(&mut rest, cell);
        let (h, rest_of_state) = self.state.split_at_mut(cell);
        let mut hidden = [0.0; POLICY_HIDDEN as usize];
        for unit in 0..from_loss {
            hidden[unit] = (w1[unit] * loss + b1[unit]).max(0.0);
        }
        for unit in 0..from_state {
            let sum = h.iter().enumerate().fold(b3[unit], |sum, (k, h)| sum + w3[k * from_state + unit] * h);
            hidden[from_loss + unit] = sum.max(0.0);
        }
        let mut lanes = [0.0f32; POLICY_LANES as usize];
        for unit in 0..cell {
            let gate = |gate: usize| {
                let row = gate * cell + unit;
                let mut sum = biases[row];
                for k in 0..from_loss {
                    sum += w2[k * 4 * cell + row] * hidden[k];
                }
                for k in 0..from_state {
                    sum += w4[k * 4 * cell + row] * hidden[from_loss + k];
                }
                sum
            };
            let kept = sigmoid(gate(1)) * rest_of_state[unit];
            rest_of_state[unit] = kept + sigmoid(gate(0)) * hyperbolic_tangent(gate(2));
            h[unit] = sigmoid(gate(3)) * hyperbolic_tangent(rest_of_state[unit]);
            lanes[unit % lanes.len()] += w[unit] * h[unit];
        }
        rest_of_state[cell] = scale;
        let output = sigmoid(lanes.iter().fold(rest[0], |sum, lane| sum + lane));
        let rate = scale * output;
        Some(if rate < RATE_MIN { 0.0 } else { rate.min(RATE_MAX) })
    }
}
