//! `train --compare --report FILE.html`: a self-contained page with the tables, and for each a chart of the accuracy
//! over the grid of fixed rates with the regimes as horizontal lines.

use plotters::prelude::*;

use super::super::options::name_of;
use super::cases::{Place, REFERENCES, Variant};
use super::results::{Cell, Results, grid};
use super::tables::{caption, cells_of, header, points_in_words, rate_in_words, title};
use super::{Setting, summary};
use crate::page::{self, Area, Axis, COLORS, DrawError, escaped, font};

/// Size of a chart's panel in pixels. Three of them fit a window 1280 pixels wide.
const PANEL: (u32, u32) = (400, 340);
const PANELS: usize = 3;
const HEAD: u32 = 60;
const GRID: RGBColor = RGBColor(60, 60, 60);
const COSINE: RGBColor = RGBColor(160, 160, 160);

pub fn page(results: &Results) -> Result<String, String> {
    let title_of_page = "wgpu-optim train --compare";
    let mut body = format!("<h1>{title_of_page}</h1>\n{}", page::facts(&page::origin()));
    for (data, setting) in results.comparison.tables() {
        body += &format!("<h2>{}</h2>\n", escaped(&title(results, data, setting)));
        body += &table(results, data, setting);
        body += &plot(results, data, setting)?;
    }
    body += &format!("<h2>{}</h2>\n{}", escaped(&summary::title(results)), overall_table(results));
    body += &format!("<ul>\n{}</ul>\n", page::items(caption(results)));
    Ok(page::page(title_of_page, STYLE, &body))
}

/// Returns the same table as on the terminal.
fn overall_table(results: &Results) -> String {
    let row = |tag: &str, cells: &[String]| page::row(tag, cells, usize::MAX) + "\n";
    let head = row("th", &summary::HEADER.map(str::to_owned));
    let lines = summary::overall(results);
    let body: String = lines.iter().map(|line| row("td", &summary::cells(line, points_in_words))).collect();
    format!("<table>\n<thead>{head}</thead>\n<tbody>\n{body}</tbody>\n</table>\n")
}

fn table(results: &Results, data: usize, setting: Setting) -> String {
    let rules = &results.comparison.args.compare.rules;
    let cells_of_row = |row: Variant| {
        let of_rules = rules.iter().flat_map(|&rule| {
            let Some((cell, above)) = results.at(Place { data, setting, rule }, row) else {
                return Default::default();
            };
            let mut cells = cells_of(cell, above);
            if let Some(rate) = cell.case.variant.lr {
                cells[0] += &format!(" (at {})", rate_in_words(rate));
            }
            cells
        });
        [row.to_string()].into_iter().chain(of_rules).collect::<Vec<String>>()
    };
    page::table(&header(rules), results.rows().into_iter().map(cells_of_row), usize::MAX)
}

fn plot(results: &Results, data: usize, setting: Setting) -> Result<String, String> {
    let lines = results.comparison.args.compare.rules.len().div_ceil(PANELS) as u32;
    let size = (PANEL.0 * PANELS as u32, PANEL.1 * lines + HEAD);
    page::svg(size, |root| draw(root, results, data, setting))
}

fn draw(root: &Area, results: &Results, data: usize, setting: Setting) -> Result<(), DrawError> {
    root.fill(&WHITE)?;
    let (head, body) = root.split_vertically(HEAD);
    let regimes: Vec<(Variant, RGBColor)> =
        results.comparison.variants.iter().copied().zip(COLORS.iter().copied().cycle()).collect();
    let mut labels = vec![("fixed rates".to_owned(), GRID), ("with warm-up and cosine".to_owned(), COSINE)];
    labels.extend(regimes.iter().map(|(row, color)| (row.to_string(), *color)));
    let (mut x, mut y) = (14, 16);
    for (label, color) in labels {
        // The width of the label is an estimate, because no font is available.
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
    let rules = &results.comparison.args.compare.rules;
    let columns = rules.len().min(PANELS);
    let areas = body.split_evenly((rules.len().div_ceil(columns), columns));
    for (&rule, area) in rules.iter().zip(&areas) {
        draw_panel(area, results, Place { data, setting, rule }, &regimes)?;
    }
    Ok(())
}

fn draw_panel(area: &Area, results: &Results, place: Place, regimes: &[(Variant, RGBColor)]) -> Result<(), DrawError> {
    let point = |cell: &Cell| Some((f64::from(cell.case.variant.lr?).log10(), 100.0 * cell.accuracy()));
    let curves = [GRID, COSINE].into_iter().zip(REFERENCES).map(|(color, (schedule, _))| {
        let mut points: Vec<(f64, f64)> = grid(&results.cells, place, schedule).filter_map(point).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        (color, points)
    });
    let curves: Vec<(RGBColor, Vec<(f64, f64)>)> = curves.collect();
    let rates = Axis::log10(curves.iter().flat_map(|(_, points)| points).map(|point| point.0), 7);
    let (low, high) = (rates.range.start, rates.range.end);
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .caption(name_of(place.rule), font(16))
        .x_label_area_size(40)
        .y_label_area_size(46)
        .build_cartesian_2d(rates.clone(), 0.0..102.0)?;
    chart
        .configure_mesh()
        .x_desc("learning rate, or its peak")
        .y_desc("test accuracy, %")
        .label_style(font(12))
        .axis_desc_style(font(13))
        .bold_line_style(RGBColor(215, 215, 215))
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&|&rate| rates.label(rate))
        .draw()?;
    for &(row, color) in regimes {
        if let Some((cell, _)) = results.at(place, row) {
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
