//! Training on the CPU path, with slices and with gradients on the host.

use std::error::Error;
use std::path::Path;

use wgpu_optim::cpu::{Values, ValuesMut};
use wgpu_optim::{Controls, CpuOptimizer, Differences, Record, Schedule};

use super::{HIDDEN, Sample, Training, builder, weights};

pub struct Host {
    backbone: Vec<f32>,
    head: Vec<f32>,
    optimizer: CpuOptimizer,
}

impl Host {
    pub fn new() -> Result<Self, Box<dyn Error>> {
        let (backbone, head) = (weights(2 * HIDDEN), weights(HIDDEN));
        let optimizer =
            builder([&backbone, &backbone], "first head", [&head, &head], Schedule::Constant).build_cpu()?;
        Ok(Host { backbone, head, optimizer })
    }

    /// Returns the loss, and computes the gradients of backbone and head.
    fn gradients(&self, samples: &[Sample]) -> (f32, Vec<f32>, Vec<f32>) {
        let (mut loss, mut of_backbone, mut of_head) = (0.0, vec![0.0; 2 * HIDDEN], vec![0.0; HIDDEN]);
        let share = 1.0 / samples.len() as f32;
        for [x, y, target, _] in samples {
            let units: Vec<f32> = self.backbone.chunks(2).map(|w| (w[0] * x + w[1] * y).tanh()).collect();
            let error = units.iter().zip(&self.head).map(|(unit, h)| unit * h).sum::<f32>() - target;
            loss += 0.5 * share * error * error;
            for (j, unit) in units.iter().enumerate() {
                of_head[j] += share * error * unit;
                let inner = share * error * self.head[j] * (1.0 - unit * unit);
                of_backbone[2 * j] += inner * x;
                of_backbone[2 * j + 1] += inner * y;
            }
        }
        (loss, of_backbone, of_head)
    }
}

impl Training for Host {
    fn train(&mut self, samples: &[Sample], steps: usize) -> Result<f32, Box<dyn Error>> {
        let mut last = 0.0;
        for _ in 0..steps {
            let (loss, of_backbone, of_head) = self.gradients(samples);
            self.optimizer.step(&mut [&mut self.backbone, &mut self.head], &[&of_backbone, &of_head])?;
            last = loss;
        }
        Ok(last)
    }

    fn control(&mut self, group: &str, change: &dyn Fn(&mut Controls)) -> Result<(), Box<dyn Error>> {
        Ok(self.optimizer.control(group, change)?)
    }

    fn rebuild(&mut self, head: &str, schedule: Schedule) -> Result<Vec<String>, Box<dyn Error>> {
        let builder = builder([&self.backbone, &self.backbone], head, [&self.head, &self.head], schedule);
        let (rebuilt, differences) = self.optimizer.rebuild(builder, None, Differences::all())?;
        self.optimizer = rebuilt;
        Ok(differences.iter().map(ToString::to_string).collect())
    }

    fn save(&self, path: &Path) -> Result<(), Box<dyn Error>> {
        let parameters: [&dyn Values; 2] = [&self.backbone, &self.head];
        Ok(self.optimizer.save(path, Some(&parameters))?)
    }

    fn load(&mut self, path: &Path) -> Result<Vec<String>, Box<dyn Error>> {
        let parameters: &mut [&mut dyn ValuesMut] = &mut [&mut self.backbone, &mut self.head];
        let (_, differences) = self.optimizer.load_with(path, Some(parameters), Differences::none().settings())?;
        Ok(differences.iter().map(ToString::to_string).collect())
    }

    fn last_records(&mut self) -> Result<Vec<Record>, Box<dyn Error>> {
        Ok(last_two(self.optimizer.drain_records().records))
    }

    fn backbone(&self) -> Result<Vec<f32>, Box<dyn Error>> {
        Ok(self.backbone.clone())
    }
}

/// Returns the records of the last step, one for each group.
pub fn last_two(mut records: Vec<Record>) -> Vec<Record> {
    records.split_off(records.len().saturating_sub(2))
}
