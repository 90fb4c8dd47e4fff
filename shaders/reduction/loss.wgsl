// The loss of a step, for the regimes that go by it. `loss`: one of them does.

import package::layout::{INFINITY_BITS, LOSS_ELEMENT, MAGNITUDE_BITS};
import package::reduction::totals::Totals;

// Where in its binding the loss lies.
@if(loss) override LOSS_AT: u32;

@if(loss && !whole_step) @group(0) @binding(4) var<storage, read> losses: array<u32>;
@if(loss && whole_step) @group(0) @binding(8) var<storage, read> losses: array<u32>;

// The sums of a scope with the loss. All groups hear from the first scope that it is not finite.
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
