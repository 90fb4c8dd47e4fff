//! Update rules: they turn a gradient into the direction of a step. The [regime](crate::Regime) chooses the learning rate.
//!
//! A rule is a file in `src/rule/`, a file of the same name in `shaders/rule/`, a row of the table below and a row of `shaders/rule.wgsl`.

use crate::averaging::Averaging;
use crate::error::{Error, require};
pub(crate) use crate::layout::numbers::{LARGEST_FACTORED, LARGEST_SQUARED};
use crate::layout::{RuleNumbers, Update};
use crate::plan::TensorWork;
use crate::reference::RuleStep;

/// What an update rule consists of on the host.
pub(crate) trait UpdateRule {
    /// The name in records, tables and on the command line.
    fn name(&self) -> &'static str;

    /// A line that says what its direction is.
    fn summary(&self) -> &'static str;

    /// The rule with this momentum, if it has one that users choose.
    fn with_momentum(&self, momentum: f32) -> Rule;

    /// The weight decay that it is published with.
    fn usual_weight_decay(&self) -> WeightDecay {
        WeightDecay::Coupled(0.0)
    }

    /// What kernels are compiled for.
    fn kind(&self) -> RuleKind;

    /// ε of the first step, see [`Rule::first_step`].
    fn first_step(&self, averaging: &Averaging) -> f32;

    /// The numbers that kernels read.
    fn numbers(&self) -> RuleNumbers;

    /// What kernels are compiled for over a tensor of this shape.
    fn kind_for(&self, _dimensions: &[usize]) -> RuleKind {
        self.kind()
    }

    /// What the passes that it owns do with a tensor of this shape.
    fn work(&self, _dimensions: &[usize]) -> Option<TensorWork> {
        None
    }

    /// Iterations of those passes.
    fn iterations(&self) -> u32 {
        0
    }

    /// True if their matrices may be in f16.
    fn half_iterates(&self) -> bool {
        false
    }

    /// Refuses numbers outside their ranges.
    fn validate(&self) -> Result<(), Error> {
        Ok(())
    }

    /// The direction in f64, from the definition. It is independent of [`HostRule::direction`].
    fn reference(&self, step: &mut RuleStep) -> Vec<f64>;
}

/// The formula of a rule on the CPU path: twin of its file in `shaders/rule/`. Its constants and functions are compiled into the loops.
pub(crate) trait HostRule {
    const TRAITS: Traits;

    /// The direction u of a step: from the gradient, the momentum before (`last`) and after (`m`) the step, and the new mean of squares v, or
    /// the largest one so far where the rule keeps that. Of rules that own passes, v is the direction that these have made.
    fn direction(update: &Update, g: f32, last: f32, m: f32, v: f32) -> f32;

    /// The direction of the step before, from what is still in memory, for the secant regimes.
    fn last_direction(step: &LastStep) -> f32;
}

/// What is known of the last step, element by element. `shaders/rule.wgsl` explains the scales.
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
    /// What its kernels are linked with (`shaders/rule.wgsl`): the name of its file, and an option that the file has.
    pub(crate) features: &'static [&'static str],
    /// It keeps a momentum m.
    pub(crate) momentum: bool,
    /// It keeps a mean of squares v.
    pub(crate) squares: bool,
    /// It keeps the largest v so far, which its direction is given instead of v.
    pub(crate) largest_squares: bool,
    /// Its direction is a vector of signs.
    pub(crate) sign: bool,
    /// The first value of its momentum is the gradient itself (PyTorch's SGD).
    pub(crate) momentum_from_gradient: bool,
    /// It owns passes over matrices (`shaders/orthogonalize/`), which make the direction from momentum and gradient.
    pub(crate) matrices: bool,
    /// It keeps means of squares for rows and columns (`shaders/factored/`), of which the direction is given the product as v.
    pub(crate) factored: bool,
    /// It limits the root mean square of each tensor's direction (`shaders/factored/`).
    pub(crate) limited: bool,
}

impl Traits {
    /// A rule that keeps nothing.
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

    /// The largest element of a gradient that it takes as it is.
    pub(crate) const fn largest_gradient(self) -> f32 {
        match (self.limited, self.squares) {
            (true, _) => LARGEST_FACTORED,
            (false, true) => LARGEST_SQUARED,
            (false, false) => f32::INFINITY,
        }
    }

    /// True if it owns passes, whose work on a tensor needs all of it.
    pub(crate) fn owns_passes(self) -> bool {
        self.matrices || self.limited
    }

    /// Number of vectors of the parameters' length that it keeps.
    pub(crate) fn vectors(self) -> u32 {
        u32::from(self.momentum) + u32::from(self.squares) + u32::from(self.largest_squares)
    }
}

/// Work on elements that is compiled for each rule. A trait and not a closure: its method can be made to inline, and only what is inlined is
/// compiled for the vector instructions of the caller.
pub(crate) trait RuleVisitor {
    type Output;

    fn visit<R: HostRule>(self) -> Self::Output;
}

/// Nothing: repeats what stands around it for each kind.
macro_rules! without {
    ($Kind:ident) => {
        ""
    };
}

/// The table of rules. A row has the rule's name here, the name of its files, and for each kind of kernels that it needs a type that
/// implements [`HostRule`]. A rule without kinds has the kernels of another, with numbers of its own.
macro_rules! rules {
    ($($(#[$meta:meta])* $Rule:ident in $module:ident { $($Kind:ident = $Host:ident),* })*) => {
        $(mod $module; pub use $module::$Rule;)*

        /// The rules, for the root of the crate.
        pub(crate) mod table {
            pub use super::{$($Rule),*};
        }

        /// Update rule: turns a gradient `g` into a direction `u`. The step is `w ← w - η u`.
        ///
        /// Rules that `torch.optim` has take the same steps. The optimizer keeps their memory in buffers of its own: 4 bytes per parameter for
        /// rules with momentum, 8 for AdamW, 12 for AMSGrad, 4 for AdamW with `β₁ = 0`; about a quarter of that with
        /// [`State::Bits8`](crate::State::Bits8). Muon takes 8 more beside its momentum, and two squares of a matrix's short side. Adafactor keeps
        /// 4 bytes for each row and column of a matrix.
        #[derive(Debug, Clone, Copy, PartialEq)]
        #[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
        #[non_exhaustive]
        pub enum Rule {
            $($(#[$meta])* $Rule($Rule),)*
        }

        impl Rule {
            /// Returns rules of every kind that take tensors of any shape, with their usual constants, to iterate over. μ and β are 0.9.
            /// [`Rule::of_matrices`] returns the others.
            pub fn all() -> Vec<Self> {
                Self::examples().into_iter().filter(|rule| !rule.needs_matrices()).collect()
            }

            /// Returns rules of every kind that take matrices alone, with their usual constants.
            pub fn of_matrices() -> Vec<Self> {
                Self::examples().into_iter().filter(Rule::needs_matrices).collect()
            }

            /// Rules of every kind.
            pub(crate) fn examples() -> Vec<Self> {
                [$($module::examples().map(Rule::$Rule).as_slice()),*].concat()
            }

            fn rule(&self) -> &dyn UpdateRule {
                match self {
                    $(Rule::$Rule(rule) => rule,)*
                }
            }
        }

        /// Rule without its constants, for which passes 1 and 4 are compiled.
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

        /// The WGSL files of the rules that have kernels of their own.
        pub(crate) const SOURCES: &[(&str, &str)] = &[$($((
            concat!("rule/", stringify!($module)),
            // The same file for each of the rule's kinds.
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

    /// Returns a line that says what the rule's direction is, as the command line's help has it.
    #[doc(hidden)]
    pub fn summary(&self) -> &'static str {
        self.rule().summary()
    }

    /// Returns the rule with another momentum: μ of Sgdm, β of Signum. Other rules stay as they are.
    #[doc(hidden)]
    #[must_use]
    pub fn with_momentum(self, momentum: f32) -> Self {
        self.rule().with_momentum(momentum)
    }

    /// Returns the weight decay that the rule is published with: decoupled for AdamW, AMSGrad and NAdamW (0.01, PyTorch's default), Muon (0.1,
    /// PyTorch's default) and Lion (none by default), coupled for the others (none by default).
    #[doc(hidden)]
    pub fn usual_weight_decay(&self) -> WeightDecay {
        self.rule().usual_weight_decay()
    }

    /// Returns the weight decay of a group that is given none.
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

    /// Returns true if the rule's memory can be kept in 8 bits: momentum and a mean of squares.
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

    /// Returns true if the direction is a vector of signs, whose length is √d for every gradient.
    #[doc(hidden)]
    pub fn is_sign(&self) -> bool {
        self.traits().sign
    }

    /// Returns true if the direction does not shrink with the gradient: sign rules, AdamW and Muon. Regimes take its length to be √d, and for
    /// Muon what singular values of 1 make it. AdamW's first direction has that length, and later ones are longer only for a short while
    /// after the gradient has grown.
    #[doc(hidden)]
    pub fn is_scale_free(&self) -> bool {
        self.is_sign() || self.has_second_moment() || self.needs_matrices()
    }

    /// Returns true if the rule works on matrices and refuses tensors without a shape of two dimensions or more, as [`Rule::muon`] does.
    #[doc(hidden)]
    pub fn needs_matrices(&self) -> bool {
        self.traits().matrices
    }

    /// Returns true if the rule owns passes, for which every rank would have to have whole tensors.
    #[doc(hidden)]
    pub fn owns_passes(&self) -> bool {
        self.traits().owns_passes()
    }

    /// What the passes that the rule owns do with a tensor of this shape.
    pub(crate) fn work(&self, dimensions: &[usize]) -> Option<TensorWork> {
        self.rule().work(dimensions)
    }

    pub(crate) fn kind_for(&self, dimensions: &[usize]) -> RuleKind {
        self.rule().kind_for(dimensions)
    }

    /// The squared length of the direction for a tensor, where that does not shrink with the gradient.
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

    /// Returns the share of the old momentum in the new one: μ, β, β₁ of AdamW, β₂ of Lion; 0 for rules without momentum.
    #[doc(hidden)]
    pub fn momentum(&self) -> f32 {
        self.numbers().momentum
    }

    /// ε of the first step under [`Seesaw`](crate::Seesaw), [`NormRatio`](crate::NormRatio) and [`Hypergradient`](crate::Hypergradient): the share of the parameters' length
    /// `1 + ‖w₀‖` that it covers.
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
    /// With momentum a gradient moves the parameters (1 - δ)/(1 - μ) times as far as its first step does.
    pub fn first_step(&self, averaging: &Averaging) -> f32 {
        self.rule().first_step(averaging)
    }

    /// The direction of a step in f64, for the conformance suite.
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

    /// Returns true if v is a sum of squares and no mean.
    pub(crate) fn sums_squares(&self) -> bool {
        self.numbers().square_keep == 1.0
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        self.rule().validate()
    }
}

impl Averaging {
    /// Returns true if this average works with a rule. [`Averaging::ScheduleFree`] needs a rule without momentum; the others work with every
    /// rule.
    #[doc(hidden)]
    pub fn fits(&self, rule: &Rule) -> bool {
        *self != Averaging::ScheduleFree || !rule.has_momentum()
    }
}

/// Refuses a share outside `[0, 1)`.
fn require_share(rule: &dyn UpdateRule, field: &'static str, share: f32) -> Result<(), Error> {
    require((0.0..1.0).contains(&share), || owner(rule), field, share, "at least 0 and below 1")
}

/// Refuses an ε that does not keep 0 from being divided by 0.
fn require_epsilon(rule: &dyn UpdateRule, epsilon: f32, expected: &'static str) -> Result<(), Error> {
    let fits = epsilon.is_finite() && epsilon >= f32::MIN_POSITIVE;
    require(fits, || owner(rule), "epsilon", epsilon, expected)
}

/// The rule as errors name it.
fn owner(rule: &dyn UpdateRule) -> String {
    format!("rule {}", rule.name())
}

/// WGSL's sign: 0 of 0, where Rust's `signum` is ±1.
#[inline(always)]
pub(crate) fn sign(x: f32) -> f32 {
    f32::from(i8::from(x > 0.0) - i8::from(x < 0.0))
}

/// u of AdamW, from the new moments: m / (√v + ε), with both corrected for their start at zero.
#[inline(always)]
pub(crate) fn preconditioned(m: f32, v: f32, first_correction: f32, second_correction: f32, epsilon: f32) -> f32 {
    (first_correction * m) / (second_correction * v.sqrt() + epsilon)
}

/// -ln β, as large as it ever matters where β is 0.
pub(crate) fn decay_of(beta: f32) -> f32 {
    (-f64::from(beta).ln()).min(128.0) as f32
}

/// Weight decay: pulls parameters towards zero by `λ` per unit of learning rate.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
pub enum WeightDecay {
    /// Coupled: `g ← g + λ w` before everything else, as `torch.optim.SGD(weight_decay=λ)`. The regime sees the gradient of the regularised
    /// loss. The first pass then reads the parameters too (4 more bytes per parameter).
    Coupled(f32),
    /// Decoupled: `w ← w (1 - η λ)` before the step, as in AdamW (Loshchilov & Hutter, arXiv:1711.05101). The regime does not see it.
    Decoupled(f32),
}

impl WeightDecay {
    /// Refuses a λ that is negative or not finite.
    pub(crate) fn check(lambda: f32, owner: impl FnOnce() -> String) -> Result<(), Error> {
        require(lambda.is_finite() && lambda >= 0.0, owner, "weight_decay", lambda, "finite and at least 0")
    }

    /// Returns λ.
    pub(crate) fn lambda(&self) -> f32 {
        let (WeightDecay::Coupled(lambda) | WeightDecay::Decoupled(lambda)) = *self;
        lambda
    }

    /// Returns λ of the coupled form, 0 otherwise.
    #[doc(hidden)]
    pub fn coupled(&self) -> f32 {
        match *self {
            WeightDecay::Coupled(lambda) => lambda,
            WeightDecay::Decoupled(_) => 0.0,
        }
    }

    /// Returns λ of the decoupled form, 0 otherwise.
    #[doc(hidden)]
    pub fn decoupled(&self) -> f32 {
        match *self {
            WeightDecay::Decoupled(lambda) => lambda,
            WeightDecay::Coupled(_) => 0.0,
        }
    }
}
