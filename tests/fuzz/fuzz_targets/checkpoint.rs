//! A checkpoint from any bytes is refused, or is written as the same bytes. An optimizer restores it or refuses it, and can still take steps.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wgpu_optim::cpu::{Values, ValuesMut};
use wgpu_optim::half::bf16;
use wgpu_optim::{Checkpoint, CpuOptimizer, Differences, Group, Notes, OptimizerBuilder, Rule};

const W: [f32; 5] = [1.0, -2.0, 3.0, 0.5, 0.0];
/// A 16-bit tensor with masters.
const H: [bf16; 3] = [bf16::ONE, bf16::NEG_ONE, bf16::EPSILON];

fn optimizer() -> CpuOptimizer {
    OptimizerBuilder::new(Rule::sgd())
        .group(Group::new("all").tensor("a", &W[..3], &W[..3]).tensor("b", &W[3..], &W[3..]).tensor(
            "c",
            &H[..],
            &H[..],
        ))
        .build_cpu()
        .expect("builds")
}

/// The parameters of the optimizer.
#[derive(PartialEq, Debug)]
struct Parameters {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<bf16>,
}

impl Parameters {
    fn new() -> Self {
        Parameters { a: W[..3].to_vec(), b: W[3..].to_vec(), c: H.to_vec() }
    }

    fn slices_mut(&mut self) -> [&mut dyn ValuesMut; 3] {
        [&mut self.a, &mut self.b, &mut self.c]
    }

    fn slices(&self) -> [&dyn Values; 3] {
        [&self.a, &self.b, &self.c]
    }

    fn step(&mut self, optimizer: &mut CpuOptimizer) {
        let gradients = Parameters::new();
        optimizer.step(&mut self.slices_mut(), &gradients.slices()).expect("steps");
    }
}

fuzz_target!(|bytes: &[u8]| {
    // A short input changes a valid file: its first two bytes are an offset, and the rest replaces the bytes there.
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
    let again = Checkpoint::from_bytes(checkpoint.to_bytes()).expect("what was written can be read");
    assert_eq!(again.step(), checkpoint.step());
    let mut optimizer = optimizer();
    let mut parameters = Parameters::new();
    if optimizer.restore(&checkpoint, Some(&mut parameters.slices_mut())).is_err() {
        assert_eq!(parameters, Parameters::new(), "nothing was changed");
    }
    parameters.step(&mut optimizer);
    // An optimizer with other groups restores what it can.
    let mut parameters = Parameters::new();
    let mut other = OptimizerBuilder::new(Rule::adamw())
        .group(Group::new("new").tensor("b", &W[3..], &W[3..]))
        .group(Group::new("all").rule(Rule::sgd()).tensor("c", &H[..], &H[..]).tensor("a", &W[..3], &W[..3]))
        .build_cpu()
        .expect("builds");
    let Parameters { a, b, c } = &mut parameters;
    if other.restore_with(&checkpoint, Some(&mut [b, c, a]), Differences::all()).is_err() {
        assert_eq!(parameters, Parameters::new(), "nothing was changed");
    }
    let gradients = Parameters::new();
    let Parameters { a, b, c } = &mut parameters;
    let slices: &mut [&mut dyn ValuesMut] = &mut [b, c, a];
    other.step(slices, &[&gradients.b as &dyn Values, &gradients.c, &gradients.a]).expect("steps");
});

/// Returns the file of an optimizer after a step.
fn good() -> Vec<u8> {
    use std::sync::OnceLock;
    static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
    GOOD.get_or_init(|| {
        let mut optimizer = optimizer();
        let mut parameters = Parameters::new();
        parameters.step(&mut optimizer);
        let checkpoint = optimizer.checkpoint(Some(&parameters.slices()), &Notes::new());
        without_checksum(&checkpoint.expect("is made").to_bytes())
    })
    .clone()
}

/// Returns a file of version 2, which has no checksum that would reject the fuzzer's changes.
fn without_checksum(file: &[u8]) -> Vec<u8> {
    let end = 8 + u64::from_le_bytes(file[..8].try_into().expect("eight")) as usize;
    let header = std::str::from_utf8(&file[8..end]).expect("text");
    let (before, after) = header.split_once(r#","wgpu-optim crc32":""#).expect("a checksum");
    let header = [before, &after["01234567\"".len()..]].concat();
    let header = header.replacen(r#"\"version\":5"#, r#"\"version\":2"#, 1);
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header.as_bytes(), &file[end..]].concat()
}
