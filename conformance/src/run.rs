//! A case is stated once and run on the CPU path and on every adapter: groups with their settings and initial parameters, then
//! gradients step by step.

#[cfg(feature = "gpu")]
mod device;

pub use crate::spec::{Place, Spec, lengths, packed, separate};
use crate::stored::Stored;
#[cfg(feature = "gpu")]
pub use device::*;
use wgpu_optim::cpu::{Values, ValuesMut};
use wgpu_optim::internals::layout::{GroupState, ScopeSums};
use wgpu_optim::{
    Averaging, Checkpoint, CombinedSums, Controls, CpuOptimizer, Difference, Differences, Element, Error, GroupConfig,
    LossScaler, NonFinitePolicy, NormOutliers, Notes, OptimizerBuilder, Records, Rule, ShardSums, cpu,
};

/// What the builder of either path is told beside its groups.
#[derive(Debug, Clone, Copy, Default)]
pub struct Setup {
    /// What to do about gradients that are not finite.
    pub policy: NonFinitePolicy,
    /// The loss scaler, if any.
    pub scaler: Option<LossScaler>,
    /// Steps that the record ring holds, if not the usual number.
    pub record_steps: Option<u32>,
    /// The rank, and how many there are.
    pub shard: Option<(u32, u32)>,
    /// Gradients that are added up in one; 1 without.
    pub micro_batches: Option<u32>,
    /// What becomes of norms that are outliers, if anything.
    pub outliers: Option<NormOutliers>,
    /// The largest norm of the gradients of all groups, if there is one.
    pub global_clip: Option<f32>,
    /// Whether every tensor may be without gradients.
    pub absent_gradients: bool,
    /// Whether the passes of a step are dispatches of their own on the device, however small the case is.
    pub separate_passes: bool,
}

impl Setup {
    /// Tells a builder.
    pub fn tell<T>(self, builder: OptimizerBuilder<T>) -> OptimizerBuilder<T> {
        let mut builder = builder.nonfinite_policy(self.policy);
        if let Some(scaler) = self.scaler {
            builder = builder.loss_scaler(scaler);
        }
        if let Some((rank, ranks)) = self.shard {
            builder = builder.sharded(rank, ranks);
        }
        if let Some(micro_batches) = self.micro_batches {
            builder = builder.micro_batches(micro_batches);
        }
        if let Some(outliers) = self.outliers {
            builder = builder.norm_outliers(outliers);
        }
        if let Some(most) = self.global_clip {
            builder = builder.global_clip_norm(most);
        }
        if self.absent_gradients {
            builder = builder.absent_gradients();
        }
        if self.separate_passes {
            builder = builder.separate_passes();
        }
        match self.record_steps {
            Some(steps) => builder.record_steps(steps),
            None => builder,
        }
    }
}

/// An optimizer at work on either path. Parameters and gradients are handed over in f32, whatever they are stored as.
pub trait Run {
    /// The name of the path, for messages.
    fn path(&self) -> String;
    /// The loss of the steps to come; 1 without.
    fn set_loss(&mut self, loss: f32);
    /// One step; gradients tensor by tensor. On the device it does not tell of a halt, which the next records do.
    fn try_step(&mut self, grads: &[Vec<f32>]) -> Result<(), Error>;
    /// As [`Run::try_step`], where nothing may fail.
    fn step(&mut self, grads: &[Vec<f32>]) {
        self.try_step(grads).expect("steps");
    }
    /// A step in which these tensors have no gradients. What is there of them is not to be read.
    fn try_step_without(&mut self, grads: &[Vec<f32>], absent: &[usize]) -> Result<(), Error>;
    /// As [`Run::try_step_without`], where nothing may fail.
    fn step_without(&mut self, grads: &[Vec<f32>], absent: &[usize]) {
        self.try_step_without(grads, absent).expect("steps");
    }
    /// A look at the last step; gradients tensor by tensor.
    fn try_look(&mut self, grads: &[Vec<f32>]) -> Result<(), Error>;
    /// As [`Run::try_look`], where nothing may fail.
    fn look(&mut self, grads: &[Vec<f32>]) {
        self.try_look(grads).expect("looks");
    }
    /// A look at a step in which these tensors had no gradients.
    fn try_look_without(&mut self, grads: &[Vec<f32>], absent: &[usize]) -> Result<(), Error>;
    /// Changes the controls of a group, or of all.
    fn try_control(&mut self, group: Option<&str>, change: &dyn Fn(&mut Controls)) -> Result<(), Error>;
    /// As [`Run::try_control`], where nothing may fail.
    fn control(&mut self, group: &str, change: &dyn Fn(&mut Controls)) {
        self.try_control(Some(group), change).expect("a control");
    }
    /// The controls of a group as they were set.
    fn controls(&self, group: &str) -> Controls;
    /// This rank's part of a step of several.
    fn try_measure(&mut self, grads: &[Vec<f32>]) -> Result<ShardSums, Error>;
    /// As [`Run::try_measure`], where nothing may fail.
    fn measure(&mut self, grads: &[Vec<f32>]) -> ShardSums {
        self.try_measure(grads).expect("measures")
    }
    /// The step that was measured.
    fn try_apply(&mut self, grads: &[Vec<f32>], combined: &CombinedSums) -> Result<(), Error>;
    /// The parameters, tensor by tensor.
    fn try_params(&self) -> Result<Vec<Vec<f32>>, Error>;
    /// As [`Run::try_params`], where nothing may fail.
    fn params(&self) -> Vec<Vec<f32>> {
        self.try_params().expect("parameters arrive")
    }
    /// The average of every tensor; its parameters where there is none, or none yet.
    fn averages(&self) -> Vec<Vec<f32>>;
    /// Exchanges parameters and averages.
    fn try_swap_averages(&mut self) -> Result<(), Error>;
    /// As [`Run::try_swap_averages`], where nothing may fail.
    fn swap_averages(&mut self) {
        self.try_swap_averages().expect("swaps");
    }
    /// On the host no drain is an error.
    fn try_records(&mut self) -> Result<Records, Error>;
    /// As [`Run::try_records`], where nothing may fail.
    fn records(&mut self) -> Records {
        self.try_records().expect("records arrive")
    }
    /// Goes on after a halt.
    fn resume(&mut self);
    /// The scale that the next loss is to be multiplied by.
    fn loss_scale(&self) -> f32;
    /// The learning rates, group by group.
    fn try_rates(&self) -> Result<Vec<f32>, Error>;
    /// As [`Run::try_rates`], where nothing may fail.
    fn rates(&self) -> Vec<f32> {
        self.try_rates().expect("rates arrive")
    }
    /// The states, group by group.
    fn try_states(&self) -> Result<Vec<GroupState>, Error>;
    /// As [`Run::try_states`], where nothing may fail.
    fn states(&self) -> Vec<GroupState> {
        self.try_states().expect("states arrive")
    }
    /// What the last step measured, scope by scope.
    fn try_sums(&self) -> Result<Vec<ScopeSums>, Error>;
    /// As [`Run::try_sums`], where nothing may fail.
    fn sums(&self) -> Vec<ScopeSums> {
        self.try_sums().expect("sums arrive")
    }
    /// The groups, as they are used.
    fn groups(&self) -> Vec<GroupConfig>;
    /// With the parameters.
    fn checkpoint(&self) -> Checkpoint;
    /// The parameters too.
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<(), Error> {
        self.restore_with(checkpoint, Differences::none()).map(|_| ())
    }
    /// As [`Run::restore`], with differences that are accepted.
    fn restore_with(&mut self, checkpoint: &Checkpoint, accepted: Differences) -> Result<Vec<Difference>, Error>;
}

/// The CPU path at work.
pub struct CpuRun {
    /// The optimizer, for what is its own.
    pub optimizer: CpuOptimizer,
    loss: f32,
    params: Vec<Stored>,
    /// What the gradients of each tensor are stored as.
    grads: Vec<Element>,
}

impl CpuRun {
    /// A case on the CPU path.
    pub fn new(specs: &[Spec]) -> Self {
        Self::with(specs, Setup::default())
    }

    /// As `new`, with what the builder itself is told.
    pub fn with(specs: &[Spec], setup: Setup) -> Self {
        Self::try_with(specs, setup).expect("builds")
    }

    /// As `with`.
    ///
    /// # Errors
    /// What the builder refuses.
    pub fn try_with(specs: &[Spec], setup: Setup) -> Result<Self, Error> {
        let mut builder: OptimizerBuilder<cpu::Tensor> = setup.tell(OptimizerBuilder::new(Rule::sgd()));
        let (mut params, mut stored_grads) = (Vec::new(), Vec::new());
        for spec in specs {
            let mut group = spec.group();
            for (i, tensor) in spec.tensors.iter().enumerate() {
                let stored = Stored::new(spec.params, tensor);
                let grads = Stored::new(spec.grads, tensor);
                group = group.shaped_tensor(spec.tensor_name(i), &spec.shape(i), stored.slice(), grads.slice());
                params.push(stored);
                stored_grads.push(spec.grads);
            }
            builder = builder.group(group);
        }
        Ok(CpuRun { optimizer: builder.build_cpu()?, loss: 1.0, params, grads: stored_grads })
    }

    /// The optimizer with the parameters, for calls that only the CPU path has.
    pub fn parts(&mut self) -> (&mut CpuOptimizer, Vec<&mut dyn ValuesMut>) {
        (&mut self.optimizer, slices_mut(&mut self.params))
    }

    /// Gradients in the element types of the case.
    pub fn stored(&self, grads: &[Vec<f32>]) -> Vec<Stored> {
        assert_eq!(grads.len(), self.grads.len());
        self.grads.iter().zip(grads).map(|(&element, grads)| Stored::new(element, grads)).collect()
    }
}

fn slices(tensors: &[Stored]) -> Vec<&dyn Values> {
    tensors.iter().map(Stored::slice).collect()
}

fn slices_mut(tensors: &mut [Stored]) -> Vec<&mut dyn ValuesMut> {
    tensors.iter_mut().map(Stored::slice_mut).collect()
}

impl Run for CpuRun {
    fn path(&self) -> String {
        "CPU path".to_owned()
    }
    fn set_loss(&mut self, loss: f32) {
        self.loss = loss;
    }
    fn try_step(&mut self, grads: &[Vec<f32>]) -> Result<(), Error> {
        let grads = self.stored(grads);
        self.optimizer.step_with_loss(&mut slices_mut(&mut self.params), &slices(&grads), self.loss)
    }
    fn try_step_without(&mut self, grads: &[Vec<f32>], absent: &[usize]) -> Result<(), Error> {
        let grads = self.stored(grads);
        self.optimizer.step_without(&mut slices_mut(&mut self.params), &slices(&grads), self.loss, absent)
    }
    fn try_look(&mut self, grads: &[Vec<f32>]) -> Result<(), Error> {
        let grads = self.stored(grads);
        self.optimizer.look(&slices(&self.params), &slices(&grads))
    }
    fn try_look_without(&mut self, grads: &[Vec<f32>], absent: &[usize]) -> Result<(), Error> {
        let grads = self.stored(grads);
        self.optimizer.look_without(&slices(&self.params), &slices(&grads), absent)
    }
    fn try_control(&mut self, group: Option<&str>, change: &dyn Fn(&mut Controls)) -> Result<(), Error> {
        match group {
            Some(group) => self.optimizer.control(group, change),
            None => self.optimizer.control_all(change),
        }
    }
    fn controls(&self, group: &str) -> Controls {
        self.optimizer.controls(group).expect("a group")
    }
    fn try_measure(&mut self, grads: &[Vec<f32>]) -> Result<ShardSums, Error> {
        let grads = self.stored(grads);
        self.optimizer.measure_with_loss(&slices(&self.params), &slices(&grads), self.loss)
    }
    fn try_apply(&mut self, grads: &[Vec<f32>], combined: &CombinedSums) -> Result<(), Error> {
        let grads = self.stored(grads);
        self.optimizer.apply(&mut slices_mut(&mut self.params), &slices(&grads), combined)
    }
    fn try_params(&self) -> Result<Vec<Vec<f32>>, Error> {
        Ok(self.params.iter().map(Stored::values).collect())
    }
    fn averages(&self) -> Vec<Vec<f32>> {
        let tensors = self.params.iter().enumerate();
        tensors
            .map(|(tensor, params)| {
                // Of 16 bits the masters, where there is an average.
                let mut averages = params.values();
                let copied = self.optimizer.copy_averages(tensor, params.slice(), &mut averages);
                let group = self.optimizer.tensors()[tensor].group;
                let kept = self.optimizer.groups()[group].averaging != Averaging::Off;
                assert!(copied.is_ok() || !kept, "{copied:?}");
                averages
            })
            .collect()
    }
    fn try_swap_averages(&mut self) -> Result<(), Error> {
        self.optimizer.swap_averages(&mut slices_mut(&mut self.params))
    }
    fn try_records(&mut self) -> Result<Records, Error> {
        Ok(self.optimizer.drain_records())
    }
    fn resume(&mut self) {
        self.optimizer.resume();
    }
    fn loss_scale(&self) -> f32 {
        self.optimizer.loss_scale()
    }
    fn try_rates(&self) -> Result<Vec<f32>, Error> {
        Ok(self.optimizer.learning_rates().to_vec())
    }
    fn try_states(&self) -> Result<Vec<GroupState>, Error> {
        Ok(self.optimizer.states().to_vec())
    }
    fn try_sums(&self) -> Result<Vec<ScopeSums>, Error> {
        Ok(self.optimizer.sums().to_vec())
    }
    fn groups(&self) -> Vec<GroupConfig> {
        self.optimizer.groups().to_vec()
    }
    fn checkpoint(&self) -> Checkpoint {
        self.optimizer.checkpoint(Some(&slices(&self.params)), &Notes::new()).expect("a checkpoint")
    }
    fn restore_with(&mut self, checkpoint: &Checkpoint, accepted: Differences) -> Result<Vec<Difference>, Error> {
        self.optimizer.restore_with(checkpoint, Some(&mut slices_mut(&mut self.params)), accepted)
    }
}

/// Floats as their bits, for comparisons that tell zeros apart and NaN from NaN.
pub fn bits(values: &[Vec<f32>]) -> Vec<Vec<u32>> {
    values.iter().map(|tensor| tensor.iter().map(|x| x.to_bits()).collect()).collect()
}
