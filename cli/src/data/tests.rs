use std::io::Write;

use proptest::prelude::*;

use super::*;

fn file(text: &str) -> File<'_> {
    File { name: "test".to_owned(), bytes: Cow::Borrowed(text.as_bytes()) }
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("packs");
    encoder.finish().expect("packs")
}

/// Loads a file with this content and name.
fn load_bytes(name: &str, bytes: &[u8]) -> Result<Dataset, DataError> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("writes");
    load(path.to_str().expect("UTF-8"))
}

fn error(name: &str, bytes: &[u8]) -> String {
    let message = load_bytes(name, bytes).expect_err("this must be refused").to_string();
    assert!(!message.contains('\n'), "one line: {message}");
    message
}

#[test]
fn built_in_sets_are_as_their_readme_says() {
    let digits = load("digits").expect("digits");
    assert_eq!((digits.features, digits.classes), (64, 10));
    assert_eq!(digits.train.rows() + digits.test.rows(), 1797);
    assert_eq!(digits.test.rows(), 359);
    assert!(digits.train.x.iter().all(|x| (0.0..=1.0).contains(x)));
    assert!(digits.train.x.contains(&1.0));
    let mushrooms = load("mushrooms").expect("mushrooms");
    assert_eq!((mushrooms.features, mushrooms.classes), (126, 2));
    assert_eq!((mushrooms.train.rows(), mushrooms.test.rows()), (6513, 1611));
    // 22 attributes, each one-hot.
    assert_eq!(mushrooms.train.x[..126].iter().sum::<f32>(), 22.0);
}

#[test]
fn the_held_out_rows_are_the_same_in_every_run() {
    assert_eq!(load("digits"), load("digits"));
}

#[test]
fn csv_with_a_header_and_words_as_labels_is_standardised() {
    let text = "a,b,kind\n1,5,cat\n3,5,dog\n1,5,cat\n3,5,dog\n1,5,cat\n3,5,dog\n";
    for bytes in [text.as_bytes().to_vec(), gz(text.as_bytes())] {
        let set = load_bytes("pets.csv", &bytes).expect("loads");
        assert_eq!((set.name.as_str(), set.features, set.classes), ("pets", 2, 2));
        let all: Vec<f32> = set.train.x.iter().chain(&set.test.x).copied().collect();
        // Column b is constant; cats have the smaller a.
        for (row, class) in all.chunks(2).zip(set.train.y.iter().chain(&set.test.y)) {
            assert_eq!(row[1], 0.0);
            assert_eq!(row[0] > 0.0, *class == 1, "{row:?}");
        }
        let mean: f32 = set.train.x.iter().step_by(2).sum::<f32>() / set.train.rows() as f32;
        assert!(mean.abs() < 1e-6);
    }
}

#[test]
fn labels_are_numbered_by_value() {
    let table = csv::parse(&file("1,10\n2,-1\n3,2\n4,+2\n")).expect("parses");
    let classes = classes_of(&table.labels);
    assert_eq!(classes.len(), 3);
    assert_eq!(classes[&class_key("-1")], 0);
    assert_eq!(classes[&class_key("2.0")], 1);
    assert_eq!(classes[&class_key("10")], 2);
}

#[test]
fn csv_errors_name_the_place() {
    let many: String = (0..1100).map(|i| format!("1,{i}\n")).collect();
    for (bytes, words) in [
        (&b"1,2,0\n1,0\n"[..], "line 2: 2 fields where the lines before have 3"),
        (b"1,2,0\n1,huh,1\n", "line 2, column 2: \"huh\" is not a number"),
        (b"1,2,0\nNaN,2,1\n", "line 2, column 1: the feature \"NaN\""),
        (b"1,2,0\n1,inf,1\n", "line 2, column 2: the feature \"inf\""),
        (b"1,2,0\n1,2,\n", "line 2, column 3: the label is missing"),
        (b"1,0.5\n2,1\n", "the label 0.5 is not a class"),
        (b"?,?,a\n1,2,b\n", "line 1, column 1: \"?\""),
        (b"", "not one row"),
        (b"a,b,c\n", "not one row"),
        (b"0\n1\n", "no features"),
        (b"1,1\n2,1\n", "at least two classes"),
        (b"\xff\xfe\x00", "not text"),
        (many.as_bytes(), "1100 different labels"),
    ] {
        assert!(error("x", bytes).contains(words), "{words}");
    }
}

#[test]
fn libsvm_takes_indices_from_0_and_from_1() {
    assert!(libsvm::is_libsvm(b"1\n0 1:1 2:2\n"));
    for (text, features) in [("1 1:2 3:4\n-1 2:1 # x\n\n1 1:1", 3), ("1 0:2 2:4\n-1 1:1\n1 0:1", 3)] {
        assert!(libsvm::is_libsvm(text.as_bytes()));
        let table = libsvm::parse(&file(text)).expect("parses");
        assert_eq!(table.features, features);
        assert_eq!(table.x, [2.0, 0.0, 4.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]);
        assert_eq!(table.labels, ["1", "-1", "1"]);
    }
}

#[test]
fn libsvm_errors_name_the_place() {
    assert!(error("x", b"1 1:2\n-1 2:1 2:3\n").contains("line 2: feature 2 comes after"));
    assert!(error("x", b"1 1:2\n-1 2:x\n").contains("line 2, feature 2: \"x\" is not a number"));
    assert!(error("x", b"1 1:2\n-1 2:nan\n").contains("line 2, feature 2: the feature \"nan\""));
    assert!(error("x", b"1 1:2\n-1 nope\n").contains("line 2: \"nope\" is not index:value"));
    assert!(error("x", b"1 1:2\n-1 99999999:1\n").contains("feature 99999999 is above"));
    assert!(error("x", b"1 1:2\ncat 1:1\n").contains("line 2: the label \"cat\""));
}

#[test]
fn a_libsvm_test_file_beside_the_training_file_is_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("a.train"), "1 1:1\n0 1:2\n").expect("writes");
    std::fs::write(path("a.test.gz"), gz(b"1 4:1\n")).expect("writes");
    let set = load(path("a.train").to_str().expect("UTF-8")).expect("loads");
    assert_eq!(set.features, 4);
    assert_eq!(set.train.x, [1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0]);
    assert_eq!(set.test, Split { x: vec![0.0, 0.0, 0.0, 1.0], y: vec![1] });
    std::fs::write(path("a.test.gz"), gz(b"7 4:1\n")).expect("writes");
    let error = load(path("a.train").to_str().expect("UTF-8")).expect_err("refused");
    assert!(error.to_string().contains("the label 7 of the test rows is out of range"));
}

fn idx(dimensions: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, dimensions.len() as u8];
    for size in dimensions {
        bytes.extend(size.to_be_bytes());
    }
    bytes.extend(data);
    bytes
}

#[test]
fn a_folder_of_idx_files_is_a_set() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: Vec<u8>| {
        std::fs::write(folder.path().join(name), bytes).expect("writes");
    };
    let load = || load(folder.path().to_str().expect("UTF-8"));
    assert!(load().expect_err("empty").to_string().contains("train-images-idx3-ubyte"));
    write("train-images-idx3-ubyte", idx(&[3, 1, 2], &[0, 255, 51, 0, 1, 2]));
    assert!(load().expect_err("no labels").to_string().contains("labels is missing"));
    write("train-labels-idx1-ubyte.gz", gz(&idx(&[3], &[4, 9, 4])));
    assert_eq!(load().expect("holds out").train.rows(), 2);
    write("t10k-images-idx3-ubyte.gz", gz(&idx(&[1, 1, 2], &[255, 0])));
    write("t10k-labels-idx1-ubyte", idx(&[1], &[9]));
    let set = load().expect("loads");
    assert_eq!((set.features, set.classes), (2, 2));
    assert_eq!(set.train.x[..3], [0.0, 1.0, 0.2]);
    assert_eq!(set.test, Split { x: vec![1.0, 0.0], y: vec![1] });
    write("train-labels-idx1-ubyte.gz", idx(&[2], &[4, 9]));
    assert!(load().expect_err("labels").to_string().contains("one label per image"));
    write("train-images-idx3-ubyte", idx(&[u32::MAX, u32::MAX, u32::MAX], &[0]));
    assert!(load().expect_err("hostile").to_string().contains("do not fit"));
}

#[test]
fn missing_and_damaged_files_are_named() {
    let message = load("no-such-set").expect_err("missing").to_string();
    assert!(message.contains("no-such-set: no such file") && message.contains("digits"));
    let mut damaged = gz(&[b'1'; 1000]);
    damaged.truncate(damaged.len() - 6);
    assert!(error("x.csv.gz", &damaged).contains("x.csv.gz: cannot be read"));
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), magic in 0..3usize) {
        let mut bytes = bytes;
        let prefix: &[u8] = [&b""[..], &[0, 0, 8, 2], b"1 1:"][magic];
        bytes.splice(0..0, prefix.iter().copied());
        let file = File { name: "fuzz".to_owned(), bytes: Cow::Borrowed(&bytes) };
        let _ = csv::parse(&file).and_then(|table| hold_out("fuzz", "fuzz", table));
        let _ = libsvm::parse(&file).and_then(|table| hold_out("fuzz", "fuzz", table));
        let _ = idx::parse(&file, &file);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[-+0-9.,:# \n\"a-z]{0,120}") {
        let file = file(&text);
        let _ = csv::parse(&file).and_then(|table| hold_out("fuzz", "fuzz", table));
        let _ = libsvm::parse(&file).and_then(|table| hold_out("fuzz", "fuzz", table));
    }
}
