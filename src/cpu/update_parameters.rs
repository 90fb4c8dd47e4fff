//! Pass 4: twin of `shaders/update_parameters.wgsl`.

use crate::cpu::reduce_gradient::{counter_of, pack_counter};
use crate::layout::Update;
use crate::plan::{Kernel, RuleKind};

const COUNTER_LIMIT: i32 = 7;

/// What the update of one block writes; all slices are the block's own.
pub(crate) struct BlockSlicesMut<'a> {
    pub(crate) params: &'a mut [f32],
    pub(crate) grads: &'a [f32],
    /// Empty where the rule has none.
    pub(crate) momentum: &'a mut [f32],
    /// Empty where the regime needs none.
    pub(crate) counters: &'a mut [u8],
}

/// The gradient that the rule sees: sign · clip · g + λ w.
#[derive(Clone, Copy)]
struct Gradient {
    factor: f32,
    coupled_decay: f32,
    /// λ is 0 without it, and 0 · w would still let an infinite w spread.
    decays: bool,
}

impl Gradient {
    #[inline(always)]
    fn of(self, g: f32, w: f32) -> f32 {
        let g = self.factor * g;
        if self.decays {
            g + self.coupled_decay * w
        } else {
            g
        }
    }
}

/// Updates one block. Not to be called where the step is skipped. Inlined, as everything it calls, so that the caller chooses the
/// vector instructions.
#[inline(always)]
pub(crate) fn update_parameters(kernel: Kernel, update: &Update, slices: BlockSlicesMut) {
    let BlockSlicesMut {
        params,
        grads,
        momentum,
        counters,
    } = slices;
    let gradient = Gradient {
        factor: update.gradient_factor,
        coupled_decay: update.coupled_decay,
        decays: kernel.coupled_decay,
    };
    // Counters first: they need the parameters as they were.
    for ((byte, &w), &g) in counters.iter_mut().zip(params.iter()).zip(grads) {
        let sign = sign(gradient.of(g, w));
        let q = (counter_of(*byte) + sign).clamp(-COUNTER_LIMIT, COUNTER_LIMIT);
        *byte = pack_counter(q, sign);
    }

    let elements = params.iter_mut().zip(grads);
    match kernel.rule {
        RuleKind::Sgd => {
            for (w, &g) in elements {
                *w = step(update, *w, gradient.of(g, *w));
            }
        }
        RuleKind::SignSgd => {
            for (w, &g) in elements {
                *w = step(update, *w, sign(gradient.of(g, *w)) as f32);
            }
        }
        RuleKind::Sgdm => {
            for ((w, &g), m) in elements.zip(momentum) {
                *w = step(update, *w, remember(update, m, gradient.of(g, *w)));
            }
        }
        RuleKind::Nesterov => {
            for ((w, &g), m) in elements.zip(momentum) {
                let g = gradient.of(g, *w);
                *w = step(update, *w, g + update.momentum * remember(update, m, g));
            }
        }
        RuleKind::Signum => {
            for ((w, &g), m) in elements.zip(momentum) {
                let m = remember(update, m, gradient.of(g, *w));
                *w = step(update, *w, sign(m) as f32);
            }
        }
    }
}

#[inline(always)]
fn step(update: &Update, w: f32, direction: f32) -> f32 {
    update.shrink * w - update.learning_rate * direction
}

#[inline(always)]
fn remember(update: &Update, m: &mut f32, g: f32) -> f32 {
    *m = update.momentum_keep * *m + update.gradient_share * g;
    *m
}

/// WGSL's sign: 0 of 0, where Rust's `signum` is ±1.
#[inline(always)]
fn sign(x: f32) -> i32 {
    i32::from(x > 0.0) - i32::from(x < 0.0)
}
