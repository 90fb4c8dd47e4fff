//! Summary of a comparison: for each rule and regime its mean and worst distance from each reference.

use serde::Serialize;

use super::super::options::{RuleName, name_of};
use super::cases::{REFERENCES, Variant};
use super::results::Results;
use super::tables::{markdown_row, points_in_words, tenths_in_words};
use crate::CliError;
use crate::table::{Columns, say};
use crate::words::count;

/// Points below a reference that are reported, and that count as a failure.
const NOTICEABLE: f64 = 0.5;
const BAD: f64 = 2.0;

/// References: those with a row in the tables, and the fixed rates without averages.
const AGAINST: [&str; 3] = [REFERENCES[0].1, REFERENCES[1].1, "best fixed, last"];

/// Comparison of a rule and a regime with a reference, over all data and settings.
#[derive(Debug, Clone, Serialize)]
pub struct Overall {
    /// Name of the rule, or `all` for every rule.
    pub rule: String,
    pub rate_from: String,
    pub against: &'static str,
    /// Number of combinations of data, setting and rule that were compared.
    pub compared: usize,
    /// Mean accuracy minus the reference, in points.
    pub mean: f64,
    pub worst: f64,
    pub worst_at: String,
    /// Fractions from 0 to 1.
    pub more_than_half_a_point_below: f64,
    pub more_than_two_points_below: f64,
    pub diverged: usize,
}

/// Data set, setting and rule.
struct Place {
    name: String,
    /// Points above each of the references in [`AGAINST`].
    above: [f64; 3],
    diverged: usize,
}

/// Returns the summaries of every row except the best rates: for each rule, then for all of them, against each
/// reference.
pub fn overall(results: &Results) -> Vec<Overall> {
    let rules = &results.comparison.args.compare.rules;
    let mut all = Vec::new();
    for &row in &results.comparison.variants {
        let places: Vec<Vec<Place>> = rules.iter().map(|&rule| places(results, rule, row)).collect();
        for (&rule, places) in rules.iter().zip(&places) {
            all.extend(against_each(name_of(rule), row, &places.iter().collect::<Vec<_>>()));
        }
        if rules.len() > 1 {
            let every: Vec<&Place> = places.iter().flatten().collect();
            all.extend(against_each("all".to_owned(), row, &every));
        }
    }
    all
}

fn places(results: &Results, rule: RuleName, row: Variant) -> Vec<Place> {
    let of_rule = results.comparison.places().filter(|place| place.rule == rule);
    let places = of_rule.filter_map(|place| {
        let (cell, [fixed, cosine]) = results.at(place, row)?;
        let above = [fixed, cosine, results.above_last(cell)?];
        let data = &results.comparison.subjects[place.data].dataset.name;
        Some(Place { name: format!("{data} {}, {}", place.setting, name_of(rule)), above, diverged: cell.diverged() })
    });
    places.collect()
}

fn against_each(rule: String, row: Variant, places: &[&Place]) -> Vec<Overall> {
    let count = places.len() as f64;
    let one = |(index, against): (usize, &'static str)| {
        let points = || places.iter().map(|place| place.above[index]);
        let below = |limit: f64| points().filter(|&points| points < -limit).count() as f64 / count;
        let worst = places.iter().min_by(|a, b| a.above[index].total_cmp(&b.above[index]))?;
        Some(Overall {
            rule: rule.clone(),
            rate_from: row.to_string(),
            against,
            compared: places.len(),
            mean: points().sum::<f64>() / count,
            worst: worst.above[index],
            worst_at: worst.name.clone(),
            more_than_half_a_point_below: below(NOTICEABLE),
            more_than_two_points_below: below(BAD),
            diverged: places.iter().map(|place| place.diverged).sum(),
        })
    };
    AGAINST.into_iter().enumerate().filter_map(one).collect()
}

pub const HEADER: [&str; 8] = ["rule", "rate from", "against", "mean", "worst", "worst at", "> 0.5 below", "> 2 below"];

/// Returns a row of the table. `points` formats its points.
pub fn cells(overall: &Overall, points: fn(f64) -> String) -> [String; 8] {
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    [
        overall.rule.clone(),
        overall.rate_from.clone(),
        overall.against.to_owned(),
        points(overall.mean),
        points(overall.worst),
        overall.worst_at.clone(),
        percent(overall.more_than_half_a_point_below),
        percent(overall.more_than_two_points_below),
    ]
}

pub fn title(results: &Results) -> String {
    let subjects = &results.comparison.subjects;
    let settings = results.comparison.tables().count();
    format!(
        "all together: points above the references, over {} at {} in all",
        count(subjects.len() as u64, "data set"),
        count(settings as u64, "setting")
    )
}

pub fn print(results: &Results) -> Result<(), CliError> {
    say(title(results))?;
    let mut table = Columns::new(&HEADER, 3);
    overall(results).iter().for_each(|line| table.row(cells(line, points_in_words)));
    table.print_narrow()
}

pub fn print_markdown(results: &Results) -> Result<(), CliError> {
    say(format!("\n{}:\n", title(results)))?;
    say(markdown_row(&HEADER.map(str::to_owned)))?;
    say(format!("|{}", "---|".repeat(HEADER.len())))?;
    let lines = overall(results);
    lines.iter().try_for_each(|line| say(markdown_row(&cells(line, tenths_in_words))))
}
