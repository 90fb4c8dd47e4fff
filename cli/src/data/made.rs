//! Small generated data sets. No linear model solves them, and a learning rate that is too small for too long ends at
//! chance.

use std::f64::consts::PI;

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::{Dataset, HELD_OUT, Scale, Split};

/// Features and class of a row.
type Row = (Vec<f32>, u32);

/// Generated data set.
#[derive(Debug, Clone, Copy)]
pub struct Made {
    /// Name for `--data`.
    pub name: &'static str,
    /// Seed of the set. It differs from the run's seed, so that every run has the same rows.
    seed: u64,
    classes: usize,
    rows: u32,
    /// Function that generates the row with this number.
    row: fn(u32, &mut ChaCha8Rng) -> Row,
}

/// All generated sets: three spiral arms around each other; whether an even number of the first 3 of 20 signs is
/// negative; the sign of sin(12 x) for x from -1 to 1; the colour of a field of a 4 x 4 board.
const ALL: [Made; 4] = [
    Made { name: "spirals", seed: 5, classes: 3, rows: 1500, row: spiral },
    Made { name: "parity", seed: 12, classes: 2, rows: 2000, row: parity },
    Made { name: "sine", seed: 13, classes: 2, rows: 2000, row: sine },
    Made { name: "board", seed: 14, classes: 2, rows: 3000, row: board },
];

impl Made {
    /// Returns the set with this name.
    pub fn named(name: &str) -> Option<Self> {
        ALL.into_iter().find(|made| made.name == name)
    }

    /// Generates the set. One row in five, taken from the start of a random order, is held out. Features are
    /// standardised.
    pub fn dataset(self) -> Dataset {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut rows: Vec<Row> = (0..self.rows).map(|row| (self.row)(row, &mut rng)).collect();
        // The arms of the spirals are generated one after the other.
        rows.shuffle(&mut rng);
        let (test, train) = rows.split_at(rows.len() / HELD_OUT);
        let split = |rows: &[Row]| Split {
            x: rows.iter().flat_map(|(x, _)| x).copied().collect(),
            y: rows.iter().map(|(_, y)| *y).collect(),
        };
        let mut dataset = Dataset {
            name: self.name.to_owned(),
            features: rows.first().map_or(0, |(x, _)| x.len()),
            classes: self.classes,
            train: split(train),
            test: split(test),
        };
        standardise(&mut dataset);
        dataset
    }
}

/// Gives every column mean 0 and standard deviation 1 over the training rows.
fn standardise(dataset: &mut Dataset) {
    let features = dataset.features;
    for column in 0..features {
        let scale = {
            let x = &dataset.train.x;
            Scale::standard(|| x[column..].iter().step_by(features).map(|&x| f64::from(x)), 0.0)
        };
        for split in [&mut dataset.train, &mut dataset.test] {
            split.x[column..].iter_mut().step_by(features).for_each(|x| *x = scale.apply(f64::from(*x)));
        }
    }
}

/// Returns a point of one of three arms with 500 rows each. An arm winds one and a half times around the middle with a
/// standard deviation of 0.03, and its end is at distance 2.
fn spiral(row: u32, rng: &mut ChaCha8Rng) -> Row {
    let arm = row / 500;
    let turned = rng.random_range(0.0..1.0f64).sqrt() * 3.0 * PI;
    let angle = turned + 2.0 * PI * f64::from(arm) / 3.0;
    let distance = turned / (3.0 * PI) * 2.0;
    let mut near = |value: f64| {
        let noise: f64 = StandardNormal.sample(rng);
        (value + 0.03 * noise) as f32
    };
    (vec![near(distance * angle.cos()), near(distance * angle.sin())], arm)
}

fn parity(_: u32, rng: &mut ChaCha8Rng) -> Row {
    let signs: [bool; 20] = std::array::from_fn(|_| rng.random());
    let odd = signs[..3].iter().filter(|&&negative| negative).count() % 2;
    (signs.map(|negative| if negative { -1.0 } else { 1.0 }).to_vec(), 1 - odd as u32)
}

fn sine(_: u32, rng: &mut ChaCha8Rng) -> Row {
    let x = rng.random_range(-1.0..1.0f64);
    (vec![x as f32], u32::from((12.0 * x).sin() > 0.0))
}

fn board(_: u32, rng: &mut ChaCha8Rng) -> Row {
    let x: [f64; 2] = std::array::from_fn(|_| rng.random_range(-1.0..1.0));
    let [column, row] = x.map(|x| (2.0 * (x + 1.0)) as u32);
    (x.map(|x| x as f32).to_vec(), (column + row) % 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset(name: &str) -> Dataset {
        Made::named(name).expect(name).dataset()
    }

    /// Returns the rows of both parts, in no particular order.
    fn all(dataset: &Dataset) -> Vec<(&[f32], u32)> {
        let parts = [&dataset.test, &dataset.train].into_iter();
        parts.flat_map(|part| part.x.chunks(dataset.features).zip(part.y.iter().copied())).collect()
    }

    #[test]
    fn every_set_has_its_shape_is_balanced_and_standardised() {
        for (name, rows, features, classes) in
            [("spirals", 1500, 2, 3), ("parity", 2000, 20, 2), ("sine", 2000, 1, 2), ("board", 3000, 2, 2)]
        {
            let set = dataset(name);
            assert_eq!(set.name, name);
            assert_eq!((set.features, set.classes), (features, classes));
            assert_eq!(set.test.rows(), rows / 5);
            assert_eq!(set.train.rows(), rows - rows / 5);
            for part in [&set.test, &set.train] {
                assert_eq!(part.x.len(), part.rows() * features);
                for class in 0..classes as u32 {
                    let count = part.y.iter().filter(|&&y| y == class).count();
                    let share = count as f64 * classes as f64 / part.rows() as f64;
                    assert!((0.85..1.15).contains(&share), "{name}, {class}: {share}");
                }
            }
            for column in 0..features {
                let values = || set.train.x[column..].iter().step_by(features).map(|&x| f64::from(x));
                let rows = set.train.rows() as f64;
                let (sum, squares): (f64, f64) = (values().sum(), values().map(|x| x.powi(2)).sum());
                assert!((sum / rows).abs() < 1e-5 && (squares / rows - 1.0).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn a_set_is_the_same_every_time_and_another_by_another_seed() {
        for made in ALL {
            assert_eq!(made.dataset(), made.dataset());
            assert_ne!(made.dataset(), Made { seed: made.seed + 1, ..made }.dataset());
        }
    }

    /// The classes follow the definitions, as far as standardised features show it.
    #[test]
    fn classes_follow_the_definitions() {
        // Standardising keeps the signs if the mean is far from every value.
        let parity = dataset("parity");
        for (x, y) in all(&parity) {
            let even = x[..3].iter().filter(|&&x| x < 0.0).count() % 2 == 0;
            assert_eq!(y, u32::from(even), "{x:?}");
        }
        // Sorted by x, the sign of sin(12 x) changes seven times within (-1, 1), at the multiples of π/12.
        let sine = dataset("sine");
        let mut rows = all(&sine);
        rows.sort_by(|a, b| a.0[0].total_cmp(&b.0[0]));
        let changes = rows.windows(2).filter(|pair| pair[0].1 != pair[1].1);
        assert_eq!(changes.count(), 7);
        // The four by four fields each have one colour, unlike their neighbours.
        let board = dataset("board");
        let rows = all(&board);
        let edges = |column: usize| {
            let values = || rows.iter().map(|(x, _)| x[column]);
            (values().fold(f32::INFINITY, f32::min), values().fold(f32::NEG_INFINITY, f32::max))
        };
        let field = |x: f32, (low, high): (f32, f32)| ((x - low) / (high - low) * 4.0).min(3.99);
        let mut told = 0;
        for (x, y) in &rows {
            let [a, b] = [0, 1].map(|column| field(x[column], edges(column)));
            // The edges of the board are known only to within the rows near them.
            if [a, b].iter().all(|at| (0.05..0.95).contains(&at.fract())) {
                assert_eq!((a as u32 + b as u32) % 2, *y, "{a}, {b}");
                told += 1;
            }
        }
        assert!(told > 2000, "{told}");
        // The middle of an arm is a third of a turn from that of the next one.
        let spirals = dataset("spirals");
        let mut right = 0;
        for (x, y) in all(&spirals) {
            let distance = f64::from(x[0].hypot(x[1]));
            let angle = f64::from(x[1].atan2(x[0]));
            // The columns originally had a standard deviation of about 1: the distance 2 √u has a mean square of 2,
            // half of it in each column.
            let turned = distance / 2.0 * 3.0 * PI;
            let arm = (angle - turned).rem_euclid(2.0 * PI) / (2.0 * PI) * 3.0;
            right += u32::from(arm.round() as u32 % 3 == y);
        }
        assert!(right > 1400, "{right}");
    }
}
