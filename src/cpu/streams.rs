//! Pass 3, the regime that runs three streams of parameters: twin of `shaders/regimes/streams.wgsl`, function by function.

use crate::cpu::regimes::hold_rate;
use crate::cpu::scaled::Scaled;
use crate::layout::{
    GroupConstants, GroupState, RawRecord, StreamsState, outcomes, record_flags, skips, slots, streams,
};
use crate::regime::{AutoSgd, RATE_MAX, RATE_MIN};

/// A bit for each stream.
const ALL_STREAMS: u32 = 7;
/// Rounds before the first test.
const FIRST_LOOK: u32 = AutoSgd::FIRST_LOOK;

/// What pass 4 does with the streams after the step, or instead of it.
pub(crate) struct Turn {
    /// The stream's share of η.
    pub(crate) factor: f32,
    /// 1 where the step is the first of its episode.
    pub(crate) begins: u32,
    /// What [`Update::skip`](crate::layout::Update::skip) is where the step is skipped.
    pub(crate) skip: u32,
    pub(crate) put: u32,
    pub(crate) take: u32,
}

impl Turn {
    /// Where there are no streams.
    pub(crate) const NONE: Turn =
        Turn { factor: 1.0, begins: 0, skip: skips::SKIP_ALL, put: slots::NO_SLOT, take: slots::NO_SLOT };
}

/// The outcome of the last episode changes the rate, at the first step that is taken after it.
pub(crate) fn enter_episode(c: &GroupConstants, s: &mut GroupState, r: &mut RawRecord) {
    let outcome = std::mem::replace(&mut s.streams.outcome, outcomes::UNDECIDED);
    r.outcome = outcome;
    if s.started == 0 || outcome == outcomes::UNDECIDED || outcome == outcomes::STAY {
        return;
    }
    let old = Scaled { mantissa: s.first_rate_mantissa, exponent: s.first_rate_exponent };
    let wanted = if outcome == outcomes::INCREASE { old.times(c.scale) } else { old.quotient(Scaled::new(c.scale, 0)) };
    let rate = wanted.smaller(Scaled::new(RATE_MAX, 0)).larger(Scaled::new(RATE_MIN, 0));
    r.episode_term = wanted.ln_ratio(old);
    if rate != wanted {
        r.flags |= record_flags::CLAMPED_RATE;
        r.clamp_term = rate.ln_ratio(wanted);
    }
    hold_rate(rate, s);
}

/// The turn of one stream: what its loss says, and whose turn is next.
pub(crate) fn take_turn(c: &GroupConstants, loss: f32, skip: bool, s: &mut StreamsState, r: &mut RawRecord) -> Turn {
    let stream = s.turn % slots::STREAM_SLOTS;
    let bit = 1 << stream;
    r.episode = s.episode;
    r.stream = 1 + stream;
    let mut turn = Turn {
        factor: match stream {
            streams::SLOWER => 1.0 / c.scale,
            streams::MIDDLE => 1.0,
            _ => c.scale,
        },
        ..Turn::NONE
    };
    let had_moved = s.moved & bit != 0;
    if skip {
        // Where the loss scale fell, it may be all that was wrong.
        if had_moved && r.flags & record_flags::SCALE_CHANGED == 0 {
            s.lost |= bit;
            r.flags |= record_flags::STREAM_LOST;
        }
    } else {
        turn.begins = u32::from(s.moved == 0);
        s.moved |= bit;
        if had_moved {
            hear(c, stream, loss, s);
        } else {
            let count = s.moved.count_ones() as f32;
            // Neither quotient overflows.
            let change = loss / count - s.start_loss / count;
            s.start_loss = if count == 1.0 { loss } else { s.start_loss + change };
        }
    }
    if s.moved != 0 {
        // The streams whose turn it is not are in two slots; that of the next one is found where this one's will be. One that has
        // not moved is at the start.
        let slot = 1 + s.turn % 2;
        let next = (stream + 1) % slots::STREAM_SLOTS;
        turn.skip = skips::SKIP_STEP;
        // What a lost stream was is of no more use.
        turn.put = if skip { slots::NO_SLOT } else { slot };
        let found = |stream: u32, slot: u32| {
            if s.moved & 1 << stream != 0 { slot } else { slots::START_SLOT }
        };
        turn.take = found(next, slot);
        if stream == streams::FASTER {
            let outcome = decide(c, s);
            if outcome != outcomes::UNDECIDED {
                turn.put = slots::NO_SLOT;
                turn.take = match outcome {
                    outcomes::INCREASE => slots::NO_SLOT,
                    // Whose turn it is next anyway.
                    outcomes::STAY => turn.take,
                    outcomes::DECREASE => found(streams::SLOWER, slots::STREAM_SLOTS - slot),
                    _ => slots::START_SLOT,
                };
                r.flags |= record_flags::EPISODE_ENDS;
                *s = StreamsState {
                    episode: s.episode.wrapping_add(1),
                    turn: s.turn,
                    outcome,
                    ..StreamsState::default()
                };
            }
        }
    }
    if stream == streams::FASTER {
        s.heard = 0;
    }
    s.turn = (s.turn + 1) % (2 * slots::STREAM_SLOTS);
    turn
}

/// (a - b)/(|a| + |b|): from -1 to 1, the same at any scale of the loss, and 0 where both are 0.
fn relative_difference(a: f32, b: f32) -> f32 {
    let magnitude = 0.5 * a.abs() + 0.5 * b.abs();
    if magnitude > 0.0 { (0.5 * a - 0.5 * b) / magnitude } else { 0.0 }
}

/// The loss of a stream that has moved. With the last one of a round all are compared.
fn hear(c: &GroupConstants, stream: u32, loss: f32, s: &mut StreamsState) {
    s.heard |= 1 << stream;
    match stream {
        streams::MIDDLE => s.middle_loss = loss,
        streams::SLOWER => s.slower_loss = loss,
        _ => {}
    }
    if stream == streams::FASTER && s.heard == ALL_STREAMS {
        let faster = c.sign * relative_difference(loss, s.middle_loss);
        let slower = c.sign * relative_difference(s.slower_loss, s.middle_loss);
        s.faster_sum += faster;
        s.faster_squares += faster * faster;
        s.slower_sum += slower;
        s.slower_squares += slower * slower;
        s.rounds += 1;
    }
}

/// Whether the mean difference is at least `certainty` standard errors.
fn is_certain(c: &GroupConstants, sum: f32, squares: f32, rounds: u32) -> bool {
    if rounds < FIRST_LOOK {
        return false;
    }
    let k = rounds as f32;
    let explained = sum * sum / k;
    let variance = (squares - explained).max(0.0) / (k - 1.0);
    explained >= c.offset * c.offset * variance
}

/// How the episode ends, if it does, after a round.
fn decide(c: &GroupConstants, s: &StreamsState) -> u32 {
    let k = s.rounds;
    let is_lost = |stream: u32| s.lost & 1 << stream != 0;
    let is_look = s.heard == ALL_STREAMS && k >= FIRST_LOOK && (k.is_power_of_two() || k >= c.rounds);
    if !is_look && s.lost == 0 {
        return outcomes::UNDECIDED;
    }
    let faster_differs = is_certain(c, s.faster_sum, s.faster_squares, k);
    let slower_differs = is_certain(c, s.slower_sum, s.slower_squares, k);
    let faster_wins = faster_differs && s.faster_sum < 0.0 && !is_lost(streams::FASTER);
    let slower_wins = slower_differs && s.slower_sum < 0.0 && !is_lost(streams::SLOWER);
    if is_lost(streams::MIDDLE) || slower_wins && !faster_wins {
        let risen = c.sign * relative_difference(s.slower_loss, s.start_loss) > 1.0 / 3.0;
        return if is_lost(streams::SLOWER) || risen { outcomes::RESTART } else { outcomes::DECREASE };
    }
    if faster_wins {
        return outcomes::INCREASE;
    }
    let both_worse = faster_differs && s.faster_sum > 0.0 && slower_differs && s.slower_sum > 0.0;
    if both_worse || s.lost != 0 || k >= c.rounds {
        return outcomes::STAY;
    }
    outcomes::UNDECIDED
}
