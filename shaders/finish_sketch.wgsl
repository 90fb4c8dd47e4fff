// The last pass: adds the step's sketch to that of the way since the window began, and squares its length for the next step.
//
// Reads:  scopes, groups, updates (their skip flag), sketches.
// Writes: ways, one sketch per scope; of the states way_square. Nothing where the step is skipped.
// Grid:   one workgroup of WORKGROUP invocations (a power of two) per scope that is sketched; invocation i takes buckets i,
//         i + WORKGROUP, …, then a tree. The order is fixed.
// Assumes: the trips of one invocation, a row and a bucket each, stay below 65,535.

override WORKGROUP: u32;
// Rows from one to the next that counts: those between were folded into it.
override STRIDE: u32;

@group(0) @binding(0) var<storage, read> scopes: array<SketchRows>;
@group(0) @binding(1) var<storage, read> groups: array<GroupConstants>;
@group(0) @binding(2) var<storage, read> updates: array<Update>;
@group(0) @binding(3) var<storage, read> sketches: array<u32>;
@group(0) @binding(4) var<storage, read_write> ways: array<u32>;
@group(0) @binding(5) var<storage, read_write> states: array<GroupState>;

var<workgroup> largest: array<u32, WORKGROUP>;
var<workgroup> squares: array<f32, WORKGROUP>;

// The magnitude bits of what is not finite: as they were loaded, which shared/sweep_again.wgsl says why.
fn if_not_finite(bits: u32) -> u32 {
    let magnitude = bits & MAGNITUDE_BITS;
    return select(0u, magnitude, magnitude >= INFINITY_BITS);
}

@compute @workgroup_size(WORKGROUP)
fn finish_sketch(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let scope = scopes[workgroup.x];
    if updates[scope.group].skip != 0u {
        return;
    }
    let restarted = states[scope.group].restarted != 0u;
    let way = workgroup.x * SKETCH_BUCKETS;
    var most = 0u;
    for (var bucket = lane; bucket < SKETCH_BUCKETS; bucket += WORKGROUP) {
        var steps = 0.0;
        for (var row = 0u; row < scope.rows; row += STRIDE) {
            let step = sketches[(scope.first + row) * SKETCH_BUCKETS + bucket];
            steps += bitcast<f32>(step);
            most = max(most, if_not_finite(step));
        }
        let before = select(ways[way + bucket], 0u, restarted);
        let after = bitcast<u32>(bitcast<f32>(before) + steps);
        ways[way + bucket] = after;
        most = max(max(most, if_not_finite(before)), after & MAGNITUDE_BITS);
    }
    largest[lane] = most;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            largest[lane] = max(largest[lane], largest[lane + half]);
        }
    }
    workgroupBarrier();
    // Squares of numbers of any size: scaled by the largest.
    let magnitude = largest[0];
    let exponent = clamp(i32(magnitude >> 23u) - 127, -126, 126);
    let scale = power_of_two(-exponent);
    var square = 0.0;
    for (var bucket = lane; bucket < SKETCH_BUCKETS; bucket += WORKGROUP) {
        let x = scale * bitcast<f32>(ways[way + bucket]);
        square += x * x;
    }
    squares[lane] = square;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            squares[lane] += squares[lane + half];
        }
    }
    workgroupBarrier();
    // A step that left the range of f32 has led nowhere.
    var way_square = Scaled(0.0, 0);
    if magnitude < INFINITY_BITS {
        way_square = scaled(squares[0], 2 * exponent);
    }
    for (var group = lane; group < arrayLength(&groups); group += WORKGROUP) {
        if groups[group].scope == scope.scope {
            states[group].way_square_mantissa = way_square.mantissa;
            states[group].way_square_exponent = way_square.exponent;
        }
    }
}
