// How pass 4 moves the parameters in schedule-free training: z moves along the direction, the average towards z, and the parameters are
// between them. CPU twin: src/cpu/schedule_free.rs.

fn next_parameters(update: Update, at: u32, w: vec4<f32>, direction: vec4<f32>) -> vec4<f32> {
    var z = base[at];
    if update.first != 0u {
        z = w;
        base[at] = z;
    }
    // No rate yet: nothing moves.
    if update.average_weight == 0.0 {
        return w;
    }
    var x = beyond(w, z);
    z = moved(update, z, direction);
    base[at] = z;
    x = select(x + update.average_weight * (z - x), z, update.average_weight == 1.0);
    return between(x, z);
}
