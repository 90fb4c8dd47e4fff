//! `train --compare --report FILE.html`: the tables, and for each a chart of the accuracy over the grid of fixed rates with the
//! regimes as lines across, on one page that needs nothing else.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::super::create_file;
use super::{REFERENCES, RuleName, name_of, rate_in_words, summary};
use super::{Results, Setting, Variant, accuracy_in_words, grid, loss_in_words, points_in_words};
use crate::CliError;
use crate::page::{COLORS, bounds, escaped};

/// A chart's panel in pixels; three of them fit a window 1280 pixels wide.
const PANEL: (u32, u32) = (400, 340);
/// Panels side by side.
const PANELS: usize = 3;
/// Height of the legend.
const HEAD: u32 = 60;
const GRID: RGBColor = RGBColor(60, 60, 60);
const COSINE: RGBColor = RGBColor(160, 160, 160);
/// The page to be, opened before anything is trained.
pub struct ReportFile {
    path: String,
    file: File,
}

impl ReportFile {
    /// Opens the file.
    pub fn create(path: &Path) -> Result<Self, CliError> {
        let name = path.display().to_string();
        // With its own ending it cannot be one of the data files by mistake.
        if !name.ends_with(".html") {
            return Err(CliError::Usage(format!("--report {name}: the report is a page, give it the ending .html")));
        }
        Ok(ReportFile { file: create_file("--report", path)?, path: name })
    }

    /// Writes the page.
    pub fn write(mut self, results: &Results) -> Result<(), CliError> {
        page(results)
            .and_then(|page| {
                let written = self.file.write_all(page.as_bytes());
                written.map_err(|error| error.to_string())
            })
            .map_err(|message| CliError::Write { path: self.path, message })
    }
}

fn page(results: &Results) -> Result<String, String> {
    let comparison = results.comparison;
    let mut body = String::new();
    for data in 0..comparison.subjects.len() {
        for &setting in &comparison.subjects[data].settings {
            body += &format!("<h2>{}</h2>\n", escaped(&results.title(data, setting)));
            body += &table(results, data, setting);
            body += &plot(results, data, setting)?;
        }
    }
    body += &format!("<h2>{}</h2>\n{}", escaped(&summary::title(results)), overall_table(results));
    let caption: String = results.caption().iter().map(|line| format!("<li>{}</li>\n", escaped(line))).collect();
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>wgpu-optim train --compare</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>wgpu-optim train --compare</h1>\n{body}<ul>\n{caption}</ul>\n\
         </body>\n</html>\n"
    ))
}

/// The same as on the terminal.
fn overall_table(results: &Results) -> String {
    let row = |tag: &str, cells: &[String]| -> String {
        let cells = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell)));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let head = row("th", &summary::HEADER.map(str::to_owned));
    let lines = summary::overall(results);
    let body: String = lines.iter().map(|line| row("td", &summary::cells(line, points_in_words))).collect();
    format!("<table>\n<thead>{head}</thead>\n<tbody>\n{body}</tbody>\n</table>\n")
}

fn table(results: &Results, data: usize, setting: Setting) -> String {
    let rules = &results.comparison.args.compare.rules;
    let head: String = rules
        .iter()
        .map(|&rule| format!("<th>{}</th><th>loss</th><th>to fixed</th><th>to cosine</th>", name_of(rule)))
        .collect();
    let mut body = String::new();
    for row in results.rows() {
        body += &format!("<tr><td>{row}</td>");
        for &rule in rules {
            let Some((cell, above)) = results.at(data, setting, rule, row) else {
                body += "<td></td><td></td><td></td><td></td>";
                continue;
            };
            let rate = cell.case.variant.lr.map(rate_in_words);
            let rate = rate.map(|rate| format!(" (at {rate})")).unwrap_or_default();
            body += &format!(
                "<td>{}{rate}</td><td>{}</td><td>{}</td><td>{}</td>",
                accuracy_in_words(cell, 2),
                loss_in_words(cell.loss()),
                points_in_words(above[0]),
                points_in_words(above[1])
            );
        }
        body += "</tr>\n";
    }
    format!("<table>\n<thead><tr><th>rate from</th>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n")
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type DrawError<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

fn font(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&BLACK)
}

fn plot(results: &Results, data: usize, setting: Setting) -> Result<String, String> {
    let rules = &results.comparison.args.compare.rules;
    let columns = rules.len().min(PANELS);
    let lines = rules.len().div_ceil(columns.max(1));
    let mut svg = String::new();
    {
        let size = (PANEL.0 * PANELS as u32, PANEL.1 * lines as u32 + HEAD);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let drawn = draw(&root, results, (data, setting), (lines, columns));
        drawn.map_err(|error| error.to_string())?;
        root.present().map_err(|error| error.to_string())?;
    }
    Ok(svg)
}

fn draw<'a>(
    root: &Area<'a>,
    results: &Results,
    (data, setting): (usize, Setting),
    panels: (usize, usize),
) -> Result<(), DrawError<'a>> {
    root.fill(&WHITE)?;
    let (head, body) = root.split_vertically(HEAD);
    let regimes: Vec<(Variant, RGBColor)> =
        results.comparison.variants.iter().copied().zip(COLORS.iter().copied().cycle()).collect();
    let mut labels = vec![("fixed rates".to_owned(), GRID), ("with warm-up and cosine".to_owned(), COSINE)];
    labels.extend(regimes.iter().map(|(row, color)| (row.to_string(), *color)));
    let (mut x, mut y) = (14, 16);
    for (label, color) in labels {
        // The label's width is a guess, no font is at hand.
        let width = 60 + 8 * label.chars().count() as i32;
        if x + width > (PANEL.0 as i32) * PANELS as i32 {
            x = 14;
            y += 20;
        }
        let style = ShapeStyle::from(color).stroke_width(2);
        head.draw(&PathElement::new(vec![(x, y), (x + 30, y)], style))?;
        head.draw(&Text::new(label, (x + 36, y - 7), font(14)))?;
        x += width;
    }
    let areas = body.split_evenly(panels);
    let rules = &results.comparison.args.compare.rules;
    for (&rule, area) in rules.iter().zip(&areas) {
        draw_panel(area, results, (data, setting, rule), &regimes)?;
    }
    Ok(())
}

fn draw_panel<'a>(
    area: &Area<'a>,
    results: &Results,
    (data, setting, rule): (usize, Setting, RuleName),
    regimes: &[(Variant, RGBColor)],
) -> Result<(), DrawError<'a>> {
    let curves = [GRID, COSINE].into_iter().zip(REFERENCES).map(|(color, schedule)| {
        let cells = grid(&results.cells, data, setting, rule, schedule);
        let mut points: Vec<(f64, f64)> = cells
            .filter_map(|cell| {
                let rate = f64::from(cell.case.variant.lr?);
                Some((rate.log10(), 100.0 * cell.accuracy()))
            })
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        (color, points)
    });
    let curves: Vec<(RGBColor, Vec<(f64, f64)>)> = curves.collect();
    let rates = curves.iter().flat_map(|(_, points)| points).map(|point| point.0);
    let range = bounds(rates, 0.2);
    let (low, high) = (range.start, range.end);
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .caption(name_of(rule), font(16))
        .x_label_area_size(40)
        .y_label_area_size(46)
        .build_cartesian_2d(low..high, 0.0..102.0)?;
    chart
        .configure_mesh()
        .x_desc("learning rate, or its peak")
        .y_desc("test accuracy, %")
        .label_style(font(12))
        .axis_desc_style(font(13))
        .bold_line_style(RGBColor(215, 215, 215))
        .light_line_style(TRANSPARENT)
        .x_labels(7)
        .x_label_formatter(&|rate| format!("10^{rate:.1}").replace(".0", ""))
        .draw()?;
    for &(row, color) in regimes {
        if let Some((cell, _)) = results.at(data, setting, rule, row) {
            let accuracy = 100.0 * cell.accuracy();
            let style = ShapeStyle::from(color).stroke_width(2);
            chart.draw_series(LineSeries::new([(low, accuracy), (high, accuracy)], style))?;
        }
    }
    for (color, points) in &curves {
        let style = ShapeStyle::from(color).stroke_width(2);
        chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
        let dot = ShapeStyle::from(color).filled();
        chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, dot)))?;
    }
    Ok(())
}

const STYLE: &str = "
body { font: 14px/1.45 sans-serif; color: #111; background: #fff; max-width: 1240px; margin: 0 auto; padding: 16px; }
h1 { font-size: 20px; }
h2 { font-size: 16px; margin-top: 32px; }
svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th { text-align: right; border-bottom: 2px solid #888; }
th, td { padding: 2px 8px; }
td { text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e4e4; }
th:first-child, td:first-child { text-align: left; }
";
