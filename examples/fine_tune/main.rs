//! Changes an optimizer during training. A small network learns one function. Its backbone is then frozen while a new head learns another
//! function. Then the whole network is trained, and once more from a checkpoint with a schedule. The device and the CPU path use the same calls.
//!
//! ```sh
//! cargo run --release --example fine_tune
//! ```

mod host;
mod on_device;

use std::error::Error;
use std::path::Path;

use wgpu_optim::{Controls, Group, OptimizerBuilder, Record, Rule, Schedule, TensorSlice};

/// Number of units in the hidden layer.
const HIDDEN: usize = 16;
/// Number of points at which a function is learnt.
const SAMPLES: usize = 64;

/// A point and the target value there, in the layout of `gradient.wgsl`.
type Sample = [f32; 4];

/// The network, its optimizer and a batch, on either path.
trait Training {
    /// Takes steps with the gradients of a batch. Returns the loss before the last step.
    fn train(&mut self, samples: &[Sample], steps: usize) -> Result<f32, Box<dyn Error>>;

    /// Changes the controls of a group.
    fn control(&mut self, group: &str, change: &dyn Fn(&mut Controls)) -> Result<(), Box<dyn Error>>;

    /// Replaces the optimizer with one that has another head or schedule, and keeps the state of everything that both have. Returns
    /// descriptions of the differences.
    fn rebuild(&mut self, head: &str, schedule: Schedule) -> Result<Vec<String>, Box<dyn Error>>;

    /// Saves optimizer and parameters.
    fn save(&self, path: &Path) -> Result<(), Box<dyn Error>>;

    /// Loads such a file, even if the schedule differs.
    fn load(&mut self, path: &Path) -> Result<Vec<String>, Box<dyn Error>>;

    /// Returns the records of the last step, one for each group.
    fn last_records(&mut self) -> Result<Vec<Record>, Box<dyn Error>>;

    fn backbone(&self) -> Result<Vec<f32>, Box<dyn Error>>;
}

/// Returns the builder for a backbone and a head, which are slices of either path.
fn builder<S: TensorSlice>(
    backbone: [S; 2],
    head: &str,
    of_head: [S; 2],
    schedule: Schedule,
) -> OptimizerBuilder<S::Tensor> {
    let ([w, g], [head_w, head_g]) = (backbone, of_head);
    OptimizerBuilder::new(Rule::sgdm(0.9))
        .schedule(schedule)
        .group(Group::new("backbone").tensor("backbone", w, g))
        .group(Group::new(head).tensor(head, head_w, head_g))
}

/// Returns points on a grid with the values of a function.
fn samples(function: fn(f32, f32) -> f32) -> Vec<Sample> {
    let grid = |i: usize| i as f32 / 3.5 - 1.0;
    let points = (0..SAMPLES).map(|i| (grid(i % 8), grid(i / 8)));
    points.map(|(x, y)| [x, y, function(x, y), 0.0]).collect()
}

/// Returns weights between -1 and 1 that are all different.
fn weights(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + 11) % 64) as f32 / 32.0 - 1.0).collect()
}

fn fine_tune(training: &mut dyn Training, path: &Path) -> Result<(), Box<dyn Error>> {
    let say = |what: &str, loss: f32, records: Vec<Record>| {
        println!("  {what}: loss {loss:.5}");
        for record in records {
            println!("    {record}");
        }
    };
    let first = samples(|x, y| (2.0 * x).sin() + 0.5 * y);
    let second = samples(|x, y| x - (1.5 * y).sin());

    let loss = training.train(&first, 300)?;
    say("the first task", loss, training.last_records()?);

    // A new head learns, and the backbone is frozen.
    for difference in training.rebuild("second head", Schedule::Constant)? {
        println!("  {difference}");
    }
    training.control("backbone", &|group| group.frozen = true)?;
    let before = training.backbone()?;
    let loss = training.train(&second, 300)?;
    say("the second task, with a frozen backbone", loss, training.last_records()?);
    assert_eq!(before, training.backbone()?, "a frozen group keeps its bits");

    // The whole network is trained, the backbone at a tenth of its rate.
    training.control("backbone", &|group| {
        group.frozen = false;
        group.learning_rate_factor = 0.1;
    })?;
    let loss = training.train(&second, 200)?;
    say("thawed, at a tenth of its rate", loss, training.last_records()?);

    // Training continues from a checkpoint, with a schedule that ends at a rate of 0.
    training.save(path)?;
    let schedule = Schedule::Linear { warmup: 0, steps: 1000, last: 0.0 };
    training.rebuild("second head", schedule)?;
    for difference in training.load(path)? {
        println!("  {difference}");
    }
    let loss = training.train(&second, 200)?;
    say("from the checkpoint, under a linear schedule", loss, training.last_records()?);
    assert!(loss < 0.02, "the second task was not learnt: loss {loss}");
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("fine_tune_{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    println!("CPU path");
    fine_tune(&mut host::Host::new()?, &folder.join("host.safetensors"))?;
    let mut device = on_device::Device::new()?;
    println!("{}", device.name());
    fine_tune(&mut device, &folder.join("device.safetensors"))?;
    std::fs::remove_dir_all(folder)?;
    Ok(())
}
