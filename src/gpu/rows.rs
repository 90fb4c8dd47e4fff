//! Rows and columns with their own rates, and rows that are skipped, on the host: `shaders/rows/`.

use crate::gpu::buffers::filled;
use crate::gpu::context::Gpu;
use crate::gpu::factored::Tiles;
use crate::gpu::pass::{Binding, Pipeline};
use crate::gpu::sweep::Elements;
use crate::layout::{COLUMNS_WORD, ELEMENTS_WORD, FACTORS_WORD, FLAGS_WORD, MATRIX_TILE, ROW_WORDS, Tile};
use crate::plan::{Access, Kernel, Plan, Window};

/// Memory of a window for its rows.
#[derive(Debug)]
pub(crate) struct RowMemory {
    /// The table of the tensors, factors and flags.
    pub(crate) table: wgpu::Buffer,
    /// Stretches of rows that the first pass marks, if rows may be skipped.
    pub(crate) stretches: Option<Tiles>,
}

impl RowMemory {
    /// Allocates the memory of a window. Returns `None` if all rows and columns are treated alike.
    pub(crate) fn new(gpu: &Gpu, plan: &Plan, window: &Window) -> Option<Self> {
        if window.rows.is_empty() {
            return None;
        }
        let behind = ROW_WORDS as usize * window.blocks.len();
        let mut words = vec![0u32; behind + window.row_words as usize];
        for tensor in &window.rows {
            let entry = &mut words[ROW_WORDS as usize * tensor.lead as usize..][..ROW_WORDS as usize];
            entry[COLUMNS_WORD as usize] = tensor.shape.columns as u32;
            entry[ELEMENTS_WORD as usize] = (tensor.shape.rows * tensor.shape.columns) as u32;
            entry[FACTORS_WORD as usize] = behind as u32 + tensor.factors_first;
            entry[FLAGS_WORD as usize] = behind as u32 + tensor.flags_first;
            if let Some(factors) = &plan.configs[tensor.group as usize].rate_factors {
                let place = &mut words[behind + tensor.factors_first as usize..];
                for (word, factor) in place.iter_mut().zip(factors.factors().iter()) {
                    *word = factor.to_bits();
                }
            }
        }
        let stretches = window.rows.iter().flat_map(|tensor| {
            let lead = tensor.lead;
            let rows = (0..tensor.shape.rows as u32).step_by(MATRIX_TILE as usize);
            rows.map(move |row| Tile { matrix: lead, row, column: 0 })
        });
        Some(RowMemory {
            table: filled(gpu, "rows", &words),
            stretches: window.kernel.lazy_rows.then(|| Tiles::new(gpu, stretches)),
        })
    }
}

/// Compiles the pass that marks rows with gradients.
pub(crate) fn mark_pipeline(gpu: &Gpu, kernel: Kernel, access: Access) -> Pipeline {
    let mut elements = Elements::default().and_gradients(kernel);
    elements.when(access == Access::Scalars, "scalars");
    elements.when(true, "marks_rows");
    elements.when(true, "lazy_rows");
    let (read, absent) = (Binding::Read, Binding::Absent);
    let own = [read, absent, read, absent, absent, absent, absent, Binding::Write];
    elements.pipeline(gpu, "rows/mark", "mark_rows", &[&[read; 2], &own])
}
