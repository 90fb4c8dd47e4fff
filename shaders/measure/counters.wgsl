// The direction memory of rules without momentum, one byte per parameter, four to a word: bits 0..4 hold the saturating
// counter of gradient signs q in [-7, 7], bits 4..6 the sign of the last step, both in two's complement, so that zeroed memory
// means "nothing yet".

// Returns the counters. The bits are shifted to the top, then back down with their sign.
fn counters_of(word: u32) -> vec4<f32> {
    let tops = vec4<u32>(word) << vec4<u32>(28u, 20u, 12u, 4u);
    return vec4<f32>(bitcast<vec4<i32>>(tops) >> vec4<u32>(28u));
}

fn last_signs_of(word: u32) -> vec4<f32> {
    let tops = vec4<u32>(word) << vec4<u32>(26u, 18u, 10u, 2u);
    return vec4<f32>(bitcast<vec4<i32>>(tops) >> vec4<u32>(30u));
}

fn pack_counters(counters: vec4<f32>, signs: vec4<f32>) -> u32 {
    let q = bitcast<vec4<u32>>(vec4<i32>(counters)) & vec4<u32>(15u);
    let s = bitcast<vec4<u32>>(vec4<i32>(signs)) & vec4<u32>(3u);
    let bytes = (q | (s << vec4<u32>(4u))) << vec4<u32>(0u, 8u, 16u, 24u);
    return bytes.x | bytes.y | bytes.z | bytes.w;
}
