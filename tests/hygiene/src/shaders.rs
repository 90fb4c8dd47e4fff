//! Compiles the shaders with the reference compiler of WESL, the language of the shaders. The library has its own linker.

use wesl::{Feature, Wesl};

use crate::root;

/// The kernels with the features that are always set, and lists of features. A combination takes one entry of each list. The combinations that take
/// the first entry of all but two lists are compiled, so that every pair of entries of different lists is in one of them.
const KERNELS: &[(&str, &str, &[&[&str]])] = &[
    ("finish_reduction", "", &[&["", "loss"]]),
    ("finish_update", "", &[]),
    ("controllers/extragradient", "", &[]),
    ("controllers/learned_schedule", "", &[]),
    ("controllers/variance_reduction", "", &[]),
    ("swap_averages", "writes_parameters", &[ACCESS, PARAMETERS]),
    ("swap_schedule_free", "writes_parameters", &[ACCESS, PARAMETERS]),
    ("copy_schedule_free", "writes_parameters", &[ACCESS, PARAMETERS]),
    ("reduce_gradient", "", &[ACCESS, PARAMETERS, GRADIENTS, PARTIALS, MEASURES]),
    ("reduce_gradient", "measures_secant per_workgroup", &[RULES, &["", "look"]]),
    ("reduce_gradient", "measures_secant per_workgroup bits8", &[RULES_IN_8_BITS]),
    ("reduce_gradient", "measures_momentum per_workgroup bits8", &[&["momentum", "momentum squares"]]),
    ("update_parameters", "writes_parameters sgd", &[ACCESS, PARAMETERS, GRADIENTS, CLEARS]),
    ("update_parameters", "writes_parameters", &[RULES, KEEPS]),
    ("update_parameters", "writes_parameters bits8", &[RULES_IN_8_BITS, ACCESS, PARAMETERS]),
    ("update_parameters", "writes_parameters bits8", &[RULES_IN_8_BITS, KEEPS]),
    (
        "update_parameters",
        "writes_parameters muon momentum matrices",
        &[&["", "keeps_memory keeps_parameters", "averages measures_step"]],
    ),
    (
        "update_parameters",
        "writes_parameters adafactor limited",
        &[
            &["squares", "factored"],
            &["", "keeps_memory keeps_counters counters", "averages measures_step", "schedule_free"],
        ],
    ),
    ("update_parameters", "writes_parameters", &[RULES, ROWS, &["", "schedule_free"]]),
    ("rows/mark", "marks_rows lazy_rows", &[ACCESS, GRADIENTS]),
    ("factored/sums", "adafactor", &[ACCESS, PARAMETERS, GRADIENTS]),
    ("factored/lengths", "adafactor", &[&["squares", "factored"], ACCESS, PARAMETERS, GRADIENTS]),
    ("factored/moments", "", &[]),
    ("factored/means", "", &[]),
    ("factored/limit", "", &[]),
    ("orthogonalize/prepare", "muon momentum", &[ACCESS, PARAMETERS, GRADIENTS]),
    ("orthogonalize/normalize", "", &[HALVES]),
    ("orthogonalize/multiply", "", &[&["", "polynomial", "advance", "advance last"], HALVES]),
    ("look", "regime curvature", &[]),
    ("controllers/add_loss", "", &[]),
    ("controllers/judge", "", &[]),
    ("controllers/keep", "", &[]),
    ("controllers/keep_states", "", &[]),
    ("controllers/products", "", &[&["distance", "product", "along"]]),
    ("controllers/bi_level", "", &[]),
    ("zeroth_order/begin", "", &[]),
    ("zeroth_order/displace", "", &[ACCESS, &["", "low_rank"]]),
    ("zeroth_order/draw", "", &[]),
    ("zeroth_order/length", "", &[]),
    ("zeroth_order/losses", "", &[&["keeps_loss", "", "initial_norm"]]),
    ("zeroth_order/momentum", "", &[]),
    ("zeroth_order/settle", "", &[&["", "has_momentum"]]),
    ("zeroth_order/turn", "", &[]),
    (
        "learning_rate",
        "regime writes_states tells_scale",
        &[
            REGIMES,
            &["", "schedule", "schedule table", "trust_ratio", "average_shares", "squares", "squares square_fall"],
        ],
    ),
    ("whole_step", "whole_step writes_states writes_parameters regime per_invocation", &[RULES, MEASURES_AND_KEEPS]),
    (
        "whole_step",
        "whole_step writes_states writes_parameters regime sgd measures_nothing seesaw",
        &[PARTIALS, ACCESS, PARAMETERS, GRADIENTS],
    ),
    (
        "whole_step",
        "whole_step writes_states writes_parameters regime sgd measures_nothing seesaw per_invocation",
        &[CLEARS, &["", "averages average_shares"], &["", "schedule table", "global_clip outliers", "tells_scale"]],
    ),
];
const HALVES: &[&str] = &["", "halves"];
const ACCESS: &[&str] = &["", "scalars"];
const PARAMETERS: &[&str] = &[
    "",
    "half_parameters masters",
    "half_parameters masters short_masters",
    "half_parameters nearest",
    "half_parameters stochastic",
];
const GRADIENTS: &[&str] = &["", "half_gradients"];
const CLEARS: &[&str] = &["", "writes_gradients", "writes_gradients clears_gradients"];
const PARTIALS: &[&str] = &["per_invocation", "per_workgroup", "per_subgroup"];
const MEASURES: &[&str] = &[
    "measures_nothing",
    "measures_momentum",
    "measures_counters counters",
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
const ROWS: &[&str] = &["rates row_rates", "rates column_rates", "lazy_rows", "rates column_rates lazy_rows"];
const RULES_IN_8_BITS: &[&str] = &[
    "sgdm momentum",
    "sgdm nesterov momentum",
    "signum momentum",
    "adamw momentum squares",
    "adamw squares",
    "lion momentum",
    "nadamw momentum squares",
];
const KEEPS: &[&str] = &[
    "",
    "keeps_memory keeps_counters counters",
    "keeps_memory keeps_gradient",
    "keeps_memory keeps_parameters",
    "keeps_memory keeps_estimate",
    "keeps_memory displaces",
    "keeps_memory keeps_parameters streams",
    "averages measures_step",
    "schedule_free",
];
/// The features that measure and keep, with the regime that needs them.
const MEASURES_AND_KEEPS: &[&str] = &[
    "seesaw measures_nothing",
    "seesaw measures_momentum",
    "polyak loss measures_nothing",
    "seesaw measures_counters counters keeps_memory keeps_counters",
    "adgd measures_secant keeps_memory keeps_gradient",
    "dog measures_distance keeps_memory keeps_parameters",
    "prodigy measures_estimate keeps_memory keeps_estimate",
    "mechanic measures_displacement keeps_memory displaces",
    "auto_sgd loss measures_nothing keeps_memory keeps_parameters streams",
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

/// Returns the combinations of a kernel's features.
fn combinations(always: &str, lists: &[&[&str]]) -> Vec<String> {
    let mut combinations = vec![(always.to_owned(), 0)];
    for list in lists {
        let longer = combinations.iter().flat_map(|(features, others)| {
            let with = list.iter().enumerate();
            with.map(move |(at, entry)| (format!("{features} {entry}"), others + usize::from(at > 0)))
        });
        combinations = longer.filter(|(_, others)| *others <= 2).collect();
    }
    combinations.into_iter().map(|(features, _)| features).collect()
}

/// Returns the compiler's errors, and the number of kernels that it compiled.
pub fn complaints() -> (Vec<String>, usize) {
    let mut complaints = Vec::new();
    let mut compiled = 0;
    for (kernel, always, lists) in KERNELS {
        for features in combinations(always, lists) {
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
