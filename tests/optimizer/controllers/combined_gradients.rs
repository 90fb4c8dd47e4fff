//! Tests of variance reduction and extragradient: on every path, and wherever tensors lie, they follow their definitions and change nothing else.
//! Settings that do not fit are refused by name.
//!
//! Each of these faults was introduced by hand once into the kernels and made some of these tests fail: μ subtracted, the snapshot's gradient left
//! out, a look-ahead that goes up where a group minimizes, the rate of the first group for all, frozen groups that move, a way back that keeps the
//! look-ahead parameters, and a slice taken from its binding's start.

use wgpu_optim::{
    Averaging, CpuExtragradient, CpuOptimizer, CpuVarianceReduction, Element, Error, ErrorKind, Extragradient, Gpu,
    Group, LossScaler, Optimizer, OptimizerBuilder, RateFactors, Regime, Rounding, Rule, Schedule, VarianceReduction,
    wgpu,
};
use wgpu_optim_conformance::run::{CpuRun, GpuRun, Place, Run, Setup, Spec, bits, devices, packed};
use wgpu_optim_conformance::{
    Numbers, assert_all_close, assert_close, assert_refused, limited_devices, noise, submit, tensors, upload,
};

/// Returns groups of several tensors, of which one is empty and one is longer than a workgroup has invocations.
fn specs() -> [Spec; 2] {
    let spec = |seed, rate, lengths: &[usize]| Spec::new(Rule::sgd(), Regime::fixed(rate), tensors(seed, lengths));
    let climbing = Spec { maximize: true, ..spec(2, 0.05, &[33, 70_001]).named("climbing") };
    [spec(1, 0.2, &[5, 0, 300]).named("falling"), climbing]
}

fn lengths(specs: &[Spec]) -> Vec<usize> {
    specs.iter().flat_map(|spec| &spec.tensors).map(Vec::len).collect()
}

/// Returns two sets of places: in one buffer for parameters and another for gradients, and all in one buffer. No tensor starts where a binding can
/// start.
fn places(specs: &[Spec]) -> [Vec<Place>; 2] {
    let mut at = 5;
    let mut next = |len: usize| {
        let start = at;
        at += len + 3;
        (0, start)
    };
    let together = lengths(specs).into_iter().map(|len| Place { params: next(len), grads: next(len) }).collect();
    [packed(specs, 3, 1), together]
}

/// Returns each tensor's slice of its buffer.
fn parts<'a>(
    buffers: &'a [wgpu::Buffer],
    places: impl Iterator<Item = (usize, usize)>,
    lengths: &[usize],
) -> Vec<wgpu::BufferSlice<'a>> {
    let part = |((buffer, start), len): ((usize, usize), &usize)| {
        let buffer: &wgpu::Buffer = &buffers[buffer];
        buffer.slice(4 * start as u64..4 * (start + len) as u64)
    };
    places.zip(lengths).map(part).collect()
}

/// Uploads tensors into a new buffer, at odd places, and calls `work` with their slices.
fn beside<T>(gpu: &Gpu, values: &[Vec<f32>], work: impl FnOnce(Vec<wgpu::BufferSlice>) -> T) -> T {
    let (mut all, mut starts) = (vec![7.0; 3], Vec::new());
    for values in values {
        starts.push((0, all.len()));
        all.extend(values);
        all.push(7.0);
    }
    let lengths: Vec<usize> = values.iter().map(Vec::len).collect();
    work(parts(&[upload(gpu, &all)], starts.into_iter(), &lengths))
}

/// Returns the elements of both lists in pairs.
fn pairs<'a>(first: Vec<wgpu::BufferSlice<'a>>, second: Vec<wgpu::BufferSlice<'a>>) -> Vec<[wgpu::BufferSlice<'a>; 2]> {
    first.into_iter().zip(second).map(|(first, second)| [first, second]).collect()
}

fn reduction<'a>(run: &'a GpuRun, places: &[Place], at_snapshot: Vec<wgpu::BufferSlice<'a>>) -> VarianceReduction {
    let grads = parts(&run.buffers, places.iter().map(|place| place.grads), &lengths(&specs()));
    VarianceReduction::new(&run.optimizer, &pairs(grads, at_snapshot)).expect("fits")
}

#[test]
fn a_combined_gradient_is_that_of_the_batch_with_the_control_variate() {
    let specs = specs();
    let [full, batch, at_snapshot] = [11, 12, 13].map(|seed| noise(&specs, seed));
    let expected: Vec<Vec<f64>> = (0..batch.len())
        .map(|tensor| {
            let terms = batch[tensor].iter().zip(&at_snapshot[tensor]).zip(&full[tensor]);
            terms.map(|((&g, &at_snapshot), &mean)| f64::from(g) - f64::from(at_snapshot) + f64::from(mean)).collect()
        })
        .collect();
    let check = |path: &str, got: &[Vec<f32>], params: &[Vec<f32>]| {
        let steps = [-0.2, -0.2, -0.2, 0.05, 0.05];
        let first = specs.iter().flat_map(|spec| &spec.tensors);
        for (tensor, first) in first.enumerate() {
            assert_all_close(format_args!("{path}, gradient {tensor}"), &got[tensor], &expected[tensor], 5e-7);
            let moved = first.iter().zip(&expected[tensor]).map(|(&w, g)| f64::from(w) + steps[tensor] * g);
            let moved: Vec<f64> = moved.collect();
            assert_all_close(format_args!("{path}, tensor {tensor}"), &params[tensor], &moved, 5e-7);
        }
    };

    let mut run = CpuRun::new(&specs);
    let mut reduction_of_host = CpuVarianceReduction::new(&run.optimizer).expect("fits");
    reduction_of_host.keep(&full).expect("fits");
    let mut got = batch.clone();
    reduction_of_host.combine(&mut got, &at_snapshot).expect("fits");
    run.step(&got);
    check("CPU path", &got, &run.params());

    for gpu in &devices() {
        for places in places(&specs) {
            let mut run = GpuRun::new(gpu, &specs, places.clone());
            beside(gpu, &at_snapshot, |at_snapshot| {
                let reduction = reduction(&run, &places, at_snapshot);
                let run = &mut run;
                run.write_grads(&full);
                submit(gpu, |encoder| reduction.encode_keep(encoder).expect("alive"));
                run.write_grads(&batch);
                submit(gpu, |encoder| reduction.encode_combine(encoder).expect("alive"));
                let got = run.grads();
                // Neither this nor the step writes between the tensors.
                run.write_grads(&got);
                submit(gpu, |encoder| run.optimizer.encode_step(encoder).expect("alive"));
                run.assert_surroundings_untouched();
                check(&gpu.describe(), &got, &run.params());
            });
        }
    }
}

/// A least-squares problem with a few rows: F(w) = mean ½ (a·w - b)².
struct Rows(Vec<([f32; 4], f32)>);

impl Rows {
    fn new() -> Self {
        let mut numbers = Numbers(5);
        Rows((0..24).map(|_| (std::array::from_fn(|_| numbers.next()), 2.0 * numbers.next())).collect())
    }

    fn gradient(&self, w: &[f32], rows: std::ops::Range<usize>) -> Vec<f32> {
        let mut gradient = vec![0.0; 4];
        for (a, b) in &self.0[rows.clone()] {
            let residual = a.iter().zip(w).map(|(a, w)| a * w).sum::<f32>() - b;
            gradient.iter_mut().zip(a).for_each(|(g, a)| *g += residual * a / rows.len() as f32);
        }
        gradient
    }

    fn full(&self, w: &[f32]) -> Vec<f32> {
        self.gradient(w, 0..self.0.len())
    }
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// At a fixed rate SGD stays at a distance from the minimum. With variance reduction it reaches the minimum, and so does SARAH with the same calls.
#[test]
fn variance_reduction_arrives_at_a_fixed_rate() {
    let rows = Rows::new();
    let run = |with: &str| -> f64 {
        let mut w = vec![1.0f32; 4];
        let group = Group::new("all").tensor("w", &w, &w);
        let builder = OptimizerBuilder::new(Rule::sgd()).regime(Regime::fixed(0.3)).group(group);
        let mut optimizer = builder.build_cpu().expect("builds");
        let mut reduction = CpuVarianceReduction::new(&optimizer).expect("fits");
        for _ in 0..60 {
            let mut snapshot = w.clone();
            let full = rows.full(&w);
            reduction.keep(&[&full]).expect("fits");
            if with == "SARAH" {
                optimizer.step(&mut [&mut w], &[&full]).expect("a step");
            }
            for batch in 0..24 {
                let mut g = rows.gradient(&w, batch..batch + 1);
                let at_snapshot = rows.gradient(&snapshot, batch..batch + 1);
                if with != "SGD" {
                    reduction.combine(&mut [&mut g], &[&at_snapshot]).expect("fits");
                }
                if with == "SARAH" {
                    reduction.keep(&[&g]).expect("fits");
                    snapshot.clone_from(&w);
                }
                optimizer.step(&mut [&mut w], &[&g]).expect("a step");
            }
        }
        norm(&rows.full(&w))
    };
    let [sgd, svrg, sarah] = ["SGD", "SVRG", "SARAH"].map(run);
    assert!(sgd >= 1e-2, "SGD: {sgd:e}");
    assert!(svrg <= 1e-6, "SVRG: {svrg:e}");
    assert!(sarah <= 1e-6, "SARAH: {sarah:e}");
}

/// A run on either path with its extragradient.
enum Ahead {
    Host(Box<CpuRun>, CpuExtragradient, CpuState),
    Device(Box<GpuRun>, Extragradient),
}

/// The parameters, which an optimizer on the host does not own.
type CpuState = Vec<Vec<f32>>;

impl Ahead {
    fn all(specs: &[Spec]) -> Vec<Ahead> {
        let run = CpuRun::new(specs);
        let extragradient = CpuExtragradient::new(&run.optimizer).expect("fits");
        let params = run.params();
        let mut all = vec![Ahead::Host(Box::new(run), extragradient, params)];
        for gpu in &devices() {
            for places in places(specs) {
                let run = GpuRun::new(gpu, specs, places.clone());
                let lengths = lengths(specs);
                let params = parts(&run.buffers, places.iter().map(|place| place.params), &lengths);
                let grads = parts(&run.buffers, places.iter().map(|place| place.grads), &lengths);
                let extragradient = Extragradient::new(&run.optimizer, &pairs(params, grads)).expect("fits");
                all.push(Ahead::Device(Box::new(run), extragradient));
            }
        }
        all
    }

    fn run(&mut self) -> &mut dyn Run {
        match self {
            Ahead::Host(run, ..) => &mut **run,
            Ahead::Device(run, _) => &mut **run,
        }
    }

    fn params(&mut self) -> Vec<Vec<f32>> {
        match self {
            Ahead::Host(.., params) => params.clone(),
            Ahead::Device(run, _) => run.params(),
        }
    }

    fn look_ahead(&mut self, grads: &[Vec<f32>]) -> Result<(), Error> {
        match self {
            Ahead::Host(run, extragradient, params) => extragradient.look_ahead(&run.optimizer, params, grads),
            Ahead::Device(run, extragradient) => {
                run.write_grads(grads);
                recorded(&run.gpu, |encoder| extragradient.encode_look_ahead(encoder))
            }
        }
    }

    fn go_back(&mut self) -> Result<(), Error> {
        match self {
            Ahead::Host(_, extragradient, params) => extragradient.go_back(params),
            Ahead::Device(run, extragradient) => recorded(&run.gpu, |encoder| extragradient.encode_go_back(encoder)),
        }
    }

    fn step(&mut self, grads: &[Vec<f32>]) {
        match self {
            Ahead::Host(run, _, params) => run.optimizer.step(params, grads).expect("a step"),
            Ahead::Device(run, _) => run.step(grads),
        }
    }
}

fn recorded(gpu: &Gpu, record: impl FnOnce(&mut wgpu::CommandEncoder) -> Result<(), Error>) -> Result<(), Error> {
    let mut result = Ok(());
    submit(gpu, |encoder| result = record(encoder));
    result
}

/// Returns the operator in f64. Each element is coupled with the opposite one, so that the gradients at another point differ.
fn operator<T: Copy + Into<f64>>(params: &[Vec<T>]) -> Vec<Vec<f64>> {
    let all: Vec<f64> = params.iter().flatten().map(|&w| w.into()).collect();
    let mut at = 0..all.len();
    let gradient = |i: usize| 0.4 * all[i] + all[all.len() - 1 - i] + 0.1;
    params.iter().map(|params| params.iter().map(|_| gradient(at.next().expect("one each"))).collect()).collect()
}

fn narrowed(values: &[Vec<f64>]) -> Vec<Vec<f32>> {
    values.iter().map(|values| values.iter().map(|&x| x as f32).collect()).collect()
}

#[test]
fn extragradient_is_its_definition() {
    let specs = specs();
    let first: Vec<Vec<f64>> =
        specs.iter().flat_map(|spec| &spec.tensors).map(|w| w.iter().map(|&w| f64::from(w)).collect()).collect();
    let moved = |w: &[Vec<f64>], g: &[Vec<f64>]| -> Vec<Vec<f64>> {
        let steps = [-0.2f32, -0.2, -0.2, 0.05, 0.05].map(f64::from);
        let tensors = w.iter().zip(g).zip(steps);
        tensors.map(|((w, g), step)| w.iter().zip(g).map(|(w, g)| w + step * g).collect()).collect()
    };
    for mut run in Ahead::all(&specs) {
        let path = run.run().path();
        let mut exact = first.clone();
        for step in 0..8 {
            let ahead = moved(&exact, &operator(&exact));
            let before = run.params();
            run.look_ahead(&narrowed(&operator(&before))).expect("in turn");
            let found = run.params();
            for (tensor, (found, ahead)) in found.iter().zip(&ahead).enumerate() {
                assert_all_close(format_args!("{path}, step {step}, ahead, tensor {tensor}"), found, ahead, 4e-6);
            }
            run.go_back().expect("in turn");
            assert_eq!(bits(&run.params()), bits(&before), "{path}: back");
            run.step(&narrowed(&operator(&found)));
            exact = moved(&exact, &operator(&ahead));
        }
        for (tensor, (found, exact)) in run.params().iter().zip(&exact).enumerate() {
            assert_all_close(format_args!("{path}, tensor {tensor}"), found, exact, 4e-6);
        }
        if let Ahead::Device(run, _) = &run {
            run.assert_surroundings_untouched();
        }
    }
}

/// A look-ahead does not affect the schedule, averages, regime and records, and does not move a frozen group.
#[test]
fn a_look_ahead_leaves_no_trace() {
    let of = |regime, name: &str| Spec {
        averaging: Averaging::Running { start: 0 },
        schedule: Schedule::WarmupCosine { warmup: 3, steps: 9, last: 0.0 },
        ..Spec::new(Rule::sgd(), regime, tensors(4, &[40])).named(name)
    };
    let specs = [of(Regime::seesaw(), "seesaw"), of(Regime::fixed(0.1), "fixed")];
    for (mut run, mut plain) in Ahead::all(&specs).into_iter().zip(Ahead::all(&specs)) {
        let path = run.run().path();
        for t in 0..8 {
            let frozen = t == 5;
            for run in [&mut run, &mut plain] {
                run.run().control("fixed", &|group| group.frozen = frozen);
            }
            let before = run.params();
            run.look_ahead(&noise(&specs, 100 + t)).expect("in turn");
            let ahead = run.params();
            // Seesaw has no rate before its first step.
            assert_eq!(bits(&ahead)[0] == bits(&before)[0], t == 0, "{path}, step {t}");
            assert_eq!(bits(&ahead)[1] == bits(&before)[1], frozen, "{path}, step {t}");
            run.go_back().expect("in turn");
            for run in [&mut run, &mut plain] {
                run.step(&noise(&specs, t));
            }
        }
        assert_eq!(bits(&run.params()), bits(&plain.params()), "{path}");
        if matches!(run, Ahead::Device(..)) {
            assert_eq!(bits(&run.run().averages()), bits(&plain.run().averages()), "{path}");
        }
        assert_eq!(run.run().records().records, plain.run().records().records, "{path}");
    }
}

/// In min over x and max over y of x y, simultaneous steps diverge by a factor of √(1 + η²), and extragradient converges by √(1 - η² + η⁴).
#[test]
fn a_bilinear_game_spirals_out_without_a_look_ahead() {
    let rate = 0.3f64;
    let of = |name: &str, value: f32| Spec::new(Rule::sgd(), Regime::fixed(rate as f32), vec![vec![value]]).named(name);
    let specs = [of("x", 0.8), Spec { maximize: true, ..of("y", 0.6) }];
    let opposite = |params: Vec<Vec<f32>>| vec![params[1].clone(), params[0].clone()];
    for with_look in [false, true] {
        let factor = if with_look { 1.0 - rate * rate + rate.powi(4) } else { 1.0 + rate * rate };
        for mut run in Ahead::all(&specs) {
            let path = run.run().path();
            for _ in 0..40 {
                let mut gradients = opposite(run.params());
                if with_look {
                    run.look_ahead(&gradients).expect("in turn");
                    gradients = opposite(run.params());
                    run.go_back().expect("in turn");
                }
                run.step(&gradients);
            }
            let expected = factor.sqrt().powi(40);
            let found = norm(&run.params().concat());
            assert_close(format_args!("{path}, with a look-ahead: {with_look}"), found, expected, 5e-6 * expected);
        }
    }
}

#[test]
fn calls_out_of_turn_are_refused_and_change_nothing() {
    let specs = specs();
    for mut run in Ahead::all(&specs) {
        let grads = noise(&specs, 3);
        let error = assert_refused(run.go_back(), &["go_back was called without a look-ahead", "look ahead"]);
        assert_eq!(error.kind(), ErrorKind::Call);
        run.look_ahead(&grads).expect("in turn");
        let ahead = run.params();
        assert_refused(run.look_ahead(&grads), &["look_ahead was called twice", "go back"]);
        assert_eq!(bits(&run.params()), bits(&ahead));
        run.go_back().expect("in turn");
    }
    let host = CpuRun::new(&specs).optimizer;
    let other = CpuRun::new(&specs[1..]).optimizer;
    let (mut params, grads) = (noise(&specs, 4), noise(&specs, 5));
    let mut extragradient = CpuExtragradient::new(&host).expect("fits");
    let words = ["look_ahead was given an optimizer with other tensors", "created for"];
    assert_refused(extragradient.look_ahead(&other, &mut params, &grads), &words);
    assert_eq!(bits(&params), bits(&noise(&specs, 4)));
}

/// A gradient that is not finite leaves no trace, since the gradient at the look-ahead is not finite either and the step is skipped.
#[test]
fn a_gradient_that_is_not_finite_leaves_no_trace() {
    let specs = specs();
    for mut run in Ahead::all(&specs) {
        let path = run.run().path();
        let before = bits(&run.params());
        let mut grads = narrowed(&operator(&run.params()));
        grads[2][100] = f32::NAN;
        run.look_ahead(&grads).expect("in turn");
        let grads = narrowed(&operator(&run.params()));
        run.go_back().expect("in turn");
        run.step(&grads);
        assert_eq!(bits(&run.params()), before, "{path}");
        assert!(run.run().records().records.iter().all(|record| record.flags.skipped()), "{path}");
    }
}

/// Settings of an optimizer that a look-ahead does not support, and slices of other tensors, are refused.
#[test]
fn what_does_not_fit_is_refused_by_name() {
    let plain = || Spec::new(Rule::sgd(), Regime::fixed(0.1), tensors(1, &[6, 4])).named("model");
    let half = Spec { params: Element::Bf16, rounding: Rounding::Nearest, ..plain() };
    let rates = RateFactors::Rows(vec![1.0, 0.5].into());
    let shaped = Spec { rate_factors: Some(rates), shapes: vec![vec![2, 3], vec![2, 2]], ..plain() };
    let cases: Vec<(Spec, &[&str])> = vec![
        (Spec { rule: Rule::sgdm(0.9), ..plain() }, &["group \"model\"", "rule is sgdm", "sgd"]),
        (Spec { rule: Rule::adamw(), ..plain() }, &["group \"model\"", "rule is adamw"]),
        (Spec { regime: Regime::auto_sgd(), ..plain() }, &["group \"model\"", "regime is auto-sgd"]),
        (Spec { averaging: Averaging::ScheduleFree, ..plain() }, &["group \"model\"", "averaging is schedule-free"]),
        (shaped, &["group \"model\"", "rate_factors is set"]),
        (half.clone(), &["tensor \"model/0\"", "element is bf16", "f32"]),
    ];
    for (spec, words) in &cases {
        let host = CpuRun::new(std::slice::from_ref(spec)).optimizer;
        assert_eq!(assert_refused(CpuExtragradient::new(&host), words).kind(), ErrorKind::Build);
    }
    let scaled = CpuRun::with(&[plain()], Setup { scaler: Some(LossScaler::default()), ..Setup::default() });
    assert_refused(CpuExtragradient::new(&scaled.optimizer), &["loss_scaler is set"]);
    assert_refused(CpuVarianceReduction::new(&CpuRun::new(&[half]).optimizer), &["variance reduction", "bf16"]);

    let host = CpuRun::new(&[plain()]).optimizer;
    let mut reduction = CpuVarianceReduction::new(&host).expect("fits");
    let (right, mut wrong) = (vec![vec![0.0f32; 6], vec![0.0; 4]], vec![vec![0.0f32; 6], vec![0.0; 5]]);
    let error = assert_refused(reduction.keep(&wrong), &["\"model/1\"", "4 elements", "5 gradients"]);
    assert_eq!(error.kind(), ErrorKind::Call);
    assert_refused(reduction.combine(&mut wrong, &right), &["\"model/1\"", "5 gradients"]);
    assert_refused(reduction.combine(&mut right.clone(), &right[..1]), &["2 tensors", "1 snapshot gradient slices"]);
    let halves = vec![vec![wgpu_optim::half::f16::ZERO; 6], vec![wgpu_optim::half::f16::ZERO; 4]];
    assert_refused(reduction.keep(&halves), &["\"model/0\"", "f32", "f16"]);

    for gpu in limited_devices(|_| ()) {
        let [run, sgdm] = [plain(), Spec { rule: Rule::sgdm(0.9), ..plain() }].map(|spec| {
            let specs = [spec];
            GpuRun::new(&gpu, &specs, packed(&specs, 0, 0))
        });
        let buffer = upload(&gpu, &[0.0; 64]);
        let of = |ranges: [std::ops::Range<u64>; 4]| {
            let [a, b, c, d] = ranges.map(|range| buffer.slice(range));
            [[a, b], [c, d]]
        };
        let good = of([0..24, 24..48, 48..64, 64..80]);
        let ahead = |optimizer: &Optimizer, slices: &[[wgpu::BufferSlice; 2]]| Extragradient::new(optimizer, slices);
        assert_refused(ahead(&sgdm.optimizer, &good), &["rule is sgdm"]);
        assert_refused(ahead(&run.optimizer, &good[..1]), &["2 tensors", "1 parameter slices"]);
        let cases: [([std::ops::Range<u64>; 4], &[&str]); 3] = [
            ([0..24, 24..48, 48..64, 64..84], &["\"model/1\"", "4 elements", "5 gradients"]),
            ([0..24, 20..44, 48..64, 64..80], &["parameters of tensor \"model/0\"", "overlap in bytes 20..24"]),
            ([0..24, 24..48, 48..64, 66..82], &["\"model/1\"", "starts at byte 66"]),
        ];
        for (ranges, words) in cases {
            assert_refused(ahead(&run.optimizer, &of(ranges)), words);
        }
        let mut extragradient = ahead(&run.optimizer, &good).expect("fits");
        let reduction = VarianceReduction::new(&run.optimizer, &good).expect("fits");
        gpu.device().destroy();
        gpu.mark_lost("destroyed by the test");
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let error = assert_refused(extragradient.encode_look_ahead(&mut encoder), &["lost"]);
        assert_eq!(error.kind(), ErrorKind::DeviceLost);
        assert_refused(reduction.encode_keep(&mut encoder), &["lost"]);
    }
}

/// Each of the two takes at most 4 bytes per parameter.
#[test]
fn they_take_four_bytes_per_parameter() {
    let elements = 100_000;
    let spec = Spec::new(Rule::sgd(), Regime::fixed(0.1), tensors(1, &[elements]));
    let optimizer: CpuOptimizer = CpuRun::new(&[spec]).optimizer;
    let bytes = [
        crate::helpers::bytes_of(|| CpuVarianceReduction::new(&optimizer)),
        crate::helpers::bytes_of(|| CpuExtragradient::new(&optimizer)),
    ];
    for bytes in bytes {
        assert!((4 * elements as i64..4 * elements as i64 + 20_000).contains(&bytes), "{bytes} bytes");
    }
}
