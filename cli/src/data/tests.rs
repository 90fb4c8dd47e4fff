use std::borrow::Cow;
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

/// Loads a file with this name and content.
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
    // Every row has 22 attributes, each one-hot.
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
        // Column b is constant, and cats have the smaller a.
        for (row, class) in all.chunks(2).zip(set.train.y.iter().chain(&set.test.y)) {
            assert_eq!(row[1], 0.0);
            assert_eq!(row[0] > 0.0, *class == 1, "{row:?}");
        }
        let mean: f32 = set.train.x.iter().step_by(2).sum::<f32>() / set.train.rows() as f32;
        assert!(mean.abs() < 1e-6);
    }
}

/// Returns the class of each row, in the order of the file.
fn classes(text: &str) -> Vec<u32> {
    let (table, _) = csv::parse(&file(text), None).expect("parses");
    let classes = Classes::new(&table.labels, None, "test").expect("classes");
    (0..table.labels.rows.len()).map(|row| classes.class_of(&table.labels, row, "test").expect("a class")).collect()
}

#[test]
fn labels_are_numbered_by_value() {
    assert_eq!(classes("1,10\n2,-1\n3,2\n4,+2\n5,2.0\n6,02\n7,2e0\n"), [2, 0, 1, 1, 1, 1, 1]);
    // If one label is not a number, all are words.
    assert_eq!(classes("1,1\n2,01\n3,a\n4,1\n5,inf\n"), [1, 0, 2, 1, 3]);
    // These labels are equal as f64, so that they are treated as words.
    assert_eq!(classes("1,12345678901234567890\n2,12345678901234567891\n"), [0, 1]);
    let loaded = loaded("x.csv", b"1,1\n2,01\n3,2\n4,2\n", None).expect("loads");
    assert!(loaded.about.contains("the same number are one class: \"1\" and \"01\""), "{}", loaded.about);
}

/// Loads a set from a file of this name and content, with its summary.
fn loaded(name: &str, bytes: &[u8], label: Option<&str>) -> Result<Loaded, DataError> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("writes");
    load_from(path.to_str().expect("UTF-8"), label)
}

/// The expected words are part of the summary. The numbers are rows, features and classes.
#[test]
fn a_header_is_what_fits_the_other_lines() {
    let rows = |count: usize| -> String { (0..count).map(|i| format!("{}.5,{},{}\n", i % 7, i % 5, i % 3)).collect() };
    let words = |count: usize| -> String {
        (0..count).map(|i| format!("{}.5,{},{}\n", i % 7, i % 5, ["cat", "dog", "emu"][i % 3])).collect()
    };
    let index = |count: usize| -> String { (0..count).map(|i| format!("{i},{}.5,{}\n", i % 7, i % 3)).collect() };
    for (first, rest, sizes, remark) in [
        ("a,b,c\n", rows(30), [30, 2, 3], "header seen, the label is \"c\" (column 3)"),
        ("0,1,label\n", rows(30), [30, 2, 3], "header seen"),
        ("0,1,t\n", rows(3), [3, 2, 3], "header seen"),
        ("1999,2004,grade\n", rows(30), [30, 2, 3], "header seen"),
        ("a,7,label\n", rows(30), [30, 2, 3], "header seen"),
        ("150,4,setosa\n", rows(30), [30, 2, 3], "header seen"),
        // Counted columns are a header.
        ("0,1,7\n", rows(30), [30, 2, 3], "header seen"),
        ("1,2,3\n", rows(30), [30, 2, 3], "header seen"),
        ("a,b,c\n", words(30), [30, 2, 3], "header seen"),
        ("0,1,species\n", words(30), [30, 2, 3], "header seen"),
        ("400,410,species\n", words(6), [6, 2, 3], "header seen"),
        ("400,410,what\n", words(30), [30, 2, 3], "header seen"),
        // These first lines are rows of data.
        ("", rows(30), [30, 2, 3], "no header, the label is in column 3"),
        ("0,1,2\n", rows(30), [31, 2, 3], "no header"),
        ("9,8,7\n", rows(30), [31, 2, 4], "no header"),
        ("2020,2019,2018,2017\n", rows(30).replace(".5,", ".5,1,"), [30, 3, 3], "header seen"),
        ("0,1,7\n", rows(3), [4, 2, 4], "no header"),
        ("9,8,NA\n", words(30), [31, 2, 4], "no header"),
        ("1,2,owl\n", words(3), [4, 2, 4], "no header"),
        ("400,410,cat\n", words(30), [31, 2, 3], "no header"),
        ("400,410,owl\n", words(6), [7, 2, 4], "no header"),
        // Headers that pandas writes.
        (",a,b\n", index(30), [30, 1, 3], "numbers the rows and is left out"),
        (",0,label\n", index(30), [30, 1, 3], "numbers the rows and is left out"),
        ("Unnamed: 0,a,b\n", index(30), [30, 1, 3], "numbers the rows and is left out"),
        ("\"\",\"a\",\"b\"\n", index(30), [30, 1, 3], "numbers the rows and is left out"),
        // Other separators, line ends, a byte order mark, comments.
        ("\u{feff}# made by hand\na,b,c\n", rows(30), [30, 2, 3], "header seen"),
        ("a;b;c\n", rows(30).replace(',', ";"), [30, 2, 3], "separated by semicolons"),
        ("a\tb\tc\n", rows(30).replace(',', "\t"), [30, 2, 3], "separated by tabs"),
        ("a|b|c\n", rows(30).replace(',', "|"), [30, 2, 3], "separated by bars"),
        ("a   b c  \n", rows(30).replace(',', "  \t "), [30, 2, 3], "separated by blanks"),
        ("a, b, c\n", rows(30).replace(',', ", "), [30, 2, 3], "header seen"),
    ] {
        for end in ["\n", "\r\n", "\r"] {
            let text = format!("{first}{rest}").replace('\n', end);
            let loaded = loaded("x.csv", text.as_bytes(), None).unwrap_or_else(|error| panic!("{first}: {error}"));
            let set = &loaded.dataset;
            let found = [set.train.rows() + set.test.rows(), set.features, set.classes];
            assert_eq!(found, sizes, "{first:?}, {end:?}: {}", loaded.about);
            assert!(loaded.about.contains(remark), "{first:?}: {}", loaded.about);
        }
    }
    let pets = loaded("pets.csv", format!("a,b,c\n{}", words(1800)).as_bytes(), None).expect("loads");
    let line = "pets: 1,800 rows, 2 features, 3 classes, 360 held out; header seen, the label is \"c\" (column 3); \
                classes: cat 600 rows, dog 600 rows, emu 600 rows";
    assert_eq!(pets.about, line);
}

#[test]
fn the_column_of_the_label_can_be_named() {
    let text = "class,a,b\n1,5,8\n0,6,9\n1,7,8\n0,5,9\n";
    for label in ["class", "1", "first"] {
        let loaded = loaded("x.csv", text.as_bytes(), Some(label)).expect("loads");
        assert_eq!((loaded.dataset.features, loaded.dataset.classes), (2, 2));
        assert!(loaded.about.contains("header seen, the label is \"class\" (column 1)"), "{}", loaded.about);
    }
    let guessed = loaded("x.csv", text.as_bytes(), None).expect("loads");
    assert!(guessed.about.contains("--label class"), "{}", guessed.about);
    let numbers = loaded("x.csv", b"1990,2000,2010\n1,2,1\n2,3,0\n1,1,1\n", Some("2000")).expect("loads");
    assert_eq!((numbers.dataset.features, numbers.dataset.classes), (2, 3));
    let error = loaded("x.csv", text.as_bytes(), Some("colour")).expect_err("refused").to_string();
    assert!(error.contains("--label \"colour\"") && error.contains("a number from 1 to 3"), "{error}");
    assert!(loaded("x.csv", text.as_bytes(), Some("4")).is_err());
    for other in ["digits", "spirals", "mushrooms"] {
        let error = load_from(other, Some("first")).expect_err("refused").to_string();
        assert!(error.contains("--label"), "{error}");
    }
}

/// An unclosed quote would swallow rows, whether or not another quote follows.
#[test]
fn a_quote_that_is_not_closed_is_an_error() {
    for text in ["1,2,x\n3,4,\"y\n5,6,x\n7,8,y\n", "1,2,x\n3,4,\"y\n5,6,x\n7,8,y", "1,2,x\n3,4,\"y\n5,6,\"x\n7,8,y\n"] {
        let message = error("x.csv", text.as_bytes());
        assert!(message.contains("line 2: a quote opens here that is not closed"), "{message}");
    }
    assert!(error("x.csv", b"1,2,x\n3,4,y\n5,6,\"x").contains("line 3: a quote opens"));
    assert!(error("x.csv", b"\"a,b,c\n1,2,x\n3,4,y\n").contains("line 1: a quote opens"));
    let quoted = loaded("x.csv", b"1,\"2\",\"a, or \"\"b\"\"\"\n3,4,y\n", None).expect("loads");
    assert_eq!((quoted.dataset.features, quoted.dataset.classes), (2, 2));
}

/// Times and identifiers would become one number as f32.
#[test]
fn figures_keep_their_digits_until_they_are_standardised() {
    let rows: String = (0..400).map(|i| format!("{},0.1,{}\n", 1_700_000_000.25 + f64::from(i % 2), i % 2)).collect();
    let loaded = loaded("x.csv", rows.as_bytes(), None).expect("loads");
    let set = &loaded.dataset;
    for (row, class) in set.train.x.chunks(2).zip(&set.train.y) {
        assert!((row[0].abs() - 1.0).abs() < 0.1 && (row[0] > 0.0) == (*class == 1), "{row:?}");
        assert_eq!(row[1], 0.0);
    }
    assert!(loaded.about.contains("1 feature is constant"), "{}", loaded.about);
}

#[test]
fn messages_name_what_is_usual_and_stay_short() {
    for number in ["2,5", "1,012", "1.012,5", "1'012", "1 012", "1\u{a0}012", "1_012"] {
        let found = error("x.csv", format!("1;{number};a\n2;{number};b\n").as_bytes());
        assert!(found.contains("a decimal point, not with a comma, and nothing between thousands"), "{found}");
    }
    assert!(error("x.csv", &[b'7'; 1 << 20]).len() < 300);
    let long = [&[b'x'; 60_000][..], b",1\n1,2\n1,3\n4,5"].concat();
    assert!(error("x.csv", &[b"1,2,1\n", &long[..]].concat()).len() < 300);
    assert!(error("x.csv", b"1,\x1b[31m,1\n1,2,0\n").contains("\\u{1b}[31m"));
    assert!(error("x.csv", b"\xff\xfe1\0,\0").contains("save it as UTF-8"));
    assert!(error("x.csv", b"PK\x03\x04\xff").contains("unpack it"));
    assert!(error("x.csv", &[0; 4096]).contains("not text"));
    assert!(error("a\x1b[31m", b"1,2\n").contains("a\\u{1b}[31m"));
    let wide = [&b"1,".repeat(1_000_001)[..], b"0\n"].concat();
    assert!(error("x.csv", &wide).contains("1,000,002 fields"));
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
        (b"1,2,\n1,2,0\n", "line 1, column 3: the label is missing"),
        (b"1,0.5\n2,1\n", "the label \"0.5\" is not a class"),
        (b"?,?,a\n1,2,b\n", "line 1, column 1: \"?\""),
        (b"", "not one row"),
        (b"a,b,c\n", "not one row"),
        (b"0\n1\n", "no features"),
        (b"1,1\n2,1\n", "at least two classes"),
        // Only `#` begins a comment.
        (b"1,2,0\n//2,3,1\n", "line 2: // begins no comment here: begin the line with #"),
        (b"//a,b,c\n1,2,0\n2,3,1\n", "line 1: // begins no comment"),
        (b"// by hand\n1,2,0\n2,3,1\n", "or begin them with #"),
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
        let file = file(text);
        let sparse = libsvm::parse(&file).expect("parses");
        let base = usize::from(!sparse.has_index_0);
        assert_eq!(sparse.indices - base, features);
        let table = sparse.dense(&file, base, features).expect("is small");
        assert_eq!(table.x, [2.0, 0.0, 4.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]);
        assert_eq!((table.labels.names, table.labels.rows), (vec!["1".to_owned(), "-1".to_owned()], vec![0, 1, 0]));
    }
}

/// If one of the two files has index 0, it is a feature in both.
#[test]
fn libsvm_files_of_a_set_count_from_the_same_index() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    for (train, test, expected) in [
        ("1 0:1\n0 1:1\n", "0 1:1\n", [0.0, 1.0]),
        ("1 1:1\n0 2:1\n", "0 0:1\n", [1.0, 0.0]),
        ("1 1:1\n0 2:1\n", "0 2:1\n", [0.0, 1.0]),
    ] {
        std::fs::write(path("t.train"), train).expect("writes");
        std::fs::write(path("t.test"), test).expect("writes");
        let loaded = load_from(path("t.train").to_str().expect("UTF-8"), None).expect("loads");
        let set = &loaded.dataset;
        assert_eq!(set.test.x[..2], expected, "{train:?}, {test:?}");
        assert_eq!(set.features, if test.contains("0:1") { 3 } else { 2 });
        assert_eq!(loaded.files, [path("t.train"), path("t.test")]);
    }
}

#[test]
fn libsvm_may_have_queries_and_a_mark_and_any_line_ends() {
    let text = "\u{feff}1 qid:3 1:0.5 2:1\n0 qid:3 2:0.25 # a comment\n1 qid:4\n";
    for end in ["\n", "\r\n", "\r"] {
        let loaded = loaded("x.svm", text.replace('\n', end).as_bytes(), None).expect("loads");
        let set = &loaded.dataset;
        assert_eq!((set.features, set.classes, set.train.rows() + set.test.rows()), (2, 2, 3));
        assert!(loaded.about.contains("qid: is left out"), "{}", loaded.about);
    }
}

#[test]
fn libsvm_errors_name_the_place() {
    assert!(error("x", b"1 1:2\n-1 2:1 2:3\n").contains("line 2: feature 2 comes after"));
    assert!(error("x", b"1 1:2\n-1 2:x\n").contains("line 2, feature 2: \"x\" is not a number"));
    assert!(error("x", b"1 1:2\n-1 2:nan\n").contains("line 2, feature 2: the feature \"nan\""));
    assert!(error("x", b"1 1:2\n-1 1:0,5\n").contains("a decimal point"));
    assert!(error("x", b"1 1:2\n-1 nope\n").contains("line 2: \"nope\" is not index:value"));
    assert!(error("x", b"1 1:2\n-1 99999999:1\n").contains("feature 99999999 is above"));
    assert!(error("x", b"1 1:2\ncat 1:1\n").contains("line 2: the label \"cat\""));
    let found = error("x", b"\n2 3 2\n1 1:2\n0 1:1\n");
    assert!(found.contains("line 2: \"2 3 2\" counts rows, features and labels"), "{found}");
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
    assert!(error.to_string().contains("the label \"7\" of the test rows is out of range"));
}

fn idx_of(kind: u8, dimensions: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, kind, dimensions.len() as u8];
    for size in dimensions {
        bytes.extend(size.to_be_bytes());
    }
    bytes.extend(data);
    bytes
}

fn idx(dimensions: &[u32], data: &[u8]) -> Vec<u8> {
    idx_of(8, dimensions, data)
}

/// Reads every type (standardised except for bytes) and names with a dot, and refuses an unknown type.
#[test]
fn idx_files_of_every_type_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: Vec<u8>| std::fs::write(folder.path().join(name), bytes).expect("writes");
    let load = || load_from(folder.path().to_str().expect("UTF-8"), None);
    // Alternating -1 and 1, with classes 0 and 1.
    let values = |bytes: [&[u8]; 2]| bytes.concat().repeat(10);
    for (kind, data) in [
        (0x09, values([&(-1i8).to_be_bytes(), &1i8.to_be_bytes()])),
        (0x0b, values([&(-1i16).to_be_bytes(), &1i16.to_be_bytes()])),
        (0x0c, values([&(-1i32).to_be_bytes(), &1i32.to_be_bytes()])),
        (0x0d, values([&(-1f32).to_be_bytes(), &1f32.to_be_bytes()])),
        (0x0e, values([&(-1f64).to_be_bytes(), &1f64.to_be_bytes()])),
    ] {
        write("train-images.idx3-ubyte", idx_of(kind, &[20, 1, 1], &data));
        write("train-labels.idx1-ubyte", idx_of(kind, &[20], &data));
        let loaded = load().expect("loads");
        let set = &loaded.dataset;
        assert_eq!((set.features, set.classes, set.train.rows()), (1, 2, 16));
        for (x, y) in set.train.x.iter().zip(&set.train.y) {
            assert_eq!(*x > 0.0, *y == 1);
        }
        assert_eq!(loaded.files.len(), 2);
    }
    write("train-images.idx3-ubyte", idx_of(0x0d, &[1, 1, 1], &f32::NAN.to_be_bytes()));
    write("train-labels.idx1-ubyte", idx(&[1], &[0]));
    assert!(load().expect_err("NaN").to_string().contains("image 0: value 0 is not finite"));
    write("train-images.idx3-ubyte", idx_of(0x0a, &[1, 1, 1], &[0]));
    assert!(load().expect_err("no type").to_string().contains("0x0a is no type of IDX"));
    // A file without rows, with more values per row than u64 can count.
    write("train-images.idx3-ubyte", idx(&[0, u32::MAX, u32::MAX, u32::MAX], &[]));
    write("train-labels.idx1-ubyte", idx(&[0], &[]));
    assert!(load().expect_err("empty").to_string().contains("not one row"));
    write("train-images.idx3-ubyte", idx(&[10, 0, 4], &[]));
    write("train-labels.idx1-ubyte", idx(&[10], &[0; 10]));
    assert!(load().expect_err("no pixels").to_string().contains("[10, 0, 4] leave no pixel"));
    // Bytes become the nearest f32 of their multiple of 1/255.
    let all: Vec<u8> = (0..=255).collect();
    write("train-images.idx3-ubyte", idx(&[256, 1, 1], &all));
    write("train-labels.idx1-ubyte", idx(&[256], &all));
    let set = load().expect("loads").dataset;
    for split in [set.train, set.test] {
        assert!(split.x.iter().zip(split.y).all(|(x, y)| *x == y as f32 / 255.0));
    }
}

/// The same number of values in another shape or type is refused.
#[test]
fn test_images_have_the_shape_of_the_training_images() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: Vec<u8>| std::fs::write(folder.path().join(name), bytes).expect("writes");
    write("train-images-idx3-ubyte", idx(&[2, 4, 4], &[7; 32]));
    write("train-labels-idx1-ubyte", idx(&[2], &[0, 1]));
    write("t10k-labels-idx1-ubyte", idx(&[1], &[0]));
    for images in [idx(&[1, 2, 8], &[7; 16]), idx(&[1, 2, 4], &[7; 8]), idx_of(9, &[1, 4, 4], &[7; 16])] {
        write("t10k-images-idx3-ubyte", images);
        let error = load(folder.path().to_str().expect("UTF-8")).expect_err("refused").to_string();
        assert!(error.contains("t10k-images") && error.contains("one shape and type"), "{error}");
    }
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
    // Several gzip members, and the zeros that tapes add.
    let members = [gz(b"1,2,0\n3,4,1\n"), gz(b"5,6,0\n"), vec![0; 512]].concat();
    assert_eq!(load_bytes("x.csv.gz", &members).expect("loads").train.rows(), 2);
    assert!(error("x.csv.gz", &[gz(b"1,2,0\n3,4,1\n"), b"more".to_vec()].concat()).contains("4 bytes behind"));
    for device in ["/dev/zero", "/dev/stdin"].iter().filter(|path| Path::new(path).exists()) {
        assert!(load(device).expect_err("endless").to_string().contains("give a file"));
    }
    let mut damaged = gz(&[b'1'; 1000]);
    damaged.truncate(damaged.len() - 6);
    assert!(error("x.csv.gz", &damaged).contains("x.csv.gz: cannot be read"));
}

/// Runs every reader of text, and the steps that follow.
fn parse_all(file: &File) {
    for label in [None, Some("first"), Some("a")] {
        let mut loader = Loader { label: None, files: Vec::new(), remarks: Vec::new() };
        let parsed = csv::parse(file, label);
        let _ = parsed.and_then(|(table, _)| loader.assemble("fuzz", (file, table), None, Scaling::Standardised));
        let _ = loader.libsvm("fuzz", file, Some(file));
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), magic in 0..3usize) {
        let mut bytes = bytes;
        let prefix: &[u8] = [&b""[..], &[0, 0, 8, 2], b"1 1:"][magic];
        bytes.splice(0..0, prefix.iter().copied());
        let file = File { name: "fuzz".to_owned(), bytes: Cow::Borrowed(&bytes) };
        parse_all(&file);
        let _ = idx::parse(&file, &file);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[-+0-9.,:# \n\"a-z]{0,120}") {
        let file = file(&text);
        parse_all(&file);
    }
}

/// Returns rows of text, each a function of its number.
fn rows(count: usize, row: impl Fn(usize) -> String) -> String {
    (0..count).map(|i| row(i) + "\n").collect()
}

fn class_word(row: usize) -> &'static str {
    ["a", "b"][row % 2]
}

/// Each case has the text of a CSV file, a `--label`, and a part of the expected summary or error.
#[test]
fn csv_files_that_may_be_read_in_two_ways() {
    let numbers = rows(60, |i| format!("{},{},{},{}", i % 9, i % 7, i % 5, i % 2));
    let words = rows(60, |i| format!("{},{},{}", i % 9, i % 5, class_word(i)));
    let mut wrong = Vec::new();
    let places = rows(59, |i| format!("{},{},{},{}", i % 10, i % 7 + 2, i % 5, i % 11));
    for (text, label, told) in [
        // A number is a position, unless the first line has names.
        (format!("5,7,1,3\n{places}"), Some("1"), "60 rows, 3 features, 10 classes, 12 held out; no header"),
        (format!("5,7,1,3\n{places}"), Some("7"), "it is a row and no line of names"),
        (format!("0,1,2,3\n{places}"), Some("1"), "column 2); \"1\" is taken for this name"),
        (words.clone(), Some("a"), "it is a row and no line of names"),
        (
            format!("1st,a\n{}", rows(60, |i| format!("{},{}", i % 9, class_word(i)))),
            Some("a"),
            "header seen, the label is \"a\"",
        ),
        (
            format!("label,x,label\n{words}"),
            Some("label"),
            "2 columns are called so: give the number of one, as in --label 1 or --label 3",
        ),
        (format!("label,x,label\n{words}"), Some("3"), "60 rows"),
        // Lines with # that may be rows.
        (format!("x,y,label\n#N/A,1,a\n{words}"), None, "line 2: \"#N/A\" may begin a comment or a row"),
        (
            format!("x,y,label\n#7,1,a\n{words}"),
            None,
            "60 rows, 2 features, 2 classes, 12 held out; header seen, the label is \"label\" (column 3); 1 row commented out with #",
        ),
        (format!("{words}# so, and so, 5\n#a,b,c\n#1,2\n"), None, "60 rows"),
        (format!("# x,y,5\n#x,y,label\n{words}"), None, "60 rows"),
        (
            format!("tag,x\n{}", rows(60, |i| format!("{},{}", ["#1", "C"][i % 2], i % 9))),
            Some("tag"),
            "line 2: \"#1\" may begin",
        ),
        (
            format!("tag,x\n{}", rows(60, |i| format!("{},{}", ["\"#1\"", "C"][i % 2], i % 9))),
            Some("tag"),
            "classes: #1 30 rows, C 30 rows",
        ),
        // Decimal commas.
        (rows(60, |i| format!("{},{};{}", i % 9, i % 5, class_word(i))), None, "a decimal point"),
        (rows(60, |i| format!("{},{}\t{}", i % 9, i % 5, class_word(i))), None, "a decimal point"),
        (rows(60, |i| format!("{},{} {}", i % 9, class_word(i), class_word(i))), None, "60 rows, 1 feature, 2 classes"),
        // Names that are numbers.
        (format!("2019,2020,2021,2022\n{numbers}"), None, "60 rows, 3 features, 2 classes"),
        (format!("3,4,5,6\n{numbers}"), None, "60 rows, 3 features, 2 classes"),
        (format!("10,20,30,40\n{numbers}"), None, "60 rows, 3 features, 2 classes"),
        (
            format!(
                "0.5,1.5,2.5,spectrum\n{}",
                rows(6, |i| format!("{},{},{},{}", i % 3, i, 7 * i % 5, class_word(i)))
            ),
            None,
            "header seen, the label is \"spectrum\"",
        ),
        (format!("6,5,4,3\n{numbers}"), None, "only the first line has the label \"3\""),
        // A first row with a missing value.
        (format!("missing,missing,a\n{words}"), None, "line 1, column 1: \"missing\" is not a number"),
        (format!("<NA>,missing,a\n{words}"), None, "line 1, column 1: \"<NA>\" is not a number"),
        (
            format!("1.5x,a\n{}", rows(60, |i| format!("{},{}", i % 9, class_word(i)))),
            None,
            "line 1, column 1: \"1.5x\"",
        ),
        (
            format!("length,a\n{}", rows(60, |i| format!("{},{}", i % 9, class_word(i)))),
            None,
            "header seen, the label is \"a\" (column 2); other rows have \"a\" for a label",
        ),
        // Columns that number the rows.
        (
            format!(
                "Unnamed: 0.1,Unnamed: 0,x,label\n{}",
                rows(60, |i| format!("{i},{i},{},{}", i % 9, class_word(i)))
            ),
            None,
            "60 rows, 1 feature,",
        ),
        (format!(",label\n{}", rows(60, |i| format!("{i},{}", class_word(i)))), None, "column 1 numbers the rows"),
        (
            format!("x,Id,label\n{}", rows(60, |i| format!("7,{},{}", i + 1, class_word(i)))),
            None,
            "column 2 numbers the rows",
        ),
        // More labels than are supported.
        (rows(66_000, |i| format!("{},u{i}", i % 7)), None, "more than 65,536 different labels"),
    ] {
        let found = match loaded("x.csv", text.as_bytes(), label) {
            Ok(loaded) => loaded.about,
            Err(error) => error.to_string(),
        };
        let start: String = text.chars().take(30).collect();
        if !found.contains(told) || found.contains('\n') {
            wrong.push(format!("{start:?}, {label:?}, {told:?}: {found}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Files that were joined. No line after a comment is lost, whatever ends the comment.
#[test]
fn lines_may_end_in_several_ways_in_one_file() {
    let csv = rows(60, |i| format!("1,{i},{}", class_word(i)));
    let sparse = rows(30, |i| format!("{} 1:{i} # c", i % 2));
    let (old, dos) = (|text: &str| text.replace('\n', "\r"), |text: &str| text.replace('\n', "\r\n"));
    for (text, told) in [
        (format!("{}#c\r{}\n", old(&csv), old(&csv)), "120 rows"),
        (format!("{}#c\r\n{}#c\n{}", dos(&csv), old(&csv), csv), "180 rows"),
        (format!("{}1 1:1\n{sparse}", old(&sparse)), "61 rows"),
        (format!("{}{}{sparse}", old(&sparse), dos(&sparse)), "90 rows"),
    ] {
        let about = loaded("x", text.as_bytes(), None).expect("loads").about;
        assert!(about.contains(told), "{about}");
    }
    assert!(error("x", format!("{}\nx,y,z", old(&csv)).as_bytes()).contains("line 61"));
}

/// Other faults and formats, tested like [`csv_files_that_may_be_read_in_two_ways`].
#[test]
fn what_is_doubtful_is_told_and_what_is_no_csv_is_named() {
    let words = rows(60, |i| format!("{},{},{}", i % 9, i % 5, class_word(i)));
    let mut wrong = Vec::new();
    let latin = [b"x,caf\xe9,label\n", words.as_bytes()].concat();
    for (bytes, told) in [
        // Labels that may belong to one class.
        (rows(60, |i| format!("{},b{} # note{i}", i % 9, i % 2)).into_bytes(), "are two classes: write them alike"),
        (
            rows(60, |i| format!("{},{}", i % 9, ["True", "true"][i % 2])).into_bytes(),
            "\"true\" and \"True\" are two classes",
        ),
        (
            rows(60, |i| format!("{},{}", i % 9, ["1", "1.0", "x"][i % 3])).into_bytes(),
            "\"1.0\" and \"1\" are two classes",
        ),
        (b"x,label\n1, \"b\"\n2,\"a\"\n3,b\n4,\"a\"\n".to_vec(), "are two classes"),
        ("1,a\n2,b\n3,a\n4,b\u{200b}\n".as_bytes().to_vec(), "\"b\" and \"b\\u{200b}\" are two classes"),
        (rows(60, |i| format!("{},{}", i % 9, ["NA", "x"][i % 2])).into_bytes(), "\"NA\" is a class: remove its rows"),
        // Held-out rows of classes with a single row.
        (b"1,a\n2,b\n".to_vec(), "1 held-out row of classes with no row left for training"),
        // Numbers that f32 cannot distinguish, and tiny ones.
        (
            rows(60, |i| format!("{} 1:{}", i % 2, 1_700_000_000 + 20 * (i % 2))).into_bytes(),
            "feature 1 are so close together",
        ),
        (rows(60, |i| format!("{} 2:{}", i % 2, 17 + 20 * (i % 2))).into_bytes(), "2 classes, 12 held out; classes"),
        // CSV files that resemble LIBSVM.
        (b"x,\"r 1:2\",label\n1,2,a\n2,3,b\n".to_vec(), "2 rows, 2 features"),
        (b"2020-01-01 12:30,5,a\n2020-01-01 12:31,6,b\n".to_vec(), "\"2020-01-01 12:31\" is not a number: features"),
        (b"0,1 1:2\n1 1:3\n".to_vec(), "is several labels: give every row one class"),
        // Other formats and conventions.
        ([b"sep=;\n", words.replace(',', ";").as_bytes()].concat(), "separated by semicolons"),
        (b"<!DOCTYPE html>\n<a>".to_vec(), "it is HTML or XML: save it as CSV"),
        (b"[{\"x\": 1}]".to_vec(), "it is JSON: save it as CSV"),
        (b"@RELATION iris\n".to_vec(), "it is ARFF: save it as CSV"),
        (
            b"x,label\n1,3,a\n2,3,b\n".to_vec(),
            "line 2: 3 fields where the lines before have 2: give every column a name",
        ),
        ([words.as_bytes(), b",,\n"].concat(), "line 61, column 3: every field of this line is empty"),
        (b"1,2,a,\n2,3,b,\n".to_vec(), "if all lines end with a separator, remove it"),
        (latin, "save it as UTF-8"),
        (b"x,label\n1, \"b\"\n2,\"a\"\n3, \"b\"\n4,\"a\"\n".to_vec(), "has quotes of its own"),
        (b"% by hand\n\n@relation x\n".to_vec(), "it is ARFF"),
        (b"[\n{\"x\": 1}]".to_vec(), "it is JSON"),
        ([b"My data\nx,y,label\n", words.as_bytes()].concat(), "remove the lines before the names"),
        (
            format!("x,y,label\n{words}x,y,label\n{words}").into_bytes(),
            "line 62: this is the line of names once more: remove it",
        ),
        (
            rows(60, |i| format!("{},{}", 1_700_000_000_000_000_000 + i, i % 2)).into_bytes(),
            "feature 1 are so close together",
        ),
        (gz(&gz(words.as_bytes())), "packed by gzip twice"),
        ([gz(words.as_bytes()), b"\n".to_vec()].concat(), "60 rows"),
        (b"x\x9c\xff\x00".to_vec(), "packed by zlib"),
        (format!("1{} 1:1\n2.5 1:1\n", "0".repeat(60_000)).into_bytes(), "is not a class"),
    ] {
        let found = match loaded("x.csv", &bytes, None) {
            Ok(loaded) => loaded.about,
            Err(error) => error.to_string(),
        };
        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(30)]);
        if !found.contains(told) || found.contains('\n') || found.len() > 600 {
            wrong.push(format!("{start:?}, {told:?}: {found}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A class with one row is used for training if another class can spare one. Numbers whose squares are 0 are
/// distinguished.
#[test]
fn rare_classes_are_trained_on_and_tiny_figures_are_told_apart() {
    let text =
        rows(60, |i| format!("{}e-170,{}", 1 + i % 2, if i < 48 { class_word(i).to_owned() } else { format!("c{i}") }));
    let loaded = loaded("x.csv", text.as_bytes(), None).expect("loads");
    let set = &loaded.dataset;
    assert!((0..set.classes as u32).all(|class| set.train.y.contains(&class)), "{}", loaded.about);
    assert!(!loaded.about.contains("held-out") && !loaded.about.contains("constant"), "{}", loaded.about);
    assert_eq!(set.test.rows(), 12);
    assert!(set.train.x.iter().all(|x| (0.5..2.0).contains(&x.abs())), "{:?}", set.train.x);
}

/// File names are bytes.
#[cfg(target_os = "linux")]
#[test]
fn a_path_need_not_be_utf_8() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"caf\xe9.csv"));
    std::fs::write(&path, "1,2,0\n3,4,1\n5,6,0\n").expect("writes");
    assert_eq!(load(&path).expect("loads").features, 2);
}

/// Of two related files the one packed like the given file is taken. Test images may be spelled in any way.
#[test]
fn the_files_that_belong_together_are_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let write = |name: &str, bytes: &[u8]| std::fs::write(path(name), bytes).expect("writes");
    for (name, bytes) in [("x.train", &b"1 1:1\n0 1:2\n"[..]), ("x.test", b"1 1:1\n")] {
        write(name, bytes);
        write(&format!("{name}.gz"), &gz(bytes));
    }
    write("y.train", b"1 1:1\n0 1:2\n");
    write("y.test", b"1.5 1:1\n");
    for name in ["x.train", "x.train.gz"] {
        let files = load_from(path(name).to_str().expect("UTF-8"), None).expect("loads").files;
        assert_eq!(files, [path(name), path(&name.replace("train", "test"))]);
    }
    let error = load(path("y.train").to_str().expect("UTF-8")).expect_err("refused").to_string();
    assert!(error.contains("y.test: the label \"1.5\""), "{error}");
    let images = "train-images-idx3-ubyte";
    write(images, &idx(&[3, 1, 2], &[0, 255, 51, 0, 1, 2]));
    write("train-labels-idx1-ubyte", &idx(&[3], &[4, 9, 4]));
    write("t10k-labels.idx1-ubyte", &idx(&[1], &[9]));
    let load = |name: &str| load_from(path(name).to_str().expect("UTF-8"), None);
    let about = load(images).expect("holds out").about;
    assert!(about.contains("1 held out") && about.contains("t10k-labels.idx1-ubyte has no test images"), "{about}");
    write("t10k-images.idx3-ubyte", &idx(&[1, 1, 2], &[255, 0]));
    for name in [images, ""] {
        let loaded = load(name).expect("loads");
        assert!(loaded.about.contains("1 for testing") && loaded.files.len() == 4, "{}", loaded.about);
    }
    assert!(load("train-labels-idx1-ubyte").expect_err("labels").to_string().contains("give the file of images"));
}
