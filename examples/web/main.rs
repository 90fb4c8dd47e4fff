//! The shaders in a browser. This program builds optimizers on a device of this machine, writes down what they consist of (composed WGSL,
//! override constants, buffers and their contents, dispatches) with gradients and what the CPU path makes of them, and serves it to the
//! page beside it, which runs it on `navigator.gpu` and compares. The page knows nothing of optimizers but how to dispatch.
//!
//! `cargo run --release --example web` serves on <http://127.0.0.1:8031/>; `-- --browser chromium` starts a headless one, waits for its report and
//! exits with 1 where anything differs.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use half::{bf16, f16};
use serde_json::{Value, json};
use wgpu_optim::gpu::{Dispatch, KernelSource, Partials, Tensor, Tuning};
use wgpu_optim::{
    Averaging, Element, Gpu, Group, LossScaler, Optimizer, OptimizerBuilder, Regime, Rounding,
    Rule, StepMode, cpu, wgpu,
};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

#[derive(Debug, Parser)]
struct Args {
    /// Start this browser without a window, wait for its report, and exit with 1 where anything differs
    #[arg(long, value_name = "PROGRAM")]
    browser: Option<String>,
    /// With --browser: save a picture of the page once it is done
    #[arg(long, value_name = "FILE.png")]
    picture: Option<std::path::PathBuf>,
    /// With --browser: falsify a parameter in the page, to see that it tells
    #[arg(long)]
    seed_fault: bool,
    /// Seconds to wait for the report
    #[arg(long, default_value_t = 300)]
    timeout: u64,
    /// The port; 0 for any
    #[arg(long, default_value_t = 8031)]
    port: u16,
}

const STEPS: usize = 6;

/// Where in the page a report belongs that is to be shown.
const REPORT: &str = "<!-- report -->";

/// Invocations of a workgroup in the cases.
const WORKGROUP: u32 = 64;

/// The fewest invocations that a subgroup has anywhere in WebGPU.
const NARROWEST_SUBGROUP: u32 = wgpu::MINIMUM_SUBGROUP_MIN_SIZE;

/// Parameters of the throughput row.
const MANY: usize = 1 << 22;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Outcome<bool> {
    let start = Instant::now();
    let vectors = vectors()?.to_string();
    eprintln!(
        "{:.1} MB of vectors in {:.1} s",
        vectors.len() as f64 / 1e6,
        start.elapsed().as_secs_f64()
    );
    let listener = TcpListener::bind(("127.0.0.1", args.port))?;
    let address = format!("http://{}/", listener.local_addr()?);
    let Some(program) = &args.browser else {
        println!("serving {address}");
        for stream in listener.incoming() {
            // A browser that goes away is no reason to stop.
            let _ = answer(stream?, include_str!("index.html"), &vectors);
        }
        return Ok(true);
    };
    let query = if args.seed_fault { "?fault" } else { "" };
    let mut browser = Browser::start(program, &format!("{address}{query}"), None)?;
    let report = wait_for_report(&listener, &vectors, args.timeout, &mut browser);
    drop(browser);
    let report: Value = serde_json::from_slice(&report?)?;
    println!("{}", report["text"].as_str().unwrap_or_default());
    if let Some(path) = &args.picture {
        // The page shows the report that it is given.
        let shown = report.to_string().replace('<', "\\u003c");
        let given = format!(r#"<script type="application/json" id="report">{shown}</script>"#);
        let page = include_str!("index.html").replace(REPORT, &given);
        let mut browser = Browser::start(program, &address, Some(path))?;
        let start = Instant::now();
        while browser.0.try_wait()?.is_none() && start.elapsed() < Duration::from_secs(60) {
            match listener.accept() {
                Ok((stream, _)) => drop(answer(stream, &page, &vectors)),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
    Ok(report["failed"] == 0 && report["values"].as_u64() > Some(1000))
}

/// A browser, and what it writes down, which both end with this value.
struct Browser(
    Child,
    #[expect(dead_code, reason = "kept until it is dropped")] tempfile::TempDir,
);

impl Browser {
    fn start(program: &str, url: &str, picture: Option<&std::path::Path>) -> Outcome<Self> {
        let profile = tempfile::tempdir()?;
        let mut command = Command::new(program);
        command
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--hide-scrollbars",
                "--enable-unsafe-webgpu",
                "--use-webgpu-adapter=swiftshader",
                "--window-size=1100,1500",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(picture) = picture {
            command.arg(format!("--screenshot={}", picture.display()));
        }
        let child = command.arg(url).spawn();
        Ok(Browser(
            child.map_err(|error| format!("{program}: {error}"))?,
            profile,
        ))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves until the page has sent its report.
fn wait_for_report(
    listener: &TcpListener,
    vectors: &str,
    timeout: u64,
    browser: &mut Browser,
) -> Outcome<Vec<u8>> {
    let start = Instant::now();
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                if let Ok(Some(report)) = answer(stream, include_str!("index.html"), vectors) {
                    return Ok(report);
                }
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
        if let Some(status) = browser.0.try_wait()? {
            return Err(format!("the browser ended without a report: {status}").into());
        }
        if start.elapsed() > Duration::from_secs(timeout) {
            return Err(format!("no report within {timeout} s").into());
        }
    }
}

/// Answers one request: the page, its script, the vectors; or takes the report.
fn answer(mut stream: TcpStream, page: &str, vectors: &str) -> Outcome<Option<Vec<u8>>> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut length = 0usize;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let target = request.split_whitespace().nth(1).unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    let (status, kind, content) = match path {
        "/" => ("200 OK", "text/html", page),
        "/host.js" => ("200 OK", "text/javascript", include_str!("host.js")),
        "/vectors.json" => ("200 OK", "application/json", vectors),
        "/report" => ("200 OK", "text/plain", "thank you"),
        _ => ("404 Not Found", "text/plain", "there is no such thing"),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        content.len()
    )?;
    stream.write_all(content.as_bytes())?;
    Ok((path == "/report").then_some(body))
}

/// A device that binds only where every browser's can.
fn device() -> Outcome<Gpu> {
    let adapters = pollster::block_on(Gpu::adapters(None));
    let adapter = adapters.first().ok_or("no graphics driver answers")?;
    let request = adapter.request_device(&wgpu::DeviceDescriptor {
        label: Some("for the page"),
        required_features: adapter.features() & wgpu::Features::SUBGROUP,
        required_limits: wgpu::Limits {
            min_storage_buffer_offset_alignment: 256,
            ..adapter.limits()
        },
        ..Default::default()
    });
    let (device, queue) = pollster::block_on(request)?;
    Ok(Gpu::from_parts(device, queue))
}

/// Everything the page is given.
fn vectors() -> Outcome<Value> {
    let found = device()?;
    let mut cases = Vec::new();
    let mut kernels = Kernels::default();
    for partials in [
        Partials::PerInvocation,
        Partials::PerWorkgroup,
        Partials::Subgroup,
    ] {
        if !partials.is_supported(found.device().features()) {
            continue;
        }
        let tuning = Tuning {
            workgroup_size: WORKGROUP,
            quads_per_invocation: 8,
            partials,
            finish_workgroup_size: 64,
        };
        // Offsets that any device can bind at.
        let gpu = found.clone().with_tuning(tuning)?;
        cases.push(case(&gpu, partials.name(), &mut kernels)?);
        cases.push(case_of_halves(&gpu, partials.name(), &mut kernels)?);
        compile_everything(&gpu, &mut kernels)?;
        compile_halves(&gpu, &mut kernels)?;
    }
    let throughput = throughput(&found, &mut kernels)?;
    Ok(json!({
        "steps": STEPS,
        "cases": cases,
        "throughput": throughput,
        "kernels": kernels.listed,
    }))
}

/// Kernels by what they are compiled from, each once.
#[derive(Default)]
struct Kernels {
    listed: Vec<Value>,
    places: HashMap<String, usize>,
}

impl Kernels {
    fn place(&mut self, source: &KernelSource, layout: Vec<Vec<(u32, bool)>>) -> usize {
        let constants: serde_json::Map<String, Value> = source
            .constants
            .iter()
            .map(|(name, value)| match name.as_str() {
                // As many as there can be: the page's device may have narrower ones than this machine's, none below this.
                "SUBGROUPS" => (name.clone(), json!(WORKGROUP / NARROWEST_SUBGROUP)),
                _ => (name.clone(), json!(value)),
            })
            .collect();
        let subgroups = source.wgsl.contains("subgroupAdd");
        let head = if subgroups { "enable subgroups;\n" } else { "" };
        let kernel = json!({
            "wgsl": format!("{head}{}", source.wgsl),
            "entry": source.entry_point,
            "constants": constants,
            "layout": layout,
            "subgroups": subgroups,
        });
        let listed = &mut self.listed;
        *self.places.entry(kernel.to_string()).or_insert_with(|| {
            listed.push(kernel);
            listed.len() - 1
        })
    }

    fn of(&mut self, dispatch: &Dispatch) -> usize {
        let layout = dispatch.bind_groups.iter().map(|group| {
            let buffers = group.buffers().iter();
            buffers
                .map(|bound| (bound.binding, bound.read_only))
                .collect()
        });
        self.place(dispatch.pipeline.source(), layout.collect())
    }
}

/// The buffers and dispatches of an optimizer.
struct Recording {
    gpu: Gpu,
    buffers: Vec<wgpu::Buffer>,
}

impl Recording {
    fn number(&mut self, buffer: &wgpu::Buffer) -> usize {
        let known = self.buffers.iter().position(|known| known == buffer);
        known.unwrap_or_else(|| {
            self.buffers.push(buffer.clone());
            self.buffers.len() - 1
        })
    }

    fn dispatches(&mut self, optimizer: &Optimizer, kernels: &mut Kernels) -> Vec<Value> {
        let dispatches = optimizer.dispatches().iter();
        dispatches
            .map(|dispatch| {
                let groups: Vec<Vec<Value>> = dispatch
                    .bind_groups
                    .iter()
                    .map(|group| {
                        let buffers = group.buffers().iter();
                        buffers
                            .map(|bound| {
                                json!([
                                    bound.binding,
                                    self.number(&bound.buffer),
                                    bound.offset_bytes,
                                    bound.size_bytes
                                ])
                            })
                            .collect()
                    })
                    .collect();
                json!({
                    "kernel": kernels.of(dispatch),
                    "groups": groups,
                    "workgroups": dispatch.workgroups,
                })
            })
            .collect()
    }

    /// What is in them.
    fn contents(&self) -> Outcome<Vec<Value>> {
        let contents = self.buffers.iter().map(|buffer| {
            let words: Vec<u32> = pollster::block_on(self.gpu.read_buffer("a buffer", buffer))?;
            Ok(match words.first() {
                Some(&word) if words.iter().all(|&other| other == word) => {
                    json!({ "bytes": buffer.size(), "word": word })
                }
                _ => json!({ "bytes": buffer.size(), "words": words }),
            })
        });
        contents.collect()
    }
}

/// Numbers in [-1, 1).
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn buffer(gpu: &Gpu, contents: &[f32]) -> wgpu::Buffer {
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: (4 * contents.len() as u64).next_multiple_of(16),
        usage: wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    });
    gpu.queue()
        .write_buffer(&buffer, 0, bytemuck::cast_slice(contents));
    buffer
}

/// Every rule under Seesaw and NormRatio, schedule-free too where it can, over lengths around the kernels' boundaries: gradients of some steps, and what the CPU path makes
/// of them.
fn case(gpu: &Gpu, name: &str, kernels: &mut Kernels) -> Outcome<Value> {
    let block = gpu.tuning().block_elements() as usize;
    let lengths = [1, 3, 4, 5, 31, 33, block - 1, block, block + 1];
    let every_rule = Rule::all()
        .into_iter()
        .chain([Rule::adamw_without_momentum()]);
    let mut groups: Vec<(Rule, Regime, Averaging)> = Vec::new();
    for rule in every_rule {
        for averaging in [Averaging::Off, Averaging::ScheduleFree] {
            if averaging.fits(&rule) {
                let regimes = [Regime::seesaw(), Regime::norm_ratio()];
                groups.extend(regimes.map(|regime| (rule, regime, averaging)));
            }
        }
    }
    let names: Vec<String> = groups
        .iter()
        .map(|(rule, regime, averaging)| {
            let without = match rule {
                Rule::AdamW { beta1: 0.0, .. } => " without momentum",
                _ => "",
            };
            let free = match averaging {
                Averaging::ScheduleFree => ", schedule-free",
                _ => "",
            };
            format!("{}{without}, {}{free}", rule.name(), regime.name())
        })
        .collect();
    let count: usize = groups.len() * lengths.iter().sum::<usize>();
    let first = numbers(1, count);
    let (parameters, gradients) = (buffer(gpu, &first), buffer(gpu, &vec![0.0; count]));
    let mut device: OptimizerBuilder<Tensor> = OptimizerBuilder::new(Rule::sgd()).record_steps(16);
    let mut host = OptimizerBuilder::new(Rule::sgd());
    let mut ranges = Vec::new();
    let mut at = 0;
    for ((rule, regime, averaging), name) in groups.iter().zip(&names) {
        let mut on_device = Group::new(name.clone())
            .rule(*rule)
            .regime(*regime)
            .averaging(*averaging);
        let mut on_host = Group::new(name.clone())
            .rule(*rule)
            .regime(*regime)
            .averaging(*averaging);
        for length in lengths {
            let tensor = format!("{name} {length}");
            let bytes = 4 * at as u64..4 * (at + length) as u64;
            on_device = on_device.tensor(
                tensor.clone(),
                parameters.slice(bytes.clone()),
                gradients.slice(bytes),
            );
            let slice = &first[at..at + length];
            on_host = on_host.tensor(tensor, slice, slice);
            ranges.push(at..at + length);
            at += length;
        }
        device = device.group(on_device);
        host = host.group(on_host);
    }
    let optimizer = device.build(gpu)?;
    let mut host = host.build_cpu()?;
    let mut expected = first.clone();
    let mut steps = Vec::new();
    let mut rates = Vec::new();
    for step in 0..STEPS {
        let noise = numbers(2 + step as u64, count);
        let gradient: Vec<f32> = first
            .iter()
            .zip(noise)
            .map(|(w, noise)| 0.5 * w + noise)
            .collect();
        let mut rest = expected.as_mut_slice();
        let mut params = Vec::new();
        for range in &ranges {
            let (slice, after) = rest.split_at_mut(range.len());
            params.push(slice);
            rest = after;
        }
        let grads: Vec<&[f32]> = ranges
            .iter()
            .map(|range| &gradient[range.clone()])
            .collect();
        host.step(&mut params, &grads)?;
        rates.push(host.learning_rates().to_vec());
        steps.push(gradient);
    }
    let mut recording = Recording {
        gpu: gpu.clone(),
        buffers: vec![parameters, gradients, optimizer.learning_rates().clone()],
    };
    let dispatches = recording.dispatches(&optimizer, kernels);
    let lengths: Vec<usize> = groups.iter().map(|_| lengths.iter().sum()).collect();
    Ok(json!({
        "name": name,
        "groups": names,
        "lengths": lengths,
        "buffers": recording.contents()?,
        "dispatches": dispatches,
        "gradients": steps,
        "rates": rates,
        "parameters": expected,
    }))
}

/// How 16-bit parameters are stored and rounded.
const HALVES: [(Element, Rounding); 6] = [
    (Element::F16, Rounding::Masters),
    (Element::F16, Rounding::Nearest),
    (Element::F16, Rounding::Stochastic { seed: 1 }),
    (Element::Bf16, Rounding::Masters),
    (Element::Bf16, Rounding::Nearest),
    (Element::Bf16, Rounding::Stochastic { seed: 2 }),
];

/// Parameters and gradients of 16 bits and steps that f32 has no rounding for, of which every bit must be the CPU path's.
fn case_of_halves(gpu: &Gpu, name: &str, kernels: &mut Kernels) -> Outcome<Value> {
    let block = gpu.tuning().block_elements() as usize;
    let lengths = [1, 2, 3, 4, 5, 31, 33, block - 1, block, block + 1];
    // Two elements to a word, and a word of its own for each that is left over.
    let words = |length: usize| length.div_ceil(2);
    let per_group: usize = lengths.iter().copied().map(words).sum();
    let count = 2 * per_group * HALVES.len();
    let encoded = |element: Element, value: f32| match element {
        Element::F16 => f16::from_f32(value).to_bits(),
        _ => bf16::from_f32(value).to_bits(),
    };
    let element_of = |at: usize| HALVES[at / (2 * per_group)].0;
    let encode = |values: &[f32]| -> Vec<u16> {
        let places = values.iter().enumerate();
        places
            .map(|(at, &value)| encoded(element_of(at), value))
            .collect()
    };
    let first = encode(&numbers(1, count));
    let in_words = |codes: &[u16]| bytemuck::pod_collect_to_vec::<u16, u32>(codes);
    let parameters = buffer(gpu, bytemuck::cast_slice(&in_words(&first)));
    let gradients = buffer(gpu, &vec![0.0; count / 2]);
    // A step of ¼ is at least a unit of f32 of all that is below 1, and much smaller than a unit of 16 bits.
    let regime = Regime::fixed(2f32.powi(-12));
    let mut device: OptimizerBuilder<Tensor> = OptimizerBuilder::new(Rule::sgd())
        .regime(regime)
        .record_steps(16);
    let mut host = OptimizerBuilder::new(Rule::sgd()).regime(regime);
    let mut ranges = Vec::new();
    let mut at = 0;
    for (element, rounding) in HALVES {
        let group_name = format!("{} {}", element.name(), rounding.name());
        let mut on_device = Group::new(group_name.clone()).rounding(rounding);
        let mut on_host = Group::new(group_name.clone()).rounding(rounding);
        for length in lengths {
            let tensor = format!("{group_name} {length}");
            let bytes = 2 * at as u64..2 * (at + length) as u64;
            on_device = on_device.tensor(
                tensor.clone(),
                element.of(parameters.slice(bytes.clone())),
                element.of(gradients.slice(bytes)),
            );
            on_host = match element {
                Element::F16 => {
                    let slice: &[f16] = bytemuck::cast_slice(&first[at..at + length]);
                    on_host.tensor(tensor, slice, slice)
                }
                _ => {
                    let slice: &[bf16] = bytemuck::cast_slice(&first[at..at + length]);
                    on_host.tensor(tensor, slice, slice)
                }
            };
            ranges.push((element, at..at + length));
            at += 2 * words(length);
        }
        device = device.group(on_device);
        host = host.group(on_host);
    }
    let optimizer = device.build(gpu)?;
    let mut host = host.build_cpu()?;
    let mut expected = first;
    let mut steps = Vec::new();
    let mut rates = Vec::new();
    for step in 0..STEPS {
        // Multiples of ¼.
        let values = numbers(2 + step as u64, count);
        let values: Vec<f32> = values.iter().map(|x| (8.0 * x).round() / 4.0).collect();
        let gradient = encode(&values);
        let mut rest = expected.as_mut_slice();
        let mut end = 0;
        let mut params: Vec<cpu::SliceMut> = Vec::new();
        let mut grads: Vec<cpu::Slice> = Vec::new();
        for (element, range) in &ranges {
            let (_, after) = rest.split_at_mut(range.start - end);
            let (slice, after) = after.split_at_mut(range.len());
            let own = &gradient[range.clone()];
            if *element == Element::F16 {
                params.push(bytemuck::cast_slice_mut::<u16, f16>(slice).into());
                grads.push(bytemuck::cast_slice::<u16, f16>(own).into());
            } else {
                params.push(bytemuck::cast_slice_mut::<u16, bf16>(slice).into());
                grads.push(bytemuck::cast_slice::<u16, bf16>(own).into());
            }
            (rest, end) = (after, range.end);
        }
        host.step_values(&mut params, &grads)?;
        rates.push(host.learning_rates().to_vec());
        steps.push(in_words(&gradient));
    }
    let mut recording = Recording {
        gpu: gpu.clone(),
        buffers: vec![parameters, gradients, optimizer.learning_rates().clone()],
    };
    let dispatches = recording.dispatches(&optimizer, kernels);
    let names = HALVES.map(|(element, rounding)| {
        format!(
            "{} parameters, rounding {}",
            element.name(),
            rounding.name()
        )
    });
    Ok(json!({
        "name": name,
        "exact": true,
        "groups": names,
        "lengths": HALVES.map(|_| per_group),
        "buffers": recording.contents()?,
        "dispatches": dispatches,
        "gradients": steps,
        "rates": rates,
        "parameters": in_words(&expected),
    }))
}

/// Kernels of 16 bits, as [`compile_everything`]: rules with and without memories, regimes with and without a use for parameters.
fn compile_halves(gpu: &Gpu, kernels: &mut Kernels) -> Outcome<()> {
    let values = vec![1.0f32; 1024];
    let (parameters, gradients) = (buffer(gpu, &values), buffer(gpu, &values));
    for (params, grads, rounding) in [
        (Element::F16, Element::Bf16, Rounding::Masters),
        (
            Element::Bf16,
            Element::F16,
            Rounding::Stochastic { seed: 1 },
        ),
        (Element::F32, Element::F16, Rounding::Nearest),
    ] {
        let mut builder: OptimizerBuilder<Tensor> = OptimizerBuilder::new(Rule::sgd())
            .rounding(rounding)
            .micro_batches(2)
            .clear_gradients(true)
            .record_steps(4);
        let mut count = 0;
        let free = Averaging::ScheduleFree;
        for (rule, averaging) in [
            (Rule::sgd(), Averaging::Off),
            (Rule::adamw(), Averaging::Off),
            (Rule::sgd(), free),
            (Rule::adamw_without_momentum(), free),
        ] {
            // It needs all of y.
            if averaging == free && rounding != Rounding::Masters {
                continue;
            }
            for regime in [Regime::seesaw(), Regime::dowg()] {
                // Two past a multiple of four, so that there are heads, bodies and tails.
                let bytes = |element: Element| {
                    let at = element.bytes() * (2 + 20 * count);
                    at..at + 9 * element.bytes()
                };
                let group = Group::new(count.to_string())
                    .rule(rule)
                    .regime(regime)
                    .averaging(averaging);
                let w = params.of(parameters.slice(bytes(params)));
                let g = grads.of(gradients.slice(bytes(grads)));
                builder = builder.group(group.tensor(count.to_string(), w, g));
                count += 1;
            }
        }
        let optimizer = builder.build(gpu)?;
        let swaps = optimizer.swap_dispatches();
        for dispatch in optimizer.dispatches().iter().chain(swaps) {
            kernels.of(dispatch);
        }
    }
    Ok(())
}

/// Every kernel that a step can have, to be compiled: few optimizers of many groups, so that none is compiled twice on this machine.
fn compile_everything(gpu: &Gpu, kernels: &mut Kernels) -> Outcome<()> {
    let values = vec![1.0f32; 4096];
    let (parameters, gradients) = (buffer(gpu, &values), buffer(gpu, &values));
    let loss = buffer(gpu, &values);
    for mode in [StepMode::TwoPass, StepMode::Lagged] {
        for streams in [false, true] {
            for full in [false, true] {
                let mut builder: OptimizerBuilder<Tensor> = OptimizerBuilder::new(Rule::sgd())
                    .step_mode(mode)
                    .record_steps(4)
                    .loss(loss.slice(..4));
                if full {
                    builder = builder.weight_decay(0.1).loss_scaler(LossScaler::default());
                    if mode == StepMode::TwoPass {
                        builder = builder.clip_norm(1.0).telemetry(true);
                    }
                }
                let plain = match full && !streams {
                    true => Averaging::polynomial_decay(),
                    false => Averaging::Off,
                };
                let mut averages = vec![plain];
                // The others refuse it.
                if mode == StepMode::TwoPass && !streams {
                    averages.push(Averaging::ScheduleFree);
                }
                let mut count = 0;
                let mut rules = Rule::all();
                if mode == StepMode::TwoPass {
                    rules.push(Rule::adamw_without_momentum());
                }
                for (rule, regime, averaging) in rules.into_iter().flat_map(|rule| {
                    let averages = averages.clone();
                    let regimes = regimes(mode, streams).into_iter();
                    regimes.flat_map(move |regime| {
                        let averages = averages.clone().into_iter();
                        averages.map(move |averaging| (rule, regime, averaging))
                    })
                }) {
                    if regime.fits(&rule) && averaging.fits(&rule) {
                        // Three past a multiple of four, so that there are heads, bodies and tails.
                        let at = 4 * (3 + 20 * count);
                        let (w, g) = (parameters.slice(at..at + 36), gradients.slice(at..at + 36));
                        let group = Group::new(count.to_string())
                            .rule(rule)
                            .regime(regime)
                            .averaging(averaging);
                        builder = builder.group(group.tensor(count.to_string(), w, g));
                        count += 1;
                    }
                }
                if count > 0 {
                    let optimizer = builder.build(gpu)?;
                    let swaps = optimizer.swap_dispatches();
                    for dispatch in optimizer.dispatches().iter().chain(swaps) {
                        kernels.of(dispatch);
                    }
                }
            }
        }
    }
    Ok(())
}

/// One regime for each kind of memory that a mode can have.
fn regimes(mode: StepMode, streams: bool) -> Vec<Regime> {
    match (mode, streams) {
        (StepMode::TwoPass, true) => vec![Regime::auto_sgd()],
        (StepMode::TwoPass, false) => vec![
            Regime::seesaw(),
            Regime::norm_ratio(),
            Regime::adgd(),
            Regime::dowg(),
            Regime::polyak(),
            Regime::gated_distance(),
        ],
        (_, true) => Vec::new(),
        (_, false) => vec![Regime::seesaw(), Regime::norm_ratio()],
    }
}

/// A step of many parameters, and a copy of as many.
fn throughput(gpu: &Gpu, kernels: &mut Kernels) -> Outcome<Value> {
    let values = vec![0.5f32; MANY];
    // The geometry of a GPU without subgroups, or of a processor.
    let tuning = match gpu.device().adapter_info().device_type {
        wgpu::DeviceType::Cpu => gpu.tuning(),
        _ => Tuning {
            partials: Partials::PerWorkgroup,
            ..gpu.tuning()
        },
    };
    let gpu = gpu.clone().with_tuning(tuning)?;
    let mut rows = Vec::new();
    for (name, rule, regime, bytes) in [
        (
            "SGD, rate from the norm",
            Rule::sgd(),
            Regime::norm_ratio(),
            16.0,
        ),
        ("SGD, Seesaw", Rule::sgd(), Regime::seesaw(), 19.0),
        ("SGDM, Seesaw", Rule::sgdm(0.9), Regime::seesaw(), 28.0),
    ] {
        let (parameters, gradients) = (buffer(&gpu, &values), buffer(&gpu, &values));
        let optimizer = OptimizerBuilder::new(rule)
            .regime(regime)
            .record_steps(16)
            .group(Group::new("all").tensor("w", parameters.slice(..), gradients.slice(..)))
            .build(&gpu)?;
        let mut recording = Recording {
            gpu: gpu.clone(),
            buffers: Vec::new(),
        };
        rows.push(json!({
            "name": name,
            "bytes": bytes,
            "dispatches": recording.dispatches(&optimizer, kernels),
            "buffers": recording.contents()?,
        }));
    }
    let tuning = gpu.tuning();
    let source = KernelSource {
        wgsl: include_str!("../../shaders/bench/copy.wgsl").to_owned(),
        entry_point: "copy",
        constants: vec![
            ("WORKGROUP".to_owned(), tuning.workgroup_size.into()),
            ("QUADS".to_owned(), tuning.quads_per_invocation.into()),
        ],
    };
    let bytes = 4 * MANY;
    let blocks = (MANY as u32).div_ceil(tuning.block_elements());
    rows.insert(
        0,
        json!({
            "name": "copy",
            "bytes": 8,
            "buffers": [{ "bytes": bytes, "word": 0 }, { "bytes": bytes, "word": 1 }],
            "dispatches": [{
                "kernel": kernels.place(&source, vec![vec![(0, false), (1, true)]]),
                "groups": [[[0, 0, 0, bytes], [1, 1, 0, bytes]]],
                "workgroups": blocks,
            }],
        }),
    );
    Ok(json!({ "elements": MANY, "rows": rows }))
}
