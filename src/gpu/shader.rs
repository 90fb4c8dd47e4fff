//! Links WGSL modules. The files under `shaders/` are modules in the syntax of WESL (<https://wesl-lang.dev>), which editors support. It has
//! `import` statements, and `@if(…)` before an import, a declaration or a statement that is only included with some features.
//!
//! Modules are linked when a pipeline is created, because the features depend on the optimizer and there are thousands of combinations.
//! Names are unique among the modules that are linked together. The linked text is therefore the modules one after the other, each once and
//! without changed names. The crate `wesl` would also rename the items and would be a dependency on 60 crates at run time. It is used in
//! `tests/hygiene` only, to check the modules.

use crate::{regime, rule};

macro_rules! modules {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("../../shaders/", $name, ".wgsl")))),*]
    };
}

/// All modules except those of rules and regimes, which are listed in the tables of rules and regimes.
const MODULES: &[(&str, &str)] = modules! {
    "controllers/extragradient" "controllers/learned_schedule" "controllers/variance_reduction"
    "copy_schedule_free" "coupled_decay" "finish_reduction" "finish_update" "geometry" "group_controls" "layout" "learning_rate" "look"
    "reduce_gradient" "rule" "scaled" "swap_averages" "swap_schedule_free" "tables" "update_parameters" "whole_step"
    "controllers/add_loss" "controllers/bi_level" "controllers/judge" "controllers/keep" "controllers/keep_states" "controllers/lanes"
    "controllers/products" "controllers/rows"
    "elements/blocks" "elements/bytes" "elements/gradients" "elements/half" "elements/memories" "elements/parameters" "elements/random_bits" "elements/state"
    "factored/lengths" "factored/limit" "factored/means" "factored/moments" "factored/sums" "factored/tensors" "factored/tiles"
    "learning_rate/average_share" "learning_rate/controls" "learning_rate/distance" "learning_rate/first_rate" "learning_rate/formula"
    "learning_rate/gradient" "learning_rate/one_stream" "learning_rate/outliers" "learning_rate/schedule" "learning_rate/secant"
    "learning_rate/second_moment" "learning_rate/steps_taken" "learning_rate/table" "learning_rate/trust_ratio"
    "measure/alignment" "measure/counters" "measure/direction_counters" "measure/displacement" "measure/distance" "measure/estimate"
    "measure/iterates" "measure/magnitudes" "measure/momentum" "measure/nothing" "measure/secant"
    "orthogonalize/advance" "orthogonalize/gram" "orthogonalize/matrices" "orthogonalize/multiply" "orthogonalize/normalize"
    "orthogonalize/prepare"
    "reduction/block_squares" "reduction/emit_per_invocation" "reduction/emit_per_subgroup" "reduction/emit_per_workgroup" "reduction/loss"
    "reduction/partials"
    "reduction/scaled_squares" "reduction/step_sums" "reduction/sweep_again" "reduction/tensor_norm" "reduction/totals" "reduction/tree"
    "rows/mark" "rows/table"
    "update/average" "update/displace" "update/exchange_streams" "update/keep_counters" "update/keep_estimate" "update/keep_gradient"
    "update/keep_parameters" "update/in_range" "update/measure_step" "update/moved" "update/schedule_free" "update/seen_gradient" "update/step_gradient"
    "update/stepped"
    "zeroth_order/begin" "zeroth_order/displace" "zeroth_order/draw" "zeroth_order/lanes" "zeroth_order/layout" "zeroth_order/length"
    "zeroth_order/losses" "zeroth_order/momentum" "zeroth_order/normal" "zeroth_order/settle" "zeroth_order/turn"
};

/// Returns the text of all modules. Tunings that were measured with other kernels are not valid for these.
#[cfg(feature = "tuning-cache")]
pub(crate) fn sources() -> impl Iterator<Item = &'static str> {
    let others = MODULES.iter().chain(rule::SOURCES).map(|(_, source)| *source);
    others.chain(regime::Kernel::all().iter().map(|kernel| kernel.source))
}

/// Returns the source of a module.
fn module(name: &str) -> &'static str {
    let regimes = regime::Kernel::all().iter();
    let regime = regimes.filter(|kernel| name.strip_prefix("regime/") == Some(kernel.name)).map(|kernel| kernel.source);
    let others = MODULES.iter().chain(rule::SOURCES).filter(|(other, _)| *other == name).map(|(_, source)| *source);
    match regime.chain(others).next() {
        Some(source) => source,
        None => panic!("there is no module {name}"),
    }
}

/// Returns the WGSL of a module and all that it imports, with these features.
pub fn link(root: &str, features: &[&str]) -> String {
    let mut linked = Linked { features, seen: Vec::new(), directives: String::new(), text: String::new() };
    linked.add(root.to_owned());
    linked.directives + &linked.text
}

struct Linked<'a> {
    features: &'a [&'a str],
    seen: Vec<String>,
    /// Directives, which must precede everything else.
    directives: String,
    text: String,
}

impl Linked<'_> {
    /// Adds the imports of a module, and then the module.
    fn add(&mut self, name: String) {
        if self.seen.contains(&name) {
            return;
        }
        let source = self.select(module(&name));
        self.seen.push(name);
        let mut rest = source.as_str();
        let mut body = String::new();
        while let Some((before, import)) = rest.split_once("import package::") {
            body += before;
            let (path, after) = import.split_once(';').unwrap_or((import, ""));
            // The last part of the path is an item of the module, or several in braces.
            let path = path.split_once("::{").or_else(|| path.rsplit_once("::")).map_or(path, |(module, _)| module);
            self.add(path.replace("::", "/"));
            rest = after;
        }
        body += rest;
        // Directives follow the comment at the head of the module.
        if let Some((head, rest)) = body.split_once("\nenable ") {
            let (directive, rest) = rest.split_once(';').unwrap_or((rest, ""));
            self.directives += &format!("enable {directive};\n");
            self.text += head;
            self.text += rest;
            return;
        }
        self.text += &body;
    }

    /// Returns a source without the items that the features exclude.
    fn select(&self, source: &str) -> String {
        let mut selected = String::with_capacity(source.len());
        let mut rest = source;
        while let Some((before, after)) = rest.split_once("@if(") {
            selected += before;
            let Some((condition, after)) = after.split_once(')') else { break };
            let item = &after[..end_of_item(after)];
            if self.holds(condition) {
                selected += &self.select(item.trim_start());
            }
            rest = &after[item.len()..];
        }
        selected += rest;
        selected
    }

    /// Returns true if a condition holds. A condition consists of features joined by `&&`, each optionally negated by `!`.
    fn holds(&self, condition: &str) -> bool {
        condition.split("&&").map(str::trim).all(|term| match term.strip_prefix('!') {
            Some(feature) => !self.features.contains(&feature),
            None => self.features.contains(&term),
        })
    }
}

/// Returns the end of an import, a declaration or a statement: after its semicolon or its last brace.
fn end_of_item(text: &str) -> usize {
    let mut depth = 0;
    let mut in_comment = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'\n' => in_comment = false,
            _ if in_comment => {}
            b'/' if text[at..].starts_with("//") => in_comment = true,
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' => depth -= 1,
            b'}' => {
                depth -= 1;
                // The braces of an import are followed by its semicolon.
                if depth == 0 && !text[at + 1..].starts_with(';') {
                    return at + 1;
                }
            }
            b';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_there_with_their_features() {
        let linked = Linked { features: &["a"], seen: Vec::new(), directives: String::new(), text: String::new() };
        let source =
            "x;\n@if(a) y;\n@if(!a) z(1, 2);\n@if(a && b)\nfn f() { if q { } }\n@if(a) { @if(b) s; t; }\nw // ; }\n;";
        assert_eq!(linked.select(source), "x;\ny;\n\n\n{  t; }\nw // ; }\n;");
    }

    #[test]
    fn an_item_ends_at_its_semicolon_or_brace() {
        for item in ["a;", "import b::{c, d};", "fn f() { g(); }", "@group(0) var<storage> a: array<u32>;", "a // ;\n;"]
        {
            assert_eq!(end_of_item(&format!("{item} rest;")), item.len(), "{item}");
        }
    }

    /// A module that no kernel imports is dead, and a feature with a typing error selects nothing.
    #[test]
    fn every_file_is_a_module() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/shaders");
        let mut folders = vec![std::path::PathBuf::from(root)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let name = path.strip_prefix(root).expect("inside").with_extension("");
                let text = std::fs::read_to_string(&path).expect("text");
                assert_eq!(module(&name.to_string_lossy().replace('\\', "/")), text);
            }
        }
    }
}
