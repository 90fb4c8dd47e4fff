//! Random cases: for any groups, lengths, offsets, buffers, rules, regimes, averages and tunings, every adapter agrees with the CPU path. proptest
//! prints the case that fails, and `PROPTEST_RNG_SEED` and `PROPTEST_CASES` choose other cases.
//!
//! Each of these faults was introduced by hand once and made the test fail: gradients addressed as the parameters are, and spans joined across a gap
//! in the gradients.

use proptest::prelude::*;
use wgpu_optim::gpu::{Partials, Tuning};
use wgpu_optim::{Averaging, NormRatio, Record, Regime, Rule, Sgdm, WeightDecay};
use wgpu_optim_conformance::Numbers;
use wgpu_optim_conformance::run::{CpuRun, GpuRun, Place, Run, Spec, devices, lengths};

/// A case that is short enough to be read when it fails, since its data follow from the seed.
#[derive(Debug, Clone)]
struct Case {
    groups: Vec<CaseGroup>,
    /// The adapter's own tuning if `None`.
    tuning: Option<Tuning>,
    seed: u64,
}

#[derive(Debug, Clone)]
struct CaseGroup {
    /// The group's settings, without its tensors.
    spec: Spec,
    shares: bool,
    tensors: Vec<CaseTensor>,
}

/// The length, and the buffer and the gap before the tensor, for parameters and for gradients.
#[derive(Debug, Clone)]
struct CaseTensor {
    len: usize,
    params: (usize, usize),
    grads: (usize, usize),
}

fn rule() -> impl Strategy<Value = Rule> {
    prop_oneof![
        Just(Rule::sgd()),
        Just(Rule::sgdm(0.9)),
        Just(Rule::Sgdm(Sgdm { momentum: 0.5, dampening: 0.25, nesterov: false })),
        Just(Rule::nesterov(0.8)),
        Just(Rule::sign_sgd()),
        Just(Rule::signum(0.9)),
        Just(Rule::adamw()),
        Just(Rule::lion()),
    ]
}

fn regime() -> impl Strategy<Value = Regime> {
    let from_rate = Regime::NormRatio(NormRatio { initial_rate: Some(0.01), ..NormRatio::default() });
    prop_oneof![
        3 => Just(Regime::seesaw()),
        1 => Just(Regime::norm_ratio()),
        1 => Just(from_rate),
        1 => Just(Regime::hypergradient()),
        1 => Just(Regime::fixed(0.02)),
    ]
}

fn tensor() -> impl Strategy<Value = CaseTensor> {
    let len = prop_oneof![0usize..10, 0usize..300, 0usize..3000];
    (len, (0usize..3, 0usize..6), (0usize..4, 0usize..6)).prop_map(|(len, params, grads)| CaseTensor {
        len,
        params,
        grads,
    })
}

/// Returns averages that start at one of the three steps, or after the last one.
fn averaging() -> impl Strategy<Value = Averaging> {
    let kinds = prop_oneof![
        (0u32..4).prop_map(|start| Averaging::Running { start }),
        (0f32..1.0, 0u32..4).prop_map(|(decay, start)| Averaging::Exponential { decay, start }),
        (0f32..10.0, 0u32..4).prop_map(|(eta, start)| Averaging::PolynomialDecay { eta, start }),
    ];
    prop_oneof![Just(Averaging::Off), kinds]
}

fn group() -> impl Strategy<Value = CaseGroup> {
    let decay = prop_oneof![
        Just(WeightDecay::Coupled(0.0)),
        Just(WeightDecay::Coupled(0.1)),
        Just(WeightDecay::Decoupled(0.1)),
    ];
    let clip = prop_oneof![Just(f32::INFINITY), Just(0.5f32), Just(20.0f32)];
    (rule(), regime(), decay, clip, any::<bool>(), averaging(), any::<bool>(), prop::collection::vec(tensor(), 0..5))
        .prop_map(|(rule, regime, decay, clip, maximize, averaging, shares, tensors)| CaseGroup {
            spec: Spec { decay, clip, maximize, averaging, ..Spec::new(rule, regime, vec![]) },
            shares,
            tensors,
        })
}

fn tuning() -> impl Strategy<Value = Tuning> {
    (0u32..7, 1u32..5, prop::sample::select(&Partials::ALL[..]), 0u32..7).prop_map(
        |(workgroup, quads_per_invocation, partials, finish)| Tuning {
            workgroup_size: 1 << workgroup,
            quads_per_invocation,
            partials,
            finish_workgroup_size: 1 << finish,
        },
    )
}

fn case() -> impl Strategy<Value = Case> {
    (prop::collection::vec(group(), 1..5), prop::option::of(tuning()), any::<u64>())
        .prop_map(|(groups, tuning, seed)| Case { groups, tuning, seed })
}

impl Case {
    fn specs(&self) -> Vec<Spec> {
        let mut numbers = Numbers(self.seed);
        let spec = |(i, group): (usize, &CaseGroup)| {
            let tensors = group.tensors.iter().map(|tensor| numbers.vec(tensor.len)).collect();
            let spec = Spec { tensors, ..group.spec.clone().named(format!("{i}")) };
            // Rules with and without momentum cannot share inner products.
            let norm = if spec.rule.has_momentum() { "heavy" } else { "plain" };
            if group.shares { spec.sharing(norm) } else { spec }
        };
        self.groups.iter().enumerate().map(spec).collect()
    }

    /// Places the tensors one after another in their buffers, which parameters and gradients may share.
    fn places(&self) -> Vec<Place> {
        let mut ends = [0usize; 4];
        let mut place = |(buffer, gap): (usize, usize), len: usize| {
            let start = ends[buffer] + gap;
            ends[buffer] = start + len;
            (buffer, start)
        };
        self.groups
            .iter()
            .flat_map(|group| &group.tensors)
            .map(|tensor| Place { params: place(tensor.params, tensor.len), grads: place(tensor.grads, tensor.len) })
            .collect()
    }

    fn gradients(&self, step: u64) -> Vec<Vec<f32>> {
        let mut numbers = Numbers(self.seed ^ (step + 1));
        let scale = (6.0 * numbers.next()).exp();
        lengths(&self.specs()).map(|len| (0..len).map(|_| scale * (numbers.next() + 0.2)).collect()).collect()
    }
}

/// A device's results, as a type of their own, so that they are not confused with the host's.
struct FromDevice(Vec<Vec<f32>>);
struct FromHost(Vec<Vec<f32>>);

/// Sums of up to 3000 elements and 20 tensors are added in other orders. They differ by up to some 50 roundings of 2^-24, in all three norms and
/// hence in η. The parameters then differ by that fraction of three steps, each of which is shorter than ten.
const TOLERANCE: f64 = 1e-5;

fn compare_params(specs: &[Spec], device: &FromDevice, host: &FromHost, rates: &[f32]) -> Result<(), String> {
    let groups = specs.iter().enumerate().flat_map(|(i, spec)| spec.tensors.iter().map(move |_| i));
    let mut flips = 0;
    for (tensor, group) in groups.enumerate() {
        for (i, (&on_device, &on_host)) in device.0[tensor].iter().zip(&host.0[tensor]).enumerate() {
            let off = (f64::from(on_device) - f64::from(on_host)).abs();
            if off <= TOLERANCE * f64::from(on_host).abs().max(1.0) {
                continue;
            }
            // The sign of a sum such as g + λw may differ where it cancels to its last bit, for one or two elements of a case.
            let flip = specs[group].rule.is_scale_free() && off <= 2.1 * f64::from(rates[group]) * 10.0;
            flips += usize::from(flip);
            if !flip || flips > 2 {
                return Err(format!("tensor {tensor}, element {i}: {on_device} but {on_host} on the CPU path"));
            }
        }
        if device.0[tensor].len() != host.0[tensor].len() {
            return Err(format!("tensor {tensor} lost elements"));
        }
    }
    Ok(())
}

const STEPS: u64 = 3;

fn check(case: &Case) -> Result<(), TestCaseError> {
    let specs = case.specs();
    let mut host = CpuRun::new(&specs);
    for step in 0..STEPS {
        host.step(&case.gradients(step));
    }
    let on_host = [FromHost(host.params()), FromHost(host.averages())];
    let host_records = host.records().records;
    for gpu in &devices() {
        let mut tuning = case.tuning.unwrap_or_else(|| gpu.tuning());
        if !tuning.partials.is_supported(gpu.device().features()) {
            tuning.partials = Partials::PerWorkgroup;
        }
        let gpu = gpu.clone().with_tuning(tuning).expect("a small geometry");
        let mut device = GpuRun::new(&gpu, &specs, case.places());
        for step in 0..STEPS {
            device.step(&case.gradients(step));
        }
        let records = device.records().records;
        prop_assert_eq!(records.len(), host_records.len());
        for (record, expected) in records.iter().zip(&host_records) {
            prop_assert_eq!(record.flags, expected.flags, "{}, {:?}", device.path(), record);
            let close = |a: f64, b: f64| a == b || (a - b).abs() <= TOLERANCE * b.abs().max(1.0);
            let of = |record: &Record| [record.norm.into(), record.ln_rate, record.clip_factor.into()];
            for (got, wanted) in of(record).into_iter().zip(of(expected)) {
                prop_assert!(close(got, wanted), "{}: {:?} but {:?}", device.path(), record, expected);
            }
        }
        let on_device = [FromDevice(device.params()), FromDevice(device.averages())];
        for (on_device, on_host) in on_device.iter().zip(&on_host) {
            if let Err(difference) = compare_params(&specs, on_device, on_host, &host.rates()) {
                return Err(TestCaseError::fail(format!("{}: {difference}", device.path())));
            }
        }
        device.assert_surroundings_untouched();
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(16),
        max_shrink_iters: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_adapter_agrees_with_the_cpu_path(case in case()) {
        check(&case)?;
    }
}

/// The comparison detects seeded faults: an element that is slightly off, a lost element, and a NaN.
#[test]
fn the_comparison_sees_one_wrong_element() {
    let specs = [Spec::new(Rule::sgd(), Regime::seesaw(), vec![vec![0.5; 100], vec![2.0; 3]])];
    let right = || specs[0].tensors.clone();
    let told = |change: &dyn Fn(&mut Vec<Vec<f32>>)| {
        let mut wrong = right();
        change(&mut wrong);
        compare_params(&specs, &FromDevice(wrong), &FromHost(right()), &[0.1]).is_err()
    };
    assert!(!told(&|_| {}));
    assert!(told(&|w| w[0][99] += 2e-5));
    assert!(told(&|w| w[1][0] = f32::NAN));
    assert!(told(&|w| w[1].truncate(2)));
}
