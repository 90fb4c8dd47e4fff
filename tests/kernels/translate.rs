//! Tests for drivers that this machine does not have: every kernel of the crate is translated to HLSL and MSL as wgpu does it on Windows and on
//! Apple's systems, and has none of the constructs that compilers there are known to refuse.
//!
//! `WGPU_OPTIM_TRANSLATED=FOLDER` writes the translations to that folder, with the files that `tests/dxc` and `tests/metal` need.

use std::path::Path;
use std::sync::OnceLock;

use rayon::prelude::*;
use serde_json::Value;
use wgpu_optim::{Gpu, wgpu};
use wgpu_optim_conformance::bench::device::{COPY, TRIAD};
use wgpu_optim_conformance::translate::{self, Kernel, METAL, faults, faulty, folder};
use wgpu_optim_conformance::vectors::{self, Kernels};

/// Returns a device of wgpu's backend without a driver, which builds every pipeline and runs none.
fn device() -> Gpu {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::NOOP;
    descriptor.backend_options.noop.enable = true;
    let instance = wgpu::Instance::new(descriptor);
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::NOOP));
    vectors::open(&adapters[0]).expect("a device without a driver")
}

/// Returns every kernel of the crate, including its benchmark, and the cases. The kernels of the cases come first.
fn kernels() -> &'static (Vec<Kernel>, Vec<Value>) {
    static KERNELS: OnceLock<(Vec<Kernel>, Vec<Value>)> = OnceLock::new();
    KERNELS.get_or_init(|| {
        let gpu = device();
        let geometries = vectors::geometries(&gpu).expect("the geometries");
        assert_eq!(geometries.len(), 3);
        let mut listed = Kernels::default();
        let mut cases = Vec::new();
        for gpu in geometries.iter().filter(|_| folder().is_some()) {
            cases.extend(vectors::cases_of(gpu, &mut listed).expect("the cases"));
            let name = gpu.tuning().partials.name();
            let case = vectors::case_of_nonfinite(gpu, name, true, &mut listed);
            cases.push(case.expect("a case"));
        }
        let of_geometries: Vec<Kernels> = geometries.par_iter().map(kernels_of).collect();
        for kernel in of_geometries.into_iter().flat_map(|of_geometry| of_geometry.listed) {
            listed.add(kernel);
        }
        let numbered = listed.listed.par_iter().enumerate();
        let mut kernels: Vec<Kernel> = numbered.map(|(number, kernel)| Kernel::listed(number, kernel)).collect();
        kernels.extend(others());
        (kernels, cases)
    })
}

fn kernels_of(gpu: &Gpu) -> Kernels {
    let mut listed = Kernels::default();
    vectors::compile_everything(gpu, &mut listed).expect("every kernel");
    vectors::compile_settings(gpu, &mut listed).expect("every setting");
    vectors::compile_halves(gpu, &mut listed).expect("every element");
    vectors::compile_whole_steps(gpu, &mut listed).expect("every small model");
    vectors::compile_zeroth_order(gpu, &mut listed).expect("every method");
    listed
}

/// Returns the kernels outside of an optimizer: those of the benchmarks and those that are dispatched on request.
fn others() -> Vec<Kernel> {
    let constants = [("WORKGROUP", 64.0), ("QUADS", 8.0)];
    let benches = [("copy", COPY), ("triad", TRIAD)]
        .map(|(entry, source)| Kernel::new(format!("bench-{entry}"), source, entry, &constants));
    let mut kernels = Vec::from(benches);
    kernels.push(of_a_copy());
    kernels.extend(of_controllers());
    kernels
}

/// The module of a controller's kernel, which is also its entry point, with its features and its constants.
type OfController<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, f64)]);

/// Returns the kernels of the controllers.
fn of_controllers() -> Vec<Kernel> {
    const WORKGROUP: (&str, f64) = ("WORKGROUP", 256.0);
    let features = ["distance", "product", "along"].map(|feature| [feature]);
    let [distance, product, along] = features.each_ref();
    let all: [OfController; 15] = [
        ("learned_schedule", &[], &[]),
        ("extragradient", &[], &[WORKGROUP, ("AHEAD", 1.0)]),
        ("extragradient", &[], &[WORKGROUP, ("AHEAD", 0.0)]),
        ("variance_reduction", &[], &[WORKGROUP, ("KEEP", 1.0)]),
        ("variance_reduction", &[], &[WORKGROUP, ("KEEP", 0.0)]),
        ("add_loss", &[], &[]),
        ("judge", &[], &[WORKGROUP, ("START", 1.0)]),
        ("judge", &[], &[WORKGROUP, ("START", 0.0)]),
        ("keep", &[], &[WORKGROUP]),
        ("keep_states", &[], &[WORKGROUP]),
        ("products", distance, &[WORKGROUP, ("X_IS", 0.0), ("G_IS", 0.0)]),
        ("products", product, &[WORKGROUP, ("X_IS", 1.0), ("G_IS", 2.0)]),
        ("products", product, &[WORKGROUP, ("X_IS", 2.0), ("G_IS", 1.0)]),
        ("products", along, &[WORKGROUP, ("X_IS", 0.0), ("G_IS", 0.0)]),
        ("bi_level", &[], &[WORKGROUP]),
    ];
    let kernels = all.into_iter().enumerate().map(|(number, (stem, features, constants))| {
        let source = wgpu_optim::internals::link(&format!("controllers/{stem}"), features);
        Kernel::new(format!("{stem}-{number}"), &source, stem, constants)
    });
    kernels.collect()
}

/// Returns the copy of schedule-free averages, which is dispatched only on request.
fn of_a_copy() -> Kernel {
    let source = wgpu_optim::internals::link("copy_schedule_free", &["writes_parameters"]);
    Kernel::new("copy_schedule_free".to_owned(), &source, "swap_averages", &[("WORKGROUP", 64.0)])
}

#[test]
fn every_kernel_is_translated_for_direct3d_and_metal() {
    let (kernels, cases) = kernels();
    let subgroups = kernels.iter().filter(|kernel| kernel.has_subgroups());
    let subgroups = subgroups.count();
    println!("{} kernels, {subgroups} with subgroups", kernels.len());
    assert!(kernels.len() > 500 && subgroups > 100);
    let faulty = faulty(kernels);
    assert!(faulty.is_empty(), "{} of {} kernels:\n{}", faulty.len(), kernels.len(), faulty.join("\n"));
    if let Some(folder) = folder() {
        write_out(&folder, kernels, cases).expect("the folder can be written to");
    }
}

fn planted(wgsl: &str) -> Vec<String> {
    let kernel = Kernel::new("planted".to_owned(), wgsl, "main", &[]);
    faults(&kernel)
}

/// Seeded faults are detected.
#[test]
fn a_subgroup_built_in_in_a_struct_is_told() {
    let kernel = |argument: &str| {
        format!(
            "struct Invocation {{
                @builtin(local_invocation_index) lane: u32,
                @builtin(subgroup_invocation_id) subgroup_lane: u32,
            }}
            @group(0) @binding(0) var<storage, read_write> out: array<u32>;
            @compute @workgroup_size(64)
            fn main(invocation: Invocation{argument}) {{
                out[invocation.lane] = subgroupAdd(invocation.subgroup_lane);
            }}"
        )
    };
    assert_eq!(planted(&kernel("")), ["built-ins of subgroups in a struct alone"]);
    let argument = ", @builtin(subgroup_size) size: u32";
    assert_eq!(planted(&kernel(argument)), Vec::<String>::new());
}

/// Seeded faults are detected.
#[test]
fn the_bits_of_a_negated_float_are_told() {
    let kernel = |x: &str, y: &str| {
        format!(
            "@group(0) @binding(0) var<storage, read_write> out: array<f32>;
            fn exponent(x: f32) -> u32 {{ return (bitcast<u32>(x) >> 23u) & 0xffu; }}
            @compute @workgroup_size(1)
            fn main() {{
                let x = out[0];
                out[1] = f32(exponent({x}));
                out[2] = f32(bitcast<u32>({y}));
            }}"
        )
    };
    assert_eq!(planted(&kernel("x", "x + 1.0")), Vec::<String>::new());
    assert_eq!(planted(&kernel("-x", "x")).len(), 1);
    assert_eq!(planted(&kernel("x", "-x")).len(), 1);
    assert_eq!(planted(&kernel("-x", "-x")).len(), 2);
    assert_eq!(planted(&kernel("abs(x)", "abs(x)")).len(), 2);
}

/// Seeded faults are detected.
#[test]
fn a_vector_written_at_an_index_is_told() {
    let kernel = |at: &str| {
        format!(
            "@group(0) @binding(0) var<storage, read_write> out: array<vec4<f32>>;
            @compute @workgroup_size(1)
            fn main() {{
                var v = out[0];
                var all: array<f32, 4>;
                for (var i = 0u; i < 4u; i++) {{
                    all[i] = 1.0;
                    v{at} = all[3u - i];
                }}
                out[1] = v;
            }}"
        )
    };
    assert_eq!(planted(&kernel("[2]")), Vec::<String>::new());
    assert_eq!(planted(&kernel("[i]")), ["a vector written at an index in main"]);
}

/// Seeded faults are detected.
#[test]
fn zero_values_of_a_type_and_its_alias_are_told() {
    let kernel = |zero: &str| {
        format!(
            "alias Lane = vec4<u32>;
            @group(0) @binding(0) var<storage, read_write> lanes: array<Lane>;
            @group(0) @binding(1) var<storage, read_write> out: array<vec4<u32>>;
            @compute @workgroup_size(1)
            fn main(@builtin(local_invocation_index) lane: u32) {{
                var largest = vec4<u32>();
                largest = max(largest, out[lane]);
                out[lane] = largest;
                lanes[lane] = {zero};
            }}"
        )
    };
    assert_eq!(planted(&kernel("Lane(0u)")), Vec::<String>::new());
    let told = planted(&kernel("Lane()"));
    assert!(
        !told.is_empty() && told.iter().all(|fault| fault == "HLSL: two functions \"uint4 ZeroValueuint4()\""),
        "{told:?}"
    );
}

/// Writes the translations to a folder. Its subfolder `run/` gets the MSL of the cases' kernels as C++, with a function that calls each, and the
/// cases.
fn write_out(folder: &Path, kernels: &[Kernel], cases: &[Value]) -> std::io::Result<()> {
    translate::write_out(folder, kernels)?;
    std::fs::create_dir_all(folder.join("run"))?;
    let mut run: Vec<usize> = cases.iter().flat_map(kernels_of_case).collect();
    run.sort_unstable();
    run.dedup();
    for &number in &run {
        let kernel = &kernels[number];
        let text = kernel.msl(METAL).expect("translated before");
        // All of the kernels have functions of the same names.
        let body = text.replace("#include", "// #include");
        let text = format!("#include <metal_stdlib>\nnamespace {{\n{body}}}\n{}", caller(kernel, number, &text));
        std::fs::write(folder.join(format!("run/{}.cpp", kernel.name)), text)?;
    }
    std::fs::write(folder.join("run/table.inc"), table(kernels, &run))?;
    std::fs::write(folder.join("cases.bin"), bytemuck::cast_slice(&words_of(cases)))
}

/// Returns the kernels that a case dispatches.
fn kernels_of_case(case: &Value) -> Vec<usize> {
    array(&case["turns"])
        .iter()
        .flat_map(|turn| turn.as_array().expect("dispatches"))
        .map(|dispatch| integer(&dispatch["kernel"]) as usize)
        .collect()
}

fn array(value: &Value) -> Vec<Value> {
    value.as_array().expect("a list").clone()
}

fn integer(value: &Value) -> u32 {
    let value = value.as_u64().expect("an integer");
    u32::try_from(value).expect("32 bits")
}

/// Returns the table of the cases' kernels as X-macros for tests/msl/run.cpp.
fn table(kernels: &[Kernel], run: &[usize]) -> String {
    run.iter()
        .map(|&number| {
            let entry = kernels[number].entry_point();
            let invocations = entry.workgroup_size.iter().product::<u32>();
            format!("KERNEL({number}, {invocations})\n")
        })
        .collect()
}

/// Returns a function that calls a kernel for one invocation, with the types of tests/msl/metal_stdlib. The arguments follow from the kernel's
/// signature, which has one on each line.
fn caller(kernel: &Kernel, number: usize, text: &str) -> String {
    let start = text.find("kernel void").expect("a kernel");
    let signature = &text[start..];
    let end = signature.find(") {").expect("an end");
    let buffers = kernel.buffers();
    let mut arguments = Vec::new();
    let mut shared = "0".to_owned();
    for line in signature[..end].lines().skip(1) {
        let line = line.trim_start_matches([',', ' ']).trim_end();
        let (declared, attribute) = match line.split_once(" [[") {
            Some((declared, attribute)) => (declared, attribute.trim_end_matches(']')),
            None => (line, ""),
        };
        let kind = declared.rsplit_once(' ').expect("a name").0;
        let kind = kind.trim_end_matches('&').trim();
        arguments.push(if kind.ends_with("_mslBufferSizes") {
            format!("_mslBufferSizes {{ {} }}", sizes(kernel, text, &buffers))
        } else if let Some(slot) = attribute.strip_prefix("buffer(") {
            let slot = slot.trim_end_matches(')');
            let kind = kind.trim_start_matches("device").trim_start_matches("constant").trim();
            let (binding, _) = buffers[slot.parse::<usize>().expect("a slot")];
            let place = format!("{}, {}", binding.group, binding.binding);
            format!("*static_cast<{kind}*>(stand_in.buffers.at({place}).start)")
        } else if let Some(kind) = kind.strip_prefix("threadgroup ") {
            let argument = format!("*stand_in.shared<{kind}>({shared})");
            shared = format!("{shared} + sizeof({kind})");
            argument
        } else {
            format!("stand_in.{attribute}")
        });
    }
    format!(
        "void run_{number}(const StandIn& stand_in) {{\n    {}({});\n}}\n",
        kernel.entry,
        arguments.join(",\n        ")
    )
}

/// Returns the members of `_mslBufferSizes`. `size3` is the size of the variable with the number 3.
fn sizes(kernel: &Kernel, text: &str, buffers: &[(naga::ResourceBinding, bool)]) -> String {
    let start = text.find("struct _mslBufferSizes {").expect("sizes");
    let members = text[start..].lines().skip(1);
    let sizes: Vec<String> = members
        .take_while(|line| !line.starts_with('}'))
        .map(|line| {
            let number = line.trim().trim_start_matches("uint size");
            let number: usize = number.trim_end_matches(';').parse().expect("a number");
            let (_, variable) = kernel.module.global_variables.iter().nth(number).expect("a variable");
            let binding = variable.binding.expect("a buffer");
            assert!(buffers.iter().any(|(other, _)| *other == binding));
            format!("stand_in.buffers.at({}, {}).bytes", binding.group, binding.binding)
        })
        .collect();
    sizes.join(", ")
}

/// Returns the cases as words, in the order in which tests/msl/run.cpp reads them.
fn words_of(cases: &[Value]) -> Vec<u32> {
    let mut words = vec![cases.len() as u32];
    let float = |value: &Value| (value.as_f64().expect("a number") as f32).to_bits();
    for case in cases {
        let exact = case["exact"] == true;
        let in_words = exact || case["words"] == true;
        let numbers = |words: &mut Vec<u32>, values: &Value, in_words: bool| {
            let values = array(values);
            words.push(values.len() as u32);
            words.extend(values.iter().map(|value| match in_words {
                true => integer(value),
                false => float(value),
            }));
        };
        text(&mut words, case["name"].as_str().expect("a name"));
        words.push(exact.into());
        let buffers = array(&case["buffers"]);
        words.push(buffers.len() as u32);
        for buffer in &buffers {
            words.push(integer(&buffer["bytes"]));
            match buffer["words"].is_array() {
                true => numbers(&mut words, &buffer["words"], true),
                false => words.extend([0, integer(&buffer["word"])]),
            }
        }
        let turns = array(&case["turns"]);
        words.push(turns.len() as u32);
        for turn in &turns {
            let dispatches = array(turn);
            words.push(dispatches.len() as u32);
            for dispatch in &dispatches {
                words.extend([integer(&dispatch["kernel"]), integer(&dispatch["workgroups"])]);
                let groups = array(&dispatch["groups"]);
                words.push(groups.len() as u32);
                for group in &groups {
                    let entries = array(group);
                    words.push(entries.len() as u32);
                    // The binding, the buffer, the offset and the size.
                    words.extend(entries.iter().flat_map(array).map(|word| integer(&word)));
                }
            }
        }
        let steps = array(&case["gradients"]);
        words.push(steps.len() as u32);
        for (gradients, rates) in steps.iter().zip(array(&case["rates"])) {
            numbers(&mut words, gradients, in_words);
            numbers(&mut words, &rates, false);
        }
        let groups = array(&case["groups"]);
        words.push(groups.len() as u32);
        for (name, length) in groups.iter().zip(array(&case["lengths"])) {
            text(&mut words, name.as_str().expect("a name"));
            words.push(integer(&length));
        }
        numbers(&mut words, &case["parameters"], exact);
    }
    words
}

/// Appends the length of a text in bytes, and its bytes in whole words.
fn text(words: &mut Vec<u32>, text: &str) {
    words.push(text.len() as u32);
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    words.extend(bytemuck::pod_collect_to_vec::<u8, u32>(&bytes));
}
