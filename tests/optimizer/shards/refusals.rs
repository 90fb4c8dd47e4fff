//! Sums that do not belong together, and calls out of turn.

use wgpu_optim::internals::layout::ScopeSums;
use wgpu_optim::{CombinedSums, CpuOptimizer, Error, Group, Optimizer, OptimizerBuilder, Rule, ShardSums};
use wgpu_optim_conformance::run::devices;
use wgpu_optim_conformance::{assert_refused, build, submit, upload};

/// One rank on the host, with its parameters and gradients.
struct Small {
    optimizer: CpuOptimizer,
    w: Vec<f32>,
    g: Vec<f32>,
}

impl Small {
    fn new(rank: u32, ranks: u32, rule: Rule) -> Self {
        let (w, g) = (vec![1.0f32; 6], vec![0.5f32; 6]);
        let optimizer = OptimizerBuilder::new(rule)
            .group(Group::new("all").tensor("w", &w, &g))
            .sharded(rank, ranks)
            .build_cpu()
            .expect("builds");
        Small { optimizer, w, g }
    }

    fn measure(&mut self) -> ShardSums {
        self.optimizer.measure(&[&self.w], &[&self.g]).expect("measures")
    }

    fn apply(&mut self, combined: &CombinedSums) -> Result<(), Error> {
        self.optimizer.apply(&mut [&mut self.w], &[&self.g], combined)
    }
}

#[test]
fn sums_travel_as_bytes_and_in_any_order() {
    let mut ranks = [0, 1, 2].map(|rank| {
        let mut small = Small::new(rank, 3, Rule::sgd());
        small.g.fill(0.1 + rank as f32 / 3.0);
        small
    });
    let sums = ranks.each_mut().map(Small::measure);
    let expected = ShardSums::combine(&sums).expect("combine");
    assert_eq!((expected.ranks(), expected.step()), (3, 0));
    for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]] {
        let bytes: Vec<u8> = order.iter().flat_map(|&rank| sums[rank].to_bytes()).collect();
        assert_eq!(bytes.len(), 3 * (32 + 56));
        let combined = ShardSums::combine_bytes(&bytes).expect("combine");
        assert_eq!(bytemuck::bytes_of(&combined.sums()[0]), bytemuck::bytes_of(&expected.sums()[0]));
        assert_eq!(combined, expected);
    }
    let back = ShardSums::from_bytes(&sums[1].to_bytes()).expect("its own bytes");
    assert_eq!((back.rank(), back.step(), &back), (1, 0, &sums[1]));
    let own: Vec<&ScopeSums> = back.sums().collect();
    assert_eq!(own.len(), 1);
    for rank in &mut ranks {
        rank.apply(&expected).expect("applies");
    }
    assert_eq!(ranks[0].optimizer.learning_rates(), ranks[2].optimizer.learning_rates());
}

#[test]
fn bytes_that_are_none_are_refused() {
    let bytes = Small::new(0, 1, Rule::sgd()).measure().to_bytes();
    for len in [0, 1, 31, 32, 87] {
        assert_refused(ShardSums::from_bytes(&bytes[..len]), &[&format!("{len} bytes"), "hand over all"]);
    }
    let longer = [bytes.as_slice(), &[0; 4]].concat();
    assert_refused(ShardSums::from_bytes(&longer), &["4 bytes follow", "rank 0"]);
    let mut other_order = bytes.clone();
    other_order.chunks_exact_mut(4).for_each(<[u8]>::reverse);
    assert_refused(ShardSums::from_bytes(&other_order), &["byte order"]);
    assert_refused(ShardSums::combine_bytes(&[]), &["none", "every rank"]);
}

/// Sums that no gradients can have are refused when their bytes are read.
#[test]
fn damaged_sums_are_refused() {
    let bytes = Small::new(0, 1, Rule::sgd()).measure().to_bytes();
    // Words of the first norm, after a header of eight: the square and its exponent, and the first element that is not finite.
    for (word, value, words) in [
        (8, f32::NAN.to_bits(), ["sum of squares", "NaN"]),
        (8, (-1.0f32).to_bits(), ["sum of squares", "-1"]),
        (8, f32::INFINITY.to_bits(), ["sum of squares", "inf"]),
        (9, 0x7fff_ffff, ["sum of squares", "2147483647"]),
        (9, i32::MIN.cast_unsigned(), ["sum of squares", "-2147483648"]),
        (19, 6, ["element 6", "6 elements"]),
    ] {
        let mut damaged = bytes.clone();
        damaged[4 * word..4 * word + 4].copy_from_slice(&value.to_ne_bytes());
        assert_refused(ShardSums::from_bytes(&damaged), &[words[0], words[1], "rank 0", "damaged"]);
        assert_refused(ShardSums::combine_bytes(&damaged), &words);
    }
}

proptest::proptest! {
    /// Any sums are refused or can be applied. With overflow checks, as in `.ci/run`, no arithmetic overflows.
    #[test]
    fn changed_sums_are_refused_or_can_be_applied(flips in proptest::collection::vec((0usize..2 * 22, proptest::num::u32::ANY), 1..6)) {
        let mut ranks = [0, 1].map(|rank| Small::new(rank, 2, Rule::sgdm(0.9)));
        let mut bytes = ranks.each_mut().map(|rank| rank.measure().to_bytes()).concat();
        for (word, value) in flips {
            bytes[4 * word..4 * word + 4].copy_from_slice(&value.to_ne_bytes());
        }
        if let Ok(combined) = ShardSums::combine_bytes(&bytes) {
            let _ = ranks[0].apply(&combined);
            proptest::prop_assert!(ranks[0].w.iter().all(|w| w.is_finite()));
        }
    }
}

/// The commands of a step may be dropped. A step that was taken back and is submitted nevertheless counts.
#[test]
fn a_recorded_step_can_be_taken_back() {
    for gpu in &devices() {
        let both = upload(gpu, &[1.0; 16]);
        let group = Group::new("all").tensor("w", both.slice(..32), both.slice(32..));
        let mut optimizer = build(OptimizerBuilder::new(Rule::sgd()).group(group).sharded(0, 1), gpu);
        let encoder = || gpu.device().create_command_encoder(&Default::default());
        let combined = |optimizer: &mut Optimizer| {
            submit(gpu, |encoder| optimizer.encode_measure(encoder).expect("alive"));
            let sums = pollster::block_on(optimizer.read_shard_sums()).expect("arrives");
            ShardSums::combine(&[sums]).expect("combine")
        };
        assert_refused(optimizer.take_back_apply(), &["take_back_apply", "encode_apply"]);
        let first = combined(&mut optimizer);
        optimizer.encode_apply(&mut encoder(), &first).expect("recorded, and dropped");
        submit(gpu, |encoder| optimizer.encode_measure(encoder).expect("alive"));
        assert_refused(pollster::block_on(optimizer.read_shard_sums()), &["take_back_apply"]);
        optimizer.take_back_apply().expect("there is one");
        assert_refused(optimizer.take_back_apply(), &["no recorded step"]);
        let first = combined(&mut optimizer);
        assert_eq!(first.step(), 0);
        let mut apply = encoder();
        optimizer.encode_apply(&mut apply, &first).expect("applies");
        optimizer.take_back_apply().expect("there is one");
        gpu.queue().submit([apply.finish()]);
        assert_eq!(combined(&mut optimizer).step(), 1, "{}", gpu.describe());
    }
}

#[test]
fn sums_that_do_not_belong_together_are_refused() {
    let sums = |rank, ranks| Small::new(rank, ranks, Rule::sgd()).measure();
    let combine = |parts: &[ShardSums]| ShardSums::combine(parts);
    assert_refused(combine(&[sums(0, 2)]), &["rank 1 is missing", "all 2"]);
    assert_refused(combine(&[sums(1, 2)]), &["rank 0 is missing"]);
    assert_refused(combine(&[sums(0, 2), sums(0, 2)]), &["rank 0 is there twice"]);
    assert_refused(combine(&[sums(0, 2), sums(1, 3)]), &["rank 1 has a number of ranks of 3", "has 2"]);
    let other = Small::new(1, 2, Rule::sgdm(0.9)).measure();
    assert_refused(combine(&[sums(0, 2), other]), &["rank 1 was built otherwise than rank 0"]);

    let (mut a, mut b) = (Small::new(0, 2, Rule::sgd()), Small::new(1, 2, Rule::sgd()));
    let first = combine(&[a.measure(), b.measure()]).expect("combine");
    a.apply(&first).expect("applies");
    a.measure();
    let w = a.w.clone();
    assert_refused(a.apply(&first), &["step 0", "measured step 1"]);
    let alone = combine(&[sums(0, 1)]).expect("combine");
    assert_refused(b.apply(&alone), &["1 ranks", "2"]);
    assert_eq!((a.w, b.w), (w, vec![1.0; 6]));
}

#[test]
fn parameters_beyond_what_one_optimizer_holds_are_refused() {
    // Twice 2^31. The sums are made from bytes, since the gradients would not fit in memory.
    let part = |rank: u32| {
        let mut bytes = Small::new(rank, 2, Rule::sgd()).measure().to_bytes();
        let at = bytes.len() - 4;
        bytes[at..].copy_from_slice(&(1u32 << 31).to_ne_bytes());
        ShardSums::from_bytes(&bytes).expect("whole")
    };
    assert_refused(ShardSums::combine(&[part(0), part(1)]), &["4294967296, above 4294967294"]);
}

#[test]
fn calls_out_of_turn_are_refused_on_the_host() {
    let mut a = Small::new(0, 1, Rule::sgd());
    let sums = a.measure();
    let combined = ShardSums::combine(&[sums]).expect("combine");
    a.apply(&combined).expect("applies");
    let w = a.w.clone();
    assert_refused(a.apply(&combined), &["apply", "call measure first"]);
    let stepped = a.optimizer.step(&mut [&mut a.w], &[&a.g]);
    assert_refused(stepped, &["step was called out of turn", "measure", "apply"]);
    assert_eq!(a.w, w);
    let (mut w, g) = (vec![1.0f32; 6], vec![0.5f32; 6]);
    let mut plain =
        OptimizerBuilder::new(Rule::sgd()).group(Group::new("all").tensor("w", &w, &g)).build_cpu().expect("builds");
    assert_refused(plain.measure(&[&w], &[&g]), &["OptimizerBuilder::sharded"]);
    assert_refused(plain.apply(&mut [&mut w], &[&g], &combined), &["OptimizerBuilder::sharded"]);
}

#[test]
fn calls_out_of_turn_are_refused_on_the_device() {
    for gpu in &devices() {
        let both = upload(gpu, &[1.0; 16]);
        let group = || Group::new("all").tensor("w", both.slice(..32), both.slice(32..));
        let builder = || OptimizerBuilder::new(Rule::sgd()).group(group());
        let encoder = || gpu.device().create_command_encoder(&Default::default());
        let read = |optimizer: &mut Optimizer| pollster::block_on(optimizer.read_shard_sums());
        let measured = |optimizer: &mut Optimizer| {
            submit(gpu, |encoder| optimizer.encode_measure(encoder).expect("alive"));
            read(optimizer).expect("arrives")
        };

        let mut plain = build(builder(), gpu);
        let mut optimizer = build(builder().sharded(0, 1), gpu);
        assert_refused(optimizer.encode_step(&mut encoder()), &["encode_step", "encode_measure"]);
        assert_refused(read(&mut optimizer), &["encode_measure first"]);
        // The measurement is recorded, but not submitted.
        optimizer.encode_measure(&mut encoder()).expect("alive");
        assert_refused(read(&mut optimizer), &["submit"]);
        let combined = ShardSums::combine(&[measured(&mut optimizer)]).expect("combine");
        let mut apply = encoder();
        optimizer.encode_apply(&mut apply, &combined).expect("applies");
        assert_refused(optimizer.encode_apply(&mut encoder(), &combined), &["read_shard_sums first"]);
        // The next measurement is recorded before this step is submitted, so that its readback would be that of the step before.
        optimizer.encode_measure(&mut encoder()).expect("alive");
        assert_refused(read(&mut optimizer), &["encode_apply recorded"]);
        gpu.queue().submit([apply.finish()]);
        assert_eq!(measured(&mut optimizer).step(), 1);
        assert_refused(optimizer.encode_apply(&mut encoder(), &combined), &["step 0", "step 1"]);

        assert_refused(plain.encode_measure(&mut encoder()), &["OptimizerBuilder::sharded"]);
        assert_refused(read(&mut plain), &["OptimizerBuilder::sharded"]);
        assert_refused(plain.encode_apply(&mut encoder(), &combined), &["OptimizerBuilder::sharded"]);
    }
}
