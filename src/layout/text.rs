//! The text of `shaders/layout.wgsl`.

use super::*;
use crate::controllers::bi_level::{BiLevelConstants, BiLevelState};
use crate::controllers::element_pairs::ElementPair;
use crate::controllers::learned_schedule::{self, PolicySettings};
use crate::controllers::products::{self, ProductPart};
use crate::controllers::watchdog::{self, KeptPart, RawVerdict, WatchdogBatch, WatchdogConstants, WatchdogState};
use crate::regime::Kernel;

/// Returns all structs and constants in WGSL, as in `shaders/layout.wgsl`.
#[doc(hidden)]
pub fn wgsl() -> String {
    let structs = [
        Scaled::DECLARED,
        Fixed::DECLARED,
        Squares::DECLARED,
        Block::DECLARED,
        Matrix::DECLARED,
        FactoredTensor::DECLARED,
        Tile::DECLARED,
        RuleNumbers::DECLARED,
        GroupControls::DECLARED,
        GroupConstants::DECLARED,
        GroupState::DECLARED,
        ScopeTable::DECLARED,
        ScopeSums::DECLARED,
        Update::DECLARED,
        RawRecord::DECLARED,
        StepSums::DECLARED,
        StepUnit::DECLARED,
        RawTensorRecord::DECLARED,
        WatchdogConstants::DECLARED,
        WatchdogBatch::DECLARED,
        WatchdogState::DECLARED,
        RawVerdict::DECLARED,
        KeptPart::DECLARED,
        ProductPart::DECLARED,
        BiLevelConstants::DECLARED,
        BiLevelState::DECLARED,
        PolicySettings::DECLARED,
        ElementPair::DECLARED,
    ];
    let declare = |declared: &Declared, words: Option<usize>| {
        let members = (declared.members)().into_iter().map(|(name, kind)| format!("    {name}: {kind},\n"));
        let mut text = format!("struct {} {{\n{}", declared.name, members.collect::<String>());
        // All regimes' structs are padded to one size.
        if let Some(left @ 1..) = words.map(|words| words - (declared.fields)().len()) {
            text += &format!("    unused: array<u32, {left}>,\n");
        }
        text + "}\n\n"
    };
    let mut text = "// Structs and constants that cross between host and device. Written by a test from src/layout.rs and the files in src/regime/ and\n\
        // src/controllers/, which explain them. A kernel of the learning-rate pass knows the structs of its regime, and the others their sizes.\n\n"
        .to_owned();
    for declared in &structs {
        text += &declare(declared, None);
    }
    for constants in [
        constants::wgsl(),
        numbers::wgsl(),
        partial_words::wgsl(),
        group_flags::wgsl(),
        slots::wgsl(),
        skips::wgsl(),
        schedule_kinds::wgsl(),
        average_kinds::wgsl(),
        record_flags::wgsl(),
        terms::wgsl(),
        watchdog::numbers::wgsl(),
        products::numbers::wgsl(),
        learned_schedule::numbers::wgsl(),
        Kernel::all().iter().map(|kernel| (kernel.own_constants)()).collect(),
    ] {
        text += &constants;
        text += "\n";
    }
    type Own = fn(&Kernel) -> Option<Declared>;
    let own: [(&str, usize, Own); 3] = [
        ("RegimeConstants", RegimeConstants::WORDS, |kernel| kernel.constants),
        ("RegimeState", RegimeState::WORDS, |kernel| kernel.state),
        ("RegimeRecord", RegimeRecord::WORDS, |kernel| kernel.record),
    ];
    for (name, words, of) in own {
        let mut declared: Vec<&str> = Vec::new();
        let mut aliases = format!("@if(!regime) alias {name} = array<u32, {words}>;\n");
        for kernel in Kernel::all() {
            let own = of(kernel).map_or(format!("array<u32, {words}>"), |own| own.name.to_owned());
            aliases += &format!("@if({}) alias {name} = {own};\n", kernel.name);
            if let Some(own) = of(kernel).filter(|own| !declared.contains(&own.name)) {
                declared.push(own.name);
                text += &declare(&own, Some(words));
            }
        }
        text += &aliases;
        text += "\n";
    }
    text.trim_end().to_owned() + "\n"
}

/// Returns the controls in WGSL for the caller's kernels, followed by padding in the place of the other constants.
#[cfg(test)]
fn controls_wgsl() -> String {
    // The padding is a member, because naga's GLSL writer does not support @size.
    let room = (size_of::<GroupConstants>() - size_of::<GroupControls>()) / 4;
    let members = (GroupControls::DECLARED.members)().into_iter().map(|(name, kind)| format!("    {name}: {kind},\n"));
    format!(
        "// A group's controls, for kernels of the caller: what a step reads when it runs. Written by a test from src/layout.rs.\n\n\
        struct GroupControls {{\n{}    reserved: array<u32, {room}>,\n}}\n",
        members.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shaders_have_these_structs_and_constants() {
        is_written(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/layout.wgsl"), &wgsl());
        is_written(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/group_controls.wgsl"), &controls_wgsl());
    }

    fn is_written(path: &str, expected: &str) {
        if std::env::var_os("UPDATE_LAYOUT").is_some() {
            std::fs::write(path, expected).expect("written");
        }
        let there = std::fs::read_to_string(path).expect("read");
        assert!(there == expected, "{path} is out of date: UPDATE_LAYOUT=1 cargo test --lib layout writes it");
    }

    #[test]
    fn structs_have_the_words_that_they_list() {
        fn words<T>(declared: Declared) -> (usize, usize) {
            ((declared.fields)().len(), size_of::<T>() / 4)
        }
        for (listed, there) in [
            words::<GroupConstants>(GroupConstants::DECLARED),
            words::<GroupState>(GroupState::DECLARED),
            words::<RawRecord>(RawRecord::DECLARED),
            words::<Update>(Update::DECLARED),
        ] {
            assert_eq!(listed, there);
        }
    }
}
