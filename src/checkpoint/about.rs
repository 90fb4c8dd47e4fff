//! Description of an optimizer in a checkpoint, and the differences of two descriptions.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::differences::{Found, Kind};
use super::{Field, Notes, Table, VERSION};
use crate::element::Element;
use crate::group::GroupConfig;
use crate::plan::Plan;
use crate::regime::Kernel;

/// Description of an optimizer and its progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct About {
    version: u32,
    written_by: String,
    /// Number of steps attempted.
    pub(super) step: u64,
    /// Settings that all groups have in common, by name.
    pub(super) settings: BTreeMap<String, String>,
    /// True if the checkpoint contains the parameters.
    pub(super) parameters: bool,
    pub(super) groups: Vec<AboutGroup>,
    pub(super) tensors: Vec<AboutTensor>,
    /// Fields of each table's rows, in their order, as `name: kind` separated by commas. The fields of each regime's
    /// state are listed as well. They replace the fields `regime.0`, `regime.1`, … of the groups with that regime.
    pub(super) tables: BTreeMap<String, String>,
    pub(super) notes: Notes,
}

/// Settings of a group by name, such as `regime.gain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AboutGroup {
    pub(super) name: String,
    pub(super) settings: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AboutTensor {
    pub(super) name: String,
    pub(super) group: usize,
    pub(super) elements: u64,
    /// Element type of the parameters, whether the checkpoint contains them or not. The rounding remainders of 16-bit
    /// parameters depend on it. The type of the gradients leaves no trace.
    #[serde(default = "f32")]
    pub(super) params: String,
}

/// Returns the element type of parameters in files without one: f32.
fn f32() -> String {
    Element::F32.name().to_owned()
}

/// Reads the version of an [`About`], and ignores its other fields.
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
    /// Returns the description of an optimizer before its first step.
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
                settings.insert(MICRO_BATCHES.to_owned(), plan.accumulation.micro_batches.to_string());
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
        // Serializing strings and numbers cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Returns the fields of a table's rows in this checkpoint.
    pub(super) fn fields_of(&self, table: Table) -> Vec<Field> {
        from_text(self.tables.get(table.name()).map_or("", String::as_str))
    }

    /// Returns true if this checkpoint has a table. Files before the fifth version have no controls.
    pub(super) fn has(&self, table: Table) -> bool {
        table != Table::Controls || self.tables.contains_key(table.name())
    }

    /// Returns the fields of a row of a group with this regime, under the names of this version.
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

    /// Replaces the fields of all rows by those of another checkpoint of the same groups.
    pub(super) fn take_fields_of(&mut self, other: About) {
        self.version = other.version;
        self.tables = other.tables;
    }

    /// Returns an error if this version does not know a field.
    pub(super) fn check_fields<'k>(
        &self,
        table: Table,
        kernels: impl Iterator<Item = &'k Kernel>,
    ) -> Result<(), Found> {
        let of_all = known_fields(table, None);
        for kernel in kernels {
            let found = self.fields_of_row(table, kernel);
            for (index, field) in found.iter().enumerate() {
                let what = format!("the field \"{}\" of \"{}\"", field.name, table.name());
                // Old files have fields of other regimes, which are known but not read.
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

    /// Returns, for each group of the optimizer `here`, the group whose state it continues: the one of the same name,
    /// or else one that is gone and had the same tensors.
    pub(super) fn origins(&self, here: &About) -> Vec<Option<usize>> {
        let named = by_name(self.groups.iter().map(|group| &group.name));
        let kept = by_name(here.groups.iter().map(|group| &group.name));
        let mut renamed = HashMap::new();
        for (group, tensors) in self.tensors_by_group().into_iter().enumerate() {
            if !tensors.is_empty() && !kept.contains_key(self.groups[group].name.as_str()) {
                renamed.insert(tensors, group);
            }
        }
        let groups = here.groups.iter().zip(here.tensors_by_group());
        groups
            .map(|(group, tensors)| named.get(group.name.as_str()).or_else(|| renamed.get(&tensors)).copied())
            .collect()
    }

    /// Returns the names of each group's tensors.
    fn tensors_by_group(&self) -> Vec<BTreeSet<&str>> {
        let mut groups = vec![BTreeSet::new(); self.groups.len()];
        for tensor in &self.tensors {
            if let Some(group) = groups.get_mut(tensor.group) {
                group.insert(tensor.name.as_str());
            }
        }
        groups
    }

    /// Returns all differences from the optimizer `here`.
    pub(super) fn differences(&self, here: &About) -> Vec<Found> {
        let mut all = Vec::new();
        differing_settings(&self.settings, &here.settings, "the optimizer", &mut all);
        let origins = self.origins(here);
        names(
            &mut all,
            "group",
            self.groups.iter().map(|group| &group.name),
            here.groups.iter().map(|group| &group.name),
            |_| Kind::Tensors,
        );
        for (group, origin) in here.groups.iter().zip(&origins) {
            if let Some(origin) = origin {
                let owner = format!("group \"{}\"", group.name);
                differing_settings(&self.groups[*origin].settings, &group.settings, &owner, &mut all);
            }
        }
        // A stream would have no parameters for a new tensor.
        let has_streams =
            here.groups.iter().any(|group| group.settings.get(REGIME).is_some_and(|regime| regime == STREAMS));
        let kind_of_new = |is_new: bool| if is_new && has_streams { Kind::Never } else { Kind::Tensors };
        names(
            &mut all,
            "tensor",
            self.tensors.iter().map(|tensor| &tensor.name),
            here.tensors.iter().map(|tensor| &tensor.name),
            kind_of_new,
        );
        let named = by_name(self.tensors.iter().map(|tensor| &tensor.name));
        for expected in &here.tensors {
            let Some(found) = named.get(expected.name.as_str()).map(|&index| &self.tensors[index]) else {
                continue;
            };
            let of = |what: &str| format!("{what} of tensor \"{}\"", found.name);
            let group = |tensor: &AboutTensor, about: &About| {
                in_words(about.groups.get(tensor.group), |group| format!("\"{}\"", group.name))
            };
            let moved = origins.get(expected.group).copied().flatten() != Some(found.group);
            if moved {
                differs(&mut all, Kind::Tensors, of("the group"), group(found, self), group(expected, here));
            }
            let elements = |tensor: &AboutTensor| format!("{} elements", tensor.elements);
            differs(&mut all, Kind::Never, of("the length"), elements(found), elements(expected));
            differs(&mut all, Kind::Never, of("the parameters"), found.params.clone(), expected.params.clone());
        }
        all
    }
}

/// Returns the index of each name. If a name occurs twice, it is the last index.
pub(super) fn by_name<'a>(names: impl Iterator<Item = &'a String>) -> HashMap<&'a str, usize> {
    names.enumerate().map(|(index, name)| (name.as_str(), index)).collect()
}

/// Adds a difference if there is one.
fn differs(all: &mut Vec<Found>, kind: Kind, what: String, found: String, expected: String) {
    if found != expected {
        all.push(Found { kind, what, found, expected });
    }
}

/// Lists names that are only in one of two lists, or in another order.
fn names<'a>(
    all: &mut Vec<Found>,
    what: &str,
    found: impl Iterator<Item = &'a String> + Clone,
    expected: impl Iterator<Item = &'a String> + Clone,
    kind: impl Fn(bool) -> Kind,
) {
    let (there, here) = (by_name(found.clone()), by_name(expected.clone()));
    let place = |names: &HashMap<&str, usize>, name: &String| {
        in_words(names.get(name.as_str()), |index| format!("{what} {index}"))
    };
    for name in found.clone().filter(|name| !here.contains_key(name.as_str())) {
        differs(all, kind(false), format!("{what} \"{name}\""), place(&there, name), place(&here, name));
    }
    for name in expected.clone().filter(|name| !there.contains_key(name.as_str())) {
        differs(all, kind(true), format!("{what} \"{name}\""), place(&there, name), place(&here, name));
    }
    let before: Vec<&String> = found.filter(|name| here.contains_key(name.as_str())).collect();
    let now: Vec<&String> = expected.filter(|name| there.contains_key(name.as_str())).collect();
    if before.len() != now.len() {
        // The file has a name twice.
        all.push(Found {
            kind: Kind::Never,
            what: format!("the number of {what}s"),
            found: before.len().to_string(),
            expected: now.len().to_string(),
        });
    } else if let Some((before, now)) = before.iter().zip(&now).find(|(before, now)| before != now) {
        let place = format!("the first {what} in another order");
        differs(all, kind(false), place, format!("\"{before}\""), format!("\"{now}\""));
    }
}

/// Returns an error if a field of a file has another value than expected.
fn same(what: &str, found: &str, expected: &str) -> Result<(), Found> {
    if found == expected {
        return Ok(());
    }
    Err(Found { kind: Kind::Never, what: what.to_owned(), found: found.to_owned(), expected: expected.to_owned() })
}

/// Setting with the rank of the optimizer.
const RANK: &str = "rank";
/// Value of that setting for a single rank.
const ALONE: &str = "none";
/// Settings that old files do not have, with their implied values.
const USUAL: [(&str, &str); 2] = [(RANK, ALONE), (STATE, "F32")];
/// Setting with the storage of a group's rule memory.
const STATE: &str = "state";
/// Setting with the number of micro-batches given to the builder.
pub(super) const MICRO_BATCHES: &str = "micro_batches";
/// Settings with the rule and the regime of a group.
pub(super) const RULE: &str = "rule";
pub(super) const REGIME: &str = "regime";
/// Setting with the norm that a group shares, and its value if the group shares none.
pub(super) const NORM: &str = "the norm";
pub(super) const OWN_NORM: &str = "its own";
/// Regime whose streams take turns in the parameters.
const STREAMS: &str = "AutoSgd";

/// Adds the settings that differ. A kind comes before its numbers, which are left out if the kind differs. Settings
/// that the file does not have are ignored, because they were added to this crate after the file was written.
fn differing_settings(
    found: &BTreeMap<String, String>,
    expected: &BTreeMap<String, String>,
    owner: &str,
    all: &mut Vec<Found>,
) {
    let mut keys: Vec<&String> = found.keys().chain(expected.keys()).collect();
    keys.sort_by_key(|key| (key.matches('.').count(), *key));
    keys.dedup();
    let mut outer: Vec<String> = Vec::new();
    for key in keys {
        // Implied value of a setting that the file does not have.
        let usual = USUAL.iter().find(|(setting, _)| key == setting && !found.contains_key(key));
        if !(knows(found, key) || usual.is_some()) || outer.iter().any(|outer| key.starts_with(outer)) {
            continue;
        }
        let of_file = usual.map_or_else(|| value_of(found, key), |(_, value)| (*value).to_owned());
        let here = value_of(expected, key);
        if of_file == here {
            continue;
        }
        outer.push(format!("{key}."));
        let kind = match key.as_str() {
            RANK => Kind::Never,
            REGIME if [&of_file, &here].into_iter().any(|regime| regime == STREAMS) => Kind::Never,
            RULE | REGIME => Kind::Rules,
            _ => Kind::Settings,
        };
        all.push(Found { kind, what: format!("{key} of {owner}"), found: of_file, expected: here });
    }
}

/// Returns true if the settings contain this name, or settings within it.
fn knows(settings: &BTreeMap<String, String>, key: &str) -> bool {
    let inner = format!("{key}.");
    settings.contains_key(key) || settings.keys().any(|known| known.starts_with(&inner))
}

/// Returns a setting, or all settings within it, as text.
fn value_of(settings: &BTreeMap<String, String>, key: &str) -> String {
    if let Some(value) = settings.get(key) {
        return value.clone();
    }
    let inner = settings.iter().filter_map(|(name, value)| Some((name.strip_prefix(key)?.strip_prefix('.')?, value)));
    let inner: Vec<String> = inner.map(|(name, value)| format!("{name} {value}")).collect();
    if inner.is_empty() { "nothing".to_owned() } else { inner.join(", ") }
}

/// Returns true if a setting, with all within it, is the same in a file and here. A setting that the file does not have
/// counts as the same.
pub(super) fn is_same(found: &BTreeMap<String, String>, expected: &BTreeMap<String, String>, key: &str) -> bool {
    let inner = format!("{key}.");
    let of = |settings: &BTreeMap<String, String>| -> Vec<(String, String)> {
        let own = settings.iter().filter(|(name, _)| *name == key || name.starts_with(&inner));
        own.map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    !knows(found, key) || of(found) == of(expected)
}

fn in_words<T>(thing: Option<T>, words: impl FnOnce(T) -> String) -> String {
    thing.map_or_else(|| "nothing".to_owned(), words)
}

/// First version in which structs within a row keep their names, and regimes have their own fields.
const FIRST_WITH_STRUCTS: u32 = 4;

/// Returns the name of a field before that version.
fn old_name(name: &str) -> String {
    if let Some(field) = name.strip_prefix("auto_sgd.") {
        return format!("streams.{field}");
    }
    let mut regimes = Kernel::all().iter().filter_map(|kernel| name.strip_prefix(kernel.name)?.strip_prefix('.'));
    let name = regimes.next().unwrap_or(name);
    name.replace("parameter_norm", "parameter").replace(".whole", "_int").replace('.', "_")
}

/// Returns all fields that a row of a table can have, for one regime or for all.
fn known_fields(table: Table, kernel: Option<&Kernel>) -> Vec<Field> {
    let mut known = table.fields();
    if table == Table::States {
        let kernels = Kernel::all().iter().filter(|other| kernel.is_none_or(|kernel| kernel.name == other.name));
        known.extend(kernels.flat_map(|kernel| state_of(kernel)));
    }
    known
}

/// Returns the fields of a regime's own state.
pub(super) fn state_of(kernel: &Kernel) -> Vec<Field> {
    let fields = kernel.state.map_or_else(Vec::new, |state| (state.fields)()).into_iter();
    fields.map(|field| Field { name: format!("{}.{}", kernel.name, field.name), ..field }).collect()
}

/// Renames the regime fields of a row to their names in that regime's state.
pub(super) fn with_regime(mut fields: Vec<Field>, state: Vec<Field>) -> Vec<Field> {
    let words = fields.iter_mut().filter(|field| field.name.starts_with("regime."));
    for (field, own) in words.zip(state) {
        *field = own;
    }
    fields
}

/// Parses fields from text. It is the inverse of [`in_text`].
fn from_text(text: &str) -> Vec<Field> {
    let fields = text.split(", ").filter(|field| !field.is_empty());
    fields
        .map(|field| {
            let (name, kind) = field.split_once(": ").unwrap_or((field, ""));
            Field { name: name.to_owned(), kind: kind.to_owned() }
        })
        .collect()
}

/// Formats the fields of a table's rows as text.
pub(super) fn in_text(fields: &[Field]) -> String {
    let fields = fields.iter().map(|field| format!("{}: {}", field.name, field.kind));
    fields.collect::<Vec<_>>().join(", ")
}

impl AboutGroup {
    fn of(config: &GroupConfig) -> Self {
        let mut settings = settings_of(config);
        // The name is stored elsewhere, and a norm may have any name.
        settings.remove("name");
        settings.remove("scope");
        let norm = match &config.scope {
            Some(name) => format!("\"{name}\""),
            None => OWN_NORM.to_owned(),
        };
        settings.insert(NORM.to_owned(), norm);
        AboutGroup { name: config.name.clone(), settings }
    }
}

/// Returns the kind of a rule or a regime as it appears in settings.
pub(super) fn kind_of(thing: &impl Serialize) -> String {
    let mut settings = BTreeMap::new();
    // Serializing plain structs and enums cannot fail.
    flatten(String::new(), serde_json::to_value(thing).unwrap_or_default(), &mut settings);
    settings.remove("").unwrap_or_default()
}

/// Returns the fields of a struct and their values by name.
fn settings_of(fields: &impl Serialize) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    // The conversion goes through text, which writes an f32 with as few digits as possible. Serializing plain structs
    // and enums cannot fail.
    let json = serde_json::to_string(fields).unwrap_or_default();
    if let Ok(Value::Object(fields)) = serde_json::from_str(&json) {
        for (name, value) in fields {
            flatten(name, value, &mut settings);
        }
    }
    settings
}

/// Writes a setting and all within it by name. A variant is the value of its enum, and its fields are nested below.
fn flatten(name: String, value: Value, settings: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                let is_variant = field.starts_with(|first: char| first.is_ascii_uppercase());
                match (is_variant, value) {
                    // A variant whose struct has no fields.
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
        // JSON also writes infinity as null.
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
