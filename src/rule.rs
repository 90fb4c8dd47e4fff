//! Update rules, which turn a gradient into the direction of a step. The [regime](crate::Regime) chooses the learning
//! rate.
//!
//! To add a rule, write a file in `src/rule/`, a file of the same name in `shaders/rule/`, a row in the table below and
//! a row in `shaders/rule.wgsl`.

use crate::averaging::Averaging;
use crate::error::{Error, require};
pub(crate) use crate::layout::numbers::{LARGEST_FACTORED, LARGEST_SQUARED};
use crate::layout::{RuleNumbers, Update};
use crate::plan::TensorWork;
use crate::reference::RuleStep;

/// Host side of an update rule.
pub(crate) trait UpdateRule {
    /// Returns the name that records, tables and the command line use.
    fn name(&self) -> &'static str;

    /// Returns a one-line description of the direction.
    fn summary(&self) -> &'static str;

    /// Returns the rule with another momentum, or unchanged if users cannot choose its momentum.
    fn with_momentum(&self, momentum: f32) -> Rule;

    /// Returns the weight decay that the rule is published with.
    fn usual_weight_decay(&self) -> WeightDecay {
        WeightDecay::Coupled(0.0)
    }

    /// Returns the kind that kernels are compiled for.
    fn kind(&self) -> RuleKind;

    /// Returns ε of the first step. See [`Rule::first_step`].
    fn first_step(&self, averaging: &Averaging) -> f32;

    /// Returns the numbers that kernels read.
    fn numbers(&self) -> RuleNumbers;

    /// Returns the kind that kernels are compiled for when a tensor has this shape.
    fn kind_for(&self, _dimensions: &[usize]) -> RuleKind {
        self.kind()
    }

    /// Returns the work that the rule's own passes do on a tensor of this shape, if it has such passes.
    fn work(&self, _dimensions: &[usize]) -> Option<TensorWork> {
        None
    }

    /// Returns the number of iterations of the rule's own passes.
    fn iterations(&self) -> u32 {
        0
    }

    /// Returns true if the matrices of the rule's own passes may be stored as f16.
    fn half_iterates(&self) -> bool {
        false
    }

    /// Returns an error if a number is outside its range.
    fn validate(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Computes the direction in f64 from the definition, independently of [`HostRule::direction`].
    fn reference(&self, step: &mut RuleStep) -> Vec<f64>;
}

/// Formula of a rule on the CPU path, the twin of its file in `shaders/rule/`. Constants and functions are compiled
/// into the loops.
pub(crate) trait HostRule {
    const TRAITS: Traits;

    /// Computes the direction u of a step from the gradient, the momentum before (`last`) and after (`m`) the step, and
    /// the new mean of squares `v`. `v` is the largest mean of squares so far for rules that keep it, and the finished
    /// direction for rules with passes of their own.
    fn direction(update: &Update, g: f32, last: f32, m: f32, v: f32) -> f32;

    /// Computes the direction of the previous step from the memory that is still there. The secant regimes use it.
    fn last_direction(step: &LastStep) -> f32;
}

/// One element's data about the previous step. `shaders/rule.wgsl` explains the scales.
pub(crate) struct LastStep<'a> {
    pub(crate) g: f32,
    pub(crate) clipped: f32,
    pub(crate) m: f32,
    pub(crate) v: f32,
    pub(crate) gradient_scale: f32,
    pub(crate) momentum_scale: f32,
    pub(crate) first_correction: f32,
    pub(crate) second_correction: f32,
    pub(crate) numbers: &'a RuleNumbers,
}

/// Properties of a rule that do not depend on its numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traits {
    /// Features that select the rule's WGSL (`shaders/rule.wgsl`): the name of its file, and an option of that file.
    pub(crate) features: &'static [&'static str],
    /// True if the rule keeps a momentum m.
    pub(crate) momentum: bool,
    /// True if the rule keeps a mean of squares v.
    pub(crate) squares: bool,
    /// True if the rule keeps the largest v so far. Its direction is then computed from that instead of v.
    pub(crate) largest_squares: bool,
    /// True if the direction is a vector of signs.
    pub(crate) sign: bool,
    /// True if the first momentum is the gradient itself, as in PyTorch's SGD.
    pub(crate) momentum_from_gradient: bool,
    /// True if the rule has passes over matrices (`shaders/orthogonalize/`), which compute the direction from momentum
    /// and gradient.
    pub(crate) matrices: bool,
    /// True if the rule keeps means of squares for rows and columns (`shaders/factored/`). Its direction is given their
    /// product as v.
    pub(crate) factored: bool,
    /// True if the rule limits the root mean square of each tensor's direction (`shaders/factored/`).
    pub(crate) limited: bool,
}

impl Traits {
    /// Traits of a rule without memory.
    pub(crate) const PLAIN: Traits = Traits {
        features: &[],
        momentum: false,
        squares: false,
        largest_squares: false,
        sign: false,
        momentum_from_gradient: false,
        matrices: false,
        factored: false,
        limited: false,
    };

    /// Returns the largest magnitude of a gradient element that is not clamped.
    pub(crate) const fn largest_gradient(self) -> f32 {
        match (self.limited, self.squares) {
            (true, _) => LARGEST_FACTORED,
            (false, true) => LARGEST_SQUARED,
            (false, false) => f32::INFINITY,
        }
    }

    /// Returns true if the rule has passes of its own, which need whole tensors.
    pub(crate) fn owns_passes(self) -> bool {
        self.matrices || self.limited
    }

    /// Returns the number of vectors of the parameters' length that the rule keeps.
    pub(crate) fn vectors(self) -> u32 {
        u32::from(self.momentum) + u32::from(self.squares) + u32::from(self.largest_squares)
    }
}

/// Work on elements that is compiled for each rule. This is a trait and not a closure because a method can be forced to
/// inline, and only inlined code is compiled for the caller's vector instructions.
pub(crate) trait RuleVisitor {
    type Output;

    fn visit<R: HostRule>(self) -> Self::Output;
}

/// Expands to an empty string. It makes the surrounding macro repetition run once per kind.
macro_rules! without {
    ($Kind:ident) => {
        ""
    };
}

/// Table of the rules. A row has the rule's name, the name of its files, and for each kind of kernel a type that
/// implements [`HostRule`]. A rule without kinds uses the kernels of another rule with its own numbers.
macro_rules! rules {
    ($($(#[$meta:meta])* $Rule:ident in $module:ident { $($Kind:ident = $Host:ident),* })*) => {
        $(mod $module; pub use $module::$Rule;)*

        /// The rules, re-exported at the root of the crate.
        pub(crate) mod table {
            pub use super::{$($Rule),*};
        }

        /// Update rule, which turns a gradient `g` into a direction `u`. The step is `w ← w - η u`.
        ///
        /// Rules that are also in `torch.optim` take the same steps. The optimizer keeps their memory in its own
        /// buffers: 4 bytes per parameter for rules with momentum, 8 for AdamW, 12 for AMSGrad and 4 for AdamW with `β₁
        /// = 0`. [`State::Bits8`](crate::State::Bits8) takes about a quarter of that. Muon takes 8 bytes per parameter
        /// beside its momentum, and two squares of a matrix's short side. Adafactor keeps 4 bytes for each row and
        /// column of a matrix.
        #[derive(Debug, Clone, Copy, PartialEq)]
        #[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
        #[non_exhaustive]
        pub enum Rule {
            $($(#[$meta])* $Rule($Rule),)*
        }

        impl Rule {
            /// Returns every kind of rule that takes tensors of any shape, with the usual constants. μ and β are 0.9.
            /// [`Rule::of_matrices`] returns the others.
            pub fn all() -> Vec<Self> {
                Self::examples().into_iter().filter(|rule| !rule.needs_matrices()).collect()
            }

            /// Returns every kind of rule that takes only matrices, with the usual constants.
            pub fn of_matrices() -> Vec<Self> {
                Self::examples().into_iter().filter(Rule::needs_matrices).collect()
            }

            /// Returns every kind of rule, with the usual constants.
            pub(crate) fn examples() -> Vec<Self> {
                [$($module::examples().map(Rule::$Rule).as_slice()),*].concat()
            }

            fn rule(&self) -> &dyn UpdateRule {
                match self {
                    $(Rule::$Rule(rule) => rule,)*
                }
            }
        }

        /// Rule without its constants. Passes 1 and 4 are compiled for it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum RuleKind {
            $($($Kind,)*)*
        }

        impl RuleKind {
            pub(crate) fn traits(self) -> Traits {
                match self {
                    $($(RuleKind::$Kind => <$module::$Host as HostRule>::TRAITS,)*)*
                }
            }

            #[inline(always)]
            pub(crate) fn visit<V: RuleVisitor>(self, visitor: V) -> V::Output {
                match self {
                    $($(RuleKind::$Kind => visitor.visit::<$module::$Host>(),)*)*
                }
            }
        }

        /// WGSL files of the rules that have kernels of their own.
        pub(crate) const SOURCES: &[(&str, &str)] = &[$($((
            concat!("rule/", stringify!($module)),
            // Every kind of a rule uses the same file.
            include_str!(concat!("../shaders/rule/", stringify!($module), ".wgsl", without!($Kind))),
        ),)*)*];
    };
}

pub use muon::{MuonPrecision, MuonScale};

rules! {
    /// Stochastic gradient descent.
    Sgd in sgd { Sgd = Plain }
    /// SGD with momentum.
    Sgdm in sgdm { Sgdm = HeavyBall, Nesterov = Nesterov }
    /// signSGD.
    SignSgd in sign_sgd { SignSgd = Signs }
    /// Signum.
    Signum in signum { Signum = MomentumSigns }
    /// AdamW.
    AdamW in adamw { AdamW = TwoMoments, AdamWWithoutMomentum = SecondMoment }
    /// Lion.
    Lion in lion { Lion = MixedSigns }
    /// AdamW with Nesterov momentum.
    NAdamW in nadamw { NAdamW = Ahead }
    /// RMSprop.
    RmsProp in rmsprop {}
    /// Adagrad.
    Adagrad in adagrad {}
    /// Muon.
    Muon in muon { Muon = Orthogonal }
    /// AMSGrad.
    AmsGrad in amsgrad { AmsGrad = LargestSecondMoment }
    /// Adafactor.
    Adafactor in adafactor { Adafactor = Limited, AdafactorFactored = Factored }
}

impl Rule {
    /// Returns the name that records, tables and the command line use: `sgd`, `sgdm`, `nesterov`, `signsgd`,
    /// `signum`, `adamw`, `lion`, `nadamw`, `rmsprop`, `adagrad`, `amsgrad`, `adafactor`, `muon`.
    pub fn name(&self) -> &'static str {
        self.rule().name()
    }

    /// Returns a one-line description of the rule's direction. The command line's help shows it.
    #[doc(hidden)]
    pub fn summary(&self) -> &'static str {
        self.rule().summary()
    }

    /// Returns the rule with another momentum: μ of Sgdm or β of Signum. Other rules are unchanged.
    #[doc(hidden)]
    #[must_use]
    pub fn with_momentum(self, momentum: f32) -> Self {
        self.rule().with_momentum(momentum)
    }

    /// Returns the weight decay that the rule is published with. It is decoupled for AdamW, AMSGrad and NAdamW (0.01,
    /// PyTorch's default), Muon (0.1, PyTorch's default) and Lion (0), and coupled for the other rules (0).
    #[doc(hidden)]
    pub fn usual_weight_decay(&self) -> WeightDecay {
        self.rule().usual_weight_decay()
    }

    /// Returns the weight decay of a group for which none was set.
    pub(crate) fn default_weight_decay(&self) -> WeightDecay {
        match self.usual_weight_decay() {
            decay if decay.lambda() > 0.0 => decay,
            _ => WeightDecay::Coupled(0.0),
        }
    }

    /// Returns true if the rule keeps a momentum `m` (4 bytes per parameter). AdamW with `β₁ = 0` does not.
    #[doc(hidden)]
    pub fn has_momentum(&self) -> bool {
        self.traits().momentum
    }

    /// Returns true if the rule keeps a mean of squares `v` (4 bytes per parameter).
    #[doc(hidden)]
    pub fn has_second_moment(&self) -> bool {
        self.traits().squares
    }

    /// Returns true if [`State::Bits8`](crate::State::Bits8) supports the rule, whose memory must be a momentum and a
    /// mean of squares at most.
    #[doc(hidden)]
    pub fn fits_8_bits(&self) -> bool {
        let traits = self.traits();
        !(traits.owns_passes() || traits.largest_squares || self.sums_squares())
    }

    /// Returns the number of vectors of the parameters' length that the rule keeps (4 bytes per parameter each).
    #[doc(hidden)]
    pub fn vectors(&self) -> u32 {
        self.traits().vectors()
    }

    /// Returns true if the direction is a vector of signs. Its length is √d for every gradient.
    #[doc(hidden)]
    pub fn is_sign(&self) -> bool {
        self.traits().sign
    }

    /// Returns true if the direction does not shrink with the gradient, as for sign rules, AdamW and Muon. Regimes
    /// assume a length of √d, and for Muon the length that singular values of 1 give. AdamW's first direction has the
    /// length √d. Later ones are longer only for a few steps after the gradient has grown.
    #[doc(hidden)]
    pub fn is_scale_free(&self) -> bool {
        self.is_sign() || self.has_second_moment() || self.needs_matrices()
    }

    /// Returns true if the rule works only on matrices. Like [`Rule::muon`], it then refuses tensors whose shape has
    /// fewer than two dimensions.
    #[doc(hidden)]
    pub fn needs_matrices(&self) -> bool {
        self.traits().matrices
    }

    /// Returns true if the rule has passes of its own. They need whole tensors, so that the tensors cannot be sharded
    /// over ranks.
    #[doc(hidden)]
    pub fn owns_passes(&self) -> bool {
        self.traits().owns_passes()
    }

    /// Returns the work that the rule's own passes do on a tensor of this shape, if it has such passes.
    pub(crate) fn work(&self, dimensions: &[usize]) -> Option<TensorWork> {
        self.rule().work(dimensions)
    }

    pub(crate) fn kind_for(&self, dimensions: &[usize]) -> RuleKind {
        self.rule().kind_for(dimensions)
    }

    /// Returns the squared length of the direction for a tensor, if it does not shrink with the gradient.
    #[doc(hidden)]
    pub fn direction_square(&self, dimensions: &[usize], elements: usize) -> f64 {
        match self.work(dimensions) {
            Some(TensorWork::Matrix(matrix)) => matrix.direction_square(),
            _ => elements as f64,
        }
    }

    pub(crate) fn iterations(&self) -> u32 {
        self.rule().iterations()
    }

    pub(crate) fn half_iterates(&self) -> bool {
        self.rule().half_iterates()
    }

    /// Returns the weight of the old momentum in the new one: μ, β, β₁ of AdamW, β₂ of Lion. It is 0 for rules without
    /// momentum.
    #[doc(hidden)]
    pub fn momentum(&self) -> f32 {
        self.numbers().momentum
    }

    /// Returns ε of the first step under [`Seesaw`](crate::Seesaw), [`NormRatio`](crate::NormRatio) and
    /// [`Hypergradient`](crate::Hypergradient). The first step has length `ε (1 + ‖w₀‖)`.
    ///
    /// | rule | ε |
    /// |---|---|
    /// | `Sgd` | 0.05, schedule-free 0.15 |
    /// | `Sgdm` with momentum μ and dampening δ | 0.105 (1 - μ)/(1 - δ), 0.05 at most: 0.0105 at μ = 0.9 |
    /// | `SignSgd`, `Signum` | 0.03 |
    /// | `AdamW`, `AmsGrad`, `NAdamW`, `Adagrad`, `Adafactor` | 0.05 |
    /// | `RmsProp` | 0.05 √(1 - α): 0.005 at α = 0.99 |
    /// | `Lion` | 0.01 |
    /// | `Muon` with momentum μ | 0.105 (1 - μ), 0.05 at most: 0.00525 at μ = 0.95 |
    ///
    /// With momentum, a gradient moves the parameters (1 - δ)/(1 - μ) times as far as its first step does.
    pub fn first_step(&self, averaging: &Averaging) -> f32 {
        self.rule().first_step(averaging)
    }

    /// Computes the direction of a step in f64, for the conformance suite.
    #[doc(hidden)]
    pub fn reference(&self, step: &mut RuleStep) -> Vec<f64> {
        self.rule().reference(step)
    }

    pub(crate) fn kind(&self) -> RuleKind {
        self.rule().kind()
    }

    pub(crate) fn traits(&self) -> Traits {
        self.kind().traits()
    }

    pub(crate) fn numbers(&self) -> RuleNumbers {
        self.rule().numbers()
    }

    /// Returns true if v is a sum of squares and not a mean.
    pub(crate) fn sums_squares(&self) -> bool {
        self.numbers().square_keep == 1.0
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        self.rule().validate()
    }
}

impl Averaging {
    /// Returns true if the average works with a rule. [`Averaging::ScheduleFree`] needs a rule without momentum. The
    /// others work with every rule.
    #[doc(hidden)]
    pub fn fits(&self, rule: &Rule) -> bool {
        *self != Averaging::ScheduleFree || !rule.has_momentum()
    }
}

/// Returns an error if a share is outside `[0, 1)`.
fn require_share(rule: &dyn UpdateRule, field: &'static str, share: f32) -> Result<(), Error> {
    require((0.0..1.0).contains(&share), || owner(rule), field, share, "at least 0 and below 1")
}

/// Returns an error if ε is too small to prevent a division of 0 by 0.
fn require_epsilon(rule: &dyn UpdateRule, epsilon: f32, expected: &'static str) -> Result<(), Error> {
    let fits = epsilon.is_finite() && epsilon >= f32::MIN_POSITIVE;
    require(fits, || owner(rule), "epsilon", epsilon, expected)
}

/// Returns the rule's name for error messages.
fn owner(rule: &dyn UpdateRule) -> String {
    format!("rule {}", rule.name())
}

/// Returns the sign of a number as WGSL defines it: 0 for 0, where Rust's `signum` returns ±1.
#[inline(always)]
pub(crate) fn sign(x: f32) -> f32 {
    f32::from(i8::from(x > 0.0) - i8::from(x < 0.0))
}

/// Computes AdamW's direction m / (√v + ε) from the new moments, with both bias corrections.
#[inline(always)]
pub(crate) fn preconditioned(m: f32, v: f32, first_correction: f32, second_correction: f32, epsilon: f32) -> f32 {
    (first_correction * m) / (second_correction * v.sqrt() + epsilon)
}

/// Returns -ln β, at most 128, so that it is finite for β = 0.
pub(crate) fn decay_of(beta: f32) -> f32 {
    (-f64::from(beta).ln()).min(128.0) as f32
}

/// Weight decay: pulls parameters towards zero by `λ` per unit of learning rate.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub enum WeightDecay {
    /// Coupled decay: adds `λ w` to the gradient before everything else, as `torch.optim.SGD(weight_decay=λ)` does. The
    /// regime sees the gradient of the regularised loss. Pass 1 also reads the parameters (4 more bytes per parameter).
    Coupled(f32),
    /// Decoupled decay: `w ← w (1 - η λ)` before the step, as in AdamW (Loshchilov & Hutter, arXiv:1711.05101). The
    /// regime does not see it.
    Decoupled(f32),
}

impl WeightDecay {
    /// Returns an error if λ is negative or not finite.
    pub(crate) fn check(lambda: f32, owner: impl FnOnce() -> String) -> Result<(), Error> {
        require(lambda.is_finite() && lambda >= 0.0, owner, "weight_decay", lambda, "finite and at least 0")
    }

    /// Returns λ.
    pub(crate) fn lambda(&self) -> f32 {
        let (WeightDecay::Coupled(lambda) | WeightDecay::Decoupled(lambda)) = *self;
        lambda
    }

    /// Returns λ if the decay is coupled, else 0.
    #[doc(hidden)]
    pub fn coupled(&self) -> f32 {
        match *self {
            WeightDecay::Coupled(lambda) => lambda,
            WeightDecay::Decoupled(_) => 0.0,
        }
    }

    /// Returns λ if the decay is decoupled, else 0.
    #[doc(hidden)]
    pub fn decoupled(&self) -> f32 {
        match *self {
            WeightDecay::Decoupled(lambda) => lambda,
            WeightDecay::Coupled(_) => 0.0,
        }
    }
}
