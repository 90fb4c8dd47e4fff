// AutoSgd, which runs three streams of parameters: src/regime/auto_sgd.rs.

import package::layout::{
    AutoSgdState, GroupConstants, GroupState, RawRecord, CLAMPED_RATE, CLAMP_TERM, DECREASE, EPISODE_ENDS, EPISODE_TERM, FASTER,
    INCREASE, MIDDLE, NO_SLOT, RESTART, SCALE_CHANGED, SKIP_ALL, SKIP_STEP, SLOWER, START_SLOT, STAY, STREAM_LOST, STREAM_SLOTS,
    UNDECIDED, RATE_MIN, RATE_MAX, ALL_STREAMS, FIRST_LOOK,
};
import package::learning_rate::first_rate::set_first_rate;
import package::learning_rate::gradient::{Gradient, Turn, differ, hold_rate};
import package::scaled::{larger, ln_ratio, quotient, scaled, smaller, times};

// Sets the first rate. Later only the outcome of an episode changes the rate.
fn follow_regime(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    if g.first {
        set_first_rate(c, g, s, r);
    }
}

fn begin_step(
    c: GroupConstants,
    loss: f32,
    skip: bool,
    halted: bool,
    s: ptr<function, GroupState>,
    r: ptr<function, RawRecord>,
) -> Turn {
    if !skip {
        enter_episode(c, s, r);
    } else if halted {
        // After a halt nothing changes any more.
        return Turn(1.0, 0u, SKIP_ALL, NO_SLOT, NO_SLOT);
    }
    return take_turn(c, loss, skip, s, r);
}

// Changes the rate by the outcome of the last episode, at the first step after it.
fn enter_episode(c: GroupConstants, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    let outcome = (*s).regime.outcome;
    (*s).regime.outcome = UNDECIDED;
    (*r).regime.outcome = outcome;
    if (*s).started == 0u || outcome == UNDECIDED || outcome == STAY {
        return;
    }
    let old = (*s).first_rate;
    var wanted = quotient(old, scaled(c.regime_constants.factor, 0));
    if outcome == INCREASE {
        wanted = times(old, c.regime_constants.factor);
    }
    let rate = larger(smaller(wanted, scaled(RATE_MAX, 0)), scaled(RATE_MIN, 0));
    (*r).terms[EPISODE_TERM] = ln_ratio(wanted, old);
    if differ(rate, wanted) {
        (*r).flags |= CLAMPED_RATE;
        (*r).terms[CLAMP_TERM] = ln_ratio(rate, wanted);
    }
    hold_rate(rate, s);
}

// Takes one stream's turn: uses its loss, and selects the next stream.
fn take_turn(
    c: GroupConstants,
    loss: f32,
    skip: bool,
    group: ptr<function, GroupState>,
    r: ptr<function, RawRecord>,
) -> Turn {
    var s = (*group).regime;
    let stream = s.turn % STREAM_SLOTS;
    let bit = 1u << stream;
    (*r).regime.episode = s.episode;
    (*r).regime.stream = 1u + stream;
    var turn = Turn(1.0, 0u, SKIP_ALL, NO_SLOT, NO_SLOT);
    if stream == SLOWER {
        turn.factor = 1.0 / c.regime_constants.factor;
    } else if stream == FASTER {
        turn.factor = c.regime_constants.factor;
    }
    let had_moved = (s.moved & bit) != 0u;
    if skip {
        // If the loss scale fell, it may have been the only cause.
        if had_moved && ((*r).flags & SCALE_CHANGED) == 0u {
            s.lost |= bit;
            (*r).flags |= STREAM_LOST;
        }
    } else {
        turn.begins = select(0u, 1u, s.moved == 0u);
        s.moved |= bit;
        if had_moved {
            hear(c, stream, loss, &s);
        } else {
            let count = f32(countOneBits(s.moved));
            // Dividing each term keeps both quotients from overflowing.
            let change = loss / count - s.start_loss / count;
            s.start_loss = select(s.start_loss + change, loss, count == 1.0);
        }
    }
    if s.moved != 0u {
        // The two waiting streams are in two slots. The slot of the next stream is also where this stream goes. A
        // stream that has not moved is at the start.
        let slot = 1u + s.turn % 2u;
        let next = (stream + 1u) % STREAM_SLOTS;
        turn.skip = SKIP_STEP;
        // The parameters of a lost stream are not needed any more.
        turn.put = select(slot, NO_SLOT, skip);
        turn.take = found(s, next, slot);
        if stream == FASTER {
            let outcome = decide(c, s);
            if outcome != UNDECIDED {
                // After STAY the middle stream is the next one anyway.
                turn.put = NO_SLOT;
                if outcome == INCREASE {
                    turn.take = NO_SLOT;
                } else if outcome == DECREASE {
                    turn.take = found(s, SLOWER, STREAM_SLOTS - slot);
                } else if outcome == RESTART {
                    turn.take = START_SLOT;
                }
                (*r).flags |= EPISODE_ENDS;
                let ended = s;
                s = AutoSgdState();
                s.episode = ended.episode + 1u;
                s.turn = ended.turn;
                s.outcome = outcome;
            }
        }
    }
    if stream == FASTER {
        s.heard = 0u;
    }
    s.turn = (s.turn + 1u) % (2u * STREAM_SLOTS);
    (*group).regime = s;
    return turn;
}

// Returns the slot of a stream: this slot once the stream has moved, else the start.
fn found(s: AutoSgdState, stream: u32, slot: u32) -> u32 {
    return select(START_SLOT, slot, (s.moved & (1u << stream)) != 0u);
}

// Computes (a - b)/(|a| + |b|), from -1 to 1. It does not depend on the loss's scale, and is 0 if both are 0.
fn relative_difference(a: f32, b: f32) -> f32 {
    let magnitude = 0.5 * abs(a) + 0.5 * abs(b);
    if magnitude > 0.0 {
        return (0.5 * a - 0.5 * b) / magnitude;
    }
    return 0.0;
}

// Takes the loss of a stream that has moved. The last one of a round compares all of them.
fn hear(c: GroupConstants, stream: u32, loss: f32, s: ptr<function, AutoSgdState>) {
    (*s).heard |= 1u << stream;
    if stream == MIDDLE {
        (*s).middle_loss = loss;
    } else if stream == SLOWER {
        (*s).slower_loss = loss;
    } else if (*s).heard == ALL_STREAMS {
        let faster = c.sign * relative_difference(loss, (*s).middle_loss);
        let slower = c.sign * relative_difference((*s).slower_loss, (*s).middle_loss);
        (*s).faster_sum += faster;
        (*s).faster_squares += faster * faster;
        (*s).slower_sum += slower;
        (*s).slower_squares += slower * slower;
        (*s).rounds += 1u;
    }
}

// Returns true if the mean difference is at least `certainty` standard errors.
fn is_certain(c: GroupConstants, sum: f32, squares: f32, rounds: u32) -> bool {
    if rounds < FIRST_LOOK {
        return false;
    }
    let k = f32(rounds);
    let explained = sum * sum / k;
    let variance = max(squares - explained, 0.0) / (k - 1.0);
    return explained >= c.regime_constants.certainty * c.regime_constants.certainty * variance;
}

fn is_lost(s: AutoSgdState, stream: u32) -> bool {
    return (s.lost & (1u << stream)) != 0u;
}

// Returns the outcome of the episode after a round.
fn decide(c: GroupConstants, s: AutoSgdState) -> u32 {
    let k = s.rounds;
    let is_look = s.heard == ALL_STREAMS && k >= FIRST_LOOK && (countOneBits(k) == 1u || k >= c.regime_constants.rounds);
    if !is_look && s.lost == 0u {
        return UNDECIDED;
    }
    let faster_differs = is_certain(c, s.faster_sum, s.faster_squares, k);
    let slower_differs = is_certain(c, s.slower_sum, s.slower_squares, k);
    let faster_wins = faster_differs && s.faster_sum < 0.0 && !is_lost(s, FASTER);
    let slower_wins = slower_differs && s.slower_sum < 0.0 && !is_lost(s, SLOWER);
    if is_lost(s, MIDDLE) || (slower_wins && !faster_wins) {
        let risen = c.sign * relative_difference(s.slower_loss, s.start_loss) > 0.333333333;
        return select(DECREASE, RESTART, is_lost(s, SLOWER) || risen);
    }
    if faster_wins {
        return INCREASE;
    }
    let both_worse = faster_differs && s.faster_sum > 0.0 && slower_differs && s.slower_sum > 0.0;
    if both_worse || s.lost != 0u || k >= c.regime_constants.rounds {
        return STAY;
    }
    return UNDECIDED;
}
