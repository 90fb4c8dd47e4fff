//! Copies of buffers that a verdict updates or restores: `shaders/controllers/keep.wgsl`.

use super::{Part, WORKGROUP, dispatch, pipeline, uniform};
use crate::controllers::watchdog::KeptPart;
use crate::gpu::buffers::{whole, zeroed};
use crate::gpu::optimizer::{Dispatch, Optimizer};
use crate::gpu::pass::Binding::{Read, Uniform, Write};

/// Number of words that an invocation copies if there are more words than a dispatch has invocations.
const WORDS_PER_INVOCATION: u64 = 4;

/// A copy, and the dispatch that updates or restores it.
pub(super) struct KeptCopy {
    pub(super) kept: wgpu::Buffer,
    pub(super) keep: Dispatch,
}

impl KeptCopy {
    /// Creates a copy of a part of a tensor's parameters, 4 bytes for each word. `watch` decides whether it is updated or restored.
    pub(super) fn of_parameters(optimizer: &Optimizer, watch: &wgpu::Buffer, part: &Part) -> Self {
        let bytes = part.elements * part.place.params.bytes();
        let (live, first_word) = part.bind(optimizer, false);
        let half_word = (!bytes.is_multiple_of(4)).into();
        Self::new(optimizer, watch, live, KeptPart { first_word, words: bytes.div_ceil(4) as u32, half_word })
    }

    /// Creates a copy of a whole buffer.
    pub(super) fn of_buffer(optimizer: &Optimizer, watch: &wgpu::Buffer, live: &wgpu::Buffer) -> Self {
        let words = (live.size() / 4) as u32;
        Self::new(optimizer, watch, whole(live), KeptPart { first_word: 0, words, half_word: 0 })
    }

    fn new(optimizer: &Optimizer, watch: &wgpu::Buffer, live: wgpu::BufferBinding, part: KeptPart) -> Self {
        let kernel = pipeline(&optimizer.gpu, "controllers/keep", "keep", &[], &[], &[Read, Uniform, Write, Write]);
        let kept = zeroed::<u32>(&optimizer.gpu, "a copy that can be taken back", part.words.into());
        let about = uniform(&optimizer.gpu, "a part to keep", &part);
        let invocations = u64::from(part.words).div_ceil(WORDS_PER_INVOCATION);
        let most = optimizer.gpu.device().limits().max_compute_workgroups_per_dimension;
        let workgroups = invocations.div_ceil(WORKGROUP.into()).min(most.into()) as u32;
        let keep = dispatch(&optimizer.gpu, &kernel, &[whole(watch), whole(&about), live, whole(&kept)], workgroups);
        KeptCopy { kept, keep }
    }
}
