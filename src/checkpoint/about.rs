//! What a checkpoint says of the optimizer it belongs to, and how two of them differ.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Field, Notes, Table, VERSION};
use crate::element::Element;
use crate::group::GroupConfig;
use crate::plan::Plan;
use crate::regime::Kernel;

/// An optimizer, and where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct About {
    version: u32,
    written_by: String,
    /// Steps attempted.
    pub(super) step: u64,
    /// What all groups have in common, by name.
    settings: BTreeMap<String, String>,
    /// Whether the parameters are there too.
    pub(super) parameters: bool,
    pub(super) groups: Vec<AboutGroup>,
    pub(super) tensors: Vec<AboutTensor>,
    /// The words of each table's rows, in their order: `name: kind` with commas between them. Beside them those of each regime's state, which
    /// stand for the words `regime.0`, `regime.1`, … of the groups that have it.
    pub(super) tables: BTreeMap<String, String>,
    pub(super) notes: Notes,
}

/// A group's settings by name, `regime.gain` and the like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AboutGroup {
    pub(super) name: String,
    settings: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AboutTensor {
    pub(super) name: String,
    group: usize,
    pub(super) elements: u64,
    /// What its parameters are stored as, whether they are there or not: what 16 bits lack of f32 is of one kind of them. Its gradients
    /// leave no trace of what they were.
    #[serde(default = "f32")]
    params: String,
}

/// What parameters were before they could be anything else.
fn f32() -> String {
    Element::F32.name().to_owned()
}

/// What is one thing in a checkpoint and another here.
pub(super) struct Difference {
    pub(super) what: String,
    pub(super) found: String,
    pub(super) expected: String,
}

/// The version of an [`About`], whatever else is in it.
pub(super) fn version(json: &str) -> Result<u32, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let version: Version = serde_json::from_str(json).map_err(unreadable)?;
    Ok(version.version)
}

fn unreadable(error: serde_json::Error) -> String {
    format!("its description cannot be read: {error}")
}

impl About {
    /// Of an optimizer before its first step.
    pub(super) fn of(plan: &Plan, parameters: bool) -> Self {
        About {
            version: VERSION,
            written_by: format!("wgpu-optim {}", env!("CARGO_PKG_VERSION")),
            step: 0,
            settings: {
                let mut settings = settings_of(&plan.safeguards);
                let rank = plan.shard.as_ref();
                let rank = rank.map(|shard| format!("{} of {}", shard.rank, shard.ranks));
                settings.insert(RANK.to_owned(), rank.unwrap_or(ALONE.to_owned()));
                settings
            },
            parameters,
            groups: plan.configs.iter().map(AboutGroup::of).collect(),
            tensors: plan
                .tensors
                .iter()
                .zip(&plan.places)
                .map(|(tensor, place)| AboutTensor {
                    name: tensor.name.clone(),
                    group: tensor.group,
                    elements: tensor.elements,
                    params: place.params.name().to_owned(),
                })
                .collect(),
            tables: {
                let tables = Table::all(plan).map(|table| (table.name().to_owned(), in_text(&table.fields())));
                let kernels = plan.configs.iter().map(|config| config.regime.regime().kernel());
                tables.chain(kernels.map(|kernel| (kernel.name.to_owned(), in_text(&state_of(kernel))))).collect()
            },
            notes: Notes::new(),
        }
    }

    pub(super) fn from_json(json: &str) -> Result<Self, String> {
        serde_json::from_str(json).map_err(unreadable)
    }

    pub(super) fn to_json(&self) -> String {
        // Strings and numbers: this cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The words of a table's rows in this checkpoint.
    pub(super) fn fields_of(&self, table: Table) -> Vec<Field> {
        from_text(self.tables.get(table.name()).map_or("", String::as_str))
    }

    /// Whether this checkpoint has a table: files of before the fifth version have no controls.
    pub(super) fn has(&self, table: Table) -> bool {
        table != Table::Controls || self.tables.contains_key(table.name())
    }

    /// The words of a row, of a group with such a regime, under the names of this version.
    pub(super) fn fields_of_row(&self, table: Table, kernel: &Kernel) -> Vec<Field> {
        let mut fields = self.fields_of(table);
        if self.version < FIRST_WITH_STRUCTS {
            let known = known_fields(table, Some(kernel));
            for field in &mut fields {
                if let Some(known) = known.iter().find(|known| old_name(&known.name) == field.name) {
                    field.name.clone_from(&known.name);
                }
            }
            return fields;
        }
        match self.tables.get(kernel.name) {
            Some(state) if table == Table::States => with_regime(fields, from_text(state)),
            _ => fields,
        }
    }

    /// Makes the words of all rows those of another checkpoint of the same groups.
    pub(super) fn take_fields_of(&mut self, other: About) {
        self.version = other.version;
        self.tables = other.tables;
    }

    /// Refuses fields that this version does not know.
    pub(super) fn check_fields(&self, table: Table, plan: &Plan) -> Result<(), Difference> {
        let of_all = known_fields(table, None);
        for config in &plan.configs {
            let found = self.fields_of_row(table, config.regime.regime().kernel());
            for (index, field) in found.iter().enumerate() {
                let what = format!("the field \"{}\" of \"{}\"", field.name, table.name());
                // What an old file has for other regimes is known, and not read.
                let is_old = |other: &&Field| self.version < FIRST_WITH_STRUCTS && old_name(&other.name) == field.name;
                let of_name = |other: &&Field| other.name == field.name;
                let known = of_all.iter().find(|other| of_name(other) || is_old(other));
                same(&what, &field.kind, &in_words(known, |field| field.kind.clone()))?;
                if found[..index].iter().any(|other| of_name(&other)) {
                    same(&what, "there twice", "there once")?;
                }
            }
        }
        Ok(())
    }

    /// The first difference that keeps a checkpoint from going with the optimizer `here`.
    pub(super) fn compare(&self, here: &About) -> Result<(), Difference> {
        same_settings(&self.settings, &here.settings, "the optimizer")?;
        let name = |group: &AboutGroup| format!("\"{}\"", group.name);
        for (index, (found, expected)) in pairs(&self.groups, &here.groups).enumerate() {
            let what = format!("group {index}");
            same(&what, &in_words(found, name), &in_words(expected, name))?;
        }
        for (found, expected) in self.groups.iter().zip(&here.groups) {
            let owner = format!("group \"{}\"", found.name);
            same_settings(&found.settings, &expected.settings, &owner)?;
        }
        let name = |tensor: &AboutTensor| format!("\"{}\"", tensor.name);
        for (index, (found, expected)) in pairs(&self.tensors, &here.tensors).enumerate() {
            let what = format!("tensor {index}");
            same(&what, &in_words(found, name), &in_words(expected, name))?;
        }
        for (found, expected) in self.tensors.iter().zip(&here.tensors) {
            let of = |what: &str| format!("{what} of tensor \"{}\"", found.name);
            let group = |tensor: &AboutTensor, about: &About| {
                in_words(about.groups.get(tensor.group), |group| format!("\"{}\"", group.name))
            };
            same(&of("the group"), &group(found, self), &group(expected, here))?;
            let elements = |tensor: &AboutTensor| format!("{} elements", tensor.elements);
            same(&of("the length"), &elements(found), &elements(expected))?;
            same(&of("the parameters"), &found.params, &expected.params)?;
        }
        Ok(())
    }
}

fn same(what: &str, found: &str, expected: &str) -> Result<(), Difference> {
    if found == expected {
        return Ok(());
    }
    Err(Difference { what: what.to_owned(), found: found.to_owned(), expected: expected.to_owned() })
}

/// The setting that says which rank of several the optimizer is.
const RANK: &str = "rank";
/// That setting where there is one rank.
const ALONE: &str = "none";

/// The first setting that differs; a kind before its numbers, of which another has others. A setting that the file does not know was added to
/// this crate after the file was written. It does not matter.
fn same_settings(
    found: &BTreeMap<String, String>,
    expected: &BTreeMap<String, String>,
    owner: &str,
) -> Result<(), Difference> {
    let mut keys: Vec<&String> = found.keys().chain(expected.keys()).collect();
    keys.sort_by_key(|key| (key.matches('.').count(), *key));
    for key in keys {
        let is_alone = key == RANK && !found.contains_key(key);
        let inner = format!("{key}.");
        let is_known = found.contains_key(key) || found.keys().any(|known| known.starts_with(&inner));
        if !is_known && !is_alone {
            continue;
        }
        let value = |settings: &BTreeMap<String, String>| in_words(settings.get(key), String::clone);
        let of_file = if is_alone { ALONE.to_owned() } else { value(found) };
        same(&format!("{key} of {owner}"), &of_file, &value(expected))?;
    }
    Ok(())
}

fn in_words<T>(thing: Option<T>, words: impl FnOnce(T) -> String) -> String {
    thing.map_or_else(|| "nothing".to_owned(), words)
}

/// The items of two lists side by side, as long as either lasts.
fn pairs<'a, T>(a: &'a [T], b: &'a [T]) -> impl Iterator<Item = (Option<&'a T>, Option<&'a T>)> {
    pairs_of(a.iter(), b.iter())
}

fn pairs_of<T>(
    mut a: impl Iterator<Item = T>,
    mut b: impl Iterator<Item = T>,
) -> impl Iterator<Item = (Option<T>, Option<T>)> {
    std::iter::from_fn(move || match (a.next(), b.next()) {
        (None, None) => None,
        pair => Some(pair),
    })
}

/// The version from which on structs within a row keep their names, and regimes their own words.
const FIRST_WITH_STRUCTS: u32 = 4;

/// The name of a word before that version.
fn old_name(name: &str) -> String {
    if let Some(field) = name.strip_prefix("auto_sgd.") {
        return format!("streams.{field}");
    }
    let mut regimes = Kernel::all().iter().filter_map(|kernel| name.strip_prefix(kernel.name)?.strip_prefix('.'));
    let name = regimes.next().unwrap_or(name);
    name.replace("parameter_norm", "parameter").replace(".whole", "_int").replace('.', "_")
}

/// All words that a row of a table can have, of one regime or of all.
fn known_fields(table: Table, kernel: Option<&Kernel>) -> Vec<Field> {
    let mut known = table.fields();
    if table == Table::States {
        let kernels = Kernel::all().iter().filter(|other| kernel.is_none_or(|kernel| kernel.name == other.name));
        known.extend(kernels.flat_map(|kernel| state_of(kernel)));
    }
    known
}

/// The words of a regime's own state.
pub(super) fn state_of(kernel: &Kernel) -> Vec<Field> {
    let fields = kernel.state.map_or_else(Vec::new, |state| (state.fields)()).into_iter();
    fields.map(|field| Field { name: format!("{}.{}", kernel.name, field.name), ..field }).collect()
}

/// A row's words with the names that those of the regime's state have in that regime.
pub(super) fn with_regime(mut fields: Vec<Field>, state: Vec<Field>) -> Vec<Field> {
    let words = fields.iter_mut().filter(|field| field.name.starts_with("regime."));
    for (field, own) in words.zip(state) {
        *field = own;
    }
    fields
}

/// The inverse of [`in_text`].
fn from_text(text: &str) -> Vec<Field> {
    let fields = text.split(", ").filter(|field| !field.is_empty());
    fields
        .map(|field| {
            let (name, kind) = field.split_once(": ").unwrap_or((field, ""));
            Field { name: name.to_owned(), kind: kind.to_owned() }
        })
        .collect()
}

/// The fields of a table's rows as text.
pub(super) fn in_text(fields: &[Field]) -> String {
    let fields = fields.iter().map(|field| format!("{}: {}", field.name, field.kind));
    fields.collect::<Vec<_>>().join(", ")
}

impl AboutGroup {
    fn of(config: &GroupConfig) -> Self {
        let mut settings = settings_of(config);
        // The name has its own place, and a norm may be called anything.
        settings.remove("name");
        settings.remove("scope");
        let norm = match &config.scope {
            Some(name) => format!("\"{name}\""),
            None => "its own".to_owned(),
        };
        settings.insert("the norm".to_owned(), norm);
        AboutGroup { name: config.name.clone(), settings }
    }
}

/// The fields of a struct, and what is in them, by name.
fn settings_of(fields: &impl Serialize) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    // By way of the text, in which an f32 is as short as it can be. Plain structs and enums: this cannot fail.
    let json = serde_json::to_string(fields).unwrap_or_default();
    if let Ok(Value::Object(fields)) = serde_json::from_str(&json) {
        for (name, value) in fields {
            flatten(name, value, &mut settings);
        }
    }
    settings
}

/// Writes a setting and all within it by name. A variant is the value of its enum, and what it holds lies below that.
fn flatten(name: String, value: Value, settings: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                let is_variant = field.starts_with(|first: char| first.is_ascii_uppercase());
                match (is_variant, value) {
                    // The constants of a struct without any.
                    (true, Value::Null) => {
                        settings.insert(name.clone(), field);
                    }
                    (true, Value::Object(fields)) => {
                        settings.insert(name.clone(), field);
                        flatten(name.clone(), Value::Object(fields), settings);
                    }
                    (true, value) => {
                        flatten(format!("{name}.{field}"), value, settings);
                        settings.insert(name.clone(), field);
                    }
                    (false, value) => flatten(format!("{name}.{field}"), value, settings),
                }
            }
        }
        // Infinity too.
        Value::Null => {
            settings.insert(name, "none".to_owned());
        }
        Value::String(text) => {
            settings.insert(name, text);
        }
        value => {
            settings.insert(name, value.to_string());
        }
    }
}
