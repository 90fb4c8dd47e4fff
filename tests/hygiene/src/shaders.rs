//! Compiles the shaders with the reference compiler of WESL, in which they are written: the library has a linker of its own.

use wesl::{Feature, Wesl};

use crate::root;

/// Kernels, with the features that are always there, and lists of which each combination takes one entry.
const KERNELS: &[(&str, &str, &[&[&str]])] = &[
    ("finish_reduction", "", &[]),
    ("finish_update", "", &[]),
    ("swap_averages", "writes_parameters", &[ACCESS, PARAMETERS]),
    ("swap_schedule_free", "writes_parameters", &[ACCESS, PARAMETERS]),
    ("copy_schedule_free", "writes_parameters", &[ACCESS, PARAMETERS]),
    ("reduce_gradient", "", &[ACCESS, PARAMETERS, GRADIENTS, PARTIALS, MEASURES]),
    ("reduce_gradient", "measures_secant per_workgroup", &[RULES, &["", "look"]]),
    ("update_parameters", "writes_parameters sgd", &[ACCESS, PARAMETERS, GRADIENTS, CLEARS]),
    ("update_parameters", "writes_parameters", &[RULES, KEEPS]),
    (
        "update_parameters",
        "writes_parameters muon momentum matrices",
        &[&["", "keeps_memory keeps_parameters", "averages measures_step"]],
    ),
    ("orthogonalize/prepare", "muon momentum", &[ACCESS, PARAMETERS, GRADIENTS]),
    ("orthogonalize/normalize", "", &[]),
    ("orthogonalize/multiply", "", &[&["", "polynomial", "advance", "advance last"]]),
    ("look", "regime curvature", &[]),
    ("learning_rate", "regime", &[REGIMES, &["", "schedule", "schedule table", "trust_ratio", "averages", "squares"]]),
];
const ACCESS: &[&str] = &["", "scalars"];
const PARAMETERS: &[&str] = &["", "half_parameters masters", "half_parameters nearest", "half_parameters stochastic"];
const GRADIENTS: &[&str] = &["", "half_gradients"];
const CLEARS: &[&str] = &["", "writes_gradients", "writes_gradients clears_gradients"];
const PARTIALS: &[&str] = &["per_invocation", "per_workgroup", "per_subgroup"];
const MEASURES: &[&str] = &[
    "measures_momentum",
    "measures_counters",
    "measures_iterates",
    "measures_magnitudes",
    "measures_distance",
    "measures_estimate",
    "measures_displacement",
];
const RULES: &[&str] = &[
    "sgd",
    "sgdm momentum",
    "sgdm nesterov momentum",
    "sign_sgd",
    "signum momentum",
    "adamw momentum squares",
    "adamw squares",
    "lion momentum",
    "nadamw momentum squares",
    "amsgrad momentum squares largest_squares",
];
const KEEPS: &[&str] = &[
    "",
    "keeps_memory keeps_counters",
    "keeps_memory keeps_gradient",
    "keeps_memory keeps_parameters",
    "keeps_memory keeps_estimate",
    "keeps_memory displaces",
    "keeps_memory keeps_parameters streams",
    "averages measures_step",
    "schedule_free",
];
const REGIMES: &[&str] = &[
    "seesaw",
    "adagrad_norm",
    "wngrad",
    "barzilai_borwein",
    "adgd",
    "curvature",
    "dog",
    "dowg",
    "polyak",
    "ngn",
    "schedule_free_plus",
    "prodigy",
    "mechanic",
    "auto_sgd",
];

/// What the compiler says against them, and how many it has compiled.
pub fn complaints() -> (Vec<String>, usize) {
    let mut complaints = Vec::new();
    let mut compiled = 0;
    for (kernel, always, choices) in KERNELS {
        let mut lists = vec![(*always).to_owned()];
        for choice in *choices {
            lists = lists.iter().flat_map(|list| choice.iter().map(move |one| format!("{list} {one}"))).collect();
        }
        for features in lists {
            let mut compiler = Wesl::new(root().join("shaders"));
            compiler.set_missing_feature_behavior(Feature::Disable);
            for feature in features.split_whitespace() {
                compiler.set_feature(feature, true);
            }
            let module = format!("package::{}", kernel.replace('/', "::")).parse().expect("a path");
            match compiler.compile(&module) {
                Ok(_) => compiled += 1,
                Err(error) => complaints.push(format!("{kernel} with {features}: {error}")),
            }
        }
    }
    (complaints, compiled)
}
