//! A model learns in 16 bits as well as in f32.

use super::paths;
use std::io::Read;
use std::ops::Range;
use wgpu_optim::{Element, Regime, Rounding, Rule, State};
use wgpu_optim_conformance::run::{Run, Spec};

const TRAINED: usize = 1400;
const BATCH: usize = 35;

/// Images of 64 pixels from 0 to 1 followed by a one for the bias, and their digits.
struct Digits(Vec<([f32; 65], usize)>);

impl Digits {
    fn new() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/data/digits.csv.gz");
        let file = std::fs::File::open(path).expect("the digits");
        let mut text = String::new();
        flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("text");
        let rows = text.lines().map(|line| {
            let row: Vec<f32> = line.split(',').map(|field| field.trim().parse().expect("a number")).collect();
            let pixels = std::array::from_fn(|i| if i < 64 { row[i] / 16.0 } else { 1.0 });
            (pixels, row[64] as usize)
        });
        Digits(rows.collect())
    }

    /// Returns the scores of the ten digits from 64 rows of weights and a bias.
    fn scores(&self, params: &[Vec<f32>], index: usize) -> [f32; 10] {
        let weights = params.concat();
        std::array::from_fn(|digit| self.0[index].0.iter().enumerate().map(|(i, x)| weights[10 * i + digit] * x).sum())
    }

    /// Returns the gradients of the mean cross-entropy of a batch.
    fn gradients(&self, params: &[Vec<f32>], batch: impl ExactSizeIterator<Item = usize>) -> Vec<Vec<f32>> {
        let (count, mut grads) = (batch.len() as f32, vec![0.0; 650]);
        for index in batch {
            let powers = self.scores(params, index).map(f32::exp);
            let total: f32 = powers.iter().sum();
            let (pixels, label) = &self.0[index];
            for digit in 0..10 {
                let error = (powers[digit] / total - f32::from(*label == digit)) / count;
                pixels.iter().enumerate().for_each(|(i, x)| grads[10 * i + digit] += error * x);
            }
        }
        vec![grads[..640].to_vec(), grads[640..].to_vec()]
    }

    fn percent_right(&self, params: &[Vec<f32>], range: Range<usize>) -> f64 {
        let count = range.len() as f64;
        let right = range.filter(|&index| {
            let scores = self.scores(params, index);
            (0..10).max_by(|&a, &b| scores[a].total_cmp(&scores[b])) == Some(self.0[index].1)
        });
        100.0 * right.count() as f64 / count
    }
}

#[test]
fn digits_are_learned_in_halves_as_in_f32() {
    let digits = Digits::new();
    assert_eq!(digits.0.len(), 1797);
    let accuracies = |params, grads, rounding, state| -> Vec<f64> {
        let spec = Spec::new(Rule::sgdm(0.9), Regime::seesaw(), vec![vec![0.0; 640], vec![0.0; 10]]);
        let train = |mut run: Box<dyn Run>| {
            for t in 0..6 * TRAINED / BATCH {
                // The stride and the number of images are coprime, so that an epoch uses every image once.
                let batch = (0..BATCH).map(|i| (t * BATCH + i) * 1101 % TRAINED);
                let grads = digits.gradients(&run.params(), batch);
                run.step(&grads);
            }
            digits.percent_right(&run.params(), TRAINED..1797)
        };
        let spec = Spec { state, ..spec };
        paths(&[spec.stored(params, grads, rounding)]).into_iter().map(train).collect()
    };
    let (f32, f16, bf16) = (Element::F32, Element::F16, Element::Bf16);
    let in_f32 = accuracies(f32, f32, Rounding::Masters, State::F32);
    assert!(in_f32.iter().all(|&right| right >= 85.0), "{in_f32:?}");
    for (params, grads, rounding, state) in [
        (bf16, bf16, Rounding::Masters, State::F32),
        (bf16, bf16, Rounding::Masters, State::Bits8),
        (bf16, f32, Rounding::Stochastic { seed: 1 }, State::F32),
        (f16, f16, Rounding::Masters, State::F32),
        (f16, f16, Rounding::Masters, State::Bits8),
        (f16, f16, Rounding::Stochastic { seed: 2 }, State::F32),
        (f32, bf16, Rounding::Masters, State::F32),
    ] {
        for (found, expected) in accuracies(params, grads, rounding, state).iter().zip(&in_f32) {
            let what = format!("{params:?}, {grads:?}, {rounding:?}, {state:?}");
            assert!((found - expected).abs() <= 3.0, "{what}: {found} %, not {expected}");
        }
    }
}
