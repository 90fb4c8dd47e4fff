//! Tests of the shader files. Each starts with a comment, and no loop is unbounded. Every combination of rule and regime, and of each with decay,
//! clip, average, access and tuning, compiles on every adapter (wgpu validates each by naga, including overrides).

use wgpu_optim::gpu::Tuning;
use wgpu_optim::{Averaging, Regime, Rule, State, WeightDecay};
use wgpu_optim_conformance::run::{GpuRun, Place, Run, Spec, devices};
use wgpu_optim_conformance::{assert_close, kinds_of_partials};

fn files() -> Vec<(String, String)> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/shaders");
    let mut files = Vec::new();
    for folder in [
        "",
        "/controllers",
        "/elements",
        "/factored",
        "/learning_rate",
        "/measure",
        "/orthogonalize",
        "/reduction",
        "/regime",
        "/rows",
        "/rule",
        "/update",
        "/zeroth_order",
    ]
    .map(|folder| format!("{root}{folder}"))
    {
        for entry in std::fs::read_dir(folder).expect("shaders/ is there") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "wgsl") {
                let text = std::fs::read_to_string(&path).expect("text");
                files.push((path.display().to_string(), text));
            }
        }
    }
    assert!(files.len() >= 15, "{} shader files", files.len());
    files
}

/// Returns the faults of a shader file's text.
fn faults(text: &str) -> Vec<&'static str> {
    let mut faults = Vec::new();
    let code: String =
        text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    if !text.starts_with("// ") {
        faults.push("no head comment");
    }
    let words: Vec<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    if words.iter().any(|word| ["while", "loop"].contains(word)) {
        faults.push("a loop that is not a bounded for");
    }
    if code.contains("for (;") || code.replace(' ', "").contains(";;") {
        faults.push("a for without condition");
    }
    faults
}

#[test]
fn every_file_has_a_head_and_bounded_loops() {
    for (name, text) in files() {
        assert_eq!(faults(&text), Vec::<&str>::new(), "{name}");
    }
}

#[test]
fn passes_say_what_they_read_write_and_how_many_invocations() {
    let mut passes = 0;
    for (name, text) in files().iter().filter(|(_, text)| text.contains("@compute")) {
        passes += 1;
        let head: String = text.lines().take_while(|line| line.starts_with("//")).collect();
        for word in ["Reads:", "Writes:", "Grid:"] {
            assert!(head.contains(word), "the head of {name} has no \"{word}\"");
        }
    }
    assert_eq!(passes, 36);
}

/// Seeded faults are detected.
#[test]
fn the_checks_see_a_missing_head_and_an_endless_loop() {
    assert_eq!(faults("fn f() {}"), ["no head comment"]);
    assert_eq!(faults("// f\nfn f() { while true {} }").len(), 1);
    assert_eq!(faults("// f\nfn f() { loop { } }").len(), 1);
    assert_eq!(faults("// f\nfn f() { for (;;) { } }").len(), 1);
    assert_eq!(faults("// while this loops\nfn f() { for (var i = 0; i < 3; i++) { } }").len(), 0);
}

#[test]
fn every_pair_of_choices_compiles_on_every_adapter() {
    let mut specs = Vec::new();
    let mut rules = Rule::all();
    rules.push(Rule::adamw_without_momentum());
    let regimes = [
        Regime::seesaw(),
        Regime::norm_ratio(),
        Regime::fixed(0.1),
        Regime::adgd(),
        Regime::dowg(),
        Regime::prodigy(),
        Regime::mechanic(),
    ];
    let settings = [(0.0, f32::INFINITY), (0.1, f32::INFINITY), (0.1, 1.0)];
    let combine = |at: usize, rule, regime, (decay, clip)| {
        let spec = Spec::new(rule, regime, vec![vec![1.0; 9]]).named(format!("{at}"));
        Spec { decay: WeightDecay::Coupled(decay), clip, telemetry: at.is_multiple_of(3), ..spec }
    };
    for (i, rule) in rules.iter().enumerate() {
        for (j, regime) in regimes.iter().filter(|regime| regime.fits(rule)).enumerate() {
            // Every rule is combined with every regime, and both with each of the settings.
            let at = specs.len();
            let spec = combine(at, *rule, *regime, settings[(i + j) % settings.len()]);
            let averaging = if j % 2 == 0 { Averaging::polynomial_decay() } else { Averaging::Off };
            let spec = Spec { averaging, ..spec };
            let free = Spec { averaging: Averaging::ScheduleFree, ..spec.clone().named(format!("{at} free")) };
            // 8-bit state is combined with each way of reading it.
            let takes_codes = rule.fits_8_bits() && rule.vectors() > 0;
            let decay = WeightDecay::Coupled(0.0);
            let codes = Spec { decay, state: State::Bits8, ..spec.clone().named(format!("{at} codes")) };
            specs.push(spec);
            specs.extend(takes_codes.then_some(codes));
            let fits = free.averaging.fits(rule) && regime.fits_averaging(&free.averaging);
            specs.extend(fits.then_some(free));
        }
    }
    compiles_everywhere(&specs);
    // Streams need a separate optimizer, since all of its groups take turns.
    let regime = Regime::auto_sgd();
    let streams = rules.iter().filter(|rule| regime.fits(rule)).flat_map(|&rule| settings.map(|own| (rule, own)));
    let streams: Vec<Spec> =
        streams.enumerate().map(|(at, (rule, settings))| combine(at, rule, regime, settings)).collect();
    assert_eq!(streams.len(), 6);
    compiles_everywhere(&streams);
}

fn compiles_everywhere(specs: &[Spec]) {
    // The tensors start three elements past a multiple of four, so that there are heads, bodies and tails, and share one buffer.
    // tests/optimizer/steps.rs compiles two buffers with the adapter's default partials.
    let together: Vec<Place> =
        (0..specs.len()).map(|i| Place { params: (0, 3 + 32 * i), grads: (0, 19 + 32 * i) }).collect();
    for gpu in &devices() {
        // Compiles one kind after the other, so that each kind has every combination.
        for partials in kinds_of_partials(gpu).filter(|&kind| kind != gpu.tuning().partials) {
            // A workgroup has more than one subgroup.
            let tuning = Tuning {
                workgroup_size: 4 * gpu.device().adapter_info().subgroup_max_size.min(16),
                quads_per_invocation: 2,
                partials,
                finish_workgroup_size: 4,
            };
            let gpu = gpu.clone().with_tuning(tuning).expect("a small geometry");
            let mut run = GpuRun::new(&gpu, specs, together.clone());
            run.step(&vec![vec![0.5; 9]; specs.len()]);
            let records = run.records().records;
            assert_eq!(records.len(), specs.len());
            for record in records {
                let spec = &specs[record.group];
                let norm = 3.0 * (0.5 + f64::from(spec.decay.coupled()));
                let what = format_args!("{}, {partials:?}, {spec:?}", gpu.describe());
                assert_close(what, record.norm, norm, 1e-6 * norm);
            }
        }
    }
}
