// Four bytes to a word.

fn packed_bytes(codes: vec4<u32>) -> u32 {
    let bytes = (codes & vec4<u32>(255u)) << vec4<u32>(0u, 8u, 16u, 24u);
    return bytes.x | bytes.y | bytes.z | bytes.w;
}

// Unpacks four signed bytes.
fn signed_bytes(packed: u32) -> vec4<i32> {
    let tops = vec4<u32>(packed) << vec4<u32>(24u, 16u, 8u, 0u);
    return bitcast<vec4<i32>>(tops) >> vec4<u32>(24u);
}
