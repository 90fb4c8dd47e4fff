//! Translation of kernels for drivers that this machine does not have. They are translated to HLSL and MSL as wgpu does
//! on Windows and on Apple's systems, and searched for forms that the compilers there are known to refuse.
//!
//! If `WGPU_OPTIM_TRANSLATED` names a folder, the tests write their translations there, for `tests/dxc` and
//! `tests/metal`.

use std::path::{Path, PathBuf};

use naga::back::{PipelineConstants, hlsl, msl, pipeline_constants::process_overrides};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Binding, Block, BuiltIn, Expression, Function, Handle, MathFunction, Module, ShaderStage, Statement};
use naga::{ScalarKind, StorageAccess, TypeInner, UnaryOperator};
use rayon::prelude::*;
use serde_json::Value;

/// Kernel with values for its override constants.
pub struct Kernel {
    /// Name of the kernel and of its file.
    pub name: String,
    /// Name of the entry point.
    pub entry: String,
    /// Module with nothing but the entry point and its dependencies.
    pub module: Module,
    info: ModuleInfo,
}

impl Kernel {
    /// Creates a kernel with these values of its constants. Panics if naga refuses it.
    pub fn new(name: String, wgsl: &str, entry: &str, constants: &[(&str, f64)]) -> Self {
        let constants: PipelineConstants = constants.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        let module =
            naga::front::wgsl::parse_str(wgsl).unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(wgsl)));
        let info = Validator::new(ValidationFlags::all(), Capabilities::all())
            .validate(&module)
            .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(wgsl)));
        let stage = (ShaderStage::Compute, entry);
        let (module, info) = process_overrides(&module, &info, Some(stage), &constants)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        Kernel { entry: entry.to_owned(), module: module.into_owned(), info: info.into_owned(), name }
    }

    /// Creates a kernel from a list of [`Kernels`](crate::vectors::Kernels).
    pub fn listed(number: usize, kernel: &Value) -> Self {
        let entry = kernel["entry"].as_str().expect("an entry point");
        let wgsl = kernel["wgsl"].as_str().expect("a module");
        // Browsers require this directive, and naga refuses it.
        let wgsl = wgsl.replace("enable subgroups;", "");
        let constants = kernel["constants"].as_object().expect("constants");
        let constants: Vec<(&str, f64)> =
            constants.iter().map(|(name, value)| (name.as_str(), value.as_f64().expect("a number"))).collect();
        Kernel::new(format!("{number:04}-{entry}"), &wgsl, entry, &constants)
    }

    /// Returns true if the kernel has subgroup operations.
    pub fn has_subgroups(&self) -> bool {
        let functions = self.module.functions.iter().map(|(_, function)| function);
        functions.chain([&self.entry_point().function]).any(|function| {
            let mut found = false;
            walk(&function.body, &mut |statement| {
                found |= matches!(statement, Statement::SubgroupCollectiveOperation { .. });
            });
            found
        })
    }

    /// Returns naga's entry point of the kernel.
    pub fn entry_point(&self) -> &naga::EntryPoint {
        &self.module.entry_points[0]
    }

    /// Returns the storage and uniform buffers in the order of groups and bindings, and whether they are written.
    pub fn buffers(&self) -> Vec<(naga::ResourceBinding, bool)> {
        let mut buffers: Vec<_> = self
            .module
            .global_variables
            .iter()
            .filter_map(|(_, variable)| {
                let written = match variable.space {
                    naga::AddressSpace::Storage { access } => access.contains(StorageAccess::STORE),
                    naga::AddressSpace::Uniform => false,
                    _ => return None,
                };
                Some((variable.binding?, written))
            })
            .collect();
        buffers.sort();
        buffers
    }

    /// Returns the HLSL and the name of its entry point, with the options of wgpu-hal's dx12/device.rs.
    ///
    /// # Errors
    /// Returns naga's message.
    pub fn hlsl(&self, shader_model: hlsl::ShaderModel) -> Result<(String, String), String> {
        let mut registers = [0; 2];
        let binding_map = self
            .buffers()
            .into_iter()
            .map(|(binding, written)| {
                let register = registers[usize::from(written)];
                registers[usize::from(written)] += 1;
                let target = hlsl::BindTarget { register, restrict_indexing: true, ..Default::default() };
                (binding, target)
            })
            .collect();
        let options = hlsl::Options {
            shader_model,
            binding_map,
            fake_missing_bindings: false,
            // A space of their own, so that no uniform buffer has their register.
            special_constants_binding: Some(hlsl::BindTarget { space: 1, ..Default::default() }),
            // These options are those of src/gpu/pass.rs.
            zero_initialize_workgroup_memory: false,
            restrict_indexing: true,
            force_loop_bounding: true,
            ..Default::default()
        };
        let pipeline_options = hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, self.entry.clone())) };
        let mut text = String::new();
        let written = hlsl::Writer::new(&mut text, &options, &pipeline_options)
            .write(&self.module, &self.info, None)
            .map_err(|error| error.to_string())?;
        let entry = written.entry_point_names.into_iter().next();
        let entry = entry.ok_or("no entry point")?;
        Ok((text, entry.map_err(|error| error.to_string())?))
    }

    /// Returns the MSL, with the options of wgpu-hal's metal/device.rs.
    ///
    /// # Errors
    /// Returns naga's message.
    pub fn msl(&self, lang_version: (u8, u8)) -> Result<String, String> {
        let buffers = self.buffers();
        let resources = (0..)
            .zip(&buffers)
            .map(|(slot, (binding, written))| {
                let target = msl::BindTarget { buffer: Some(slot), mutable: *written, ..Default::default() };
                (*binding, target)
            })
            .collect();
        let resources =
            msl::EntryPointResources { resources, immediates_buffer: None, sizes_buffer: Some(buffers.len() as u8) };
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
        entry.ok_or("no entry point")?.map_err(|error| error.to_string())?;
        Ok(text)
    }
}

/// Visits every statement of a block, including nested ones.
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
            Statement::Loop { body, continuing, .. } => {
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
            BuiltIn::SubgroupSize | BuiltIn::SubgroupId | BuiltIn::SubgroupInvocationId | BuiltIn::NumSubgroups
        ))
    )
}

/// Returns true if the entry point has subgroup built-ins only as members of a struct. naga's HLSL then lacks their
/// semantics, which DXC refuses (docs/upstream-naga.md).
fn has_subgroup_built_ins_in_structs_alone(module: &Module) -> bool {
    let arguments = &module.entry_points[0].function.arguments;
    let plain = arguments.iter().any(|argument| is_subgroup_built_in(argument.binding.as_ref()));
    let in_structs = arguments.iter().any(|argument| {
        let TypeInner::Struct { members, .. } = &module.types[argument.ty].inner else {
            return false;
        };
        members.iter().any(|member| is_subgroup_built_in(member.binding.as_ref()))
    });
    in_structs && !plain
}

/// Returns the places where the bits of `-x` or `abs(x)` are taken, in the same function or through its caller. FXC
/// folds the minus or the `abs` into the operation on the bits and fails (docs/upstream-naga.md).
fn bits_without_a_sign(module: &Module, info: &ModuleInfo) -> Vec<String> {
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
                Expression::As { expr, kind: ScalarKind::Uint | ScalarKind::Sint, convert: None } => Some(expr),
                _ => None,
            })
            .collect()
    };
    let mut found = Vec::new();
    for (name, function, info) in &functions {
        let is_changed = |at: Handle<Expression>| {
            let kind = info[at].ty.inner_with(&module.types).scalar_kind();
            let is_change = match function.expressions[at] {
                Expression::Unary { op, .. } => op == UnaryOperator::Negate,
                Expression::Math { fun, .. } => fun == MathFunction::Abs,
                _ => false,
            };
            is_change && kind == Some(ScalarKind::Float)
        };
        if bits_of(function).into_iter().any(is_changed) {
            found.push(name.clone());
        }
        walk(&function.body, &mut |statement| {
            let Statement::Call { function: called, arguments, .. } = statement else {
                return;
            };
            let called = &module.functions[*called];
            for at in bits_of(called) {
                if let Expression::FunctionArgument(index) = called.expressions[at]
                    && is_changed(arguments[index as usize])
                {
                    let callee = called.name.clone().unwrap_or_default();
                    found.push(format!("{name}, calling {callee}"));
                }
            }
        });
    }
    found
}

/// Returns the functions that write an element of a local or workgroup vector at an index that is not constant. FXC
/// unrolls the loop around it for that, and gives up after a minute (X3511).
fn vectors_written_at_an_index(module: &Module, info: &ModuleInfo) -> Vec<String> {
    let functions = module.functions.iter().map(|(handle, function)| (function, &info[handle]));
    let functions = functions.chain([(&module.entry_points[0].function, info.get_entry_point(0))]);
    let mut found = Vec::new();
    for (function, info) in functions {
        let is_element = |at: Handle<Expression>| {
            let Expression::Access { base, .. } = function.expressions[at] else { return false };
            match *info[base].ty.inner_with(&module.types) {
                TypeInner::ValuePointer { size, .. } => size.is_some(),
                TypeInner::Pointer { base, .. } => matches!(module.types[base].inner, TypeInner::Vector { .. }),
                _ => false,
            }
        };
        walk(&function.body, &mut |statement| {
            if matches!(statement, Statement::Store { pointer, .. } if is_element(*pointer)) {
                found.push(function.name.clone().unwrap_or_default());
            }
        });
    }
    found
}

/// Returns the faults of a kernel.
pub fn faults(kernel: &Kernel) -> Vec<String> {
    let mut faults = Vec::new();
    if has_subgroup_built_ins_in_structs_alone(&kernel.module) {
        faults.push("built-ins of subgroups in a struct alone".to_owned());
    }
    for place in bits_without_a_sign(&kernel.module, &kernel.info) {
        faults.push(format!("the bits of a float whose sign is changed in {place}"));
    }
    for place in vectors_written_at_an_index(&kernel.module, &kernel.info) {
        faults.push(format!("a vector written at an index in {place}"));
    }
    let subgroups = kernel.has_subgroups();
    for shader_model in SHADER_MODELS {
        // wgpu does not offer subgroups below shader model 6.0.
        if !(subgroups && shader_model < hlsl::ShaderModel::V6_0) {
            match kernel.hlsl(shader_model) {
                Ok((hlsl, _)) => faults.extend(zero_value_written_twice(&hlsl)),
                Err(error) => faults.push(format!("HLSL {shader_model:?}: {error}")),
            }
        }
    }
    for version in METAL_VERSIONS {
        // Metal has subgroups on Apple's GPUs from version 2.1 on, which wgpu requests for them.
        if !(subgroups && version < (2, 1))
            && let Err(error) = kernel.msl(version)
        {
            faults.push(format!("MSL {version:?}: {error}"));
        }
    }
    faults
}

/// Finds a zero-value function that occurs twice. naga writes one for each type, named after the type's HLSL name,
/// which a type and its alias share.
fn zero_value_written_twice(hlsl: &str) -> Option<String> {
    let mut functions: Vec<&str> =
        hlsl.lines().filter(|line| line.contains(" ZeroValue") && line.ends_with('{')).collect();
    functions.sort_unstable();
    let twice = functions.windows(2).find(|pair| pair[0] == pair[1])?;
    Some(format!("HLSL: two functions \"{}\"", twice[0].trim_end_matches(" {")))
}

/// Shader models: the oldest that wgpu requests (FXC's), the oldest with subgroups, one in between, and the newest.
const SHADER_MODELS: [hlsl::ShaderModel; 4] =
    [hlsl::ShaderModel::V5_1, hlsl::ShaderModel::V6_0, hlsl::ShaderModel::V6_5, hlsl::ShaderModel::V6_7];

/// MSL versions from macOS 10.13 to 26.
const METAL_VERSIONS: [(u8, u8); 4] = [(2, 0), (2, 4), (3, 2), (4, 0)];

/// MSL version that tests/metal compiles.
pub const METAL: (u8, u8) = (2, 4);

/// Returns the folder for the translations, if one is set.
pub fn folder() -> Option<PathBuf> {
    std::env::var_os("WGPU_OPTIM_TRANSLATED").map(PathBuf::from)
}

/// Returns a line for each faulty kernel.
pub fn faulty(kernels: &[Kernel]) -> Vec<String> {
    let lines = kernels.par_iter().map(|kernel| (&kernel.name, faults(kernel)));
    lines
        .filter(|(_, faults)| !faults.is_empty())
        .map(|(name, faults)| format!("{name}: {}", faults.join("; ")))
        .collect()
}

/// Writes the translations of kernels without faults to a folder. `hlsl/` gets HLSL for DXC, with a comment on the first
/// line that has the entry point and the shader model, `fxc/` HLSL for FXC, and `msl/` MSL.
///
/// # Errors
/// Returns an error if the folder cannot be written.
pub fn write_out(folder: &Path, kernels: &[Kernel]) -> std::io::Result<()> {
    for name in ["hlsl", "fxc", "msl"] {
        std::fs::create_dir_all(folder.join(name))?;
    }
    for kernel in kernels {
        let mut texts = SHADER_MODELS.into_iter().skip(1).map(|model| kernel.hlsl(model).expect("translated before"));
        let (text, entry) = texts.next().expect("shader models");
        // The HLSL is the same for all shader models, so that one compiler run covers all.
        assert!(texts.all(|(other, _)| other == text), "{}", kernel.name);
        let path = folder.join(format!("hlsl/{}.hlsl", kernel.name));
        std::fs::write(path, format!("// {entry} cs_6_0\n{text}"))?;
        if !kernel.has_subgroups() {
            let (text, entry) = kernel.hlsl(SHADER_MODELS[0]).expect("translated before");
            std::fs::write(folder.join(format!("fxc/{}.hlsl", kernel.name)), format!("// {entry} cs_5_1\n{text}"))?;
        }
        let text = kernel.msl(METAL).expect("translated before");
        std::fs::write(folder.join(format!("msl/{}.metal", kernel.name)), text)?;
    }
    Ok(())
}
