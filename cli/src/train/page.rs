//! `--report`: a page with the curves of a run, what moved its learning rate, and the largest moves in words.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use plotters::prelude::*;
use wgpu_optim::{NonFinite, Record, TensorRecord, Term};

use super::report::{CAUSES_HEADER, Run, TermCauses, add_terms, in_words, not_finite};
use super::{Args, create_beside, verdict};
use crate::CliError;
use crate::model::Model;
use crate::page::{self, Axis, COLORS, DrawError, bounds, command, escaped, font};
use crate::target::TuningSource;

/// Columns of a curve: more steps share one, of which the least and the greatest value are kept. About a pixel each.
const COLUMNS: u64 = 1000;
/// Bins of the causes.
const BINS: u64 = 200;
/// Moves in words.
const MOVES: usize = 10;
/// Skipped steps in words.
const SKIPPED: usize = 20;
/// A chart's size in pixels: it fits a window 1280 pixels wide.
const SIZE: (u32, u32) = (1200, 230);
const TALL: (u32, u32) = (1200, 290);

/// A colour for each of [`Term::ALL`]: Okabe and Ito's for those that come together, greys for what is not a cause of its own.
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
];
/// The first colour, paler.
const BAND_COLOR: RGBColor = RGBColor(150, 198, 226);
const SKIP_COLOR: RGBColor = COLORS[1];
const CLAMP_COLOR: RGBColor = COLORS[3];

/// What the page shows of a run, gathered step by step in a memory that does not grow with the steps.
#[derive(Debug, Default, Clone)]
pub struct History {
    steps: u64,
    columns: Vec<Column>,
    bins: Vec<Bin>,
    /// The largest first.
    moves: Vec<Move>,
    skipped: Vec<(u64, Option<NonFinite>)>,
    clamped: u64,
    /// Steps done, and the share of the test rows that was right then.
    accuracies: Vec<(u64, f64)>,
    done: u64,
    smoothed_norm: f32,
    /// Of every tensor that is recorded: column by column, the logarithms of its quantities.
    tensors: Vec<Vec<[Extremes; 3]>>,
}

/// What the charts of tensors show, as [`tensor_quantities`] gives it.
const TENSOR_CHARTS: [&str; 3] = [
    "Norm of the parameters, logarithmic",
    "Length of the step beside the norm of the parameters, logarithmic",
    "Effective learning rate η/‖w‖² of scale-invariant weights, logarithmic",
];

/// Logarithms of base ten.
fn tensor_quantities(record: &TensorRecord) -> [f64; 3] {
    [f64::from(record.parameter_norm).log10(), record.relative_step().log10(), record.effective_rate().log10()]
}

/// What curves are drawn of.
#[derive(Debug, Clone, Copy)]
enum Quantity {
    Loss,
    LogLoss,
    LogRate,
    LogNorm,
}

/// Every quantity of a step, in the order of [`Quantity`]. Logarithms are of base ten.
fn quantities(loss: f32, record: &Record) -> [f64; 4] {
    let loss = f64::from(loss);
    [loss, loss.log10(), record.ln_rate / std::f64::consts::LN_10, f64::from(record.norm).log10()]
}

/// Steps that share a bar.
#[derive(Debug, Clone, Default)]
struct Bin {
    terms: TermCauses,
    means: [Mean; 4],
}

/// The mean of the finite ones of some values, each with its step.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    count: f64,
    steps: f64,
    values: f64,
}

impl Mean {
    fn add(&mut self, step: f64, value: f64) {
        if value.is_finite() {
            self.count += 1.0;
            self.steps += step;
            self.values += value;
        }
    }

    fn point(self) -> Option<(f64, f64)> {
        (self.count > 0.0).then(|| (self.steps / self.count, self.values / self.count))
    }
}

/// Steps that share a pixel.
#[derive(Debug, Clone, Default)]
struct Column {
    extremes: [Extremes; 4],
    skipped: bool,
    clamped: bool,
}

/// The least and the greatest of some values, each with its step.
#[derive(Debug, Clone, Copy, Default)]
struct Extremes(Option<[(f64, f64); 2]>);

impl Extremes {
    /// Takes a value in, unless it is not finite.
    fn add(&mut self, step: f64, value: f64) {
        if !value.is_finite() {
            return;
        }
        let [low, high] = self.0.get_or_insert([(step, value); 2]);
        if value < low.1 {
            *low = (step, value);
        }
        if value > high.1 {
            *high = (step, value);
        }
    }

    /// Both, in the order of the steps; one where they are the same.
    fn points(self) -> impl Iterator<Item = (f64, f64)> {
        let [low, high] = match self.0 {
            Some([low, high]) if low.0 > high.0 => [Some(high), Some(low)],
            Some([low, high]) if low.0 < high.0 => [Some(low), Some(high)],
            Some([only, _]) => [Some(only), None],
            None => [None, None],
        };
        low.into_iter().chain(high)
    }
}

/// A change of the learning rate.
#[derive(Debug, Clone)]
struct Move {
    record: Record,
    smoothed_norm_before: f32,
}

impl History {
    /// Nothing yet of a run of so many steps.
    pub fn new(steps: u64) -> Self {
        let steps = steps.max(1);
        let mut history =
            History { steps, columns: vec![Column::default(); steps.min(COLUMNS) as usize], ..History::default() };
        let bins = steps.div_ceil(history.bin_width());
        history.bins = vec![Bin::default(); bins as usize];
        history
    }

    /// Steps in a bin: as many in each, so that bins can be compared.
    fn bin_width(&self) -> u64 {
        self.steps.div_ceil(BINS).max(1)
    }

    /// Takes a step in.
    pub fn add(&mut self, loss: f32, record: &Record, tensors: &[TensorRecord]) {
        let column = u128::from(record.step) * self.columns.len() as u128 / u128::from(self.steps);
        let bin = record.step / self.bin_width();
        let step = record.step as f64;
        let values = quantities(loss, record);
        if self.tensors.len() < tensors.len() {
            let columns = vec![[Extremes::default(); 3]; self.columns.len()];
            self.tensors.resize(tensors.len(), columns);
        }
        for (columns, tensor) in self.tensors.iter_mut().zip(tensors) {
            if let Some(extremes) = columns.get_mut(column as usize) {
                for (extremes, value) in extremes.iter_mut().zip(tensor_quantities(tensor)) {
                    extremes.add(step, value);
                }
            }
        }
        let clamped = record.flags.clamped_change() || record.flags.clamped_rate();
        if let Some(column) = self.columns.get_mut(column as usize) {
            for (extremes, value) in column.extremes.iter_mut().zip(values) {
                extremes.add(step, value);
            }
            column.skipped |= record.flags.skipped();
            column.clamped |= clamped;
        }
        if let Some(bin) = self.bins.get_mut(bin as usize) {
            add_terms(&mut bin.terms, record);
            for (mean, value) in bin.means.iter_mut().zip(values) {
                mean.add(step, value);
            }
        }
        self.clamped += u64::from(clamped);
        if record.flags.skipped() && self.skipped.len() < SKIPPED {
            self.skipped.push((record.step, record.nonfinite));
        }
        self.add_move(record);
        self.smoothed_norm = record.smoothed_norm;
        self.done += 1;
    }

    fn add_move(&mut self, record: &Record) {
        let size = |record: &Record| record.change().abs();
        if size(record) == 0.0 {
            return;
        }
        // Behind those as large: of equal moves the first is kept.
        let place = self.moves.partition_point(|other| size(&other.record) >= size(record));
        if place < MOVES {
            self.moves.truncate(MOVES - 1);
            self.moves.insert(place, Move { record: *record, smoothed_norm_before: self.smoothed_norm });
        }
    }

    /// The test accuracy after the steps so far.
    pub fn end_epoch(&mut self, accuracy: f64) {
        self.accuracies.push((self.done, accuracy));
    }

    fn curve(&self, of: Quantity) -> Vec<(f64, f64)> {
        self.columns.iter().flat_map(|column| column.extremes[of as usize].points()).collect()
    }

    /// The curves of one of [`TENSOR_CHARTS`], tensor by tensor.
    fn tensor_curves(&self, of: usize) -> Vec<Vec<(f64, f64)>> {
        let curve = |columns: &Vec<[Extremes; 3]>| {
            let points = columns.iter().flat_map(|extremes| extremes[of].points());
            points.collect()
        };
        self.tensors.iter().map(curve).collect()
    }

    /// A second curve for where the first is a band, as steps share its pixels; else empty.
    fn means(&self, of: Quantity) -> Vec<(f64, f64)> {
        if self.steps <= COLUMNS {
            return Vec::new();
        }
        self.bins.iter().filter_map(|bin| bin.means[of as usize].point()).collect()
    }
}

/// `step 212: LR -31 %: norm jumped 1.4x (-29 %), steps contradict (-2.0 %)`.
fn in_a_sentence(change: &Move) -> String {
    let record = &change.record;
    let mut terms: Vec<(Term, f64)> = record
        .terms()
        .into_iter()
        .map(|(term, value)| (term, f64::from(value)))
        .filter(|(_, value)| (100.0 * value.exp_m1()).abs() >= 0.05)
        .collect();
    terms.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    let growth = record.smoothed_norm / change.smoothed_norm_before;
    let causes: Vec<String> = terms
        .iter()
        .map(|&(term, value)| {
            let cause = match term {
                Term::Norm if growth.is_finite() && growth >= 1.15 => {
                    let digits = usize::from(growth < 9.95);
                    format!("norm jumped {growth:.digits$}x")
                }
                Term::Norm if growth > 0.0 && growth <= 0.87 => {
                    format!("norm fell to {growth:.2}x")
                }
                _ => term.cause(value > 0.0).to_owned(),
            };
            format!("{cause} ({})", percent(value))
        })
        .collect();
    let colon = if causes.is_empty() { "" } else { ": " };
    format!(
        "step {}: LR {}{colon}{}{}",
        record.step,
        percent(record.change()),
        causes.join(", "),
        if record.flags.clipped() { "; gradient clipped" } else { "" }
    )
}

/// A change of ln η as a change of η.
fn percent(change: f64) -> String {
    let percent = 100.0 * change.exp_m1();
    if percent.abs() >= 9.95 { format!("{percent:+.0} %") } else { format!("{percent:+.1} %") }
}

/// A page to be, opened before anything is trained.
#[derive(Debug)]
pub struct Page {
    path: String,
    file: File,
}

impl Page {
    /// Opens the file, which must be neither the data nor the trace.
    pub fn create(path: &Path, data: &str, trace: Option<&Path>) -> Result<Self, CliError> {
        // The trace's file exists by now.
        if let (Ok(page), Some(Ok(trace))) = (path.canonicalize(), trace.map(Path::canonicalize))
            && page == trace
        {
            return Err(CliError::Usage(format!(
                "--report {} would overwrite the trace: give it another name",
                path.display()
            )));
        }
        Ok(Page { path: path.display().to_string(), file: create_beside("--report", path, data)? })
    }

    /// Writes it.
    pub fn write(mut self, args: &Args, run: &Run, model: &Model, history: &History) -> Result<(), CliError> {
        let failed = |message: String| CliError::Write { path: self.path.clone(), message };
        let text = text(args, run, model, history).map_err(&failed)?;
        self.file.write_all(text.as_bytes()).map_err(|error| failed(error.to_string()))
    }
}

fn text(args: &Args, run: &Run, model: &Model, history: &History) -> Result<String, String> {
    let title = format!("wgpu-optim train: {model} on {}", run.data);
    // First of all, lest the figures pass for a success.
    let failure = verdict::in_words(args, run);
    let failure = failure.map_or(String::new(), |words| format!("<p class=\"failure\">{}</p>\n", escaped(&words)));
    let body = format!(
        "<h1>{}</h1>\n{failure}<div class=\"facts\">\n<section>\n<h2>Final figures</h2>\n{}</section>\n\
         <section>\n<h2>Configuration</h2>\n{}</section>\n</div>\n{}{}{}{}",
        escaped(&title),
        page::facts(&final_figures(run, history)),
        page::facts(&configuration(args, run, model)),
        charts(run, model, history)?,
        moves(history),
        skipped(run, model, history),
        causes(run),
    );
    Ok(page::page(&title, STYLE, &body))
}

const STYLE: &str = "
h2 { font-size: 16px; margin: 18px 0 6px; }
.failure { padding: 8px 12px; border-left: 6px solid #b00020; background: #fde7ea; font-weight: bold; }
.facts { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); gap: 0 32px; }
figure { margin: 14px 0 0; break-inside: avoid; }
figcaption { font-weight: bold; }
figcaption span { font-weight: normal; margin-left: 14px; white-space: nowrap; }
figcaption svg { width: 12px; height: 12px; vertical-align: -1px; margin-right: 4px; }
figure > svg { display: block; width: 100%; }
li { font-variant-numeric: tabular-nums; }
p { margin: 6px 0; }
@media print {
  @page { margin: 12mm; }
  body { max-width: none; padding: 0; font-size: 11px; }
  h2 { break-after: avoid; }
  th { position: static; }
  tr, li { break-inside: avoid; }
}
";

fn final_figures(run: &Run, history: &History) -> Vec<(String, String)> {
    let mut figures = run.figures();
    let others = [
        ("first learning rate", format!("{:.4e}", run.lr_first)),
        ("last learning rate", format!("{:.4e}", run.lr_last)),
        ("range", format!("{:.4e} to {:.4e}", run.lr_min, run.lr_max)),
        ("skipped steps", run.skipped_steps.to_string()),
        ("clamped steps", history.clamped.to_string()),
        ("clipped steps", run.causes.clipped.to_string()),
        ("time", format!("{:.2} s, {:.0} µs a step", run.seconds, 1e6 * run.seconds / run.steps.max(1) as f64)),
    ];
    figures.extend(others.map(|(name, value)| (name.to_owned(), value)));
    figures
}

fn configuration(args: &Args, run: &Run, model: &Model) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("data", run.data.clone()),
        ("model", model.to_string()),
        ("rule", run.rule.clone()),
        ("regime", run.regime.clone()),
    ];
    if args.rule().momentum() != 0.0 {
        facts.push(("momentum", args.rule().momentum().to_string()));
    }
    let options = [
        ("learning rate given", args.lr.map(|lr| lr.to_string())),
        ("weight decay", (args.decay() != 0.0).then(|| args.decay().to_string())),
        ("clip norm", args.clip_norm.map(|norm| norm.to_string())),
        ("gradients made NaN", args.inject_nan.map(|step| format!("at step {step}"))),
        ("gradients times 100", args.inject_spike.map(|step| format!("at step {step}"))),
    ];
    for (name, value) in options {
        facts.extend(value.map(|value| (name, value)));
    }
    facts.extend([
        ("steps", format!("{} of {} rows, {} epochs", run.steps, run.batch, run.epochs)),
        ("seed", run.seed.to_string()),
        ("backend", run.backend.clone()),
        ("adapter", run.adapter.clone()),
    ]);
    match run.tuning {
        TuningSource::Preset => facts.push(("geometry", "the adapter's preset".to_owned())),
        TuningSource::Cached => {
            facts.push(("geometry", "found by wgpu-optim tune".to_owned()));
        }
        TuningSource::None => {}
    }
    facts.push(("version", env!("CARGO_PKG_VERSION").to_owned()));
    facts.push(("command", command()));
    facts
}

fn moves(history: &History) -> String {
    if history.moves.is_empty() {
        return "<h2>Largest moves of the learning rate</h2>\n<p>It never moved.</p>\n".to_owned();
    }
    format!(
        "<h2>Largest moves of the learning rate</h2>\n\
         <p>Each against the step before; the norm is the smoothed one.</p>\n<ol>\n{}</ol>\n",
        list(history.moves.iter().map(in_a_sentence))
    )
}

fn skipped(run: &Run, model: &Model, history: &History) -> String {
    if history.skipped.is_empty() {
        return String::new();
    }
    let sentences = history.skipped.iter().map(|&(step, what)| match what {
        Some(what) => format!("step {step}: skipped: {}", not_finite(what, model)),
        None => format!("step {step}: skipped"),
    });
    let more = run.skipped_steps - history.skipped.len() as u64;
    let more = (more > 0).then(|| format!("and {more} more"));
    format!("<h2>Skipped steps</h2>\n<ul>\n{}</ul>\n", list(sentences.chain(more)))
}

fn list(sentences: impl Iterator<Item = String>) -> String {
    sentences.map(|sentence| format!("<li>{}</li>\n", escaped(&sentence))).collect()
}

/// The same table as on the terminal.
fn causes(run: &Run) -> String {
    let rows = run.causes.rows();
    if rows.is_empty() {
        return String::new();
    }
    let cells = |tag: &str, cells: &[String]| -> String {
        cells
            .iter()
            .enumerate()
            .map(|(column, cell)| {
                let class = if column == 0 { "" } else { " class=n" };
                format!("<{tag}{class}>{}</{tag}>", escaped(cell))
            })
            .collect()
    };
    let body: String = rows.iter().map(|row| format!("<tr>{}</tr>\n", cells("td", row))).collect();
    format!(
        "<h2>All moves together</h2>\n<table>\n<thead><tr>{}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n",
        cells("th", &CAUSES_HEADER.map(str::to_owned)),
    )
}

/// One chart over the steps.
struct Chart {
    size: (u32, u32),
    y: Axis,
    label: fn(f64) -> String,
    bars: Vec<Bar>,
    line: Vec<(f64, f64)>,
    /// Further lines, each in its colour.
    lines: Vec<(Vec<(f64, f64)>, RGBColor)>,
    /// The line's means, where it is a band.
    means: Vec<(f64, f64)>,
    /// Circles on the line.
    dots: Vec<(f64, f64)>,
    dot_color: RGBColor,
    /// Steps with a line from top to bottom, and a triangle on it.
    marks: Vec<f64>,
    zero_line: bool,
}

struct Bar {
    from: (f64, f64),
    to: (f64, f64),
    color: RGBColor,
}

impl Chart {
    fn of(y: Axis, label: fn(f64) -> String, line: Vec<(f64, f64)>) -> Self {
        Chart {
            size: SIZE,
            y,
            label,
            bars: Vec::new(),
            line,
            lines: Vec::new(),
            means: Vec::new(),
            dots: Vec::new(),
            dot_color: COLORS[0],
            marks: Vec::new(),
            zero_line: false,
        }
    }

    fn logarithmic(history: &History, of: Quantity) -> Self {
        let line = history.curve(of);
        let mut y = Axis::log10(line.iter().map(|point| point.1), 8);
        if line.is_empty() {
            // The axis is made up, and its marks would pass for values.
            y.marks.clear();
        }
        Chart { means: history.means(of), ..Chart::of(y, |value| plain(10f64.powf(value)), line) }
    }

    /// A legend for band and means.
    fn band_legend(&self, history: &History) -> String {
        if self.means.is_empty() {
            return String::new();
        }
        let width = history.bin_width();
        key(SQUARE, BAND_COLOR, "least to greatest") + &key(SQUARE, COLORS[0], &format!("mean of {width} steps"))
    }

    fn svg(&self, steps: u64) -> Result<String, String> {
        if self.line.is_empty() && self.lines.is_empty() && self.bars.is_empty() && self.marks.is_empty() {
            return Ok("<p>Nothing to show.</p>\n".to_owned());
        }
        let mut svg = String::new();
        self.draw(&mut svg, steps).map_err(|error| error.to_string())?;
        Ok(svg)
    }

    fn draw<'a>(&self, svg: &'a mut String, steps: u64) -> Result<(), DrawError<'a>> {
        let area = SVGBackend::with_string(svg, self.size).into_drawing_area();
        let x = Axis::linear(0.0..steps as f64, 12, 1.0);
        let (bottom, top) = (self.y.range.start, self.y.range.end);
        let mut chart = ChartBuilder::on(&area)
            .margin(6)
            .margin_right(30)
            .x_label_area_size(26)
            .y_label_area_size(64)
            .build_cartesian_2d(x, self.y.clone())?;
        chart
            .configure_mesh()
            .label_style(font(15))
            .bold_line_style(RGBColor(222, 222, 222))
            .light_line_style(TRANSPARENT)
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_label_formatter(&|value| (self.label)(*value))
            .draw()?;
        chart.draw_series(
            self.bars.iter().map(|bar| Rectangle::new([bar.from, bar.to], ShapeStyle::from(bar.color).filled())),
        )?;
        if self.zero_line {
            let zero = [(0.0, 0.0), (steps as f64, 0.0)];
            chart.draw_series(LineSeries::new(zero, ShapeStyle::from(BLACK)))?;
        }
        let skip = ShapeStyle::from(SKIP_COLOR);
        // A crowd of them would hide the curve.
        let lines = if self.marks.len() > 100 { 0 } else { self.marks.len() };
        for &step in &self.marks[..lines] {
            chart.draw_series(LineSeries::new([(step, bottom), (step, top)], skip))?;
        }
        let color = if self.means.is_empty() { COLORS[0] } else { BAND_COLOR };
        // A crowd of points in one line blurs where the line is thick.
        let width = if self.line.len() > 600 { 1 } else { 2 };
        let style = ShapeStyle::from(color).stroke_width(width);
        chart.draw_series(LineSeries::new(self.line.iter().copied(), style))?;
        for (line, color) in &self.lines {
            chart.draw_series(LineSeries::new(line.iter().copied(), *color))?;
        }
        let style = ShapeStyle::from(COLORS[0]).stroke_width(2);
        chart.draw_series(LineSeries::new(self.means.iter().copied(), style))?;
        chart.draw_series(self.marks.iter().map(|&step| TriangleMarker::new((step, bottom), 7, skip.filled())))?;
        chart.draw_series(
            self.dots.iter().map(|&point| Circle::new(point, 4, ShapeStyle::from(self.dot_color).filled())),
        )?;
        area.present()
    }
}

/// A number as short as it can be said: `0.05`, `200`, `1e-9`.
fn plain(value: f64) -> String {
    // Marks are round but for the last bits.
    let rounded = format!("{value:.2e}").parse().unwrap_or(value);
    if rounded == 0.0 || (1e-4..1e5).contains(&rounded.abs()) { rounded.to_string() } else { format!("{rounded:e}") }
}

fn charts(run: &Run, model: &Model, history: &History) -> Result<String, String> {
    let svg = |chart: &Chart| chart.svg(history.steps);
    let mut html = "<h2>Over the steps</h2>\n".to_owned();
    let mut add = |caption: &str, legend: &str, plot: String| {
        html += &format!("<figure>\n<figcaption>{}{legend}</figcaption>\n{plot}</figure>\n", escaped(caption));
    };
    let (caption, chart) = loss(history);
    add(caption, &chart.band_legend(history), svg(&chart)?);
    add("Test accuracy, %", "", svg(&accuracy(history))?);

    let mut chart = Chart::logarithmic(history, Quantity::LogRate);
    let mut legend = chart.band_legend(history);
    chart.marks = marked(history, |column| column.skipped).map(|(step, _)| step).collect();
    if !chart.marks.is_empty() {
        let count = run.skipped_steps;
        legend += &key(TRIANGLE, SKIP_COLOR, &format!("skipped ({count})"));
    }
    chart.dots = marked(history, |column| column.clamped).collect();
    chart.dot_color = CLAMP_COLOR;
    if !chart.dots.is_empty() {
        let count = history.clamped;
        legend += &key(DISC, CLAMP_COLOR, &format!("clamped ({count})"));
    }
    add("Learning rate, logarithmic", &legend, svg(&chart)?);

    let chart = Chart::logarithmic(history, Quantity::LogNorm);
    let legend = chart.band_legend(history);
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
        let points = curves.iter().flatten().map(|point| point.1);
        let label = |value: f64| plain(10f64.powf(value));
        let mut chart = Chart::of(Axis::log10(points, 8), label, Vec::new());
        chart.lines = curves.into_iter().zip(COLORS.into_iter().cycle()).collect();
        let tensors = model.tensors();
        let names = tensors.iter().zip(COLORS.into_iter().cycle());
        let legend: String = names.map(|(tensor, color)| key(SQUARE, color, tensor.name)).collect();
        add(caption, &legend, svg(&chart)?);
    }
    Ok(html)
}

/// Logarithmic where it spans much, which a linear axis would press flat.
fn loss(history: &History) -> (&'static str, Chart) {
    let line = history.curve(Quantity::Loss);
    let range = bounds(line.iter().map(|point| point.1), 0.0);
    if range.start > 0.0 && range.end > 20.0 * range.start {
        let chart = Chart::logarithmic(history, Quantity::LogLoss);
        return ("Loss of the batch, logarithmic", chart);
    }
    let margin = (0.05 * (range.end - range.start)).max(1e-6 * range.end.abs()).max(1e-12);
    let y = Axis::linear(range.start - margin..range.end + margin, 8, 0.0);
    let chart = Chart { means: history.means(Quantity::Loss), ..Chart::of(y, plain, line) };
    ("Loss of the batch", chart)
}

fn accuracy(history: &History) -> Chart {
    let line: Vec<(f64, f64)> =
        history.accuracies.iter().map(|&(step, accuracy)| (step as f64, 100.0 * accuracy)).collect();
    let range = bounds(line.iter().map(|point| point.1), 0.0);
    let margin = (0.08 * (range.end - range.start)).max(0.5);
    let y = Axis::linear(range.start - margin..range.end + margin, 7, 0.0);
    let mut chart = Chart::of(y, plain, line.clone());
    // Dots that touch each other say nothing.
    if line.len() <= 100 {
        chart.dots = line;
    }
    chart
}

/// The marked columns' first step and learning rate; where a column has no rate yet, the bottom is as good a place as any.
fn marked(history: &History, is_marked: impl Fn(&Column) -> bool) -> impl Iterator<Item = (f64, f64)> {
    let rates = || history.columns.iter().map(|column| column.extremes[Quantity::LogRate as usize]);
    let lowest = bounds(rates().flat_map(Extremes::points).map(|point| point.1), 0.0).start;
    let width = history.steps as f64 / history.columns.len().max(1) as f64;
    history.columns.iter().enumerate().filter(move |(_, column)| is_marked(column)).map(move |(index, column)| {
        column.extremes[Quantity::LogRate as usize].points().next().unwrap_or((index as f64 * width, lowest))
    })
}

/// A bar up for what rose and one down for what fell, term upon term, in every bin.
fn stacked_causes(run: &Run, history: &History) -> (Chart, String) {
    let (width, end) = (history.bin_width() as f64, history.steps as f64);
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
    let ends = bars.iter().map(|bar| bar.to.1).chain([0.0]);
    let range = bounds(ends, 0.0);
    let margin = (0.05 * (range.end - range.start)).max(1e-9);
    let mut chart = Chart::of(Axis::linear(range.start - margin..range.end + margin, 9, 0.0), plain, Vec::new());
    chart.size = TALL;
    chart.bars = bars;
    chart.zero_line = true;
    let legend = Term::ALL
        .into_iter()
        .zip(run.causes.terms)
        .zip(TERM_COLORS)
        .filter(|((_, cause), _)| cause.occurred())
        .map(|((term, cause), color)| key(SQUARE, color, &in_words(term, cause)))
        .collect();
    (chart, legend)
}

const SQUARE: &str = "M0 0h12v12h-12z";
const TRIANGLE: &str = "M6 1L12 11L0 11z";
const DISC: &str = "M2 6a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z";

/// An entry of a legend. A drawing, as a background would be missing on paper.
fn key(shape: &str, RGBColor(r, g, b): RGBColor, name: &str) -> String {
    format!(
        "<span><svg viewBox=\"0 0 12 12\"><path d=\"{shape}\" fill=\"rgb({r},{g},{b})\"/></svg>{}</span>",
        escaped(name)
    )
}
