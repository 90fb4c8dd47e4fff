//! Promises for drivers that this machine does not have: every kernel that the crate can build is translated to HLSL and MSL as wgpu asks for it on
//! Windows and on Apple's systems, and has none of the forms that compilers there are known to refuse.
//!
//! With `WGPU_OPTIM_TRANSLATED=FOLDER` the translations are left in that folder, with what `tests/dxc` and `tests/metal` need beside them.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use naga::back::{PipelineConstants, hlsl, msl, pipeline_constants::process_overrides};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Binding, Block, BuiltIn, Expression, Function, Handle, Module, ShaderStage, Statement};
use naga::{ScalarKind, StorageAccess, TypeInner, UnaryOperator};
use serde_json::Value;
use wgpu_optim::{Gpu, wgpu};
use wgpu_optim_conformance::vectors::{self, Kernels};

/// A kernel whose override constants have their values.
struct Kernel {
    name: String,
    entry: String,
    module: Module,
    info: ModuleInfo,
}

impl Kernel {
    fn new(name: String, wgsl: &str, entry: &str, constants: &PipelineConstants) -> Self {
        let module = naga::front::wgsl::parse_str(wgsl)
            .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(wgsl)));
        let info = Validator::new(ValidationFlags::all(), Capabilities::all())
            .validate(&module)
            .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(wgsl)));
        let stage = (ShaderStage::Compute, entry);
        let (module, info) = process_overrides(&module, &info, Some(stage), constants)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        Kernel {
            entry: entry.to_owned(),
            module: module.into_owned(),
            info: info.into_owned(),
            name,
        }
    }

    /// One that the crate's own device was given.
    fn listed(number: usize, kernel: &Value) -> Self {
        let entry = kernel["entry"].as_str().expect("an entry point");
        let wgsl = kernel["wgsl"].as_str().expect("a module");
        // What browsers want and naga refuses.
        let wgsl = wgsl.replace("enable subgroups;", "");
        let constants = kernel["constants"].as_object().expect("constants");
        let constants = constants
            .iter()
            .map(|(name, value)| (name.clone(), value.as_f64().expect("a number")))
            .collect();
        Kernel::new(format!("{number:04}-{entry}"), &wgsl, entry, &constants)
    }

    fn has_subgroups(&self) -> bool {
        let functions = self.module.functions.iter().map(|(_, function)| function);
        functions
            .chain([&self.entry_point().function])
            .any(|function| {
                let mut found = false;
                walk(&function.body, &mut |statement| {
                    found |= matches!(statement, Statement::SubgroupCollectiveOperation { .. });
                });
                found
            })
    }

    fn entry_point(&self) -> &naga::EntryPoint {
        &self.module.entry_points[0]
    }

    /// Its storage buffers in the order of groups and bindings, and whether they are written.
    fn buffers(&self) -> Vec<(naga::ResourceBinding, bool)> {
        let mut buffers: Vec<_> = self
            .module
            .global_variables
            .iter()
            .filter_map(|(_, variable)| {
                let naga::AddressSpace::Storage { access } = variable.space else {
                    return None;
                };
                Some((variable.binding?, access.contains(StorageAccess::STORE)))
            })
            .collect();
        buffers.sort();
        buffers
    }

    /// As wgpu-hal's dx12/device.rs asks for it.
    fn hlsl(&self, shader_model: hlsl::ShaderModel) -> Result<(String, String), String> {
        let mut registers = [0; 2];
        let binding_map = self
            .buffers()
            .into_iter()
            .map(|(binding, written)| {
                let register = registers[usize::from(written)];
                registers[usize::from(written)] += 1;
                let target = hlsl::BindTarget {
                    register,
                    restrict_indexing: true,
                    ..Default::default()
                };
                (binding, target)
            })
            .collect();
        let options = hlsl::Options {
            shader_model,
            binding_map,
            fake_missing_bindings: false,
            special_constants_binding: Some(hlsl::BindTarget::default()),
            // As src/gpu/pass.rs says.
            zero_initialize_workgroup_memory: false,
            restrict_indexing: true,
            force_loop_bounding: true,
            ..Default::default()
        };
        let pipeline_options = hlsl::PipelineOptions {
            entry_point: Some((ShaderStage::Compute, self.entry.clone())),
        };
        let mut text = String::new();
        let written = hlsl::Writer::new(&mut text, &options, &pipeline_options)
            .write(&self.module, &self.info, None)
            .map_err(|error| error.to_string())?;
        let entry = written.entry_point_names.into_iter().next();
        let entry = entry.ok_or("no entry point")?;
        Ok((text, entry.map_err(|error| error.to_string())?))
    }

    /// As wgpu-hal's metal/device.rs asks for it.
    fn msl(&self, lang_version: (u8, u8)) -> Result<String, String> {
        let buffers = self.buffers();
        let resources = (0..)
            .zip(&buffers)
            .map(|(slot, (binding, written))| {
                let target = msl::BindTarget {
                    buffer: Some(slot),
                    mutable: *written,
                    ..Default::default()
                };
                (*binding, target)
            })
            .collect();
        let resources = msl::EntryPointResources {
            resources,
            immediates_buffer: None,
            sizes_buffer: Some(buffers.len() as u8),
        };
        let options = msl::Options {
            lang_version,
            per_entry_point_map: [(self.entry.clone(), resources)].into(),
            fake_missing_bindings: false,
            bounds_check_policies: BoundsCheckPolicies {
                index: BoundsCheckPolicy::Restrict,
                buffer: BoundsCheckPolicy::Restrict,
                image_load: BoundsCheckPolicy::Restrict,
                binding_array: BoundsCheckPolicy::Unchecked,
            },
            zero_initialize_workgroup_memory: false,
            force_loop_bounding: true,
            ..Default::default()
        };
        let pipeline_options = msl::PipelineOptions {
            entry_point: Some((ShaderStage::Compute, self.entry.clone())),
            vertex_pulling_transform: true,
            ..Default::default()
        };
        let written = msl::write_string(&self.module, &self.info, &options, &pipeline_options);
        let (text, names) = written.map_err(|error| error.to_string())?;
        let entry = names.entry_point_names.into_iter().next();
        entry
            .ok_or("no entry point")?
            .map_err(|error| error.to_string())?;
        Ok(text)
    }
}

/// Every statement of a block, those within others too.
fn walk(block: &Block, visit: &mut impl FnMut(&Statement)) {
    for statement in block {
        visit(statement);
        match statement {
            Statement::Block(inner) => walk(inner, visit),
            Statement::If { accept, reject, .. } => {
                walk(accept, visit);
                walk(reject, visit);
            }
            Statement::Switch { cases, .. } => {
                cases.iter().for_each(|case| walk(&case.body, visit));
            }
            Statement::Loop {
                body, continuing, ..
            } => {
                walk(body, visit);
                walk(continuing, visit);
            }
            _ => {}
        }
    }
}

fn is_subgroup_built_in(binding: Option<&Binding>) -> bool {
    matches!(
        binding,
        Some(Binding::BuiltIn(
            BuiltIn::SubgroupSize
                | BuiltIn::SubgroupId
                | BuiltIn::SubgroupInvocationId
                | BuiltIn::NumSubgroups
        ))
    )
}

/// Whether built-ins of subgroups are known to the entry point only as members of a struct: naga's HLSL leaves these without a semantic, which DXC
/// refuses (docs/upstream-naga.md).
fn has_subgroup_built_ins_in_structs_alone(module: &Module) -> bool {
    let arguments = &module.entry_points[0].function.arguments;
    let plain = arguments
        .iter()
        .any(|argument| is_subgroup_built_in(argument.binding.as_ref()));
    let in_structs = arguments.iter().any(|argument| {
        let TypeInner::Struct { members, .. } = &module.types[argument.ty].inner else {
            return false;
        };
        members
            .iter()
            .any(|member| is_subgroup_built_in(member.binding.as_ref()))
    });
    in_structs && !plain
}

/// Where the bits of a float are taken that was given a minus on the way, in the same function or by its caller: FXC folds the minus into what is
/// done with the bits, and stops (docs/upstream-naga.md).
fn negated_bits(module: &Module, info: &ModuleInfo) -> Vec<String> {
    let functions: Vec<(String, &Function, &naga::valid::FunctionInfo)> = module
        .functions
        .iter()
        .map(|(handle, function)| (function, &info[handle]))
        .chain([(&module.entry_points[0].function, info.get_entry_point(0))])
        .map(|(function, info)| {
            let name = function.name.clone().unwrap_or_default();
            (name, function, info)
        })
        .collect();
    let bits_of = |function: &Function| -> Vec<Handle<Expression>> {
        let expressions = function.expressions.iter();
        expressions
            .filter_map(|(_, expression)| match *expression {
                Expression::As {
                    expr,
                    kind: ScalarKind::Uint | ScalarKind::Sint,
                    convert: None,
                } => Some(expr),
                _ => None,
            })
            .collect()
    };
    let mut found = Vec::new();
    for (name, function, info) in &functions {
        let is_negated = |at: Handle<Expression>| {
            let kind = info[at].ty.inner_with(&module.types).scalar_kind();
            let negate = UnaryOperator::Negate;
            matches!(function.expressions[at], Expression::Unary { op, .. } if op == negate)
                && kind == Some(ScalarKind::Float)
        };
        if bits_of(function).into_iter().any(is_negated) {
            found.push(name.clone());
        }
        walk(&function.body, &mut |statement| {
            let Statement::Call {
                function: called,
                arguments,
                ..
            } = statement
            else {
                return;
            };
            let called = &module.functions[*called];
            for at in bits_of(called) {
                if let Expression::FunctionArgument(index) = called.expressions[at]
                    && is_negated(arguments[index as usize])
                {
                    let callee = called.name.clone().unwrap_or_default();
                    found.push(format!("{name}, calling {callee}"));
                }
            }
        });
    }
    found
}

/// What is wrong with a kernel.
fn faults(kernel: &Kernel) -> Vec<String> {
    let mut faults = Vec::new();
    if has_subgroup_built_ins_in_structs_alone(&kernel.module) {
        faults.push("built-ins of subgroups in a struct alone".to_owned());
    }
    for place in negated_bits(&kernel.module, &kernel.info) {
        faults.push(format!("the bits of a negated float in {place}"));
    }
    let subgroups = kernel.has_subgroups();
    for shader_model in SHADER_MODELS {
        // wgpu does not offer subgroups below 6.0.
        if !(subgroups && shader_model < hlsl::ShaderModel::V6_0)
            && let Err(error) = kernel.hlsl(shader_model)
        {
            faults.push(format!("HLSL {shader_model:?}: {error}"));
        }
    }
    for version in METAL_VERSIONS {
        // Metal has them on Apple's GPUs from 2.1 on, and wgpu asks for that.
        if !(subgroups && version < (2, 1))
            && let Err(error) = kernel.msl(version)
        {
            faults.push(format!("MSL {version:?}: {error}"));
        }
    }
    faults
}

/// The oldest that wgpu asks for, FXC's; the oldest with subgroups, the newest, and one between.
const SHADER_MODELS: [hlsl::ShaderModel; 4] = [
    hlsl::ShaderModel::V5_1,
    hlsl::ShaderModel::V6_0,
    hlsl::ShaderModel::V6_5,
    hlsl::ShaderModel::V6_7,
];

/// From macOS 10.13 to 26.
const METAL_VERSIONS: [(u8, u8); 4] = [(2, 0), (2, 4), (3, 2), (4, 0)];

/// Where the translations are to be left, if anywhere.
fn folder() -> Option<PathBuf> {
    std::env::var_os("WGPU_OPTIM_TRANSLATED").map(PathBuf::from)
}

/// A device of wgpu's backend without a driver: it builds every pipeline, and runs none.
fn device() -> Gpu {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::NOOP;
    descriptor.backend_options.noop.enable = true;
    let instance = wgpu::Instance::new(descriptor);
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::NOOP));
    vectors::open(&adapters[0]).expect("a device without a driver")
}

/// Every kernel that the crate can build, those of the binary's trainer and benchmark among them; the first ones are those of the cases.
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
        for of_geometry in in_parallel(&geometries, kernels_of) {
            of_geometry.listed.into_iter().for_each(|kernel| {
                listed.add(kernel);
            });
        }
        let numbered: Vec<(usize, Value)> = listed.listed.into_iter().enumerate().collect();
        let mut kernels = in_parallel(&numbered, |(number, kernel)| {
            Kernel::listed(*number, kernel)
        });
        kernels.extend(of_the_binary());
        (kernels, cases)
    })
}

fn kernels_of(gpu: &Gpu) -> Kernels {
    let mut listed = Kernels::default();
    vectors::compile_everything(gpu, &mut listed).expect("every kernel");
    vectors::compile_settings(gpu, &mut listed).expect("every setting");
    vectors::compile_halves(gpu, &mut listed).expect("every element");
    listed
}

/// What becomes of each, in the same order.
fn in_parallel<T: Sync, U: Send>(all: &[T], each: impl Fn(&T) -> U + Sync) -> Vec<U> {
    let threads = std::thread::available_parallelism().map_or(2, NonZeroUsize::get);
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(value) = all.get(index) else {
                        break;
                    };
                    let made = each(value);
                    done.lock()
                        .expect("no thread has failed")
                        .push((index, made));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no thread has failed");
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, made)| made).collect()
}

/// Values of override constants.
type Constants = Vec<(&'static str, f64)>;

/// What the program compiles beside an optimizer.
fn of_the_binary() -> Vec<Kernel> {
    let batch = include_str!("../../cli/shaders/train/batch.wgsl");
    let layer = |outputs: f64| {
        [
            ("WORKGROUP", 64.0),
            ("INPUTS", 30.0),
            ("OUTPUTS", outputs),
            ("WEIGHTS", 16.0),
        ]
    };
    let with = |constants: &[(&'static str, f64)], more: &[(&'static str, f64)]| {
        [constants, more].concat()
    };
    let workgroup = ("WORKGROUP", 64.0);
    let mut listed: Vec<(&str, &str, Constants)> = vec![
        (
            "gather",
            include_str!("../../cli/shaders/train/gather.wgsl"),
            vec![
                workgroup,
                ("QUADS", 8.0),
                ("CHUNK_START", 0.0),
                ("CHUNK_END", 100.0),
            ],
        ),
        (
            "bias_gradient",
            include_str!("../../cli/shaders/train/bias_gradient.wgsl"),
            vec![workgroup, ("OUTPUTS", 10.0), ("BIAS", 4.0)],
        ),
        (
            "finish_batch",
            include_str!("../../cli/shaders/train/finish_batch.wgsl"),
            vec![],
        ),
    ];
    for flag in [0.0, 1.0] {
        listed.push((
            "loss",
            include_str!("../../cli/shaders/train/loss.wgsl"),
            vec![workgroup, ("CLASSES", 10.0), ("SQUARED_HINGE", flag)],
        ));
        // Rows of whole quads, or not.
        for outputs in [10.0, 16.0] {
            listed.push((
                "dense_forward",
                include_str!("../../cli/shaders/train/dense_forward.wgsl"),
                with(&layer(outputs), &[("BIAS", 4.0), ("RELU", flag)]),
            ));
        }
    }
    for (entry, source) in [
        (
            "weight_gradient",
            include_str!("../../cli/shaders/train/weight_gradient.wgsl"),
        ),
        (
            "input_gradient",
            include_str!("../../cli/shaders/train/input_gradient.wgsl"),
        ),
    ] {
        listed.push((entry, source, layer(10.0).to_vec()));
    }
    let mut kernels = Vec::new();
    for (number, (entry, source, constants)) in listed.into_iter().enumerate() {
        let text = [batch, source].join("\n");
        let name = format!("train-{number:02}-{entry}");
        kernels.push(Kernel::new(name, &text, entry, &owned(&constants)));
    }
    for (entry, source) in [
        ("copy", include_str!("../../conformance/shaders/copy.wgsl")),
        (
            "triad",
            include_str!("../../conformance/shaders/triad.wgsl"),
        ),
    ] {
        let constants = owned(&[workgroup, ("QUADS", 8.0)]);
        kernels.push(Kernel::new(
            format!("bench-{entry}"),
            source,
            entry,
            &constants,
        ));
    }
    kernels.push(of_a_copy());
    kernels
}

/// The copy of schedule-free averages, which is dispatched on request alone, put together as src/gpu/copy_schedule_free.rs does.
fn of_a_copy() -> Kernel {
    let load = include_str!("../../shaders/shared/load_quads.wgsl")
        .replace("gradients", "parameters")
        .replace("grads_start", "params_start")
        .replace("GradientLane", "ParameterLane");
    let files = [
        include_str!("../../shaders/shared/layout.wgsl"),
        include_str!("../../shaders/shared/schedule_free.wgsl"),
        &load,
        include_str!("../../shaders/copy_schedule_free.wgsl"),
    ];
    let constants = owned(&[("WORKGROUP", 64.0)]);
    let name = "copy_schedule_free".to_owned();
    Kernel::new(name, &files.join("\n"), "swap_averages", &constants)
}

fn owned(constants: &[(&str, f64)]) -> PipelineConstants {
    let constants = constants.iter();
    constants
        .map(|&(name, value)| (name.to_owned(), value))
        .collect()
}

#[test]
fn every_kernel_is_translated_for_direct3d_and_metal() {
    let (kernels, cases) = kernels();
    let subgroups = kernels.iter().filter(|kernel| kernel.has_subgroups());
    let subgroups = subgroups.count();
    println!("{} kernels, {subgroups} with subgroups", kernels.len());
    assert!(kernels.len() > 500 && subgroups > 100);
    let faulty: Vec<String> = kernels
        .iter()
        .zip(in_parallel(kernels, faults))
        .filter(|(_, faults)| !faults.is_empty())
        .map(|(kernel, faults)| format!("{}: {}", kernel.name, faults.join("; ")))
        .collect();
    assert!(
        faulty.is_empty(),
        "{} of {} kernels:\n{}",
        faulty.len(),
        kernels.len(),
        faulty.join("\n")
    );
    if let Some(folder) = folder() {
        write_out(&folder, kernels, cases).expect("the folder can be written to");
    }
}

fn planted(wgsl: &str) -> Vec<String> {
    let kernel = Kernel::new("planted".to_owned(), wgsl, "main", &owned(&[]));
    faults(&kernel)
}

/// Seeded faults.
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
    assert_eq!(
        planted(&kernel("")),
        ["built-ins of subgroups in a struct alone"]
    );
    let argument = ", @builtin(subgroup_size) size: u32";
    assert_eq!(planted(&kernel(argument)), Vec::<String>::new());
}

/// Seeded faults.
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
}

/// The version of MSL that tests/metal compiles.
const METAL: (u8, u8) = (2, 4);

/// Leaves the translations in a folder: in `hlsl/` HLSL, of which the first line is a comment with the entry point and the model; in `msl/` MSL; in
/// `run/` that of the cases' kernels as C++, with a function that calls each; and the cases.
fn write_out(folder: &Path, kernels: &[Kernel], cases: &[Value]) -> std::io::Result<()> {
    // From a run before.
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::create_dir_all(folder.join("hlsl"))?;
    for kernel in kernels {
        let mut texts = SHADER_MODELS
            .into_iter()
            .skip(1)
            .map(|model| kernel.hlsl(model).expect("translated before"));
        let (text, entry) = texts.next().expect("shader models");
        // What one shader model's compiler says goes for all.
        assert!(texts.all(|(other, _)| other == text), "{}", kernel.name);
        let path = folder.join(format!("hlsl/{}.hlsl", kernel.name));
        std::fs::write(path, format!("// {entry} cs_6_0\n{text}"))?;
    }
    for name in ["msl", "run"] {
        std::fs::create_dir_all(folder.join(name))?;
    }
    let mut run: Vec<usize> = cases.iter().flat_map(kernels_of_case).collect();
    run.sort_unstable();
    run.dedup();
    for (number, kernel) in kernels.iter().enumerate() {
        let text = kernel.msl(METAL).expect("translated before");
        std::fs::write(folder.join(format!("msl/{}.metal", kernel.name)), &text)?;
        if run.contains(&number) {
            // All have functions of the same names.
            let body = text.replace("#include", "// #include");
            let text = format!(
                "#include <metal_stdlib>\nnamespace {{\n{body}}}\n{}",
                caller(kernel, number, &text)
            );
            std::fs::write(folder.join(format!("run/{}.cpp", kernel.name)), text)?;
        }
    }
    std::fs::write(folder.join("run/table.inc"), table(kernels, &run))?;
    std::fs::write(
        folder.join("cases.bin"),
        bytemuck::cast_slice(&words_of(cases)),
    )
}

/// The kernels that a case dispatches.
fn kernels_of_case(case: &Value) -> Vec<usize> {
    turns(case)
        .iter()
        .flat_map(|turn| turn.as_array().expect("dispatches"))
        .map(|dispatch| integer(&dispatch["kernel"]) as usize)
        .collect()
}

/// The dispatches of steps that take turns.
fn turns(case: &Value) -> Vec<Value> {
    case["turns"]
        .as_array()
        .cloned()
        .unwrap_or_else(|| vec![case["dispatches"].clone()])
}

fn integer(value: &Value) -> u32 {
    let value = value.as_u64().expect("an integer");
    u32::try_from(value).expect("32 bits")
}

/// The kernels of the cases, for tests/msl/run.cpp: what X-macros make of them.
fn table(kernels: &[Kernel], run: &[usize]) -> String {
    run.iter()
        .map(|&number| {
            let entry = kernels[number].entry_point();
            let invocations = entry.workgroup_size.iter().product::<u32>();
            format!("KERNEL({number}, {invocations})\n")
        })
        .collect()
}

/// A function that calls a kernel for one invocation, of which tests/msl/metal_stdlib has the types. What the kernel is given is read off its
/// signature, one argument a line.
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
            let kind = kind.trim_start_matches("device").trim();
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

/// The members of `_mslBufferSizes`: `size3` is that of the variable with this number.
fn sizes(kernel: &Kernel, text: &str, buffers: &[(naga::ResourceBinding, bool)]) -> String {
    let start = text.find("struct _mslBufferSizes {").expect("sizes");
    let members = text[start..].lines().skip(1);
    let sizes: Vec<String> = members
        .take_while(|line| !line.starts_with('}'))
        .map(|line| {
            let number = line.trim().trim_start_matches("uint size");
            let number: usize = number.trim_end_matches(';').parse().expect("a number");
            let (_, variable) = kernel
                .module
                .global_variables
                .iter()
                .nth(number)
                .expect("a variable");
            let binding = variable.binding.expect("a buffer");
            assert!(buffers.iter().any(|(other, _)| *other == binding));
            format!(
                "stand_in.buffers.at({}, {}).bytes",
                binding.group, binding.binding
            )
        })
        .collect();
    sizes.join(", ")
}

/// The cases for tests/msl/run.cpp, which reads them in this order.
fn words_of(cases: &[Value]) -> Vec<u32> {
    let mut words = vec![cases.len() as u32];
    let array = |value: &Value| value.as_array().expect("a list").clone();
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
        let turns = turns(case);
        words.push(turns.len() as u32);
        for turn in &turns {
            let dispatches = array(turn);
            words.push(dispatches.len() as u32);
            for dispatch in &dispatches {
                words.extend([
                    integer(&dispatch["kernel"]),
                    integer(&dispatch["workgroups"]),
                ]);
                let groups = array(&dispatch["groups"]);
                words.push(groups.len() as u32);
                for group in &groups {
                    let entries = array(group);
                    words.push(entries.len() as u32);
                    // Binding, buffer, offset and size.
                    words.extend(entries.iter().flat_map(&array).map(|word| integer(&word)));
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

/// A text's length in bytes, and the bytes in whole words.
fn text(words: &mut Vec<u32>, text: &str) {
    words.push(text.len() as u32);
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    words.extend(bytemuck::pod_collect_to_vec::<u8, u32>(&bytes));
}
