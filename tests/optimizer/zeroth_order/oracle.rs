//! The methods in f64, as the papers and the authors' code define them, with random numbers computed in f64 from the same bits.

use wgpu_optim::ZerothOrderMethod;

use super::Spec;

pub struct Oracle {
    method: ZerothOrderMethod,
    epsilon: f64,
    seed: u32,
    decay: f64,
    shapes: Vec<Vec<usize>>,
    pub w: Vec<Vec<f64>>,
    step: u32,
    taken: u32,
    /// The momentum of each tensor.
    momentum: Vec<Vec<f64>>,
    right: Vec<Vec<f64>>,
}

fn mix(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

fn key(seed: u32, count: u32) -> u32 {
    mix(mix(mix(seed) ^ count))
}

/// Returns a normal number by the Box-Muller transform. The numbers 2i and 2i + 1 are the coordinates of one point in the plane.
pub fn normal(key: u32, index: u32) -> f64 {
    let word = |i: u32| mix(key.wrapping_add(0x9e37_79b9u32.wrapping_mul(i)));
    let (first, second) = (word(index & !1), word(index | 1));
    let u = (f64::from(first >> 9) + 0.5) / f64::from(1 << 23);
    let within = (f64::from((second >> 7) & 0x7f_ffff) + 0.5) / f64::from(1 << 23) - 0.5;
    let angle = (f64::from(second >> 30) + within) * std::f64::consts::FRAC_PI_2;
    (-2.0 * u.ln()).sqrt() * if index & 1 == 0 { angle.cos() } else { angle.sin() }
}

impl Oracle {
    pub fn new(spec: &Spec) -> Self {
        let w = |values: &[f32]| values.iter().map(|w| f64::from(*w)).collect::<Vec<_>>();
        Oracle {
            method: spec.method,
            epsilon: spec.epsilon.into(),
            seed: spec.seed,
            decay: spec.decay.into(),
            shapes: spec.tensors.iter().map(|(shape, _)| shape.clone()).collect(),
            w: spec.tensors.iter().map(|(_, values)| w(values)).collect(),
            step: 0,
            taken: 0,
            momentum: vec![Vec::new(); spec.tensors.len()],
            right: vec![Vec::new(); spec.tensors.len()],
        }
    }

    /// Returns the rank, the interval and β.
    fn numbers(&self) -> (usize, u32, Option<f64>) {
        match self.method {
            ZerothOrderMethod::Lozo { rank, interval } => (rank as usize, interval, None),
            ZerothOrderMethod::LozoM { rank, interval, momentum } => (rank as usize, interval, Some(momentum.into())),
            _ => (0, 1, None),
        }
    }

    /// Returns the rows and columns of a tensor that is a matrix.
    fn matrix(&self, tensor: usize) -> Option<(usize, usize)> {
        let shape = &self.shapes[tensor];
        let is_matrix = self.numbers().0 > 0 && shape.len() >= 2;
        is_matrix.then(|| (shape[0], shape[1..].iter().product()))
    }

    /// Takes a step, or restores the parameters where a loss is not finite. Returns z.
    pub fn take(&mut self, [above, below]: [f32; 2], rate: f64) -> Vec<Vec<f64>> {
        let (rank, interval, beta) = self.numbers();
        let z_key = key(self.seed, self.step);
        let is_new = self.step.is_multiple_of(interval);
        let v_key = key(self.seed ^ 0x5bd1_e995, self.step / interval);
        // The numbers of all U, and of z for vectors with a momentum, come first.
        let mut left_first = vec![0; self.w.len()];
        let mut right_first = vec![0; self.w.len()];
        let (mut left, mut right) = (0, 4);
        for tensor in 0..self.w.len() {
            let elements = self.w[tensor].len();
            left_first[tensor] = left;
            right_first[tensor] = right;
            match self.matrix(tensor) {
                Some((rows, columns)) if elements > 0 => {
                    left += rows * rank;
                    right += columns * rank;
                }
                None if beta.is_some() => left += elements,
                _ => {}
            }
        }
        left = left.next_multiple_of(4);
        for (tensor, first) in left_first.iter_mut().enumerate() {
            if self.matrix(tensor).is_none() && beta.is_none() {
                *first = left;
                left += self.w[tensor].len().next_multiple_of(4);
            }
        }

        let (above, below) = (f64::from(above), f64::from(below));
        let c = (above - below) / (2.0 * self.epsilon);
        let is_taken = c.is_finite();
        let mut directions = Vec::new();
        for tensor in 0..self.w.len() {
            let elements = self.w[tensor].len();
            let draw = |key, first: usize, count: usize| -> Vec<f64> {
                (first..first + count).map(|index| normal(key, index as u32)).collect()
            };
            let Some((rows, columns)) = self.matrix(tensor).filter(|_| elements > 0) else {
                let z = draw(z_key, left_first[tensor], elements);
                let m = &mut self.momentum[tensor];
                let direction = match beta {
                    None => z.iter().map(|z| c * z).collect(),
                    Some(beta) if is_taken => {
                        *m = match self.taken {
                            0 => z.iter().map(|z| c * z).collect(),
                            _ => m.iter().zip(&z).map(|(m, z)| beta * m + (1.0 - beta) * c * z).collect(),
                        };
                        m.clone()
                    }
                    Some(_) => Vec::new(),
                };
                let decays = rank == 0 && self.shapes[tensor].len() != 1;
                self.follow(tensor, is_taken, &direction, rate, decays);
                directions.push(z);
                continue;
            };
            let u = draw(z_key, left_first[tensor], rows * rank);
            let old = self.right[tensor].clone();
            if is_new {
                self.right[tensor] = draw(v_key, right_first[tensor], columns * rank);
            }
            let v = &self.right[tensor];
            let product = |left: &[f64]| -> Vec<f64> {
                let at = |i: usize, j: usize| (0..rank).map(|k| left[i * rank + k] * v[j * rank + k]).sum::<f64>();
                (0..elements).map(|e| at(e / columns, e % columns)).collect()
            };
            let z = product(&u);
            let m = &mut self.momentum[tensor];
            if is_new && !m.is_empty() {
                let overlap = |l: usize, k: usize| {
                    (0..columns).map(|j| old[j * rank + l] * v[j * rank + k]).sum::<f64>() / columns as f64
                };
                let turned = |i: usize, k: usize| (0..rank).map(|l| m[i * rank + l] * overlap(l, k)).sum::<f64>();
                *m = (0..rows * rank).map(|e| turned(e / rank, e % rank)).collect();
            }
            let direction = match beta {
                None => z.iter().map(|z| c * z).collect(),
                Some(beta) if is_taken => {
                    *m = match self.taken {
                        0 => u.iter().map(|u| c * u).collect(),
                        _ => m.iter().zip(&u).map(|(m, u)| beta * m + (1.0 - beta) * c * u).collect(),
                    };
                    product(m)
                }
                Some(_) => Vec::new(),
            };
            self.follow(tensor, is_taken, &direction, rate, true);
            directions.push(z);
        }
        self.step += 1;
        self.taken += u32::from(is_taken);
        directions
    }

    fn follow(&mut self, tensor: usize, is_taken: bool, direction: &[f64], rate: f64, decays: bool) {
        let decay = if decays { self.decay } else { 0.0 };
        if is_taken {
            for (w, d) in self.w[tensor].iter_mut().zip(direction) {
                *w -= rate * (d + decay * *w);
            }
        }
    }
}
