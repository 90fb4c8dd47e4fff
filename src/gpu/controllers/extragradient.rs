//! Extragradient on the device: `shaders/controllers/extragradient.wgsl`.

use super::element_pairs::{Pairs, Switched};
use crate::controllers::extragradient::{check_optimizer, check_turn};
use crate::error::Error;
use crate::gpu::buffers::whole;
use crate::gpu::optimizer::Optimizer;

const KERNEL: Switched = Switched {
    module: "controllers/extragradient",
    stem: "extragradient",
    switch: "AHEAD",
    memory: "the parameters before a look-ahead",
};

/// Extragradient on the device: a step with the gradient of a point ahead.
/// [`CpuExtragradient`](crate::CpuExtragradient) describes the formula, its purpose, and what a look-ahead does not change.
///
/// It keeps 4 bytes per parameter. A look-ahead moves 16 bytes per parameter and the way back 8.
///
/// ```no_run
/// use wgpu_optim::{Extragradient, Optimizer, wgpu};
///
/// fn step(
///     optimizer: &Optimizer,
///     extragradient: &mut Extragradient,
///     encoder: &mut wgpu::CommandEncoder,
///     mut compute_gradients: impl FnMut(&mut wgpu::CommandEncoder),
/// ) -> Result<(), wgpu_optim::Error> {
///     compute_gradients(encoder);
///     extragradient.encode_look_ahead(encoder)?;
///     compute_gradients(encoder);
///     extragradient.encode_go_back(encoder)?;
///     optimizer.encode_step(encoder)
/// }
/// ```
#[derive(Debug)]
pub struct Extragradient {
    pairs: Pairs,
    is_ahead: bool,
}

impl Extragradient {
    /// Creates it. `slices` has a pair for each of the optimizer's [`tensors`](Optimizer::tensors): the parameters and
    /// the gradients that the optimizer was built with. All are f32.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Build`](crate::ErrorKind::Build) for an optimizer with a rule other than
    /// [`Rule::sgd`](crate::Rule::sgd), 16-bit elements, [`AutoSgd`](crate::AutoSgd), schedule-free training, rate
    /// factors or a loss scaler, and for a slice that is misaligned, overlaps the other or lacks
    /// `BufferUsages::STORAGE`; [`ErrorKind::Call`](crate::ErrorKind::Call) for slices that do not have the lengths of
    /// the tensors; [`ErrorKind::Limit`](crate::ErrorKind::Limit) for a tensor that no binding can hold;
    /// [`ErrorKind::DeviceRefused`](crate::ErrorKind::DeviceRefused) or
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
    pub fn new(optimizer: &Optimizer, slices: &[[wgpu::BufferSlice; 2]]) -> Result<Self, Error> {
        check_optimizer(&optimizer.plan)?;
        let tables = [whole(optimizer.learning_rates()), whole(optimizer.controls_buffer())];
        let pairs = Pairs::new(optimizer, &KERNEL, slices, ["parameter", "gradient"], &tables)?;
        Ok(Extragradient { pairs, is_ahead: false })
    }

    /// Records a copy of the parameters and their move by -η g.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) after a look-ahead without
    /// [`Extragradient::encode_go_back`], or [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
    pub fn encode_look_ahead(&mut self, encoder: &mut wgpu::CommandEncoder) -> Result<(), Error> {
        check_turn(self.is_ahead, false, "Extragradient::encode_look_ahead")?;
        self.pairs.encode(encoder, "wgpu-optim look-ahead", true)?;
        self.is_ahead = true;
        Ok(())
    }

    /// Records the restoration of the kept parameters, bit for bit. The optimizer's step follows, with the gradient that
    /// was computed ahead. Submit all recorded commands in the order in which they were recorded.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) without a look-ahead, or
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
    pub fn encode_go_back(&mut self, encoder: &mut wgpu::CommandEncoder) -> Result<(), Error> {
        check_turn(self.is_ahead, true, "Extragradient::encode_go_back")?;
        self.pairs.encode(encoder, "wgpu-optim way back", false)?;
        self.is_ahead = false;
        Ok(())
    }
}
