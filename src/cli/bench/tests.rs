//! Tests of the benchmark's parts. They are here and not beside the parts because `cargo bench` compiles those too.

use std::time::Duration;

use super::workload::*;
use wgpu_optim::Rule;
use wgpu_optim::gpu::Timestamps;

#[test]
fn nonsense_timestamps_are_not_believed() {
    let wall = Duration::from_millis(10);
    for (device_us, believed) in [(0, false), (1, false), (9_000, true), (20_000, false)] {
        let device = Duration::from_micros(device_us);
        assert_eq!(
            Timestamps::plausible(device, wall),
            believed.then_some(device)
        );
    }
}

#[test]
fn the_byte_model_is_the_documented_one() {
    let [fixed, norm_ratio, seesaw] = regimes();
    let bytes = MODES[0].bytes_per_param;
    assert_eq!(bytes(Rule::sgd(), fixed), 16.0);
    assert_eq!(bytes(Rule::sgd(), norm_ratio), 16.0);
    assert_eq!(bytes(Rule::sgd(), seesaw), 19.0);
    assert_eq!(bytes(Rule::sgdm(0.9), norm_ratio), 24.0);
    assert_eq!(bytes(Rule::sgdm(0.9), seesaw), 28.0);
    let bytes = MODES[1].bytes_per_param;
    assert_eq!(bytes(Rule::sgd(), fixed), 12.0);
    assert_eq!(bytes(Rule::sgd(), norm_ratio), 12.0);
    assert_eq!(bytes(Rule::sgd(), seesaw), 14.0);
    assert_eq!(bytes(Rule::sgdm(0.9), norm_ratio), 20.0);
    assert_eq!(bytes(Rule::sgdm(0.9), seesaw), 20.0);
}

#[test]
fn many_tensors_fill_the_size_and_mix_lengths() {
    assert_eq!(many_tensors(4 * MANY - 1, false), None);
    for elements in [4 * MANY, 1 << 10, 1 << 20] {
        for odd in [false, true] {
            let tensors = many_tensors(elements, odd).expect("large enough");
            assert_eq!(tensors.len(), MANY_GROUPS);
            let lengths = tensors.concat();
            assert_eq!(lengths.len(), MANY);
            assert_eq!(lengths.iter().sum::<usize>(), elements);
            let odd_lengths = lengths[..MANY - 1]
                .iter()
                .filter(|&length| length % 2 == 1)
                .count();
            assert_eq!(odd_lengths, if odd { MANY - 1 } else { 0 });
        }
    }
    let lengths = many_tensors(1 << 20, false).expect("large enough").concat();
    assert!(lengths.iter().max() > lengths.iter().min().map(|min| min * 32).as_ref());
}
