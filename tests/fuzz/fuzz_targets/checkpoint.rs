//! A checkpoint from bytes: refused, or else the same bytes again and restored or refused by an optimizer, which then still steps.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wgpu_optim::{Checkpoint, CpuOptimizer, Group, Notes, OptimizerBuilder, Rule};

const W: [f32; 5] = [1.0, -2.0, 3.0, 0.5, 0.0];

fn optimizer() -> CpuOptimizer {
    OptimizerBuilder::new(Rule::sgd())
        .group(
            Group::new("all")
                .tensor("a", &W[..3], &W[..3])
                .tensor("b", &W[3..], &W[3..]),
        )
        .build_cpu()
        .expect("builds")
}

fuzz_target!(|bytes: &[u8]| {
    // Where the input is short it says how a good file is spoilt: so many bytes from the start are replaced.
    let mut file = good();
    let bytes = if bytes.len() < file.len() / 2 {
        let [low, high, rest @ ..] = bytes else {
            return;
        };
        let at = usize::from(u16::from_le_bytes([*low, *high])) % file.len();
        let end = file.len().min(at + rest.len());
        file[at..end].copy_from_slice(&rest[..end - at]);
        file
    } else {
        bytes.to_vec()
    };
    let Ok(checkpoint) = Checkpoint::from_bytes(bytes) else {
        return;
    };
    let again =
        Checkpoint::from_bytes(checkpoint.to_bytes()).expect("what was written can be read");
    assert_eq!(again.step(), checkpoint.step());
    let mut optimizer = optimizer();
    let (mut a, mut b) = (W[..3].to_vec(), W[3..].to_vec());
    if optimizer
        .restore(&checkpoint, Some(&mut [&mut a, &mut b]))
        .is_err()
    {
        assert_eq!((&a[..], &b[..]), (&W[..3], &W[3..]), "nothing was changed");
    }
    optimizer
        .step(&mut [&mut a, &mut b], &[&W[..3], &W[3..]])
        .expect("steps");
});

/// What an optimizer writes after a step.
fn good() -> Vec<u8> {
    use std::sync::OnceLock;
    static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
    GOOD.get_or_init(|| {
        let mut optimizer = optimizer();
        let (mut a, mut b) = (W[..3].to_vec(), W[3..].to_vec());
        let grads: [&[f32]; 2] = [&W[..3], &W[3..]];
        optimizer
            .step(&mut [&mut a, &mut b], &grads)
            .expect("steps");
        let checkpoint = optimizer.checkpoint(Some(&[&a, &b]), &Notes::new());
        checkpoint.expect("is made").to_bytes()
    })
    .clone()
}
