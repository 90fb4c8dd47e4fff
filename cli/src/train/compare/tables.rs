//! Tables of a comparison, on the terminal and in Markdown, with their explanations.

use wgpu_optim::Rule;

use super::super::given_in_words;
use super::super::options::{AverageName, RuleName, ScheduleName, name_of};
use super::cases::{Place, Variant};
use super::results::{Cell, Results, best_fixed, end_of_grid};
use super::{Setting, summary};
use crate::CliError;
use crate::table::{Columns, say};
use crate::words::count;

/// Width of the widest table, which fits a window of 80 columns.
const TABLE_WIDTH: usize = 80;
/// Width of one rule's columns in a table: `100.00 ±0.00`, `00.0000`, `to fixed` and `to cosine` with their frames.
const RULE_WIDTH: usize = 15 + 10 + 11 + 12;

pub fn title(results: &Results, data: usize, setting: Setting) -> String {
    let subject = &results.comparison.subjects[data];
    format!(
        "{} on {}, batch {}, {}, {}",
        subject.model,
        subject.dataset.name,
        setting.batch,
        count(u64::from(setting.epochs), "epoch"),
        subject.target.adapter()
    )
}

/// Explains the columns, and lists the rates from which the best was chosen.
pub fn caption(results: &Results) -> Vec<String> {
    let comparison = results.comparison;
    let options = &comparison.args.compare;
    let seeds = options.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let (accuracy, loss) = match options.seeds.len() {
        1 => ("seed", ""),
        _ => ("mean ± sample deviation of seeds", ", mean"),
    };
    let mut lines = vec![
        format!("accuracy: percent of the test rows, {accuracy} {seeds}"),
        format!("loss: over the training rows after the last step{loss}"),
        "to fixed: points of accuracy above (+) or below (-) the best of the fixed rates".to_owned(),
        "to cosine: the same against the best peak of these rates, with warm-up over 5 % of the steps and a cosine down to 0"
            .to_owned(),
        "both are chosen on the test rows, and the better of last iterate and polynomial average counts: this favours them"
            .to_owned(),
        "best fixed, last: the best of the fixed rates by their last iterates alone, as a run without averages has them".to_owned(),
        "a run that diverged counts as if it had answered with the most frequent class".to_owned(),
    ];
    let further = if options.lrs.is_some() { "" } else { ", further where the best is at an end" };
    for &rule in &options.rules {
        let rates: Vec<String> = comparison.rates(rule).iter().copied().map(rate_in_words).collect();
        let averages = averages_in_words(results, rule);
        lines.push(format!("{}: {}{further}; regimes are judged by their {averages}", name_of(rule), rates.join(", ")));
    }
    lines
}

/// Describes the averages by which the regimes with this rule are judged.
fn averages_in_words(results: &Results, rule: RuleName) -> String {
    let mut averages: Vec<String> = Vec::new();
    for variant in results.comparison.variants_of(rule) {
        let average = results.comparison.options_of(rule, variant).averaged();
        let words = match (rule, average) {
            (RuleName(Rule::AdamW(_)), Some(AverageName::ScheduleFree)) => {
                "schedule-free average with beta1 = 0".to_owned()
            }
            _ => average.map_or("last iterate".to_owned(), |average| format!("{} average", name_of(average))),
        };
        if !averages.contains(&words) {
            averages.push(words);
        }
    }
    averages.join(" or ")
}

pub fn print(results: &Results) -> Result<(), CliError> {
    for (data, setting) in results.comparison.tables() {
        say(title(results, data, setting))?;
        print_table(results, data, setting)?;
    }
    summary::print(results)?;
    caption(results).into_iter().try_for_each(say)
}

/// Prints a table. If its rules do not fit a window, it is split into several tables.
fn print_table(results: &Results, data: usize, setting: Setting) -> Result<(), CliError> {
    let rows = results.rows();
    let label_width = rows.iter().map(|row| row.to_string().chars().count() + 4).max().unwrap_or(0);
    let rules_per_table = (TABLE_WIDTH.saturating_sub(label_width) / RULE_WIDTH).max(1);
    let mut notes = Vec::new();
    for rules in results.comparison.args.compare.rules.chunks(rules_per_table) {
        let mut table = Columns::new(&header(rules), 1);
        for &row in &rows {
            let mut cells = vec![row.to_string()];
            let mut its_rate = vec!["  its rate".to_owned()];
            for &rule in rules {
                let place = Place { data, setting, rule };
                let found = results.at(place, row);
                cells.extend(found.map_or_else(Default::default, |(cell, above)| cells_of(cell, above)));
                if let Some((cell, _)) = found.filter(|(cell, _)| cell.diverged() > 0) {
                    notes.push(format!(
                        "{}, {row}: {} of {} runs diverged, and count as the most frequent class",
                        name_of(rule),
                        cell.diverged(),
                        cell.runs.len()
                    ));
                }
                let rate = found.and_then(|(cell, _)| cell.case.variant.lr).map(rate_in_words);
                its_rate.extend([rate.unwrap_or_default(), String::new(), String::new(), String::new()]);
            }
            table.row(cells);
            if row.is_fixed() && row.gradient_scale == 1.0 {
                table.row(its_rate);
                let places = rules.iter().map(|&rule| Place { data, setting, rule });
                notes.extend(places.filter_map(|place| edge_of_grid(results, place, row.schedule)));
            }
        }
        table.print_narrow()?;
    }
    notes.into_iter().try_for_each(say)
}

pub fn header(rules: &[RuleName]) -> Vec<String> {
    let columns = rules.iter().flat_map(|&rule| [name_of(rule), "loss".into(), "to fixed".into(), "to cosine".into()]);
    ["rate from".to_owned()].into_iter().chain(columns).collect()
}

/// Returns the cells of a row and a rule.
pub fn cells_of(cell: &Cell, above: [f64; 2]) -> [String; 4] {
    let [fixed, cosine] = above.map(points_in_words);
    [accuracy_in_words(cell, 2), loss_in_words(cell.loss()), fixed, cosine]
}

/// Returns a note if the best rate is at the end of its grid. A better rate may then exist, and the comparison favours
/// the regimes.
fn edge_of_grid(results: &Results, place: Place, schedule: ScheduleName) -> Option<String> {
    // If all rates diverged, there is no best one.
    best_fixed(&results.cells, place, schedule).filter(|best| best.diverged() < best.runs.len())?;
    let (rate, is_upper) = end_of_grid(&results.cells, place, schedule)?;
    Some(format!(
        "{}, {}: {} is at the {} end of its grid, a wider one (--lrs) may have a better one",
        name_of(place.rule),
        Variant::fixed(rate, schedule, 1.0),
        rate_in_words(rate),
        if is_upper { "upper" } else { "lower" }
    ))
}

/// Returns a row of Markdown. A vertical bar in a file's name would end the cell.
pub fn markdown_row(cells: &[String]) -> String {
    let cells = cells.iter().map(|cell| match cell.as_str() {
        "" => "| ".to_owned(),
        cell => format!("| {} ", cell.replace('|', "\\|")),
    });
    cells.collect::<String>() + "|"
}

/// Prints a row for each data set, setting and variant, with a column for each rule.
pub fn print_markdown(results: &Results) -> Result<(), CliError> {
    let comparison = results.comparison;
    let rules = &comparison.args.compare.rules;
    let names: Vec<String> = rules.iter().map(|&rule| name_of(rule).to_uppercase()).collect();
    say(format!("| data | batch, epochs | rate from | {} |", names.join(" | ")))?;
    say(format!("|{}", "---|".repeat(3 + rules.len())))?;
    let mut named = None;
    for (data, setting) in comparison.tables() {
        for (index, row) in results.rows().into_iter().enumerate() {
            // A name appears only in its first row, as in a merged cell.
            let is_new = named.replace(data) != Some(data);
            let mut cells = vec![
                if is_new { comparison.subjects[data].dataset.name.clone() } else { String::new() },
                if index == 0 { format!("{}, {}", setting.batch, setting.epochs) } else { String::new() },
                row.to_string(),
            ];
            cells.extend(rules.iter().map(|&rule| markdown_cell(results, Place { data, setting, rule }, row)));
            say(markdown_row(&cells))?;
        }
    }
    summary::print_markdown(results)?;
    say("")?;
    let mut notes = caption(results);
    for place in comparison.places() {
        // The title names the machine and is left out, because the figures are the same on all machines.
        let name = &comparison.subjects[place.data].dataset.name;
        let edges = comparison.fixed_schedules().filter_map(|schedule| edge_of_grid(results, place, schedule));
        notes.extend(edges.map(|note| format!("{name} {}, {note}", place.setting)));
    }
    notes.into_iter().try_for_each(|line| say(format!("- {line}")))
}

/// Returns the accuracy to a tenth of a percent, and for a regime the points above or below the references. It is bold
/// if it is a point or more below the best fixed rate.
fn markdown_cell(results: &Results, place: Place, row: Variant) -> String {
    let Some((cell, above)) = results.at(place, row) else {
        return String::new();
    };
    let mut accuracy = accuracy_in_words(cell, 1);
    if (1..cell.runs.len()).contains(&cell.diverged()) {
        accuracy += &format!(", {} of {} diverged", cell.diverged(), cell.runs.len());
    }
    match cell.case.variant.lr {
        Some(lr) if row.gradient_scale == 1.0 => format!("{accuracy} (at {})", rate_in_words(lr)),
        _ => {
            let bold = if above[0] <= -1.0 { "**" } else { "" };
            format!("{bold}{accuracy}{bold} ({})", above.map(tenths_in_words).join(", "))
        }
    }
}

fn accuracy_in_words(cell: &Cell, digits: usize) -> String {
    if cell.diverged() == cell.runs.len() {
        return "diverged".to_owned();
    }
    let accuracy = 100.0 * cell.accuracy();
    match cell.deviation() {
        Some(deviation) => format!("{accuracy:.digits$} ±{:.digits$}", 100.0 * deviation),
        None => format!("{accuracy:.digits$}"),
    }
}

fn loss_in_words(loss: f64) -> String {
    if loss.is_finite() && !(1e-4..100.0).contains(&loss) { format!("{loss:.1e}") } else { format!("{loss:.4}") }
}

/// Formats points with their sign, unless they round to zero.
pub fn points_in_words(points: f64) -> String {
    if points.abs() < 0.005 { "0.00".to_owned() } else { format!("{points:+.2}") }
}

/// Formats points with their sign to a tenth of a point.
pub fn tenths_in_words(points: f64) -> String {
    if points.abs() < 0.05 { "0.0".to_owned() } else { format!("{points:+.1}") }
}

pub fn rate_in_words(rate: f32) -> String {
    given_in_words(rate)
}
