// Parameters go back into 16 bits up or down at random, with the probabilities that make the mean right.

fn store_parameters(block: Block, quad: u32, value: vec4<f32>, key: u32) {
    let noise = random_bits(key, block.first_element + 4u * quad);
    store_packed_parameters(block, quad, packed_codes(dithered(PARAMETERS_ARE, value, noise)));
}
