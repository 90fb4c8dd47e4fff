//! Draws the result on one page: the pictures side by side, and the PSNR and the learning rates over the steps.

use std::convert::Infallible;
use std::error::Error;
use std::path::Path;

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster_width};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{BackendColor, BackendCoord, BackendTextStyle, DrawingErrorKind};

use crate::picture::{Picture, letters, write_png};

/// A named line of values by step.
pub struct Line {
    pub name: String,
    pub values: Vec<f64>,
}

const COLOURS: [RGBColor; 5] =
    [RGBColor(0, 95, 175), RGBColor(205, 75, 0), RGBColor(0, 130, 80), RGBColor(165, 60, 160), RGBColor(120, 120, 120)];
const GAP: usize = 12;
const TEXT: usize = RasterHeight::Size16.val();
const CHART_HEIGHT: usize = 250;

/// Draws and writes the page. All pictures have the same size, and are magnified by an integer factor.
pub fn write_page(
    path: &Path,
    pictures: &[(String, &Picture)],
    quality: &[Line],
    rates: &[Line],
) -> Result<(), Box<dyn Error>> {
    let (_, first) = pictures.first().ok_or("no pictures")?;
    let zoom = (256 / first.width.max(first.height)).max(1);
    let (width, height) = (zoom * first.width, zoom * first.height);
    let charts_top = TEXT + height + 3 * GAP;
    // Narrow pictures get wider columns, so that their names and the charts fit.
    let column = GAP + width.max(208);
    let mut page = Page::new(GAP + pictures.len() * column, charts_top + 2 * CHART_HEIGHT);
    for (index, (name, picture)) in pictures.iter().enumerate() {
        let left = GAP + index * column;
        page.write(name, left as i32, GAP as i32, [0; 3]);
        for y in 0..height {
            for x in 0..width {
                let pixel = picture.pixels[y / zoom * picture.width + x / zoom];
                let rgb = pixel.map(|value| (255.0 * value.clamp(0.0, 1.0)).round() as u8);
                page.blend((left + x) as i32, (2 * GAP + TEXT + y) as i32, rgb, 1.0);
            }
        }
    }
    // Rates belong to steps, and the PSNR to the states before and after steps.
    let last_step = rates.iter().map(|line| line.values.len()).max().unwrap_or(1);
    {
        let area = (&mut page).into_drawing_area();
        let (_, charts) = area.split_vertically(charts_top as u32);
        let (upper, lower) = charts.split_vertically(CHART_HEIGHT as u32);
        draw(&upper, "PSNR in dB by step:", quality, last_step)?;
        let logarithms: Vec<Line> = rates.iter().map(Line::log10).collect();
        draw(&lower, "log10 of the learning rate by step:", &logarithms, last_step)?;
        area.present()?;
    }
    write_png(path, page.width, page.height, &page.rgb)
}

impl Line {
    fn log10(&self) -> Line {
        Line { name: self.name.clone(), values: self.values.iter().map(|value| value.log10()).collect() }
    }
}

fn draw(
    area: &DrawingArea<&mut Page, Shift>,
    caption: &str,
    lines: &[Line],
    last_step: usize,
) -> Result<(), Box<dyn Error>> {
    let finite = || lines.iter().flat_map(|line| &line.values).filter(|value| value.is_finite());
    let (low, high) =
        finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &value| (low.min(value), high.max(value)));
    if low > high {
        return Err(format!("{caption}: nothing to draw").into());
    }
    let margin = 0.05 * (high - low).max(1e-3);
    // The legend is beside the caption, outside the chart.
    let font = ("sans-serif", TEXT as i32);
    let mut left = GAP as i32;
    let mut write = |text: &str, colour: RGBColor| {
        let style = font.into_text_style(area).color(&colour);
        let written = area.draw_text(text, &style, (left, GAP as i32 / 2));
        left += (text_width(text) + 2 * GAP) as i32;
        written
    };
    write(caption, BLACK)?;
    for (line, colour) in lines.iter().zip(COLOURS.into_iter().cycle()) {
        write(&line.name, colour)?;
    }
    let mut chart = ChartBuilder::on(area)
        .margin(GAP as i32)
        .margin_top((TEXT + GAP) as i32)
        .margin_right(2 * GAP as i32)
        .x_label_area_size(TEXT as i32 + 8)
        .y_label_area_size(44)
        .build_cartesian_2d(0.0..last_step as f64, low - margin..high + margin)?;
    chart
        .configure_mesh()
        .label_style(font)
        .bold_line_style(RGBColor(222, 222, 222))
        .light_line_style(TRANSPARENT)
        .x_labels(11)
        .y_labels(6)
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|value| format!("{value:.1}"))
        .draw()?;
    for (line, colour) in lines.iter().zip(COLOURS.into_iter().cycle()) {
        let points = (0..).map(f64::from).zip(line.values.iter().copied());
        let finite = points.filter(|(_, value)| value.is_finite());
        chart.draw_series(LineSeries::new(finite, colour.stroke_width(2)))?;
    }
    Ok(())
}

/// Returns the width in pixels.
fn text_width(text: &str) -> usize {
    get_raster_width(FontWeight::Regular, RasterHeight::Size16) * text.chars().count()
}

/// Drawing backend for plotters. The bitmaps of plotters need a system font. The letters here are compiled in.
struct Page {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Page {
    fn new(width: usize, height: usize) -> Self {
        Page { width, height, rgb: vec![255; 3 * width * height] }
    }

    /// Blends a colour with the pixel: `part` of 1 replaces it. Does nothing outside the page.
    fn blend(&mut self, x: i32, y: i32, rgb: [u8; 3], part: f32) {
        let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) else {
            return;
        };
        if x < self.width && y < self.height {
            let at = 3 * (y * self.width + x);
            for (below, above) in self.rgb[at..at + 3].iter_mut().zip(rgb) {
                *below = (f32::from(*below) * (1.0 - part) + f32::from(above) * part).round() as u8;
            }
        }
    }

    fn write(&mut self, text: &str, left: i32, top: i32, rgb: [u8; 3]) {
        letters(text, RasterHeight::Size16, |x, y, ink| {
            self.blend(left + x as i32, top + y as i32, rgb, ink);
        });
    }
}

impl DrawingBackend for &mut Page {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        (self.width as u32, self.height as u32)
    }

    fn ensure_prepared(&mut self) -> Result<(), DrawingErrorKind<Infallible>> {
        Ok(())
    }

    fn present(&mut self) -> Result<(), DrawingErrorKind<Infallible>> {
        Ok(())
    }

    fn draw_pixel(&mut self, (x, y): BackendCoord, colour: BackendColor) -> Result<(), DrawingErrorKind<Infallible>> {
        let (r, g, b) = colour.rgb;
        self.blend(x, y, [r, g, b], colour.alpha as f32);
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(
        &mut self,
        text: &str,
        style: &S,
        (x, y): BackendCoord,
    ) -> Result<(), DrawingErrorKind<Infallible>> {
        let (width, height) = self.estimate_text_size(text, style)?;
        let (width, height) = (width as i32, height as i32);
        let left = match style.anchor().h_pos {
            HPos::Left => x,
            HPos::Center => x - width / 2,
            HPos::Right => x - width,
        };
        let top = match style.anchor().v_pos {
            VPos::Top => y,
            VPos::Center => y - height / 2,
            VPos::Bottom => y - height,
        };
        let (r, g, b) = style.color().rgb;
        self.write(text, left, top, [r, g, b]);
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        _: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<Infallible>> {
        Ok((text_width(text) as u32, TEXT as u32))
    }
}
