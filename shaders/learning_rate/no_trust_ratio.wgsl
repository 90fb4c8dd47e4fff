// Pass 3, where no group has a trust ratio.

fn follow_trust(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {}

fn before_trust(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, rate: Scaled) -> Scaled {
    return rate;
}
