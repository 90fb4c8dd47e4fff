//! The charts of the page of `--report`.

use std::ops::Range;

use plotters::prelude::*;
use wgpu_optim::Term;

use super::history::{Column, Extremes, History, Quantity};
use super::options::Args;
use super::report::{Run, in_words};
use crate::model::Model;
use crate::page::{self, Area, Axis, COLORS, DrawError, bounds, escaped, font};
use crate::words::count;

/// Size of a chart in pixels, which fits a window 1280 pixels wide.
const SIZE: (u32, u32) = (1200, 230);
const TALL: (u32, u32) = (1200, 290);

/// Colour of each of [`Term::ALL`]: Okabe and Ito's for terms that occur together, greys for terms that are not causes
/// of their own.
const TERM_COLORS: [RGBColor; Term::ALL.len()] = [
    COLORS[0],
    COLORS[2],
    COLORS[1],
    RGBColor(200, 170, 200),
    COLORS[3],
    COLORS[4],
    COLORS[5],
    RGBColor(150, 140, 0),
    RGBColor(110, 60, 20),
    RGBColor(150, 150, 150),
    RGBColor(30, 30, 30),
    RGBColor(190, 190, 190),
    RGBColor(60, 60, 60),
    RGBColor(220, 20, 120),
];
/// The first colour, paler.
const BAND_COLOR: RGBColor = RGBColor(150, 198, 226);
const SKIP_COLOR: RGBColor = COLORS[1];
const CLAMP_COLOR: RGBColor = COLORS[3];
const CHANGED_COLOR: RGBColor = RGBColor(90, 90, 90);

/// Titles of the charts of the first two tensor quantities. The third, the effective rate of scale-invariant weights,
/// has no chart, because these models have no such weights.
const TENSOR_CHARTS: [&str; 2] =
    ["Norm of the parameters, logarithmic", "Length of the step beside the norm of the parameters, logarithmic"];

/// One chart over the steps.
#[derive(Default)]
struct Chart {
    y: Axis,
    /// Bars around a line at zero, on a taller chart.
    bars: Vec<Bar>,
    line: Vec<(f64, f64)>,
    /// Further lines with their colours.
    lines: Vec<(Vec<(f64, f64)>, RGBColor)>,
    /// Means of the line, if it is a band.
    means: Vec<(f64, f64)>,
    /// Circles on the line.
    dots: Vec<(f64, f64)>,
    dot_color: RGBColor,
    /// Steps marked by a vertical line with a triangle.
    marks: Vec<f64>,
    /// Steps whose gradients were changed, marked by a dashed line.
    changed: Vec<f64>,
}

struct Bar {
    from: (f64, f64),
    to: (f64, f64),
    color: RGBColor,
}

impl Chart {
    fn logarithmic(history: &History, of: Quantity) -> Self {
        let line = history.curve(of);
        let mut y = Axis::log10(line.iter().map(|point| point.1), 8);
        if line.is_empty() {
            // The axis is arbitrary, and its marks could be taken for values.
            y.marks.clear();
        }
        Chart { y, line, means: history.means(of), ..Chart::default() }
    }

    fn band_legend(&self, history: &History) -> String {
        if self.means.is_empty() {
            return String::new();
        }
        let width = history.bin_width();
        key(SQUARE, BAND_COLOR, "least to greatest") + &key(SQUARE, COLORS[0], &format!("mean of {width} steps"))
    }

    fn marks_legend(&self, run: &Run) -> String {
        let skipped =
            (!self.marks.is_empty()).then(|| key(TRIANGLE, SKIP_COLOR, &format!("skipped ({})", run.skipped_steps)));
        let changed = (!self.changed.is_empty()).then(|| key(DASHES, CHANGED_COLOR, "gradients changed"));
        skipped.into_iter().chain(changed).collect()
    }

    fn svg(&self, steps: u64) -> Result<String, String> {
        if self.line.is_empty() && self.lines.is_empty() && self.bars.is_empty() && self.marks.is_empty() {
            return Ok("<p>Nothing to show.</p>\n".to_owned());
        }
        page::svg(if self.bars.is_empty() { SIZE } else { TALL }, |area| self.draw(area, steps))
    }

    fn draw(&self, area: &Area, steps: u64) -> Result<(), DrawError> {
        let x = Axis::linear(0.0..steps as f64, 12, 1.0);
        let (bottom, top) = (self.y.range.start, self.y.range.end);
        let mut chart = ChartBuilder::on(area)
            .margin(6)
            .margin_right(30)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(x, self.y.clone())?;
        chart
            .configure_mesh()
            .x_desc("step")
            .axis_desc_style(font(15))
            .label_style(font(15))
            .bold_line_style(RGBColor(222, 222, 222))
            .light_line_style(TRANSPARENT)
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_label_formatter(&|&value| self.y.label(value))
            .draw()?;
        let bar = |bar: &Bar| Rectangle::new([bar.from, bar.to], ShapeStyle::from(bar.color).filled());
        chart.draw_series(self.bars.iter().map(bar))?;
        if !self.bars.is_empty() {
            let zero = [(0.0, 0.0), (steps as f64, 0.0)];
            chart.draw_series(LineSeries::new(zero, ShapeStyle::from(BLACK)))?;
        }
        let skip = ShapeStyle::from(SKIP_COLOR);
        // Too many lines would hide the curve.
        let lines = if self.marks.len() > 100 { 0 } else { self.marks.len() };
        for &step in &self.marks[..lines] {
            chart.draw_series(LineSeries::new([(step, bottom), (step, top)], skip))?;
        }
        for &step in &self.changed {
            let line = [(step, bottom), (step, top)];
            chart.draw_series(DashedLineSeries::new(line, 5, 4, ShapeStyle::from(CHANGED_COLOR)))?;
        }
        let color = if self.means.is_empty() { COLORS[0] } else { BAND_COLOR };
        // A thick line blurs many points.
        let width = if self.line.len() > 600 { 1 } else { 2 };
        let style = ShapeStyle::from(color).stroke_width(width);
        chart.draw_series(LineSeries::new(self.line.iter().copied(), style))?;
        for (line, color) in &self.lines {
            chart.draw_series(LineSeries::new(line.iter().copied(), *color))?;
        }
        let style = ShapeStyle::from(COLORS[0]).stroke_width(2);
        chart.draw_series(LineSeries::new(self.means.iter().copied(), style))?;
        chart.draw_series(self.marks.iter().map(|&step| TriangleMarker::new((step, bottom), 7, skip.filled())))?;
        let style = ShapeStyle::from(self.dot_color).filled();
        chart.draw_series(self.dots.iter().map(|&point| Circle::new(point, 4, style)))?;
        Ok(())
    }
}

pub fn charts(args: &Args, run: &Run, model: &Model, history: &History) -> Result<String, String> {
    // The charts of a run that was stopped end at its last step.
    let svg = |chart: &Chart| chart.svg(run.steps.max(1));
    let skipped: Vec<f64> = marked(history, |column| column.skipped).map(|(step, _)| step).collect();
    let changed = [args.inject_nan, args.inject_spike].into_iter().flatten().filter(|&step| step < run.steps);
    let changed: Vec<f64> = changed.map(|step| step as f64).collect();
    let with_marks = |chart: Chart| Chart { marks: skipped.clone(), changed: changed.clone(), ..chart };
    let mut html = "<h2>Over the steps</h2>\n".to_owned();
    let mut add = |caption: &str, legend: &str, plot: String| {
        html += &format!("<figure>\n<figcaption>{}{legend}</figcaption>\n{plot}</figure>\n", escaped(caption));
    };
    let (caption, chart) = loss(history);
    let chart = with_marks(chart);
    add(caption, &(chart.band_legend(history) + &chart.marks_legend(run)), svg(&chart)?);
    add("Test accuracy, %", "", svg(&accuracy(history))?);

    let mut chart = with_marks(Chart::logarithmic(history, Quantity::LogRate));
    let mut legend = chart.band_legend(history) + &chart.marks_legend(run);
    chart.dots = marked(history, |column| column.clamped).collect();
    chart.dot_color = CLAMP_COLOR;
    if !chart.dots.is_empty() {
        legend += &key(DISC, CLAMP_COLOR, &format!("clamped ({})", history.clamped));
    }
    add("Learning rate, logarithmic", &legend, svg(&chart)?);

    let chart = with_marks(Chart::logarithmic(history, Quantity::LogNorm));
    let mut legend = chart.band_legend(history) + &chart.marks_legend(run);
    if history.zero_norms > 0 {
        let steps = count(history.zero_norms, "step");
        legend += &format!("<span>without a point: {steps} with a gradient of zero</span>");
    }
    add("Norm of the gradient, logarithmic", &legend, svg(&chart)?);

    let (chart, legend) = stacked_causes(run, history);
    let caption = match history.bin_width() {
        1 => "What moved ln(learning rate), at each step".to_owned(),
        width => format!("What moved ln(learning rate): sums over {width} steps each, rises and falls apart"),
    };
    add(&caption, &legend, svg(&chart)?);

    for (of, caption) in TENSOR_CHARTS.into_iter().enumerate() {
        let curves = history.tensor_curves(of);
        if curves.iter().all(Vec::is_empty) {
            continue;
        }
        let y = Axis::log10(curves.iter().flatten().map(|point| point.1), 8);
        let lines = curves.into_iter().zip(COLORS.into_iter().cycle()).collect();
        let chart = Chart { y, lines, ..Chart::default() };
        let tensors = model.tensors();
        let names = tensors.iter().zip(COLORS.into_iter().cycle());
        let legend: String = names.map(|(tensor, color)| key(SQUARE, color, tensor.name)).collect();
        add(caption, &legend, svg(&chart)?);
    }
    Ok(html)
}

/// Returns a linear axis with a margin at both ends: a fraction of the range, or `least`.
fn with_margin(range: &Range<f64>, share: f64, least: f64, marks: usize) -> Axis {
    let margin = (share * (range.end - range.start)).max(least);
    Axis::linear(range.start - margin..range.end + margin, marks, 0.0)
}

/// Returns the chart of the loss. It is logarithmic if the loss spans a wide range, which a linear axis would flatten.
fn loss(history: &History) -> (&'static str, Chart) {
    let line = history.curve(Quantity::Loss);
    let range = bounds(line.iter().map(|point| point.1), 0.0);
    if range.start > 0.0 && range.end > 20.0 * range.start {
        return ("Loss of the batch, logarithmic", Chart::logarithmic(history, Quantity::LogLoss));
    }
    let y = with_margin(&range, 0.05, (1e-6 * range.end.abs()).max(1e-12), 8);
    ("Loss of the batch", Chart { y, line, means: history.means(Quantity::Loss), ..Chart::default() })
}

fn accuracy(history: &History) -> Chart {
    let accuracies = history.accuracies.iter();
    let line: Vec<(f64, f64)> = accuracies.map(|&(step, accuracy)| (step as f64, 100.0 * accuracy)).collect();
    let mut y = with_margin(&bounds(line.iter().map(|point| point.1), 0.0), 0.08, 0.5, 7);
    // No accuracy lies beyond these values, but the line has a width.
    y.range = y.range.start.max(-1.0)..y.range.end.min(101.0);
    y.marks.retain(|mark| (0.0..=100.0).contains(mark));
    // Dots that touch each other are left out.
    let dots = if line.len() <= 100 { line.clone() } else { Vec::new() };
    Chart { y, line, dots, dot_color: COLORS[0], ..Chart::default() }
}

/// Returns the first step and learning rate of the marked columns. A column without a rate is placed at the bottom.
fn marked(history: &History, is_marked: impl Fn(&Column) -> bool) -> impl Iterator<Item = (f64, f64)> {
    let rates = || history.columns.iter().map(|column| column.extremes[Quantity::LogRate as usize]);
    let lowest = bounds(rates().flat_map(Extremes::points).map(|point| point.1), 0.0).start;
    let width = history.steps as f64 / history.columns.len().max(1) as f64;
    history.columns.iter().enumerate().filter(move |(_, column)| is_marked(column)).map(move |(index, column)| {
        column.extremes[Quantity::LogRate as usize].points().next().unwrap_or((index as f64 * width, lowest))
    })
}

/// Stacks the terms in every bin, with rises above zero and falls below.
fn stacked_causes(run: &Run, history: &History) -> (Chart, String) {
    let (width, end) = (history.bin_width() as f64, run.steps as f64);
    let mut bars = Vec::new();
    for (index, bin) in history.bins.iter().enumerate() {
        let left = index as f64 * width;
        let right = (left + width).min(end);
        let (mut top, mut bottom) = (0.0, 0.0);
        for (cause, color) in bin.terms.iter().zip(TERM_COLORS) {
            for (end, change) in [(&mut top, cause.up), (&mut bottom, cause.down)] {
                if change != 0.0 {
                    bars.push(Bar { from: (left, *end), to: (right, *end + change), color });
                    *end += change;
                }
            }
        }
    }
    let y = with_margin(&bounds(bars.iter().map(|bar| bar.to.1).chain([0.0]), 0.0), 0.05, 1e-9, 9);
    let causes = Term::ALL.iter().zip(run.causes.terms).zip(TERM_COLORS);
    let occurred = causes.filter(|((_, cause), _)| cause.occurred());
    let legend = occurred.map(|((term, cause), color)| key(SQUARE, color, &in_words(*term, cause))).collect();
    (Chart { y, bars, ..Chart::default() }, legend)
}

const SQUARE: &str = "M0 0h12v12h-12z";
const DASHES: &str = "M5 0h2v4h-2zM5 6h2v4h-2z";
const TRIANGLE: &str = "M6 1L12 11L0 11z";
const DISC: &str = "M2 6a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z";

/// Returns an entry of a legend. It is drawn as a shape, because printers omit backgrounds.
fn key(shape: &str, RGBColor(r, g, b): RGBColor, name: &str) -> String {
    format!(
        "<span><svg viewBox=\"0 0 12 12\"><path d=\"{shape}\" fill=\"rgb({r},{g},{b})\"/></svg>{}</span>",
        escaped(name)
    )
}
