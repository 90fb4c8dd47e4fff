// How pass 4 moves the parameters: along the direction.

fn next_parameters(update: Update, at: u32, w: vec4<f32>, direction: vec4<f32>) -> vec4<f32> {
    return moved(update, w, direction);
}
