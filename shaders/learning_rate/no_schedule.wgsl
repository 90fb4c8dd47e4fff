// Pass 3, where no group has a schedule.

fn follow_schedule(c: GroupConstants, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {}
