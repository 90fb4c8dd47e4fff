//! Pictures: a drawn one, PNG files, and letters.

use std::error::Error;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::Path;

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster};

/// Picture with sRGB colours in [0, 1], in row-major order from the top.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    pub width: usize,
    pub height: usize,
    pub pixels: Vec<[f32; 3]>,
}

impl Picture {
    /// Reads a PNG file, and shrinks it until its longer side is no longer than `side`. Transparent areas become white.
    pub fn read(path: &Path, side: usize) -> Result<Self, Box<dyn Error>> {
        let mut decoder = png::Decoder::new(BufReader::new(File::open(path)?));
        decoder.set_transformations(png::Transformations::normalize_to_color8());
        let mut reader = decoder.read_info()?;
        let size = reader.output_buffer_size().ok_or("the picture is too large")?;
        let mut bytes = vec![0; size];
        let frame = reader.next_frame(&mut bytes)?;
        let channels = frame.color_type.samples();
        let pixels = bytes[..frame.buffer_size()]
            .chunks_exact(channels)
            .map(|samples| {
                let alpha = match channels {
                    2 | 4 => f32::from(samples[channels - 1]) / 255.0,
                    _ => 1.0,
                };
                let colour = match channels {
                    1 | 2 => [samples[0]; 3],
                    _ => [samples[0], samples[1], samples[2]],
                };
                colour.map(|value| 1.0 + alpha * (f32::from(value) / 255.0 - 1.0))
            })
            .collect();
        let picture = Picture { width: frame.width as usize, height: frame.height as usize, pixels };
        Ok(picture.shrunk(side))
    }

    /// Returns the mean squared difference over pixels and channels.
    pub fn mean_square_from(&self, other: &Picture) -> f64 {
        let differences = self.pixels.iter().flatten().zip(other.pixels.iter().flatten());
        let sum: f64 = differences.map(|(a, b)| f64::from(a - b).powi(2)).sum();
        sum / (3 * self.pixels.len()) as f64
    }

    /// Shrinks the picture. Each pixel is the mean of those that it replaces.
    fn shrunk(self, side: usize) -> Self {
        let longer = self.width.max(self.height);
        if longer <= side {
            return self;
        }
        let (width, height) = ((self.width * side / longer).max(1), (self.height * side / longer).max(1));
        let mut pixels = Vec::with_capacity(width * height);
        for y in 0..height {
            for x in 0..width {
                let mut sum = [0.0; 3];
                let rows = y * self.height / height..(y + 1) * self.height / height;
                let columns = x * self.width / width..(x + 1) * self.width / width;
                for row in rows.clone() {
                    for column in columns.clone() {
                        let pixel = self.pixels[row * self.width + column];
                        for (sum, value) in sum.iter_mut().zip(pixel) {
                            *sum += value;
                        }
                    }
                }
                let count = (rows.len() * columns.len()) as f32;
                pixels.push(sum.map(|sum| sum / count));
            }
        }
        Picture { width, height, pixels }
    }

    /// Draws a picture with smooth shading, soft and hard edges, fine stripes and letters.
    pub fn drawn(side: usize) -> Self {
        const SAMPLES: usize = 4;
        let mut pixels = Vec::with_capacity(side * side);
        for y in 0..side {
            for x in 0..side {
                let mut sum = [0.0; 3];
                for sample in 0..SAMPLES * SAMPLES {
                    let at = |pixel: usize, sample: usize| {
                        (pixel as f32 + (sample as f32 + 0.5) / SAMPLES as f32) / side as f32
                    };
                    let colour = scene(at(x, sample % SAMPLES), at(y, sample / SAMPLES));
                    for (sum, value) in sum.iter_mut().zip(colour) {
                        *sum += value / (SAMPLES * SAMPLES) as f32;
                    }
                }
                pixels.push(sum);
            }
        }
        let mut picture = Picture { width: side, height: side, pixels };
        let size = if side >= 96 { RasterHeight::Size32 } else { RasterHeight::Size16 };
        let margin = side / 16;
        letters("wgpu", size, |x, y, ink| {
            let (x, y) = (x + margin, y + side - margin / 2 - size.val());
            if x < side && y < side {
                let pixel = &mut picture.pixels[y * side + x];
                *pixel = mix(*pixel, [0.98, 0.96, 0.88], ink);
            }
        });
        picture
    }
}

/// Returns the colour of the drawn picture at a point of the unit square.
fn scene(x: f32, y: f32) -> [f32; 3] {
    // A sky with the sun and its glow.
    let sky = mix([0.18, 0.22, 0.48], [0.98, 0.62, 0.36], (1.5 * y).min(1.0));
    let from_sun = ((x - 0.7).powi(2) + (y - 0.27).powi(2)).sqrt();
    let glow = mix(sky, [1.0, 0.86, 0.55], 0.6 * (-from_sun * from_sun / 0.03).exp());
    let mut colour = if from_sun < 0.1 { [1.0, 0.95, 0.8] } else { glow };
    // Two ridges.
    let far = 0.5 + 0.06 * (9.0 * x).sin() + 0.03 * (23.0 * x + 1.0).sin();
    if y > far {
        colour = mix([0.42, 0.3, 0.48], [0.6, 0.42, 0.5], (y - far) / 0.3);
    }
    let near = 0.64 + 0.05 * (7.0 * x + 2.0).sin() + 0.015 * (41.0 * x).sin();
    if y > near {
        colour = mix([0.1, 0.2, 0.22], [0.04, 0.08, 0.12], (y - near) / 0.35);
    }
    // A lit ball.
    let (u, v) = ((x - 0.24) / 0.17, (y - 0.4) / 0.17);
    let inside = 1.0 - u * u - v * v;
    if inside > 0.0 {
        let light = (0.55 * u - 0.5 * v + 0.67 * inside.sqrt()).max(0.0);
        let shine = light.powi(24);
        colour = mix(mix([0.12, 0.02, 0.1], [0.9, 0.25, 0.3], light), [1.0, 0.95, 0.9], shine);
    }
    // A striped post.
    if (x - 0.88).abs() < 0.045 && y > 0.45 && y < 0.95 {
        let is_light = (((y + 0.5 * x) * 16.0) as i32) % 2 == 0;
        colour = if is_light { [0.92, 0.9, 0.85] } else { [0.75, 0.15, 0.15] };
    }
    colour
}

fn mix(a: [f32; 3], b: [f32; 3], part: f32) -> [f32; 3] {
    let part = part.clamp(0.0, 1.0);
    std::array::from_fn(|channel| a[channel] + part * (b[channel] - a[channel]))
}

/// Calls `draw` with the position and the coverage (above 0, up to 1) of the pixels of a line of letters. Skips characters outside ASCII.
pub fn letters(text: &str, size: RasterHeight, mut draw: impl FnMut(usize, usize, f32)) {
    let mut left = 0;
    for letter in text.chars() {
        let Some(raster) = get_raster(letter, FontWeight::Regular, size) else {
            continue;
        };
        for (y, row) in raster.rows().enumerate() {
            for (x, ink) in row.iter().enumerate().filter(|(_, ink)| **ink > 0) {
                draw(left + x, y, f32::from(*ink) / 255.0);
            }
        }
        left += raster.width();
    }
}

/// Writes 8-bit RGB as a PNG file.
pub fn write_png(path: &Path, width: usize, height: usize, rgb: &[u8]) -> Result<(), Box<dyn Error>> {
    let file = BufWriter::new(File::create(path)?);
    let mut encoder = png::Encoder::new(file, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::High);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(rgb)?;
    writer.finish()?;
    Ok(())
}
