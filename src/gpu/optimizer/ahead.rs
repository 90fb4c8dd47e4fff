//! Compiling the kernels of a step on several threads.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::sweeps::{Passes, Sweep};
use crate::gpu::{finish_reduction, learning_rate};
use crate::plan::{Kernel, Plan};

/// Compiles the kernels of a step on all cores, so that building the optimizer finds them compiled. Does nothing on a device that keeps
/// pipelines already, because they are most likely the same, and nothing with OpenGL, where all threads would wait for one context. Browsers
/// compile in the background and do not have this module.
///
/// Errors are dropped. The build compiles a kernel that failed here again, and reports its error.
pub(super) fn compile_ahead(passes: Passes, plan: &Plan, measured: &[Kernel], loss_at: Option<u32>) {
    let gpu = passes.gpu;
    let backend = gpu.device().adapter_info().backend;
    if backend == wgpu::Backend::Gl || !gpu.pipelines().is_empty() {
        return;
    }
    // The largest kernel first.
    let mut kernels: Vec<Box<dyn Fn() + Sync + '_>> =
        vec![Box::new(|| drop(learning_rate::pipelines(gpu, &plan.groups)))];
    if loss_at.is_some() || measured.iter().any(|kernel| kernel.is_measured) {
        kernels.push(Box::new(|| drop(finish_reduction::pipeline(gpu, &gpu.tuning(), measured, loss_at))));
    }
    let mut known = HashSet::new();
    for window in plan.windows.iter().filter(|window| known.insert((window.kernel, window.access))) {
        let kernel = window.kernel;
        let mut sweeps = vec![Sweep::Update];
        sweeps.extend(kernel.measured().map(|_| Sweep::Reduce));
        if kernel.averages {
            sweeps.extend([Sweep::Exchange, Sweep::Settle]);
        }
        for sweep in sweeps {
            kernels.push(Box::new(move || drop(passes.compiled(sweep, window))));
        }
    }
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(compile) = kernels.get(next.fetch_add(1, Ordering::Relaxed)) {
            // wgpu reports an error to the thread that made the call.
            gpu.catching(compile);
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(kernels.len());
    thread::scope(|scope| {
        for _ in 1..threads {
            // If the system has no more threads, this one compiles everything.
            let _ = thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
}
