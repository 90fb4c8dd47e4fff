//! Implementation of burn's trait `Optimizer`, for code that uses a [`ModuleOptimizer`](burn::optim::ModuleOptimizer): burn's `Learner`, and
//! loops that pass a learning rate.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::optim::{LearningRate, Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{Device, Tensor, TensorData};
use wgpu_optim::{Checkpoint, Notes, Parameters};

use crate::error::Error;
use crate::optim::{Site, WgpuOptim};
use crate::tensor::{Pending, close, open};

/// A [`WgpuOptim`] that implements burn's trait `Optimizer`. [`ModuleOptimizer::from`](burn::optim::ModuleOptimizer) and `Learner::new` take it.
///
/// ```no_run
/// # use burn::nn::LinearConfig;
/// # use burn::optim::{GradientsParams, ModuleOptimizer};
/// # use burn::tensor::Device;
/// # use wgpu_optim_burn::{Shared, WgpuOptimConfig};
/// # use wgpu_optim_burn::wgpu_optim::{OptimizerBuilder, Regime, Rule};
/// # let (device, gpu) = wgpu_optim_burn::share_burns(Device::wgpu_options())?;
/// # let device = device.autodiff();
/// # let mut model = LinearConfig::new(8, 1).init(&device);
/// # let gradients = GradientsParams::new();
/// // A rate of 1 in the regime is the rate of the call.
/// let config = WgpuOptimConfig::new(OptimizerBuilder::new(Rule::adamw()).regime(Regime::fixed(1.0)));
/// let shared = Shared::new(config.init(&model, &gpu)?);
/// let mut optim = ModuleOptimizer::from(shared.clone());
/// model = optim.step(1e-3, model, gradients);
/// println!("{}", shared.lock().drain_records()?.records[0]);
/// # Ok::<(), wgpu_optim_burn::Error>(())
/// ```
///
/// # Learning rates
/// The rate that is passed to a step multiplies the group's rate ([`Controls::learning_rate_factor`](wgpu_optim::Controls)). With
/// [`Regime::fixed`](wgpu_optim::Regime::fixed) of 1 it is the rate, so that burn's schedulers can be used. With a regime that computes its
/// rate, such as Seesaw, pass 1 and set a schedule in [`OptimizerBuilder::schedule`](wgpu_optim::OptimizerBuilder), because the regime
/// compensates for a factor from outside.
///
/// # Records
/// `ModuleOptimizer::to_record`, and therefore a checkpoint of `Learner`, contains the whole state of the optimizer as one tensor of bytes, which
/// is a checkpoint of [`wgpu_optim`]. It waits for the device. A record that is loaded is restored at the next step.
///
/// # Limits
/// - Every parameter needs a gradient in every step, because burn does not tell its optimizers where a step ends: see
///   [`Error::MissingGradient`]. [`WgpuOptim::step`] has no such limit.
/// - The trait's methods return no errors. An error that [`WgpuOptim::step`] would return is a panic with the same text.
/// - Regimes that use the loss are refused, because the trait passes no loss.
/// - `Learner` keeps the old module during a step. Every parameter is therefore copied on the device in every step
///   ([`Copies::parameters`](crate::Copies)). The optimizer's state is not copied.
/// - Clones share one optimizer.
#[derive(Debug, Clone)]
pub struct Shared(Arc<Mutex<Stepping>>);

struct Stepping {
    optim: WgpuOptim,
    /// Parameters of the current step that have arrived, in the order of the optimizer's tensors.
    sites: Vec<Option<Pending<Vec<Site>>>>,
    arrived: usize,
    /// The rate of each group in this step.
    rates: Vec<Option<LearningRate>>,
}

impl std::fmt::Debug for Stepping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stepping").field("optim", &self.optim).field("arrived", &self.arrived).finish_non_exhaustive()
    }
}

/// State that burn keeps for each parameter: the parameter's position in the module.
#[derive(Clone)]
pub struct SharedState {
    /// Position in the order of the module.
    position: usize,
    origin: Origin,
}

#[derive(Clone)]
enum Origin {
    Stepped(Shared),
    /// Loaded from a record. The first parameter has the checkpoint.
    Loaded(Option<Arc<Vec<u8>>>),
}

const CHECKPOINT: &str = "wgpu_optim";
const POSITION: &str = "position";

impl Shared {
    /// Wraps an optimizer that was made for the module.
    pub fn new(optim: WgpuOptim) -> Self {
        let sites = optim.parameters().iter().map(|_| None).collect();
        let rates = vec![None; optim.optimizer().groups().len()];
        Shared(Arc::new(Mutex::new(Stepping { optim, sites, arrived: 0, rates })))
    }

    /// Locks the underlying optimizer, for its records, controls and averages. A step waits until the guard is dropped.
    pub fn lock(&self) -> SharedGuard<'_> {
        SharedGuard(self.stepping())
    }

    fn stepping(&self) -> MutexGuard<'_, Stepping> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Guard of a locked [`WgpuOptim`], returned by [`Shared::lock`].
#[derive(Debug)]
pub struct SharedGuard<'a>(MutexGuard<'a, Stepping>);

impl std::ops::Deref for SharedGuard<'_> {
    type Target = WgpuOptim;

    fn deref(&self) -> &WgpuOptim {
        &self.0.optim
    }
}

impl std::ops::DerefMut for SharedGuard<'_> {
    fn deref_mut(&mut self) -> &mut WgpuOptim {
        &mut self.0.optim
    }
}

impl Stepping {
    fn arrive<const D: usize>(
        &mut self,
        rate: LearningRate,
        tensor: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<SharedState>,
    ) -> Result<(Tensor<D>, usize), Error> {
        let position = state.as_ref().map_or(self.arrived, |state| state.position);
        if let Some(SharedState { origin: Origin::Loaded(Some(bytes)), .. }) = &state {
            self.optim.restore(&Checkpoint::from_bytes(bytes.to_vec())?)?;
        }
        let order = self.optim.order();
        let Some(&index) = order.get(position) else {
            return Err(Error::UnknownParameter { parameter: format!("parameter {position} of the module") });
        };
        if self.sites[index].is_some() {
            // The previous step is not complete.
            let missing = order.iter().find(|&&index| self.sites[index].is_none()).copied().unwrap_or(index);
            return Err(Error::MissingGradient { parameter: self.optim.parameters()[missing].name.clone() });
        }
        let parameter = &self.optim.parameters()[index];
        self.optim.check(parameter, &tensor)?;
        self.optim.check_gradient(parameter, &gradient)?;
        let unusable = |reason| Error::Unusable { parameter: parameter.name.clone(), reason };
        let (params, grads) = (open(tensor).map_err(unusable)?, open(gradient).map_err(unusable)?);
        let group = self.optim.optimizer().tensors()[index].group;
        let known = *self.rates[group].get_or_insert(rate);
        if known != rate {
            let group = self.optim.optimizer().groups()[group].name.clone();
            return Err(Error::SeveralRates { group, first: known, second: rate });
        }
        let (mut params, site) = self.optim.exchange(vec![(index, params, Some(grads))]);
        let params = params.swap_remove(0);
        self.sites[index] = Some(site);
        self.arrived += 1;
        if self.arrived == self.sites.len() {
            self.finish()?;
        }
        Ok((close(params), position))
    }

    fn finish(&mut self) -> Result<(), Error> {
        self.arrived = 0;
        let sites = self.sites.iter_mut().filter_map(Option::take).collect();
        let loss = self.optim.lease_loss(None)?;
        for group in 0..self.rates.len() {
            let Some(rate) = self.rates[group].take() else { continue };
            let factor = rate as f32;
            let name = self.optim.optimizer().groups()[group].name.clone();
            if self.optim.optimizer().controls(&name)?.learning_rate_factor != factor {
                self.optim.control(&name, |controls| controls.learning_rate_factor = factor)?;
            }
        }
        self.optim.finish(sites, loss)
    }
}

impl Optimizer for Shared {
    type State<const D: usize> = SharedState;

    fn step<const D: usize>(
        &self,
        rate: LearningRate,
        tensor: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<SharedState>,
    ) -> (Tensor<D>, Option<SharedState>) {
        let arrived = self.stepping().arrive(rate, tensor, gradient, state);
        match arrived {
            Ok((tensor, position)) => (tensor, Some(SharedState { position, origin: Origin::Stepped(self.clone()) })),
            Err(error) => panic!("{error}"),
        }
    }

    fn to_device<const D: usize>(state: SharedState, _device: &Device) -> SharedState {
        state
    }
}

impl RecordState for SharedState {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        out.push_scalar(prefix, POSITION, (self.position as u64).into());
        let bytes = match &self.origin {
            Origin::Stepped(shared) if self.position == 0 => {
                let shared = shared.lock();
                let notes = Notes::new();
                let checkpoint = shared.optimizer().checkpoint(Parameters::Excluded, &notes);
                let checkpoint = pollster::block_on(checkpoint);
                checkpoint.unwrap_or_else(|error| panic!("{error}")).to_bytes()
            }
            Origin::Loaded(Some(bytes)) => bytes.to_vec(),
            _ => return,
        };
        let length = bytes.len();
        out.push_tensor(prefix, CHECKPOINT, TensorData::new(bytes, [length]));
    }

    fn state_unflatten(prefix: &str, source: &mut StateSource, _device: &Device) -> Option<Self> {
        let position = source.take_scalar(prefix, POSITION).and_then(|scalar| u64::try_from(scalar).ok())? as usize;
        let bytes = source.take_tensor(prefix, CHECKPOINT).and_then(|data| data.try_into_vec::<u8>().ok());
        Some(SharedState { position, origin: Origin::Loaded(bytes.map(Arc::new)) })
    }
}
