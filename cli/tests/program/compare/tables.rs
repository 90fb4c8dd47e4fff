//! Tables and reports, and refused input.

use super::{COMPARE, SMALL, printed, refused};
use crate::command::words;

#[test]
fn tables_can_be_read_at_120_columns_and_markdown_has_its_columns() {
    let rules = "sgd,sgdm,nesterov,signsgd,signum";
    let several = format!("{COMPARE} --epochs 1 --lrs 0.1 --seeds 0 --rules {rules} --data digits,mushrooms");
    let text = printed("2", &several);
    for line in text.lines().filter(|line| line.starts_with(['┌', '│'])) {
        assert!(line.chars().count() <= 120, "{line}");
    }
    for words in ["chosen on the test rows", "hypergradient", "end of its grid", "all together"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let text = printed("2", &format!("{several} --markdown"));
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[2].starts_with("| digits | 64, 1 | best fixed | "), "{text}");
    assert!(lines[3].starts_with("| | | best cosine | "), "{text}");
    assert!(lines[4].starts_with("| | | seesaw | "), "{text}");
    // The output has a table of every row, a table of all of them together, and notes.
    let mut tables = lines.split(|line| line.is_empty());
    let bars = |table: &[&str], count: usize| {
        for line in table {
            assert_eq!(line.matches('|').count(), count, "{line}");
        }
    };
    bars(tables.next().expect("a table"), 3 + 5 + 1);
    let title = tables.next().expect("a title");
    assert!(title[0].starts_with("all together") && title[0].ends_with(':'));
    bars(tables.next().expect("a table"), 8 + 1);
    let notes = tables.next().expect("notes");
    assert!(notes.iter().all(|line| line.starts_with("- ")), "{notes:?}");
    assert!(tables.next().is_none());
}

#[test]
fn the_report_has_a_table_and_a_chart_and_needs_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("page.html");
    let path = path.to_str().expect("UTF-8");
    printed("2", &format!("{COMPARE} {SMALL} --report {path}"));
    let page = std::fs::read_to_string(path).expect("reads");
    for (what, count) in [("<table>", 2), ("<svg ", 1), ("src=", 0), ("href=", 0)] {
        assert_eq!(page.matches(what).count(), count, "{what}");
    }
    assert!(page.contains("norm-ratio") && page.contains("(at 0.3)"));
    assert!(page.contains("<dt>date</dt><dd>20"), "{page}");
    refused("--compare --report /no/such/folder/x.html", &["--report", "folder"]);
}

#[test]
fn bad_input_ends_in_one_line_before_anything_runs() {
    // Options that need --compare are refused without it, and options that it replaces are refused with it.
    for option in ["--rules sgd", "--seeds 1", "--first-steps 1"] {
        refused(option, &["--compare"]);
    }
    for option in ["--rule sgd", "--regime seesaw", "--schedule step", "--seed 1"] {
        refused(&format!("--compare {option}"), &["--compare", words(option)[0]]);
    }
    for (args, words) in [
        ("--regimes fixed", &["--regimes", "--lrs"][..]),
        ("--rules adadelta", &["adadelta", "sgdm"]),
        ("--settings 64", &["64", "64x10"]),
        ("--settings 0x3", &["0x3", "at least 1"]),
        ("--settings 64x1 --batch 32", &["--batch"]),
        ("--lrs 0.1,-1", &["learning rate", "-1"]),
        ("--lrs 0.1,0.1", &["--lrs", "0.1", "twice"]),
        ("--schedules step,step", &["--schedules", "twice"]),
        ("--seeds 1,1", &["--seeds", "twice"]),
        ("--data digits,nowhere", &["nowhere", "no such file"]),
        ("--data digits,", &["--data", "empty name"]),
        ("--first-steps 0", &["first_step", "above 0"]),
        ("--gradient-scales 0", &["--gradient-scales", "above 0"]),
        ("--json --markdown", &["--json", "--markdown"]),
        ("--regimes auto-sgd --rules sgdm,nesterov", &["auto-sgd", "sgdm"]),
        ("--gradient-scales 10 --backend vulkan", &["--gradient-scales", "--backend cpu"]),
    ] {
        refused(&format!("--compare {args}"), words);
    }
}
