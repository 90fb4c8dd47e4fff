// Memory of the parameters of a window, for passes 1 and 4. `momentum` is the memory of the rule, in quads, with its other moments after the
// momentum. `memory` is the memory of the regime.
//
// `bits8`: the rule's memory is in 8 bits (elements/state.wgsl). `counters`: the regime keeps direction counters of four parameters in a
// word. Otherwise it keeps quads. `writes_parameters`: the kernel writes both memories.

@if(counters) alias Memory = u32;
@if(!counters) alias Memory = vec4<f32>;

@if(writes_parameters && !bits8) @group(1) @binding(3) var<storage, read_write> momentum: array<vec4<f32>>;
@if(!writes_parameters && !bits8) @group(1) @binding(3) var<storage, read> momentum: array<vec4<f32>>;
@if(writes_parameters) @group(1) @binding(4) var<storage, read_write> memory: array<Memory>;
@if(!writes_parameters) @group(1) @binding(4) var<storage, read> memory: array<Memory>;
