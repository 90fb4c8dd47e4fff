//! The tests check that the kernels draw the sum of Gaussians that `splat.wgsl` describes, and that their gradients are its derivatives. A few
//! steps without tuning must improve the fit on every adapter, with the same bits in each run. PNG files must be read and written unchanged.
//!
//! These faults were tried once by hand: the sign of an angle's gradient, a box that ends a pixel early, a tile's cover that is a pixel or a
//! word short, and exchanged channels of a PNG.

use wgpu_optim::{Gpu, Regime, Rule};

use crate::fit::{Fit, Norms, PER_SPLAT, TENSORS, random_start};
use crate::picture::{Picture, write_png};
use crate::{Task, chart};

/// None of these is a multiple of a tile, of a word's bits or of a workgroup. Some boxes extend over the picture's edges.
const WIDTH: usize = 23;
const HEIGHT: usize = 17;
const SPLATS: usize = 70;

/// The error is within 1e-6 on lavapipe, and within 4e-4 on SwiftShader, whose `sin`, `cos` and `exp` are as inexact as WGSL allows.
const TOLERANCE: f64 = 1e-3;

/// Opens every adapter with compute shaders. It is a failure if there is none.
fn adapters() -> Vec<Gpu> {
    let adapters = pollster::block_on(Gpu::adapters(None));
    assert!(!adapters.is_empty(), "no adapter: install a driver, lavapipe at least");
    adapters.iter().map(|adapter| pollster::block_on(Gpu::open(adapter)).expect("an adapter opens")).collect()
}

fn small_target() -> Picture {
    let mut picture = Picture::drawn(WIDTH);
    picture.height = HEIGHT;
    picture.pixels.truncate(WIDTH * HEIGHT);
    picture
}

/// Returns random Gaussians that are neither round nor equally opaque.
fn uneven_start(target: &Picture) -> Vec<f32> {
    let mut start = random_start(target, SPLATS, 7);
    for splat in 0..SPLATS {
        let shape = 2 * SPLATS + 3 * splat;
        start[shape] += 0.4 * (splat as f32).sin();
        start[shape + 1] += 0.4 * (2.0 * splat as f32).cos();
        start[8 * SPLATS + splat] = (3.0 * splat as f32).sin();
    }
    start
}

/// Computes the picture from the formulas, without boxes and tiles.
fn reference(target: &Picture, parameters: &[f64]) -> Vec<[f64; 3]> {
    let splats = parameters.len() / PER_SPLAT;
    let side = target.width.max(target.height) as f64;
    let (shapes, colours, opacities) = (2 * splats, 5 * splats, 8 * splats);
    let mut pixels = vec![[0.0; 3]; target.pixels.len()];
    for splat in 0..splats {
        let (x, y) = (side * parameters[2 * splat], side * parameters[2 * splat + 1]);
        let shape = &parameters[shapes + 3 * splat..][..3];
        let (a, b) = (side * shape[0].exp() + 0.35, side * shape[1].exp() + 0.35);
        let (sin, cos) = shape[2].sin_cos();
        let opacity = 1.0 / (1.0 + (-parameters[opacities + splat]).exp());
        for (index, pixel) in pixels.iter_mut().enumerate() {
            let dx = (index % target.width) as f64 + 0.5 - x;
            let dy = (index / target.width) as f64 + 0.5 - y;
            let (u, v) = ((cos * dx + sin * dy) / a, (cos * dy - sin * dx) / b);
            let q = u * u + v * v;
            if q < 12.0 {
                let weight = (-0.5 * q).exp() - (-6.0f64).exp();
                for (channel, value) in pixel.iter_mut().enumerate() {
                    *value += opacity * weight * parameters[colours + 3 * splat + channel];
                }
            }
        }
    }
    pixels
}

fn reference_loss(target: &Picture, parameters: &[f64]) -> f64 {
    let pixels = reference(target, parameters);
    let values = pixels.iter().flatten().zip(target.pixels.iter().flatten());
    let sum: f64 = values.map(|(value, goal)| (value - f64::from(*goal)).powi(2)).sum();
    sum / (3 * pixels.len()) as f64
}

#[test]
fn the_gradients_are_those_of_finite_differences() {
    const STEP: f64 = 1e-5;
    let target = small_target();
    let start = uneven_start(&target);
    let mut parameters: Vec<f64> = start.iter().map(|&value| f64::from(value)).collect();
    let picture = reference(&target, &parameters);
    let loss = reference_loss(&target, &parameters);
    let differences: Vec<f64> = (0..parameters.len())
        .map(|index| {
            let value = parameters[index];
            let mut loss_at = |value| {
                parameters[index] = value;
                reference_loss(&target, &parameters)
            };
            let difference = (loss_at(value + STEP) - loss_at(value - STEP)) / (2.0 * STEP);
            parameters[index] = value;
            difference
        })
        .collect();
    for gpu in adapters() {
        let name = gpu.describe();
        let fit = Fit::new(&gpu, &target, &start, 1);
        let drawn = fit.picture().expect("a picture");
        for (at, (drawn, expected)) in drawn.pixels.iter().zip(&picture).enumerate() {
            for (drawn, expected) in drawn.iter().zip(expected) {
                let off = (f64::from(*drawn) - expected).abs();
                assert!(off <= TOLERANCE, "{name}: pixel {at}: {drawn} where {expected} is right");
            }
        }
        let gradients = fit.gradients().expect("gradients");
        let off = (f64::from(fit.losses().expect("losses")[0]) - loss).abs();
        assert!(off <= TOLERANCE * loss, "{name}: the loss is off by {off} of {loss}");
        let mut first = 0;
        for (tensor, per_splat) in TENSORS {
            let elements = first..first + per_splat * SPLATS;
            first = elements.end;
            let largest =
                differences[elements.clone()].iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
            assert!(largest > 0.0, "{tensor} has no gradient");
            for at in elements {
                let off = (f64::from(gradients[at]) - differences[at]).abs();
                assert!(
                    off <= TOLERANCE * largest,
                    "{name}: {tensor}, parameter {at}: {} where {} is right",
                    gradients[at],
                    differences[at]
                );
            }
        }
    }
}

#[test]
fn a_few_untuned_steps_make_the_fit_better() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("page.png");
    for gpu in adapters() {
        let task = Task { gpu, target: Picture::drawn(32), splats: 48, steps: 40, rule: Rule::sgdm(0.9) };
        let outcome = task.run(0, [Regime::seesaw(); 4], Norms::ByGroup).expect("a run");
        let name = task.gpu.describe();
        let (before, after) = (crate::psnr(outcome.losses[0]), outcome.psnr());
        assert!(after >= before + 5.0, "{name}: from {before} dB to {after} dB");
        assert_eq!(outcome.losses.len(), 41, "{name}");
        let again = task.run(0, [Regime::seesaw(); 4], Norms::ByGroup).expect("a run");
        assert!(again.losses == outcome.losses, "{name}: another run, other bits");
        let last_seen = outcome.before.mean_square_from(&task.target);
        let off = (last_seen - outcome.losses[0]).abs();
        assert!(off <= 1e-5 * last_seen, "{name}: a loss of {last_seen} is off by {off}");
        let rates = outcome.rates();
        for line in &rates {
            assert_eq!(line.values.len(), 40, "{name}: {}", line.name);
            assert!(line.values.iter().all(|rate| rate.is_finite() && *rate > 0.0));
        }
        assert!(rates[0].values[39] != rates[1].values[39], "{name}: groups share a rate");

        let pictures = [("start".to_owned(), &outcome.before), ("end".to_owned(), &outcome.after)];
        chart::write_page(&path, &pictures, &[outcome.quality("seesaw")], &rates).expect("a page");
        let page = Picture::read(&path, 10_000).expect("a PNG file");
        let is_coloured = |pixel: &&[f32; 3]| pixel[0] != pixel[1] || pixel[1] != pixel[2];
        let coloured = page.pixels.iter().filter(is_coloured).count();
        assert!(coloured > 10_000, "{coloured} coloured pixels");
    }
}

#[test]
fn png_files_are_read_as_they_were_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("picture.png");
    let bytes: Vec<u8> = (0..3 * 6 * 4).map(|value| 3 * value).collect();
    write_png(&path, 6, 4, &bytes).expect("writes");
    let picture = Picture::read(&path, 6).expect("reads");
    assert_eq!((picture.width, picture.height), (6, 4));
    for (value, byte) in picture.pixels.iter().flatten().zip(&bytes) {
        assert!((255.0 * value - f32::from(*byte)).abs() <= 1e-3, "{value} {byte}");
    }
    // The picture is half as large, with means of two by two pixels.
    let half = Picture::read(&path, 3).expect("reads");
    assert_eq!((half.width, half.height), (3, 2));
    let at = |x: usize, y: usize| picture.pixels[6 * y + x][1];
    let mean = (at(4, 2) + at(5, 2) + at(4, 3) + at(5, 3)) / 4.0;
    assert!((half.pixels[5][1] - mean).abs() <= 1e-6);
    let missing = Picture::read(&folder.path().join("none.png"), 6);
    assert!(missing.is_err());
}
