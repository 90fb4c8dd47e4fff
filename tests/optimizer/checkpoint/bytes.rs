//! The form of a checkpoint: files of other versions, and bytes that are no checkpoint.

use std::mem::offset_of;

use super::{plain, saved};
use proptest::prelude::*;
use wgpu_optim::internals::layout::GroupState;
use wgpu_optim::{Checkpoint, Differences, Error, Group, Notes, OptimizerBuilder, Regime, Rule};
use wgpu_optim_conformance::assert_refused;
use wgpu_optim_conformance::run::{CpuRun, Run};

/// Returns a safetensors file with this header.
fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// Returns the end of a file's header.
fn header_end(bytes: &[u8]) -> usize {
    8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight")) as usize
}

/// Returns the offset of the groups' states in a file.
fn start_of_states(bytes: &[u8]) -> usize {
    let tensors = safetensors::SafeTensors::deserialize(bytes).expect("whole");
    tensors.tensor("groups/state").expect("there").data().as_ptr() as usize - bytes.as_ptr() as usize
}

/// Returns the file with the checksum of its description and data if it has both, and unchanged otherwise.
fn signed(mut bytes: Vec<u8>) -> Vec<u8> {
    const FIELD: &str = r#""wgpu-optim crc32":""#;
    let whole = || -> Option<(usize, u32)> {
        let end = header_end(&bytes);
        let text = std::str::from_utf8(bytes.get(8..end)?).ok()?;
        let header: serde_json::Value = serde_json::from_str(text).ok()?;
        let about = header["__metadata__"]["wgpu-optim checkpoint"].as_str()?;
        let mut crc = crc32fast::Hasher::new();
        crc.update(about.as_bytes());
        crc.update(&bytes[end..]);
        Some((8 + text.find(FIELD)? + FIELD.len(), crc.finalize()))
    };
    if let Some((at, crc)) = whole() {
        bytes[at..at + 8].copy_from_slice(format!("{crc:08x}").as_bytes());
    }
    bytes
}

/// Returns a checkpoint with a changed description, and with changed rows of the groups' states.
fn edited(
    checkpoint: &Checkpoint,
    describe: impl FnOnce(&mut serde_json::Value),
    change_row: impl Fn(&mut Vec<u32>),
) -> Vec<u8> {
    use safetensors::tensor::{Dtype, TensorView};
    const ABOUT: &str = "wgpu-optim checkpoint";
    const STATES: &str = "groups/state";
    let bytes = checkpoint.to_bytes();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let texts = header.metadata().as_ref().expect("texts");
    let mut about = serde_json::from_str(&texts[ABOUT]).expect("a description");
    describe(&mut about);
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("whole");
    let groups = tensors.tensor(STATES).expect("states").shape()[0];
    let states: Vec<u32> = bytemuck::pod_collect_to_vec(tensors.tensor(STATES).expect("states").data());
    let rows = states.chunks_exact(states.len() / groups).map(|row| {
        let mut row = row.to_vec();
        change_row(&mut row);
        row
    });
    let rows: Vec<u32> = rows.flatten().collect();
    let shape = vec![groups, rows.len() / groups];
    let states = TensorView::new(Dtype::U32, shape, bytemuck::cast_slice(&rows)).expect("fits");
    let views = tensors.tensors().into_iter().map(|(name, view)| match name.as_str() {
        STATES => (name, states.clone()),
        _ => (name, view),
    });
    let texts = [(ABOUT.to_owned(), about.to_string()), ("wgpu-optim crc32".to_owned(), "00000000".to_owned())];
    signed(safetensors::serialize(views, Some(texts.into_iter().collect())).expect("a file"))
}

/// Changes the list of the fields of the groups' states.
fn edit_fields(about: &mut serde_json::Value, edit: impl FnOnce(&str) -> String) {
    let fields = &mut about["tables"]["groups/state"];
    *fields = edit(fields.as_str().expect("a list")).into();
}

/// Files from before a field or a setting was added can be read, and an unknown field or setting is named.
#[test]
fn fields_and_settings_go_by_their_names() {
    let (run, checkpoint) = saved(&plain());
    let restored = |bytes: Vec<u8>| {
        let mut fresh = CpuRun::new(&plain());
        fresh.restore(&Checkpoint::from_bytes(bytes)?)?;
        Ok::<_, Error>(fresh)
    };
    let with_fields = |edit: &dyn Fn(&str) -> String, row: &dyn Fn(&mut Vec<u32>)| {
        edited(&checkpoint, |about| edit_fields(about, edit), row)
    };
    let described = |describe: &dyn Fn(&mut serde_json::Value)| edited(&checkpoint, describe, |_| {});
    // A field that the file does not have gets its initial value, and the other fields get their own.
    let at = offset_of!(GroupState, mean_norm) / 4;
    let older = with_fields(&|fields| fields.replacen("mean_norm.mantissa: f32, ", "", 1), &|row| {
        row.remove(at);
    });
    let fresh = restored(older).expect("an older file");
    let mut expected = run.states();
    for state in &mut expected {
        assert_ne!(state.mean_norm.mantissa, 0.0);
        state.mean_norm.mantissa = 0.0;
    }
    assert_eq!((fresh.states(), fresh.params()), (expected, run.params()));
    // The same holds for fields in another order, and for a setting that is newer than the file.
    let (two, turned) = ("steps_low: u32, steps_high: u32", "steps_high: u32, steps_low: u32");
    let turned = with_fields(&|fields| fields.replacen(two, turned, 1), &|row| row.swap(0, 1));
    let younger = described(&|about| {
        let settings = about["groups"][0]["settings"].as_object_mut().expect("settings");
        settings.remove("clip_norm").expect("a setting");
    });
    for same in [turned, younger] {
        assert_eq!(restored(same).expect("the same").states(), run.states());
    }

    let added = |field: &str| with_fields(&|fields| format!("{fields}, {field}"), &|row| row.push(0));
    let other_type = |fields: &str| fields.replacen("learning_rate: f32", "learning_rate: i32", 1);
    for (bytes, reason) in [
        (added("warmth: f32"), "the field \"warmth\" of \"groups/state\" is f32 there"),
        (added("started: u32"), "the field \"started\" of \"groups/state\" is there twice"),
        (with_fields(&other_type, &|_| {}), "the field \"learning_rate\" of \"groups/state\" is i32 there"),
        (
            described(&|about| about["groups"][1]["settings"]["warmth"] = "hot".into()),
            "warmth of group \"biases\" is hot there",
        ),
        (described(&|about| about["warmth"] = 1.into()), "unknown field `warmth`"),
        (described(&|about| about["version"] = 1.into()), "version 1"),
    ] {
        assert_refused(restored(bytes), &[reason]);
    }
}

#[test]
fn foreign_and_hostile_bytes_are_refused_with_a_reason() {
    let (_, checkpoint) = saved(&plain());
    let good = checkpoint.to_bytes();
    let header_end = header_end(&good);
    let header = std::str::from_utf8(&good[8..header_end]).expect("text").trim_end().to_owned();
    let data = &good[header_end..];
    let changed = |from: &str, to: &str| {
        assert!(header.contains(from), "no {from} in {header}");
        signed(with_header(&header.replacen(from, to, 1), data))
    };
    let mut longer = good.clone();
    longer.push(0);
    let mut huge = good.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let dimensions = format!(r#"{{"a":{{"dtype":"F32","shape":[{}1],"data_offsets":[0,4]}}}}"#, "1,".repeat(10_000));
    let nested = "[".repeat(100_000);
    let tensor = |name: &str, shape: &str, offsets: &str| {
        format!(r#""{name}":{{"dtype":"F32","shape":[{shape}],"data_offsets":[{offsets}]}}"#)
    };
    let file = |tensors: &[String], bytes: usize| with_header(&format!("{{{}}}", tensors.join(",")), &[0; 8][..bytes]);
    let twice = [tensor("a", "0", "0,0"), tensor("a", "0", "0,0")];
    let at_once = [tensor("a", "1", "0,4"), tensor("b", "1", "0,4")];
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "0 bytes are too few"),
        (b"{}".to_vec(), "2 bytes are too few"),
        (huge, "header would have 18446744073709551615 bytes"),
        (longer, "longer than it should be"),
        (good[..good.len() - 4].to_vec(), "cut off"),
        (b"\x7fELF is not a checkpoint, is it?".to_vec(), "not in the safetensors format"),
        (with_header("{}", &[]), "no \"wgpu-optim checkpoint\" in its metadata"),
        (with_header("[]", &[]), "cannot be read"),
        (with_header(&nested, &[]), "cannot be read"),
        (with_header(&dimensions, &[0; 4]), "at most 2 dimensions"),
        (file(&[tensor("a", "1", "4,8")], 8), "invalid offset"),
        (file(&[tensor("a", "2", "0,4")], 4), "contradicts itself"),
        (file(&at_once, 4), "invalid offset"),
        (file(&twice, 0), "names \"a\" twice"),
        (file(&[tensor("a", "9223372036854775807,4", "0,4")], 4), "overflow"),
        (changed(r#"\"version\":5"#, r#"\"version\":6"#), "has version 6, but this wgpu-optim reads versions 2 to 5"),
        (changed("wgpu-optim crc32", "wgpu-optim crc33"), "has no \"wgpu-optim crc32\""),
        (changed(r#"\"step\":3"#, r#"\"step\":true"#), "description cannot be read"),
    ];
    for (bytes, reason) in cases {
        assert_refused(Checkpoint::from_bytes(bytes), &[reason]);
    }

    // Only an optimizer can detect these.
    let last = "parameters/weights/1";
    let words = size_of::<GroupState>() / 4;
    let (shape, turned) = (format!("[2,{words}]"), format!("[{words},2]"));
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (changed(last, "parameters/weights/2"), "\"parameters/weights/1\" is missing"),
        (changed("\"U32\"", "\"F32\""), "\"groups/state\" is F32"),
        (changed(&shape, &turned), "\"groups/state\" is U32 of shape ["),
        (changed(r#"\"step\":3"#, r#"\"step\":4"#), "it is of step 4, but group \"weights\" is at step 3"),
        (changed(r#"\"parameters\":true"#, r#"\"parameters\":false"#), "does not belong in it"),
        (changed("steps_low: u32, ", ""), "\"groups/state\" is U32 of shape ["),
        (
            changed(r#"\"tensors\":["#, r#"\"tensors\":[{\"name\":\"x\",\"group\":9,\"elements\":1},"#),
            "tensor \"x\" is tensor 0",
        ),
        (changed(r#"\"group\":1"#, r#"\"group\":9"#), "the group of tensor \"biases/0\" is nothing there"),
    ];
    for (bytes, reason) in cases {
        let mut run = CpuRun::new(&plain());
        let before = run.checkpoint().to_bytes();
        assert_refused(Checkpoint::from_bytes(bytes).and_then(|checkpoint| run.restore(&checkpoint)), &[reason]);
        assert!(run.checkpoint().to_bytes() == before);
    }

    // Words that no step leaves in a state, in a field of the group, by their place in the row.
    let states = start_of_states(&good);
    for (field, word, reason) in [
        (offset_of!(GroupState, started), 2u32, "started of group \"weights\" is 2, above 1"),
        (offset_of!(GroupState, learning_rate), f32::NAN.to_bits(), "learning_rate of group \"weights\" is NaN"),
        (offset_of!(GroupState, mean_steps), u32::MAX, "mean_steps of group \"weights\" is 4294967295"),
        (offset_of!(GroupState, gradient_exponent), 1 << 31, "gradient_exponent of group \"weights\" is -2147483648"),
    ] {
        let mut bytes = good.clone();
        bytes[states + field..][..4].copy_from_slice(&word.to_le_bytes());
        let checkpoint = Checkpoint::from_bytes(signed(bytes)).expect("its form is right");
        assert_refused(CpuRun::new(&plain()).restore(&checkpoint), &[reason]);
    }
}

/// Asserts that any bytes, or a checkpoint with changed bits or missing parts, are an error, or restore the same state where the change means
/// nothing. They never cause a panic, and never take more memory than is proportionate.
fn is_refused_or_harmless(good: &[u8], bytes: Vec<u8>) -> Result<(), TestCaseError> {
    let len = bytes.len();
    let mut read = Checkpoint::from_bytes([]);
    let used = allocation_counter::measure(|| read = Checkpoint::from_bytes(bytes));
    prop_assert!(used.bytes_max <= 16 * len as u64 + 65_536, "{used:?} for {len} bytes");
    let Ok(checkpoint) = read else { return Ok(()) };
    let mut run = CpuRun::new(&plain());
    if run.restore(&checkpoint).is_ok() {
        prop_assert!(run.checkpoint().to_bytes() == good);
    }
    goes_on_elsewhere(&checkpoint);
    Ok(())
}

/// Asserts that an optimizer of another kind refuses any file or can take steps from it.
fn goes_on_elsewhere(checkpoint: &Checkpoint) {
    let mut specs = plain();
    specs.swap(0, 1);
    specs[0].rule = Rule::adamw();
    specs[1].regime = Regime::norm_ratio();
    specs[1].telemetry = true;
    let mut run = CpuRun::new(&specs);
    if run.restore_with(checkpoint, Differences::all()).is_ok() {
        for _ in 0..3 {
            run.step(&[vec![1e20; 5], vec![0.5; 9], vec![1.0; 5], vec![1e-20; 9]]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_checkpoint_cut_off_anywhere_is_refused(share in 0.0..1.0f64) {
        let (_, checkpoint) = saved(&plain());
        let bytes = checkpoint.to_bytes();
        let cut = (share * bytes.len() as f64) as usize;
        prop_assert!(Checkpoint::from_bytes(&bytes[..cut]).is_err());
    }

    #[test]
    fn changed_bits_of_a_header_are_refused_or_harmless(
        flips in prop::collection::vec((0.0..1.0f64, 0..8u32), 1..4),
    ) {
        let (_, checkpoint) = saved(&plain());
        let good = checkpoint.to_bytes();
        let header = header_end(&good);
        let mut bytes = good.clone();
        for (share, bit) in flips {
            bytes[(share * header as f64) as usize] ^= 1 << bit;
        }
        is_refused_or_harmless(&good, bytes)?;
    }

    #[test]
    fn a_changed_bit_of_the_data_is_told(share in 0.0..1.0f64, bit in 0..8u32) {
        let (_, checkpoint) = saved(&plain());
        let mut bytes = checkpoint.to_bytes();
        let header = header_end(&bytes);
        let data = bytes.len() - header;
        bytes[header + (share * data as f64) as usize] ^= 1 << bit;
        let error = Checkpoint::from_bytes(bytes).expect_err("changed");
        prop_assert!(error.to_string().contains("checksum"), "{}", error);
    }

    #[test]
    fn pieces_of_a_header_in_any_order_are_refused(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"__metadata__\"", "\"wgpu-optim checkpoint\"", "\"a\"", "\"dtype\"", "\"F32\"", "\"shape\"",
            "\"data_offsets\"", "0", "4", "18446744073709551615", "-1", "1e999", "null", "true", "\"{\\\"version\\\":2}\"", "\u{fffd}",
            "{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}",
        ]), 0..40),
        data in 0..9usize,
    ) {
        let bytes = with_header(&pieces.concat(), &[0; 8][..data.min(8)]);
        let len = bytes.len() as u64;
        let mut read = Checkpoint::from_bytes([]);
        let used = allocation_counter::measure(|| read = Checkpoint::from_bytes(bytes));
        prop_assert!(read.is_err());
        prop_assert!(used.bytes_max <= 16 * len + 65_536);
    }

    #[test]
    fn any_bytes_with_any_length_are_refused(length in any::<u64>(), rest in prop::collection::vec(any::<u8>(), 0..300)) {
        for length in [length, length % 400] {
            let mut bytes = length.to_le_bytes().to_vec();
            bytes.extend_from_slice(&rest);
            prop_assert!(Checkpoint::from_bytes(bytes).is_err());
        }
    }

    /// Any state is refused, or steps can be taken from it.
    #[test]
    fn changed_states_are_refused_or_can_go_on(flips in prop::collection::vec((0..size_of::<GroupState>() / 2, any::<u32>()), 1..4)) {
        let (_, checkpoint) = saved(&plain());
        let mut bytes = checkpoint.to_bytes();
        let states = start_of_states(&bytes);
        for (word, value) in flips {
            bytes[states + 4 * word..][..4].copy_from_slice(&value.to_le_bytes());
        }
        let checkpoint = Checkpoint::from_bytes(signed(bytes)).expect("its form is right");
        let mut run = CpuRun::new(&plain());
        if run.restore(&checkpoint).is_ok() {
            for _ in 0..3 {
                run.step(&[vec![1.0; 5], vec![1e-20; 9], vec![1e20; 5], vec![0.5; 9]]);
            }
        }
        goes_on_elsewhere(&checkpoint);
    }
}

/// A header that readers of the format would refuse is not written, and the old file stays.
#[test]
fn a_header_that_no_reader_accepts_is_not_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("c.safetensors");
    std::fs::write(&path, "old").expect("writes");
    let notes = Notes::from([("log".to_owned(), "x".repeat(100_000_000))]);
    let (w, g) = (vec![1.0f32; 3], vec![0.5f32; 3]);
    let optimizer =
        OptimizerBuilder::new(Rule::sgd()).group(Group::new("all").tensor("w", &w, &g)).build_cpu().expect("builds");
    let checkpoint = optimizer.checkpoint(Some(&[&w]), &notes).expect("in memory");
    assert_refused(checkpoint.save(&path), &["header", "100000000", "shorter notes"]);
    assert_eq!(std::fs::read(&path).expect("reads"), b"old");
}

/// A file can be printed whatever numbers it contains.
#[test]
fn lengths_that_overflow_their_sum_are_printed() {
    let (_, checkpoint) = saved(&plain());
    let text = String::from_utf8_lossy(&checkpoint.to_bytes()).into_owned();
    let element = r#"\"elements\":"#;
    assert!(text.contains(element), "{text}");
    let mut bytes = Vec::new();
    let whole = checkpoint.to_bytes();
    let end = header_end(&whole);
    let header = std::str::from_utf8(&whole[8..end]).expect("text");
    let huge: Vec<&str> = header.split(element).collect();
    let rest = |part: &str| part.trim_start_matches(|c: char| c.is_ascii_digit()).to_owned();
    let parts = huge[1..].iter().map(|part| format!("{element}18446744073709551615{}", rest(part)));
    bytes.extend(with_header(&format!("{}{}", huge[0], parts.collect::<String>()), &whole[end..]));
    if let Ok(checkpoint) = Checkpoint::from_bytes(signed(bytes)) {
        assert!(checkpoint.to_string().contains("18446744073709551615"));
    }
}

/// Headers that are large for what they contain take memory in proportion to their bytes.
#[test]
fn memory_is_in_proportion_to_the_bytes() {
    let entry = |index: usize| format!(r#""{index:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let entries: Vec<String> = (0..20_000).map(entry).collect();
    let notes: Vec<String> = (0..50_000).map(|index| format!(r#""{index:x}":"""#)).collect();
    let about = r#"{\"version\":2,\"written_by\":\"\",\"step\":0,\"settings\":{},\"parameters\":false,\"groups\":[GROUPS],\"tensors\":[],\"tables\":{},\"notes\":{}}"#;
    let groups = vec![r#"{\"name\":\"\",\"settings\":{}}"#; 20_000].join(",");
    // The second number is the allowed memory as a multiple of the bytes: strings are short, and a dimension must not take a word of memory.
    for (header, times) in [
        (format!("{{{}}}", entries.join(",")), 6),
        (format!(r#"{{"__metadata__":{{{}}}}}"#, notes.join(",")), 12),
        (format!(r#"{{"__metadata__":{{"wgpu-optim checkpoint":"{}"}}}}"#, about.replace("GROUPS", &groups)), 6),
        (format!(r#"{{"a":{{"dtype":"U8","shape":[{}0],"data_offsets":[0,0]}}}}"#, "0,".repeat(500_000)), 1),
        (format!(r#"{{"a":{}"#, "[".repeat(500_000)), 1),
    ] {
        let bytes = with_header(&header, &[]);
        let len = bytes.len() as u64;
        let used = allocation_counter::measure(|| drop(Checkpoint::from_bytes(bytes)));
        assert!(used.bytes_max <= times * len, "{} for {len} of {}…", used.bytes_max, &header[..40]);
    }
}
