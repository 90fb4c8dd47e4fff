//! First rate of the regimes whose formula gives the change of the rate, used if the caller gives none. Twin of
//! `shaders/learning_rate/first_rate.wgsl`.

use crate::layout::{GroupConstants, GroupState, RawRecord, Scaled, group_flags, record_flags};
use crate::regime::gradient::{Gradient, direction_length_of, hold_rate};
use crate::regime::{RATE_MAX, RATE_MIN};
use crate::trust::trust_of;

/// Sets η_0 = ε (1 + ‖w_0‖) / n_0. If the direction is a vector of signs, √d takes the place of n_0.
pub(crate) fn set_first_rate(c: &GroupConstants, g: &Gradient, s: &mut GroupState, r: &mut RawRecord) {
    if c.flags & group_flags::INITIAL_RATE != 0 {
        return;
    }
    let initial_norm = Scaled::of_squares(g.sums.initial_square).root();
    let direction = direction_length_of(c, g.norm);
    let mut wanted = Scaled::ONE.sum(initial_norm).times(c.first_step).quotient(direction);
    if c.trust_coefficient > 0.0 && c.flags & group_flags::TRUST_CAPS == 0 {
        // The trust ratio multiplies the rate later. Dividing by it gives the first step its length.
        wanted = wanted.quotient(trust_of(c, g.sums, direction, s));
    }
    let rate = wanted.larger(Scaled::new(RATE_MIN, 0)).smaller(Scaled::new(RATE_MAX, 0));
    if rate != wanted {
        r.flags |= record_flags::CLAMPED_RATE;
    }
    hold_rate(rate, s);
}
