// The loss of a step, for regimes that use it. `loss`: a regime uses the loss.

import package::layout::{INFINITY_BITS, LOSS_ELEMENT, MAGNITUDE_BITS};
import package::reduction::totals::Totals;

// Index of the loss in its binding.
@if(loss) override LOSS_AT: u32;

@if(loss && !whole_step) @group(0) @binding(4) var<storage, read> losses: array<u32>;
@if(loss && whole_step) @group(0) @binding(8) var<storage, read> losses: array<u32>;

// Returns the sums of a scope with the loss. The first scope carries a loss that is not finite to all groups.
fn with_loss(sums_of_scope: Totals, scope: u32) -> Totals {
    var t = sums_of_scope;
    @if(loss) {
        let bits = losses[LOSS_AT];
        t.loss = bitcast<f32>(bits);
        if scope == 0u && (bits & MAGNITUDE_BITS) >= INFINITY_BITS {
            t.first_nonfinite = min(t.first_nonfinite, LOSS_ELEMENT);
        }
    }
    return t;
}
