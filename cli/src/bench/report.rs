//! `--report`: a roofline plot, alone or on a page with the table.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::rows::Row;
use super::{Report, TEXT_COLUMNS, remarks, table};
use crate::CliError;
use crate::files;
use crate::page::{self, Area, Axis, COLORS, DrawError, bounds, font, log_marks};

/// Size of the plot in pixels, which fits a window 1280 pixels wide.
const SIZE: (u32, u32) = (1200, 900);
/// Height of the title, and of a row of the legend below it.
const TITLE: u32 = 66;
const LEGEND_ROW: u32 = 22;

/// Output file of the report: a page, or the plot alone.
#[derive(Debug)]
pub struct ReportFile {
    file: files::ReportFile,
    is_page: bool,
}

impl ReportFile {
    /// Creates the report. It is the plot alone if the name ends in .svg.
    pub fn create(path: &Path, force: bool) -> Result<Self, CliError> {
        let is_page = path.extension().is_none_or(|ending| ending != "svg");
        Ok(ReportFile { file: files::ReportFile::create(path, force)?, is_page })
    }

    pub fn write(self, report: &Report) -> Result<(), CliError> {
        let plot = plot(report);
        self.file.write(if self.is_page {
            plot.map(|plot| page(report, &plot))
        } else {
            plot.map(|plot| page::plot_file(&plot))
        })
    }
}

/// Line of the plot.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    label: String,
    color: RGBColor,
    /// Lengths of dash and gap, or `None` for a solid line.
    dash: Option<(i32, i32)>,
    /// Points as log2 of the size and log10 of GB/s.
    points: Vec<(f64, f64)>,
}

const ROOF: RGBColor = RGBColor(60, 60, 60);
/// Dashes of the modes, in order.
const DASHES: [Option<(i32, i32)>; 8] =
    [None, Some((7, 4)), Some((2, 3)), Some((12, 5)), Some((4, 8)), Some((1, 1)), Some((18, 3)), Some((9, 9))];

/// Returns distinct values in the order of their first appearance.
fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    values.fold(Vec::new(), |mut seen, value| {
        if !seen.contains(&value) {
            seen.push(value);
        }
        seen
    })
}

fn steps(report: &Report) -> impl Iterator<Item = &Row> {
    report.rows.iter().filter(|row| row.what == "step")
}

fn points<'a>(rows: impl Iterator<Item = &'a Row>) -> Vec<(f64, f64)> {
    rows.map(|row| ((row.elements as f64).log2(), row.gb_per_s.log10())).collect()
}

/// Returns the lines of copy and triad, at the sizes of the steps.
fn roofs(report: &Report) -> impl Iterator<Item = Line> {
    [("copy", None), ("triad", Some((7, 4)))].into_iter().map(|(what, dash)| {
        let is_shown = |row: &&Row| row.what == what && steps(report).any(|step| step.elements == row.elements);
        Line { label: what.to_owned(), color: ROOF, dash, points: points(report.rows.iter().filter(is_shown)) }
    })
}

/// Returns a line for each regime and mode of a rule.
fn lines(report: &Report, rule: &str) -> Vec<Line> {
    let modes = distinct(steps(report).map(|row| row.mode));
    let mut lines = Vec::new();
    for (color, regime) in distinct(steps(report).map(|row| row.regime)).into_iter().enumerate() {
        for (dash, mode) in modes.iter().enumerate() {
            let is_shown = |row: &&Row| row.rule == rule && row.regime == regime && row.mode == *mode;
            lines.push(Line {
                label: if modes.len() > 1 { format!("{regime}, {mode}") } else { regime.to_owned() },
                color: COLORS[color % COLORS.len()],
                dash: DASHES[dash % DASHES.len()],
                points: points(steps(report).filter(is_shown)),
            });
        }
    }
    lines
}

/// Draws the plot: a panel for each rule, lines for its regimes, copy and triad as the roof.
fn plot(report: &Report) -> Result<String, String> {
    page::svg(SIZE, |root| draw(root, report))
}

fn draw(root: &Area, report: &Report) -> Result<(), DrawError> {
    root.fill(&WHITE)?;
    let rules = distinct(steps(report).map(|row| row.rule));
    let panel = |rule| (rule, roofs(report).chain(lines(report, rule)).collect());
    let panels: Vec<(&str, Vec<Line>)> = rules.into_iter().map(panel).collect();
    let legend = panels.first().map(|(_, lines)| legend(lines));
    let rows = legend.iter().flatten().map(|(_, row)| row + 1).max();
    let (head, body) = root.split_vertically(TITLE + LEGEND_ROW * rows.unwrap_or(1));
    let title = format!("Memory bandwidth of a step: {}", report.device);
    head.draw(&Text::new(title, (14, 10), font(20)))?;
    let source = format!("{}: {}", report.driver, report.command);
    head.draw(&Text::new(source, (14, 36), font(13)))?;
    let Some(legend) = legend else {
        return head.draw(&Text::new("nothing was measured", (14, 60), font(16)));
    };
    for (line, &(x, row)) in panels[0].1.iter().zip(&legend) {
        let y = (TITLE + 2 + LEGEND_ROW * row) as i32;
        draw_line_sample(&head, line, (x, y))?;
        let style = font(15).pos(Pos::new(HPos::Left, VPos::Center));
        head.draw(&Text::new(line.label.clone(), (x + 42, y), style))?;
    }
    let columns = if panels.len() > 1 { 2 } else { 1 };
    let areas = body.split_evenly((panels.len().div_ceil(columns), columns));
    // Sizes are log2 with a mark at each, or at every second or third if there are many. Rates are log10 with marks at
    // 1, 2 and 5 times the powers of ten.
    let sizes = distinct(steps(report).map(|row| (row.elements as f64).log2()));
    let every = sizes.len().div_ceil(12).max(1);
    let marks = sizes.iter().step_by(every).copied().collect();
    let sizes = Axis::with_marks(bounds(sizes.into_iter(), 0.5), marks);
    let range =
        bounds(panels.iter().flat_map(|(_, lines)| lines).flat_map(|line| &line.points).map(|point| point.1), 0.1);
    let marks = log_marks(&range, &[1.0, 2.0, 5.0]);
    let rates = Axis::with_marks(range, marks);
    for ((rule, lines), area) in panels.iter().zip(&areas) {
        draw_panel(area, rule, lines, (sizes.clone(), rates.clone()))?;
    }
    Ok(())
}

/// Returns the positions of the legend's entries, which fill as many rows as needed: the distance from the left in
/// pixels, and the row. The width of a label is an estimate, because no font is available.
fn legend(lines: &[Line]) -> Vec<(i32, u32)> {
    let (mut x, mut row) = (14, 0);
    let place = |line: &Line| {
        let width = 72 + 8 * line.label.chars().count() as i32;
        if x + width > SIZE.0 as i32 {
            (x, row) = (14, row + 1);
        }
        x += width;
        (x - width, row)
    };
    lines.iter().map(place).collect()
}

fn draw_line_sample(area: &Area, line: &Line, (x, y): (i32, i32)) -> Result<(), DrawError> {
    let style = ShapeStyle::from(line.color).stroke_width(2);
    let (dash, gap) = line.dash.unwrap_or((36, 0));
    let mut at = 0;
    while at < 36 {
        let end = (at + dash).min(36);
        area.draw(&PathElement::new(vec![(x + at, y), (x + end, y)], style))?;
        at = end + gap.max(1);
    }
    Ok(())
}

fn draw_panel(area: &Area, rule: &str, lines: &[Line], (sizes, rates): (Axis, Axis)) -> Result<(), DrawError> {
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_right(24)
        .caption(rule, font(18))
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(sizes, rates)?;
    chart
        .configure_mesh()
        .x_desc("parameters")
        .y_desc("GB/s")
        .label_style(font(14))
        .axis_desc_style(font(15))
        .bold_line_style(RGBColor(215, 215, 215))
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&|size| format!("2^{size}"))
        .y_label_formatter(&|rate| ((1e5 * 10f64.powf(*rate)).round() / 1e5).to_string())
        .draw()?;
    for line in lines {
        let style = ShapeStyle::from(line.color).stroke_width(2);
        let points = line.points.iter().copied();
        match line.dash {
            None => chart.draw_series(LineSeries::new(points, style))?,
            Some((dash, gap)) => chart.draw_series(DashedLineSeries::new(points, dash, gap, style))?,
        };
        let dots = line.points.iter().map(|&point| Circle::new(point, 3, ShapeStyle::from(line.color).filled()));
        chart.draw_series(dots)?;
    }
    Ok(())
}

fn page(report: &Report, plot: &str) -> String {
    let (header, rows) = table(report);
    // Long names may break, because the table would be too wide otherwise.
    let table = page::table(&header, rows, TEXT_COLUMNS).replace('_', "_<wbr>");
    let facts = page::facts(&[
        ("device", report.device.clone()),
        ("driver", report.driver.clone()),
        ("backend", report.backend.clone()),
    ]);
    let origin = page::facts(&page::origin());
    let remarks = page::items(remarks(report));
    let body = format!(
        "<h1>wgpu-optim bench</h1>\n{facts}{origin}{plot}\n\
         <ul>\n<li>medians of {} alternating rounds</li>\n{remarks}</ul>\n{table}",
        report.rounds
    );
    page::page(&format!("wgpu-optim bench: {}", report.device), page::STYLE, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_legend_tells_every_mode_apart_and_stays_on_the_page() {
        let modes = wgpu_optim_conformance::bench::workload::MODES.len();
        assert!(distinct(DASHES.into_iter()).len() >= modes);
        let label = "norm-ratio, bf16-stochastic".to_owned();
        let lines = vec![Line { label, color: ROOF, dash: None, points: Vec::new() }; 3 * modes];
        let places = legend(&lines);
        assert_eq!(distinct(places.iter()).len(), lines.len());
        assert!(places.iter().all(|&(x, _)| x + 250 < SIZE.0 as i32));
    }

    #[test]
    fn distinct_keeps_the_order() {
        assert_eq!(distinct([3, 1, 3, 2, 1].into_iter()), [3, 1, 2]);
    }
}
