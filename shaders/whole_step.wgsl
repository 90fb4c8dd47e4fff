// A whole step in one dispatch, for small models, whose passes take less time than their launches. One workgroup does passes 1 to 4 one after
// the other. Operations and orders of addition are those of the passes, so that the results have the same bits.
//
// Reads:  groups, blocks; gradients; the loss, where a regime needs it.
// Writes: all that passes 1 to 4 write, but for partials and sums, which stay in workgroup memory; the scale of the loss only where there is a
//         scaler.
// Grid:   one workgroup of WORKGROUP invocations, which takes the blocks in their order, and then the groups.
// Assumes: there is one window, all groups have the same regime kernel, the blocks of a scope follow one another, there are at most
//         WHOLE_STEP_SCOPES scopes, and FINISH_WORKGROUP is a multiple of the number of partials of a block.
//
// Barriers must be in uniform control flow. The loops around them therefore have lengths from read-only buffers.

import package::elements::blocks::blocks;
import package::geometry::WORKGROUP;
import package::layout::{Block, NO_ELEMENT, NOT_MEASURED, WHOLE_STEP_SCOPES};
import package::learning_rate::{lead_group, records, sums};
import package::reduce_gradient::reduce_block;
import package::reduction::loss::with_loss;
import package::reduction::partials::{FINISH_WORKGROUP, leaves};
import package::reduction::totals::{add_totals, no_totals};
import package::tables::{groups, states};
import package::update_parameters::update_block;
import package::update::in_range::overflow_key;
@if(per_invocation) import package::reduction::emit_per_invocation::Invocation;
@if(per_workgroup) import package::reduction::emit_per_workgroup::Invocation;
@if(per_subgroup) import package::reduction::emit_per_subgroup::Invocation;

// Largest overflow key (RawRecord.overflow_key) of all invocations.
var<workgroup> overflow: atomic<u32>;

// The second argument is for HLSL (see reduce_gradient.wgsl).
@if(per_subgroup)
@compute @workgroup_size(WORKGROUP)
fn whole_step(invocation: Invocation, @builtin(subgroup_size) subgroup_size: u32) {
    take_whole_step(invocation);
}

@if(!per_subgroup)
@compute @workgroup_size(WORKGROUP)
fn whole_step(invocation: Invocation) {
    take_whole_step(invocation);
}

fn take_whole_step(invocation: Invocation) {
    let lane = invocation.lane;
    let count = arrayLength(&blocks);
    // A scope without elements has no block that would write its sums.
    for (var scope = lane; scope < WHOLE_STEP_SCOPES; scope += WORKGROUP) {
        sums[scope] = with_loss(no_totals(), scope);
    }
    clear_leaves(lane);
    if lane == 0u {
        atomicStore(&overflow, 0u);
    }
    workgroupBarrier();

    var first_row = 0u;
    for (var i = 0u; i < count; i++) {
        var block = blocks[i];
        let scope = groups[block.group].scope;
        if (groups[block.group].flags & NOT_MEASURED) != 0u {
            // No pass uses the sums of the group, so they stay 0.
            block.elements = 0u;
        }
        // Rows of the partials are counted from the scope's first row.
        block.row -= first_row;
        reduce_block(block, invocation);
        // The next block is reduced in the same workgroup memory.
        @if(!per_invocation) workgroupBarrier();
        let next = min(i + 1u, count - 1u);
        if (next == i) | (groups[blocks[next].group].scope != scope) {
            finish_scope(scope, lane);
            first_row = i + 1u;
        }
    }

    for (var group = lane; group < arrayLength(&groups); group += WORKGROUP) {
        lead_group(group);
    }
    storageBarrier();
    workgroupBarrier();

    for (var i = 0u; i < count; i++) {
        update_block(blocks[i], lane);
    }
    let key = overflow_key();
    if key != 0u {
        atomicMax(&overflow, key);
    }
    workgroupBarrier();
    if lane == 0u {
        let largest = atomicLoad(&overflow);
        if largest != 0u {
            // This is the step's record of the first group.
            records[(states[0].record_slot - 1u) * arrayLength(&groups)].overflow_key = largest;
        }
    }
}

fn clear_leaves(lane: u32) {
    for (var leaf = lane; leaf < FINISH_WORKGROUP; leaf += WORKGROUP) {
        leaves[leaf] = no_totals();
    }
}

// Adds up the leaves, as pass 2 does, and clears them for the next scope.
fn finish_scope(scope: u32, lane: u32) {
    for (var half = FINISH_WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        // The count is the same in all invocations. FXC refuses a barrier around a loop of varying count (X3663).
        for (var first = 0u; first < half; first += WORKGROUP) {
            let leaf = first + lane;
            if leaf < half {
                leaves[leaf] = add_totals(leaves[leaf], leaves[leaf + half]);
            }
        }
    }
    workgroupBarrier();
    if lane == 0u {
        sums[scope] = with_loss(leaves[0], scope);
    }
    workgroupBarrier();
    clear_leaves(lane);
    workgroupBarrier();
}
