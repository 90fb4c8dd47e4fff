//! Description of an optimizer by a JavaScript program, and its conversion to the library's builder.
//!
//! Rules, regimes, schedules and so on have the names that the library's records and tables use. Their numbers have the names of their
//! fields, with `learningRate` for `learning_rate`. This code does not list them individually.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use wgpu_optim::gpu::{Partials, Tensor, Tuning};
use wgpu_optim::{
    Averaging, Controls, Element, Group, LossScaler, NonFinitePolicy, NormOutliers, OptimizerBuilder, RateFactors,
    Regime, Rounding, Rule, Schedule, State, TrustRatio,
};

/// Reason why a description is invalid.
pub type Outcome<T> = Result<T, String>;

/// Settings that a group may have for itself and an optimizer for all groups.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    rule: Option<Value>,
    other_tensors: Option<Value>,
    regime: Option<Value>,
    weight_decay: Option<f32>,
    decoupled_weight_decay: Option<f32>,
    clip_norm: Option<f32>,
    maximize: Option<bool>,
    schedule: Option<Value>,
    averaging: Option<Value>,
    trust_ratio: Option<Value>,
    telemetry: Option<bool>,
    rounding: Option<Value>,
    state: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GroupSettings {
    name: String,
    tensors: Vec<TensorSettings>,
    share_norm: Option<String>,
    rate_factors: Option<Factors>,
    #[serde(default)]
    lazy_rows: bool,
    #[serde(default)]
    per_tensor: bool,
    #[serde(flatten)]
    settings: Settings,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Factors {
    Rows(Vec<f32>),
    Columns(Vec<f32>),
}

#[derive(Deserialize)]
struct TensorSettings {
    name: String,
    #[serde(default)]
    shape: Vec<usize>,
    param: SliceSettings,
    grad: SliceSettings,
}

/// A part of a buffer of the caller.
#[derive(Deserialize)]
pub struct SliceSettings {
    /// Index among the buffers that come with the description.
    pub buffer: usize,
    pub offset: u64,
    pub size: u64,
    #[serde(rename = "type")]
    element: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TuningSettings {
    workgroup_size: Option<u32>,
    quads_per_invocation: Option<u32>,
    partials: Option<String>,
    finish_workgroup_size: Option<u32>,
}

/// Description of an optimizer.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OptimizerSettings {
    groups: Vec<GroupSettings>,
    #[serde(default)]
    global_norm: bool,
    global_clip_norm: Option<f32>,
    nonfinite_policy: Option<Value>,
    norm_outliers: Option<Value>,
    loss_scaler: Option<Value>,
    micro_batches: Option<u32>,
    #[serde(default)]
    clear_gradients: bool,
    #[serde(default)]
    absent_gradients: bool,
    record_steps: Option<u32>,
    loss: Option<SliceSettings>,
    tuning: Option<TuningSettings>,
    #[serde(flatten)]
    settings: Settings,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

impl OptimizerSettings {
    pub fn from_json(json: &str) -> Outcome<Self> {
        serde_json::from_str(json).map_err(|error| in_camel_case(&error.to_string()))
    }

    /// Returns the geometry of the kernels if it differs from `usual`.
    pub fn tuning(&self, usual: Tuning) -> Outcome<Option<Tuning>> {
        let Some(given) = &self.tuning else { return Ok(None) };
        let mut tuning = usual;
        if let Some(size) = given.workgroup_size {
            tuning.workgroup_size = size;
        }
        if let Some(quads) = given.quads_per_invocation {
            tuning.quads_per_invocation = quads;
        }
        if let Some(size) = given.finish_workgroup_size {
            tuning.finish_workgroup_size = size;
        }
        if let Some(name) = &given.partials {
            tuning.partials = known("tuning.partials", name, &Partials::ALL, |partials| partials.name())?;
        }
        Ok(Some(tuning))
    }

    /// Returns the builder. `buffers` are the caller's.
    pub fn builder(self, buffers: &[wgpu::Buffer]) -> Outcome<OptimizerBuilder<Tensor>> {
        refuse_unknown("the optimizer", &self.unknown)?;
        let all = self.settings;
        let mut builder = OptimizerBuilder::new(all.rule.as_ref().map_or(Ok(Rule::sgd()), rule)?);
        macro_rules! set {
            ($($setter:ident: $value:expr;)*) => {
                $(if let Some(value) = $value { builder = builder.$setter(value); })*
            };
        }
        set! {
            other_tensors: all.other_tensors.as_ref().map(rule).transpose()?;
            regime: all.regime.as_ref().map(regime).transpose()?;
            weight_decay: all.weight_decay;
            decoupled_weight_decay: all.decoupled_weight_decay;
            clip_norm: all.clip_norm;
            global_clip_norm: self.global_clip_norm;
            maximize: all.maximize;
            schedule: all.schedule.as_ref().map(schedule).transpose()?;
            averaging: all.averaging.as_ref().map(averaging).transpose()?;
            trust_ratio: all.trust_ratio.as_ref().map(trust_ratio).transpose()?;
            telemetry: all.telemetry;
            rounding: variant("rounding", all.rounding.as_ref())?;
            state: variant("state", all.state.as_ref())?;
            nonfinite_policy: variant::<NonFinitePolicy>("nonfinitePolicy", self.nonfinite_policy.as_ref())?;
            norm_outliers: variant::<NormOutliers>("normOutliers", self.norm_outliers.as_ref())?;
            loss_scaler: self.loss_scaler.as_ref().map(loss_scaler).transpose()?;
            micro_batches: self.micro_batches;
            record_steps: self.record_steps;
        }
        for (is_set, setter) in [
            (self.global_norm, OptimizerBuilder::global_norm as fn(OptimizerBuilder<Tensor>) -> _),
            (self.clear_gradients, OptimizerBuilder::clear_gradients),
            (self.absent_gradients, OptimizerBuilder::absent_gradients),
        ] {
            if is_set {
                builder = setter(builder);
            }
        }
        if let Some(loss) = &self.loss {
            let (slice, _) = loss.of("the loss", "loss", buffers)?;
            builder = builder.loss(slice);
        }
        for group in self.groups {
            builder = builder.group(group.group(buffers)?);
        }
        Ok(builder)
    }
}

impl GroupSettings {
    fn group(self, buffers: &[wgpu::Buffer]) -> Outcome<Group<Tensor>> {
        let own = self.settings;
        refuse_unknown(&format!("group \"{}\"", self.name), &self.unknown)?;
        let within = |problem: String| format!("group \"{}\": {problem}", self.name);
        let mut group = Group::new(&self.name).lazy_rows(self.lazy_rows);
        macro_rules! set {
            ($($setter:ident: $value:expr;)*) => {
                $(if let Some(value) = $value { group = group.$setter(value); })*
            };
        }
        set! {
            rule: own.rule.as_ref().map(rule).transpose().map_err(within)?;
            other_tensors: own.other_tensors.as_ref().map(rule).transpose().map_err(within)?;
            regime: own.regime.as_ref().map(regime).transpose().map_err(within)?;
            weight_decay: own.weight_decay;
            decoupled_weight_decay: own.decoupled_weight_decay;
            clip_norm: own.clip_norm;
            maximize: own.maximize;
            schedule: own.schedule.as_ref().map(schedule).transpose().map_err(within)?;
            averaging: own.averaging.as_ref().map(averaging).transpose().map_err(within)?;
            trust_ratio: own.trust_ratio.as_ref().map(trust_ratio).transpose().map_err(within)?;
            telemetry: own.telemetry;
            rounding: variant::<Rounding>("rounding", own.rounding.as_ref()).map_err(within)?;
            state: variant::<State>("state", own.state.as_ref()).map_err(within)?;
            share_norm: self.share_norm;
            rate_factors: self.rate_factors.map(|factors| match factors {
                Factors::Rows(rows) => RateFactors::Rows(rows.into()),
                Factors::Columns(columns) => RateFactors::Columns(columns.into()),
            });
        }
        if self.per_tensor {
            group = group.per_tensor();
        }
        for tensor in self.tensors {
            let (params, params_element) = tensor.param.of(&tensor.name, "parameter", buffers)?;
            let (grads, grads_element) = tensor.grad.of(&tensor.name, "gradient", buffers)?;
            let (params, grads) = (params_element.of(params), grads_element.of(grads));
            group = group.shaped_tensor(tensor.name, &tensor.shape, params, grads);
        }
        Ok(group)
    }
}

impl SliceSettings {
    /// Returns the part of the buffer and its element type.
    pub fn of<'a>(
        &self,
        tensor: &str,
        role: &str,
        buffers: &'a [wgpu::Buffer],
    ) -> Outcome<(wgpu::BufferSlice<'a>, Element)> {
        let elements = [Element::F32, Element::F16, Element::Bf16];
        let element = match &self.element {
            None => Element::F32,
            Some(name) => known(&format!("tensor \"{tensor}\": {role} type"), name, &elements, |kind| kind.name())?,
        };
        let buffer = buffers.get(self.buffer).ok_or("a slice without a buffer")?;
        let (offset, size) = (self.offset, self.size);
        if offset.checked_add(size).is_none_or(|end| end > buffer.size()) {
            return Err(format!(
                "tensor \"{tensor}\": the {role} slice of {size} bytes from byte {offset} on is not within its buffer of {} bytes: give an offset and a size that are",
                buffer.size()
            ));
        }
        Ok((buffer.slice(offset..offset + size), element))
    }
}

fn refuse_unknown(owner: &str, unknown: &Map<String, Value>) -> Outcome<()> {
    let name = unknown.keys().next();
    name.map_or(Ok(()), |name| {
        Err(format!("{owner} has no setting {name}: the types OptimizerOptions and GroupOptions list the settings"))
    })
}

/// Finds a value by its name.
fn known<T: Copy>(what: &str, name: &str, values: &[T], name_of: impl Fn(&T) -> &'static str) -> Outcome<T> {
    values.iter().find(|value| name_of(value) == name).copied().ok_or_else(|| {
        let names: Vec<_> = values.iter().map(|value| format!("\"{}\"", name_of(value))).collect();
        format!("{what} \"{name}\" is not known: use one of {}", names.join(", "))
    })
}

/// Divides `"name"` or `{ name: "name", … }` into the name and the fields.
fn named(what: &str, given: &Value) -> Outcome<(String, Map<String, Value>)> {
    let object = match given {
        Value::String(name) => return Ok((name.clone(), Map::new())),
        Value::Object(fields) => fields,
        other => return Err(format!("{what} is {other}: give a name, or an object with a name and numbers")),
    };
    let mut fields = object.clone();
    match fields.remove("name") {
        Some(Value::String(name)) => Ok((name, fields)),
        _ => Err(format!("{what} has no name: give {{ name: \"…\", … }}")),
    }
}

/// JSON has no infinity. As an f32 this number is infinite.
const INFINITE: f64 = 1e300;

/// Replaces fields of a struct.
fn with_fields<T: Serialize + DeserializeOwned>(what: &str, usual: &T, given: Map<String, Value>) -> Outcome<T> {
    let unreadable = |error: serde_json::Error| format!("{what}: {}", in_camel_case(&error.to_string()));
    let mut value = serde_json::to_value(usual).map_err(unreadable)?;
    // Infinity was written as null, like a missing number. At most one field of a struct is infinite.
    if T::deserialize(&value).is_err() {
        let nulls: Vec<String> = fields_of(&mut value)
            .map(|fields| fields.iter().filter(|(_, value)| value.is_null()).map(|(name, _)| name.clone()).collect())
            .unwrap_or_default();
        for name in nulls {
            let mut tried = value.clone();
            if let Some(field) = fields_of(&mut tried).and_then(|fields| fields.get_mut(&name)) {
                *field = INFINITE.into();
            }
            if T::deserialize(&tried).is_ok() {
                value = tried;
                break;
            }
        }
    }
    let mut none = Map::new();
    let fields = fields_of(&mut value).unwrap_or(&mut none);
    for (name, value) in given {
        let Some(field) = fields.get_mut(&snake_case(&name)) else {
            let names: Vec<_> = fields.keys().map(|name| camel_case(name)).collect();
            let names = if names.is_empty() { "no fields".to_owned() } else { names.join(", ") };
            return Err(format!("{what} has no field {name}: it has {names}"));
        };
        if field.is_number() && !value.is_number() {
            return Err(format!("{what}: {name} is {value}: give a finite number"));
        }
        *field = match value {
            Value::String(word) => Value::String(pascal_case(&word)),
            other => other,
        };
    }
    serde_json::from_value(value).map_err(unreadable)
}

/// Returns the fields of a serialized struct, or of the struct in a variant of an enum.
fn fields_of(value: &mut Value) -> Option<&mut Map<String, Value>> {
    let object = value.as_object_mut()?;
    let is_variant =
        object.len() == 1 && object.keys().all(|key| key.starts_with(|first: char| first.is_ascii_uppercase()));
    if is_variant { object.values_mut().next()?.as_object_mut() } else { Some(object) }
}

/// Returns every rule with its usual numbers.
pub fn rules() -> Vec<Rule> {
    [Rule::all(), Rule::of_matrices()].concat()
}

fn rule(given: &Value) -> Outcome<Rule> {
    let (name, fields) = named("rule", given)?;
    let rule = known("rule", &name, &rules(), Rule::name)?;
    with_fields(&format!("rule {name}"), &rule, fields)
}

fn regime(given: &Value) -> Outcome<Regime> {
    let (name, fields) = named("regime", given)?;
    let regime = known("regime", &name, &Regime::all(), Regime::name)?;
    with_fields(&format!("regime {name}"), &regime, fields)
}

/// Reads a variant from its name in camel case, with all fields.
fn variant<T: DeserializeOwned>(what: &str, given: Option<&Value>) -> Outcome<Option<T>> {
    let Some(given) = given else { return Ok(None) };
    let (name, fields) = named(what, given)?;
    let name = pascal_case(&name);
    let value = if fields.is_empty() {
        Value::String(name)
    } else {
        let words = |value| match value {
            Value::String(word) => Value::String(pascal_case(&word)),
            other => other,
        };
        let fields = fields.into_iter().map(|(name, value)| (snake_case(&name), words(value)));
        Value::Object(Map::from_iter([(name, Value::Object(fields.collect()))]))
    };
    serde_json::from_value(value).map(Some).map_err(|error| format!("{what}: {}", in_camel_case(&error.to_string())))
}

fn averaging(given: &Value) -> Outcome<Averaging> {
    variant("averaging", Some(given)).map(Option::unwrap_or_default)
}

fn schedule(given: &Value) -> Outcome<Schedule> {
    #[derive(Deserialize)]
    struct Table {
        factors: Vec<f32>,
        every: u32,
    }
    if given.get("name").is_some_and(|name| name == "table") {
        let table = Table::deserialize(given).map_err(|error| format!("schedule table: {error}"))?;
        return Ok(Schedule::Table { factors: table.factors.into(), every: table.every });
    }
    variant("schedule", Some(given)).map(Option::unwrap_or_default)
}

fn trust_ratio(given: &Value) -> Outcome<TrustRatio> {
    with_object("trustRatio", &TrustRatio::default(), given)
}

fn loss_scaler(given: &Value) -> Outcome<LossScaler> {
    with_object("lossScaler", &LossScaler::default(), given)
}

/// Reads `true`, which means the default numbers, or an object with some of them.
fn with_object<T: Serialize + DeserializeOwned>(what: &str, usual: &T, given: &Value) -> Outcome<T> {
    match given {
        Value::Bool(true) => with_fields(what, usual, Map::new()),
        Value::Object(fields) => with_fields(what, usual, fields.clone()),
        other => Err(format!("{what} is {other}: give true, or an object with its numbers")),
    }
}

/// Controls of a group. Only those that are present change.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ControlSettings {
    learning_rate_factor: Option<f32>,
    weight_decay: Option<f32>,
    clip_norm: Option<f32>,
    frozen: Option<bool>,
    micro_batches: Option<u32>,
}

impl ControlSettings {
    pub fn from_json(json: &str) -> Outcome<Self> {
        serde_json::from_str(json).map_err(|error| format!("controls: {}", in_camel_case(&error.to_string())))
    }

    pub fn apply(&self, controls: &mut Controls) {
        if let Some(factor) = self.learning_rate_factor {
            controls.learning_rate_factor = factor;
        }
        if let Some(decay) = self.weight_decay {
            controls.weight_decay = decay;
        }
        if let Some(norm) = self.clip_norm {
            controls.clip_norm = norm;
        }
        if let Some(frozen) = self.frozen {
            controls.frozen = frozen;
        }
        if let Some(batches) = self.micro_batches {
            controls.micro_batches = batches;
        }
    }
}

/// Returns every rule and regime with its numbers, from which the package's types are written.
pub fn catalogue() -> Value {
    fn entries<T: Serialize>(values: &[T], name: impl Fn(&T) -> &'static str) -> Value {
        let entry = |value: &T| {
            let fields = match serde_json::to_value(value) {
                Ok(Value::Object(variant)) => variant.into_iter().next().map(|(_, fields)| fields),
                _ => None,
            };
            let fields = match fields {
                Some(Value::Object(fields)) => {
                    fields.into_iter().map(|(name, value)| (camel_case(&name), value)).collect()
                }
                _ => Map::new(),
            };
            (name(value).to_owned(), Value::Object(fields))
        };
        Value::Object(values.iter().map(entry).collect())
    }
    Value::Object(Map::from_iter([
        ("rules".to_owned(), entries(&rules(), Rule::name)),
        ("regimes".to_owned(), entries(&Regime::all(), Regime::name)),
    ]))
}

fn pascal_case(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str())
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

pub fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |camel, word| camel + &pascal_case(word))
}

/// Converts the names between backticks to those in JavaScript.
fn in_camel_case(message: &str) -> String {
    let parts = message.split('`').enumerate().map(|(index, part)| {
        if index % 2 == 0 {
            return part.to_owned();
        }
        let camel = camel_case(part);
        let mut letters = camel.chars();
        letters.next().map_or_else(String::new, |first| first.to_ascii_lowercase().to_string() + letters.as_str())
    });
    parts.collect::<Vec<_>>().join("`")
}
