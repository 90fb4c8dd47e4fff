//! wgpu-optim for JavaScript. Only the TypeScript code in `ts/` calls the functions that are exported here.
//!
//! The optimizer is that of the library: this crate gives it the caller's `GPUDevice` as a device of wgpu ([`host`]), reads the caller's
//! description ([`settings`]), and turns records into objects.

mod host;
mod settings;

use std::cell::{Ref, RefCell, RefMut};

use js_sys::{Array, Object, Promise, Reflect};
use wasm_bindgen::prelude::*;
use wgpu_optim::{
    Checkpoint, Differences, Error, Gpu, Notes, Optimizer, Parameters, Record, Records, TensorRecord, Term, Warning,
};

use host::{Host, JsBuffer, JsDevice, JsEncoder, JsPass, js_buffer};
use settings::{ControlSettings, OptimizerSettings, SliceSettings};

type Outcome<T> = Result<T, JsValue>;

/// Writes panics to the console. Otherwise their message would be `unreachable executed`.
#[wasm_bindgen(start)]
fn start() {
    #[wasm_bindgen]
    extern "C" {
        #[wasm_bindgen(js_namespace = console, js_name = error)]
        fn console_error(message: &str);
    }
    std::panic::set_hook(Box::new(|panic| console_error(&panic.to_string())));
}

/// Returns an `Error` whose `kind` is the library's `ErrorKind`.
fn error(kind: &str, message: &str) -> JsValue {
    let error = js_sys::Error::new(message);
    error.set_name("OptimizerError");
    let _ = Reflect::set(&error, &"kind".into(), &kind.into());
    error.into()
}

fn refused(problem: Error) -> JsValue {
    error(&format!("{:?}", problem.kind()), &for_javascript(&problem.to_string()))
}

fn misdescribed(problem: String) -> JsValue {
    error("Build", &problem)
}

/// Replaces Rust's names in error messages with those of this package: `OptimizerBuilder::clip_norm` by `clipNorm`, `BufferUsages::STORAGE`
/// by `GPUBufferUsage.STORAGE`, and `Rule::sgd()` by `"sgd"`.
fn for_javascript(message: &str) -> String {
    let mut written = String::new();
    let mut rest = message;
    while let Some(at) = rest.find("::") {
        let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
        let owner_at = rest[..at].rfind(|letter| !is_name(letter)).map_or(0, |before| before + 1);
        let owner = &rest[owner_at..at];
        let after = &rest[at + 2..];
        let name_end = after.find(|letter| !is_name(letter)).unwrap_or(after.len());
        let (name, after) = after.split_at(name_end);
        written.push_str(&rest[..owner_at]);
        rest = after;
        let camel = settings::camel_case(name);
        match owner {
            "Group" if name == "shaped_tensor" => written.push_str("shape"),
            "OptimizerBuilder" | "Group" | "Optimizer" => written.push_str(&camel),
            "BufferUsages" => written.push_str(&format!("GPUBufferUsage.{name}")),
            "Features" => written.push_str(&format!("the feature \"{}\"", name.to_lowercase().replace('_', "-"))),
            "f32" => written.push_str("Infinity"),
            "Rule" | "Regime" | "State" | "Averaging" | "Rounding" | "NonFinitePolicy" => {
                written.push_str(&format!("\"{camel}\""));
                rest = rest.strip_prefix("()").unwrap_or(rest);
            }
            _ => written.push_str(&format!("{owner}.{camel}")),
        }
    }
    written += rest;
    // Names in quotes are the caller's and are not changed.
    let parts = written
        .split('"')
        .enumerate()
        .map(|(index, part)| if index % 2 == 0 { in_camel_case(part) } else { part.to_owned() });
    parts.collect::<Vec<_>>().join("\"")
}

/// Replaces the names of settings in a sentence with those in JavaScript: `clipNorm` for `clip_norm`.
fn in_camel_case(part: &str) -> String {
    let is_setting = |word: &str| {
        let is_lower = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
        word.contains('_') && word.chars().all(is_lower)
    };
    let ends = |letter: char| !(letter.is_ascii_alphanumeric() || letter == '_');
    let words = part.split_inclusive(ends).map(|word| {
        let name = word.trim_end_matches(ends);
        if is_setting(name) { settings::camel_case(name) + &word[name.len()..] } else { word.to_owned() }
    });
    words.collect()
}

/// Returns every rule and regime with its numbers, as JSON.
#[wasm_bindgen]
pub fn catalogue() -> String {
    settings::catalogue().to_string()
}

/// A device, with the pipelines that were compiled for it.
#[wasm_bindgen]
pub struct HostDevice {
    host: Host,
    gpu: Gpu,
}

#[wasm_bindgen]
impl HostDevice {
    #[wasm_bindgen(constructor)]
    pub fn new(device: JsDevice) -> Self {
        let host = Host::new(device);
        let gpu = Gpu::from_parts(host.device(), host.queue());
        HostDevice { host, gpu }
    }

    #[wasm_bindgen(js_name = markLost)]
    pub fn mark_lost(&self, reason: &str) {
        self.gpu.mark_lost(reason);
    }

    #[wasm_bindgen(js_name = checkAlive)]
    pub fn check_alive(&self) -> Outcome<()> {
        self.gpu.check_alive().map_err(refused)
    }

    /// Plans an optimizer, and creates its buffers and bind groups. Its pipelines are being compiled when this returns.
    pub fn build(&self, description: &str, buffers: &Array) -> Outcome<HostOptimizer> {
        let settings = OptimizerSettings::from_json(description).map_err(misdescribed)?;
        let buffers = self.buffers(buffers);
        let tuning = settings.tuning(self.gpu.tuning()).map_err(misdescribed)?;
        let gpu = match tuning {
            Some(tuning) => self.gpu.clone().with_tuning(tuning).map_err(refused)?,
            None => self.gpu.clone(),
        };
        let builder = settings.builder(&buffers).map_err(misdescribed)?;
        let warnings = builder.warnings();
        let optimizer = builder.build(&gpu).map_err(refused)?;
        Ok(HostOptimizer { host: self.host.clone(), warnings, inner: RefCell::new(optimizer) })
    }

    /// Returns a promise for each pipeline that is being compiled.
    pub fn compiling(&self) -> Array {
        self.host.compiling()
    }

    fn buffers(&self, buffers: &Array) -> Vec<wgpu::Buffer> {
        let buffers = buffers.iter().map(|buffer| buffer.unchecked_into::<JsBuffer>());
        buffers.map(|buffer| self.host.buffer(self.gpu.device(), &buffer)).collect()
    }
}

/// An optimizer on the caller's device.
#[wasm_bindgen]
pub struct HostOptimizer {
    host: Host,
    warnings: Vec<Warning>,
    inner: RefCell<Optimizer>,
}

impl HostOptimizer {
    fn get(&self) -> Outcome<Ref<'_, Optimizer>> {
        self.inner.try_borrow().map_err(|_| busy())
    }

    fn get_mut(&self) -> Outcome<RefMut<'_, Optimizer>> {
        self.inner.try_borrow_mut().map_err(|_| busy())
    }

    /// Calls `record` with the caller's encoder.
    fn record(
        &self,
        encoder: &JsEncoder,
        record: impl FnOnce(&mut Optimizer, &mut wgpu::CommandEncoder) -> Result<(), Error>,
    ) -> Outcome<()> {
        let mut optimizer = self.get_mut()?;
        let mut encoder = self.host.encoder(optimizer.gpu().device(), encoder);
        record(&mut optimizer, &mut encoder).map_err(refused)
    }

    /// Calls `record` with the caller's pass.
    fn record_in(
        &self,
        pass: &JsPass,
        record: impl FnOnce(&mut Optimizer, &mut wgpu::ComputePass) -> Result<(), Error>,
    ) -> Outcome<()> {
        let mut optimizer = self.get_mut()?;
        let mut encoder = self.host.encoder_of_pass(optimizer.gpu().device(), pass);
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        record(&mut optimizer, &mut pass).map_err(refused)
    }

    /// Returns an error if bytes could not be read.
    fn check_readable(&self) -> Outcome<()> {
        if self.host.is_unreadable() {
            return Err(error("DeviceLost", "the device was destroyed while it was read from: make another"));
        }
        Ok(())
    }
}

fn busy() -> JsValue {
    error("Call", "another call of this optimizer has not returned: await save, load and resume before the next call")
}

#[wasm_bindgen]
impl HostOptimizer {
    #[wasm_bindgen(js_name = encodeStep)]
    pub fn encode_step(&self, encoder: &JsEncoder) -> Outcome<()> {
        self.record(encoder, |optimizer, encoder| optimizer.encode_step(encoder))
    }

    #[wasm_bindgen(js_name = encodeStepIn)]
    pub fn encode_step_in(&self, pass: &JsPass) -> Outcome<()> {
        self.record_in(pass, |optimizer, pass| optimizer.encode_step_in(pass))
    }

    #[wasm_bindgen(js_name = encodeStepWithout)]
    pub fn encode_step_without(&self, encoder: &JsEncoder, tensors: Vec<usize>) -> Outcome<()> {
        self.record(encoder, |optimizer, encoder| optimizer.encode_step_without(encoder, &tensors))
    }

    #[wasm_bindgen(js_name = encodeLook)]
    pub fn encode_look(&self, encoder: &JsEncoder) -> Outcome<()> {
        self.record(encoder, |optimizer, encoder| optimizer.encode_look(encoder))
    }

    #[wasm_bindgen(js_name = encodeSwapAverages)]
    pub fn encode_swap_averages(&self, encoder: &JsEncoder) -> Outcome<()> {
        self.record(encoder, |optimizer, encoder| optimizer.encode_swap_averages(encoder))
    }

    #[wasm_bindgen(js_name = encodeSwapAveragesIn)]
    pub fn encode_swap_averages_in(&self, pass: &JsPass) -> Outcome<()> {
        self.record_in(pass, |optimizer, pass| optimizer.encode_swap_averages_in(pass))
    }

    /// Records a copy of a tensor's averages. `slice` is JSON, with a buffer of index 0.
    #[wasm_bindgen(js_name = encodeCopyAverages)]
    pub fn encode_copy_averages(
        &self,
        encoder: &JsEncoder,
        tensor: usize,
        slice: &str,
        buffer: JsBuffer,
    ) -> Outcome<()> {
        let slice: SliceSettings = serde_json::from_str(slice).map_err(|error| misdescribed(error.to_string()))?;
        let buffers = [self.host.buffer(self.get()?.gpu().device(), &buffer)];
        let (slice, _) = slice.of("averages", "destination", &buffers).map_err(misdescribed)?;
        self.record(encoder, |optimizer, encoder| optimizer.encode_copy_averages(encoder, tensor, slice))
    }

    #[wasm_bindgen(getter, js_name = averagesAreSwapped)]
    pub fn averages_are_swapped(&self) -> Outcome<bool> {
        Ok(self.get()?.averages_are_swapped())
    }

    #[wasm_bindgen(getter, js_name = learningRates)]
    pub fn learning_rates(&self) -> Outcome<JsValue> {
        Ok(js_buffer(self.get()?.learning_rates()))
    }

    #[wasm_bindgen(getter, js_name = lossScale)]
    pub fn loss_scale(&self) -> Outcome<JsValue> {
        Ok(js_buffer(self.get()?.loss_scale()))
    }

    #[wasm_bindgen(getter, js_name = controlsBuffer)]
    pub fn controls_buffer(&self) -> Outcome<JsValue> {
        Ok(js_buffer(self.get()?.controls_buffer()))
    }

    /// Names of the groups.
    #[wasm_bindgen(getter)]
    pub fn groups(&self) -> Outcome<Vec<String>> {
        Ok(self.get()?.groups().iter().map(|group| group.name.clone()).collect())
    }

    /// The tensors: name, index of the group, number of elements.
    #[wasm_bindgen(getter)]
    pub fn tensors(&self) -> Outcome<Array> {
        let optimizer = self.get()?;
        let tensors = optimizer.tensors().iter().map(|tensor| {
            object(&[
                ("name", tensor.name.as_str().into()),
                ("group", (tensor.group as u32).into()),
                ("elements", (tensor.elements as f64).into()),
            ])
        });
        Ok(tensors.collect())
    }

    /// Combinations that are known to fail.
    #[wasm_bindgen(getter)]
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.iter().map(Warning::to_string).collect()
    }

    /// Changes controls of a group, or of all groups. `controls` is JSON.
    pub fn control(&self, group: Option<String>, controls: &str) -> Outcome<()> {
        let controls = ControlSettings::from_json(controls).map_err(misdescribed)?;
        let mut optimizer = self.get_mut()?;
        let changed = match &group {
            Some(group) => optimizer.control(group, |given| controls.apply(given)),
            None => optimizer.control_all(|given| controls.apply(given)),
        };
        changed.map_err(refused)
    }

    pub fn controls(&self, group: &str) -> Outcome<JsValue> {
        let controls = self.get()?.controls(group).map_err(refused)?;
        Ok(object(&[
            ("learningRateFactor", controls.learning_rate_factor.into()),
            ("weightDecay", controls.weight_decay.into()),
            ("clipNorm", controls.clip_norm.into()),
            ("frozen", controls.frozen.into()),
            ("microBatches", controls.micro_batches.into()),
        ]))
    }

    /// Starts a copy of the records, and returns a promise that it can be read.
    #[wasm_bindgen(js_name = startDrain)]
    pub fn start_drain(&self) -> Outcome<Promise> {
        self.get_mut()?.start_drain().map_err(refused)?;
        Ok(self.host.mapping())
    }

    /// Returns the records of the copy.
    #[wasm_bindgen(js_name = finishDrain)]
    pub fn finish_drain(&self) -> Outcome<JsValue> {
        let records = self.get_mut()?.try_finish_drain().map_err(refused)?;
        self.check_readable()?;
        Ok(records.map_or(JsValue::NULL, |records| of_records(&records)))
    }

    #[expect(
        clippy::await_holding_refcell_ref,
        reason = "other calls are refused until this one has returned, see `busy`"
    )]
    pub async fn resume(&self) -> Outcome<()> {
        self.get_mut()?.resume().await.map_err(refused)
    }

    /// Returns a checkpoint as the bytes of a safetensors file. `notes` is a JSON object of strings.
    #[expect(
        clippy::await_holding_refcell_ref,
        reason = "other calls are refused until this one has returned, see `busy`"
    )]
    pub async fn save(&self, parameters: bool, notes: String) -> Outcome<Vec<u8>> {
        let notes: Notes =
            serde_json::from_str(&notes).map_err(|_| misdescribed("notes: give an object of strings".to_owned()))?;
        let checkpoint = self.get()?.checkpoint(included(parameters), &notes).await.map_err(refused)?;
        self.check_readable()?;
        Ok(checkpoint.to_bytes())
    }

    /// Restores a checkpoint. Returns its step and notes, and the differences that were accepted.
    pub fn load(
        &self,
        bytes: Vec<u8>,
        parameters: bool,
        settings: bool,
        rules: bool,
        tensors: bool,
    ) -> Outcome<JsValue> {
        let checkpoint = Checkpoint::from_bytes(bytes).map_err(refused)?;
        let mut accepted = Differences::none();
        if settings {
            accepted = accepted.settings();
        }
        if rules {
            accepted = accepted.rules();
        }
        if tensors {
            accepted = accepted.tensors();
        }
        let differences = self.get_mut()?.restore_with(&checkpoint, included(parameters), accepted).map_err(refused)?;
        let differences: Array = differences.iter().map(|difference| JsValue::from(difference.to_string())).collect();
        let notes = Object::new();
        for (name, note) in checkpoint.notes() {
            let _ = Reflect::set(&notes, &name.into(), &note.into());
        }
        Ok(object(&[
            ("step", (checkpoint.step() as f64).into()),
            ("notes", notes.into()),
            ("differences", differences.into()),
        ]))
    }

    /// Frees the optimizer's buffers at once.
    pub fn destroy(self) {
        let host = self.host.clone();
        host.free(self);
    }
}

fn included(parameters: bool) -> Parameters {
    if parameters { Parameters::Included } else { Parameters::Excluded }
}

fn object(properties: &[(&str, JsValue)]) -> JsValue {
    let object = Object::new();
    for (name, value) in properties {
        let _ = Reflect::set(&object, &(*name).into(), value);
    }
    object.into()
}

fn of_records(records: &Records) -> JsValue {
    object(&[
        ("records", records.records.iter().map(of_record).collect::<Array>().into()),
        ("tensors", records.tensors.iter().map(of_tensor_record).collect::<Array>().into()),
        ("lostSteps", (records.lost_steps as f64).into()),
    ])
}

fn of_record(record: &Record) -> JsValue {
    let terms: Vec<(&str, JsValue)> = record.terms().map(|(term, change)| (term.name(), change.into())).collect();
    let flags: Array = record.flags.to_string().split('+').filter(|flag| !flag.is_empty()).map(JsValue::from).collect();
    let element = |(tensor, element): (usize, u64)| {
        [("tensor", JsValue::from(tensor as u32)), ("element", JsValue::from(element as f64))]
    };
    let nonfinite = record.nonfinite.map_or(JsValue::NULL, |bad| {
        let [tensor, element] = element((bad.tensor, bad.element));
        object(&[("count", bad.count.into()), tensor, element])
    });
    object(&[
        ("step", (record.step as f64).into()),
        ("group", (record.group as u32).into()),
        ("sentence", record.to_string().into()),
        ("learningRate", record.learning_rate.into()),
        ("lnRate", record.ln_rate.into()),
        ("norm", record.norm.into()),
        ("smoothedNorm", record.smoothed_norm.into()),
        ("slowAlignment", record.slow_alignment.into()),
        ("fastAlignment", record.fast_alignment.into()),
        ("terms", object(&terms)),
        ("flags", flags.into()),
        ("skipped", record.flags.skipped().into()),
        ("skippedSoFar", record.skipped.into()),
        ("clipFactor", record.clip_factor.into()),
        ("trustRatio", record.trust_ratio.into()),
        ("lossScale", record.loss_scale.into()),
        ("nonfinite", nonfinite),
        ("overflow", record.overflow.map_or(JsValue::NULL, |place| object(&element(place)))),
    ])
}

fn of_tensor_record(record: &TensorRecord) -> JsValue {
    object(&[
        ("step", (record.step as f64).into()),
        ("tensor", (record.tensor as u32).into()),
        ("skipped", record.skipped.into()),
        ("parameterNorm", record.parameter_norm.into()),
        ("stepNorm", record.step_norm.into()),
        ("learningRate", record.learning_rate.into()),
    ])
}

/// Names of the terms of a record, in order.
#[wasm_bindgen]
pub fn terms() -> Vec<String> {
    Term::ALL.iter().map(|term| term.name().to_owned()).collect()
}
