// Random bits that are a hash of the step and the element, so that they are the same on every device and for every geometry.

// lowbias32 of C. Wellons' "hash-prospector": every bit of the hash depends on every bit of x.
fn mix_bits(x: vec4<u32>) -> vec4<u32> {
    var y = (x ^ (x >> vec4<u32>(16u))) * 0x7feb352du;
    y = (y ^ (y >> vec4<u32>(15u))) * 0x846ca68bu;
    return y ^ (y >> vec4<u32>(16u));
}

// Returns the key from which the random bits of a step are drawn.
fn rounding_key(seed: u32, steps_low: u32, steps_high: u32) -> u32 {
    let key = mix_bits(vec4<u32>(mix_bits(vec4<u32>(mix_bits(vec4<u32>(seed)).x ^ steps_low)).x ^ steps_high));
    return key.x;
}

// Returns the random bits of four elements from `first` on.
fn random_bits(key: u32, first: u32) -> vec4<u32> {
    let elements = vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u);
    return mix_bits(vec4<u32>(key) + 0x9e3779b9u * elements);
}
