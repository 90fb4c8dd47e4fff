//! Average of the parameters. Twin of `shaders/update/average.wgsl`.

/// Computes w̄ ← w̄ + weight (w - w̄), and copies w bit for bit if the weight is 1. It is inlined, so that the caller
/// chooses the vector instructions.
#[inline(always)]
pub(crate) fn average(weight: f32, averages: &mut [f32], params: &[f32]) {
    if weight == 1.0 {
        averages.copy_from_slice(params);
    } else if weight > 0.0 {
        for (average, &w) in averages.iter_mut().zip(params) {
            *average += weight * (w - *average);
        }
    }
}
