// Pass 3, where no group keeps a mean of squares.

fn follow_moments(c: GroupConstants, s: ptr<function, GroupState>, u: ptr<function, Update>) {}
