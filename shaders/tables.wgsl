// Constants and states of the groups, for passes 1 and 3. `writes_states`: the kernel changes the states.

import package::layout::{GroupConstants, GroupState};

@group(0) @binding(0) var<storage, read> groups: array<GroupConstants>;
@if(!writes_states) @group(0) @binding(1) var<storage, read> states: array<GroupState>;
@if(writes_states) @group(0) @binding(2) var<storage, read_write> states: array<GroupState>;
