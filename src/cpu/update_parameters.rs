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

/// Updates one block. Not to be called where the step is skipped.
pub(crate) fn update_parameters(kernel: Kernel, update: &Update, slices: BlockSlicesMut) {
    let BlockSlicesMut {
        params,
        grads,
        momentum,
        counters,
    } = slices;
    // λ is 0 without coupled decay, and 0 · w would still let an infinite w spread.
    let gradient = |g: f32, w: f32| {
        let g = update.gradient_factor * g;
        if kernel.coupled_decay {
            g + update.coupled_decay * w
        } else {
            g
        }
    };
    // Counters first: they need the parameters as they were.
    for ((byte, &w), &g) in counters.iter_mut().zip(params.iter()).zip(grads) {
        let sign = sign(gradient(g, w));
        let q = (counter_of(*byte) + sign).clamp(-COUNTER_LIMIT, COUNTER_LIMIT);
        *byte = pack_counter(q, sign);
    }

    let step = |w: f32, direction: f32| update.shrink * w - update.learning_rate * direction;
    let remember = |m: &mut f32, g: f32| {
        *m = update.momentum_keep * *m + update.gradient_share * g;
        *m
    };
    match kernel.rule {
        RuleKind::Sgd => {
            for (w, &g) in params.iter_mut().zip(grads) {
                *w = step(*w, gradient(g, *w));
            }
        }
        RuleKind::SignSgd => {
            for (w, &g) in params.iter_mut().zip(grads) {
                *w = step(*w, sign(gradient(g, *w)) as f32);
            }
        }
        RuleKind::Sgdm => {
            for ((w, &g), m) in params.iter_mut().zip(grads).zip(momentum) {
                *w = step(*w, remember(m, gradient(g, *w)));
            }
        }
        RuleKind::Nesterov => {
            for ((w, &g), m) in params.iter_mut().zip(grads).zip(momentum) {
                let g = gradient(g, *w);
                *w = step(*w, g + update.momentum * remember(m, g));
            }
        }
        RuleKind::Signum => {
            for ((w, &g), m) in params.iter_mut().zip(grads).zip(momentum) {
                *w = step(*w, sign(remember(m, gradient(g, *w))) as f32);
            }
        }
    }
}

/// WGSL's sign: 0 of 0, where Rust's `signum` is ±1.
#[inline(always)]
fn sign(x: f32) -> i32 {
    i32::from(x > 0.0) - i32::from(x < 0.0)
}
