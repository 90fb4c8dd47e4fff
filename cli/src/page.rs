//! Elements that the pages of `--report` share: the skeleton, escaping, lists, tables, and axes with custom marks.

use std::ops::Range;
use std::time::SystemTime;

use humantime::format_rfc3339_seconds;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;

/// Returns the command line without the path of the binary.
pub fn command() -> String {
    let mut words = vec![env!("CARGO_BIN_NAME").to_owned()];
    let arguments = std::env::args_os().skip(1);
    words.extend(arguments.map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Returns the version, date and command that made a page.
pub fn origin() -> [(&'static str, String); 3] {
    let date = format_rfc3339_seconds(SystemTime::now()).to_string();
    [("version", env!("CARGO_PKG_VERSION").to_owned()), ("date", date), ("command", command())]
}

pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub type DrawError = DrawingAreaErrorKind<std::io::Error>;

/// Marker of this program's pages.
pub const MARK: &str = "<meta name=\"generator\" content=\"wgpu-optim\">";
/// Marker of this program's plots in separate files.
pub const PLOT_MARK: &str = "<!-- wgpu-optim -->";

/// Returns a drawing as a separate file.
pub fn plot_file(svg: &str) -> String {
    svg.replacen('>', &format!(">\n{PLOT_MARK}"), 1)
}

/// Draws an SVG of this size in pixels.
pub fn svg(size: (u32, u32), draw: impl FnOnce(&Area) -> Result<(), DrawError>) -> Result<String, String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        draw(&area).and_then(|()| area.present()).map_err(|error| error.to_string())?;
    }
    Ok(svg)
}

/// Okabe and Ito's palette, which remains distinguishable with any colour vision: blue, vermilion, green, purple, sky
/// blue, orange.
pub const COLORS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];

/// Returns the style of black text of this size.
pub fn font(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&BLACK)
}

/// Escapes text for HTML and SVG.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Returns names and values as an HTML list.
pub fn facts(facts: &[(impl AsRef<str>, String)]) -> String {
    let item =
        |(name, value): &(_, String)| format!("<dt>{}</dt><dd>{}</dd>\n", escaped(AsRef::as_ref(name)), escaped(value));
    format!("<dl>\n{}</dl>\n", facts.iter().map(item).collect::<String>())
}

/// Returns sentences as list items.
pub fn items(sentences: impl IntoIterator<Item = String>) -> String {
    sentences.into_iter().map(|sentence| format!("<li>{}</li>\n", escaped(&sentence))).collect()
}

/// Returns a table row. Cells from `first_number` on are numbers.
pub fn row(tag: &str, cells: &[impl AsRef<str>], first_number: usize) -> String {
    let cell = |(column, cell): (usize, &_)| {
        let class = if column < first_number { "" } else { " class=n" };
        format!("<{tag}{class}>{}</{tag}>", escaped(AsRef::as_ref(cell)))
    };
    format!("<tr>{}</tr>", cells.iter().enumerate().map(cell).collect::<String>())
}

/// Returns a table. Columns from `first_number` on contain numbers.
pub fn table<C: AsRef<str>>(
    header: &[impl AsRef<str>],
    rows: impl IntoIterator<Item = impl AsRef<[C]>>,
    first_number: usize,
) -> String {
    let body: String = rows.into_iter().map(|cells| row("td", cells.as_ref(), first_number) + "\n").collect();
    let head = row("th", header, first_number);
    format!("<table>\n<thead>{head}</thead>\n<tbody>\n{body}</tbody>\n</table>\n")
}

/// Returns a self-contained page. The title is escaped; `style` and `body` are inserted as they are.
pub fn page(title: &str, style: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         {MARK}\n<meta name=\"viewport\" content=\"width=device-width\">\n<title>{}</title>\n\
         <style>{style}</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        escaped(title)
    )
}

/// Style sheet of a run's pages.
pub const STYLE: &str = "
body { font: 14px/1.45 sans-serif; color: #111; background: #fff; max-width: 1240px; margin: 0 auto; padding: 16px; }
h1 { font-size: 20px; }
dl { display: grid; grid-template-columns: max-content auto; gap: 2px 16px; }
dt { color: #555; }
dd { margin: 0; font-family: monospace; overflow-wrap: anywhere; }
svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums; }
th { position: sticky; top: 0; background: #fff; text-align: left; border-bottom: 2px solid #888; }
th, td { padding: 2px 6px; }
td { white-space: nowrap; border-bottom: 1px solid #e4e4e4; }
.n { text-align: right; }
";

/// Axis with custom marks.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Axis {
    pub range: Range<f64>,
    pub marks: Vec<f64>,
    /// Number of decimals that distinguishes the marks. Logarithmic axes have none and use the shortest form.
    decimals: Option<usize>,
}

impl Axis {
    /// Returns an axis from the least to the greatest value, with about `most` marks at round values. `least_apart`
    /// keeps counts whole.
    pub fn linear(range: Range<f64>, most: usize, least_apart: f64) -> Self {
        let apart = (range.end - range.start) / most as f64;
        let power = 10f64.powf(apart.log10().floor());
        let rounded = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|&rounded| rounded >= apart);
        let apart = rounded.unwrap_or(apart).max(least_apart);
        let first = (range.start / apart).ceil() as i64;
        let last = (range.end / apart).floor() as i64;
        let decimals = Some((-apart.log10()).ceil().clamp(0.0, 12.0) as usize);
        Axis { marks: (first..=last).map(|mark| mark as f64 * apart).collect(), range, decimals }
    }

    /// Returns an axis with these marks, for logarithms of base ten.
    pub fn with_marks(range: Range<f64>, marks: Vec<f64>) -> Self {
        Axis { range, marks, decimals: None }
    }

    /// Returns the label of a mark, which is the number itself even on a logarithmic axis.
    pub fn label(&self, mark: f64) -> String {
        match self.decimals {
            Some(decimals) if mark.abs() < 1e6 => format!("{mark:.decimals$}"),
            Some(_) => plain(mark),
            None => plain(10f64.powf(mark)),
        }
    }

    /// Returns an axis of log10 of the values, with at most `most` marks at the roundest values that fit.
    pub fn log10(values: impl Iterator<Item = f64>, most: usize) -> Self {
        let range = bounds(values, 0.0);
        let margin = (0.04 * (range.end - range.start)).max(0.06);
        let range = range.start - margin..range.end + margin;
        // Within a decade the marks are at round values with equal distances, otherwise at round digits.
        let whole: Vec<f64> = (1..10).map(f64::from).collect();
        let (low, high) = (10f64.powf(range.start), 10f64.powf(range.end));
        let even = (high < 10.0 * low && low > 0.0).then(|| {
            let marks = Axis::linear(low..high, most, 0.0).marks;
            marks.into_iter().filter(|mark| *mark > 0.0).map(f64::log10).collect()
        });
        let digits = [&whole, &[1.0, 2.0, 5.0][..], &[1.0]].into_iter().map(|digits| log_marks(&range, digits));
        let marks = even.into_iter().chain(digits).find(|marks: &Vec<f64>| (1..=most).contains(&marks.len()));
        let marks = marks.unwrap_or_else(|| {
            let decades = log_marks(&range, &[1.0]);
            let every = decades.len().div_ceil(most);
            decades.into_iter().step_by(every).collect()
        });
        Axis::with_marks(range, marks)
    }
}

/// Formats a number in its shortest form: `0.05`, `200`, `1e-9`.
fn plain(value: f64) -> String {
    // Marks are round except for the last bits.
    let rounded = format!("{value:.3e}").parse().unwrap_or(value);
    if rounded == 0.0 || (1e-4..1e5).contains(&rounded.abs()) { rounded.to_string() } else { format!("{rounded:e}") }
}

/// Returns log10 of these digits times powers of ten, within the range.
pub fn log_marks(range: &Range<f64>, digits: &[f64]) -> Vec<f64> {
    let decades = range.start.floor() as i32..=range.end.ceil() as i32;
    let marks = decades.flat_map(|decade| digits.iter().map(move |m| f64::from(decade) + m.log10()));
    marks.filter(|mark| range.contains(mark)).collect()
}

/// Returns the range from the least to the greatest value with a margin, or an arbitrary range without values.
pub fn bounds(values: impl Iterator<Item = f64>, margin: f64) -> Range<f64> {
    let none = (f64::INFINITY, f64::NEG_INFINITY);
    let (low, high) = values.fold(none, |(low, high), value| (low.min(value), high.max(value)));
    if low > high { 0.0..1.0 } else { low - margin..high + margin }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.marks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    fn format(value: &f64) -> String {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_break_the_page() {
        assert_eq!(escaped("a<b & \"c\">"), "a&lt;b &amp; &quot;c&quot;&gt;");
        let page = page("</title>", "", &facts(&[("<b>", "<i>".to_owned())]));
        assert!(!page.contains("<i>") && !page.contains("<b>"));
        assert_eq!(page.matches("</title>").count(), 1);
    }

    #[test]
    fn axes_always_have_marks() {
        for values in [[1e-3f64, 1e-3], [0.031, 0.032], [0.2, 30.0], [1e-30, 1e30]] {
            let axis = Axis::log10(values.into_iter().map(f64::log10), 8);
            assert!((1..=8).contains(&axis.marks.len()), "{axis:?}");
        }
        let labels = |axis: Axis| -> Vec<String> { axis.marks.iter().map(|&mark| axis.label(mark)).collect() };
        assert_eq!(labels(Axis::linear(99.55..100.0, 5, 0.0)), ["99.6", "99.7", "99.8", "99.9", "100.0"]);
        let narrow = labels(Axis::log10([0.1, 0.15].into_iter().map(f64::log10), 8));
        assert_eq!(narrow, ["0.1", "0.12", "0.14", "0.16"]);
        assert_eq!(labels(Axis::log10([1.0, 1000.0].into_iter().map(f64::log10), 4)), ["1", "10", "100", "1000"]);
        for end in [1e-9, 0.3, 1.0, 7.0, 230.0, 1e9] {
            let axis = Axis::linear(0.0..end, 10, 0.0);
            assert!((4..=11).contains(&axis.marks.len()), "{axis:?}");
        }
        assert_eq!(Axis::linear(0.0..2.0, 10, 1.0).marks, [0.0, 1.0, 2.0]);
    }
}
