//! Adafactor's own passes on the host: `shaders/factored/`.
//!
//! The number of passes does not depend on the number of tensors, because each dispatch covers all tensors of a window.

use crate::gpu::buffers::{filled, whole, zeroed};
use crate::gpu::context::Gpu;
use crate::gpu::optimizer::{Dispatch, PassName};
use crate::gpu::pass::{Binding, PassSource, Pipeline, flag};
use crate::gpu::sweep::Elements;
use crate::gpu::tuning::Tuning;
use crate::layout::{FactoredTensor, MATRIX_TILE, Squares, Tile};
use crate::plan::{Access, Kernel, Window};

/// Memory of a window for its limited tensors.
#[derive(Debug)]
pub(crate) struct FactorMemory {
    /// A tensor at the index of its first block.
    pub(crate) tensors: wgpu::Buffer,
    /// Sums of squares of rows and columns.
    pub(crate) partials: wgpu::Buffer,
    /// Sums of squares of the blocks.
    pub(crate) squares: wgpu::Buffer,
    /// Tiles of the matrices.
    pub(crate) tiles: Tiles,
}

/// A table of tiles, and the number of workgroups that process it.
#[derive(Debug)]
pub(crate) struct Tiles {
    pub(crate) table: wgpu::Buffer,
    pub(crate) workgroups: u32,
}

impl Tiles {
    /// Writes a table. Its first entry is the number of tiles.
    pub(crate) fn new(gpu: &Gpu, tiles: impl Iterator<Item = Tile>) -> Self {
        let mut table = vec![Tile { matrix: 0, row: 0, column: 0 }];
        table.extend(tiles);
        table[0].matrix = table.len() as u32 - 1;
        let most = gpu.device().limits().max_compute_workgroups_per_dimension;
        Tiles { table: filled(gpu, "tiles", &table), workgroups: table[0].matrix.min(most) }
    }
}

impl FactorMemory {
    /// Allocates the memory of a window. Returns `None` if the rule does not limit its directions.
    pub(crate) fn new(gpu: &Gpu, window: &Window) -> Option<Self> {
        if window.limited.is_empty() {
            return None;
        }
        let mut tensors = vec![<FactoredTensor as bytemuck::Zeroable>::zeroed(); window.blocks.len()];
        for tensor in &window.limited {
            tensors[tensor.lead as usize] = *tensor;
        }
        Some(FactorMemory {
            tensors: filled(gpu, "limited tensors", &tensors),
            partials: zeroed::<f32>(gpu, "sums of rows and columns", window.room.partials),
            squares: zeroed::<Squares>(gpu, "squares of directions", window.blocks.len() as u64),
            tiles: Tiles::new(gpu, window.limited.iter().flat_map(tiles_of)),
        })
    }
}

/// Lists the tiles of a tensor, matrix by matrix.
fn tiles_of(t: &FactoredTensor) -> impl Iterator<Item = Tile> {
    let FactoredTensor { matrices, rows, columns, lead, .. } = *t;
    let of_rows = (0..matrices)
        .flat_map(move |matrix| (0..rows).step_by(MATRIX_TILE as usize).map(move |row| matrix * rows + row));
    of_rows.flat_map(move |row| {
        (0..columns).step_by(MATRIX_TILE as usize).map(move |column| Tile { matrix: lead, row, column })
    })
}

/// Lists stretches of 64 second moments of a tensor: first those of its rows, then those of its columns.
fn stretches_of(t: &FactoredTensor) -> impl Iterator<Item = Tile> {
    let FactoredTensor { matrices, rows, columns, lead, .. } = *t;
    [(0, matrices * rows), (1, matrices * columns)].into_iter().flat_map(move |(column, moments)| {
        (0..moments).step_by(MATRIX_TILE as usize).map(move |row| Tile { matrix: lead, row, column })
    })
}

/// Compiles the first pass for a kernel: sums of the squares of rows and columns.
pub(crate) fn sums_pipeline(gpu: &Gpu, kernel: Kernel, access: Access) -> Pipeline {
    pass_over_elements(gpu, kernel, access, "factored/sums", "sums", Vec::new(), 2, Binding::Absent)
}

/// Compiles the pass that measures directions.
pub(crate) fn lengths_pipeline(gpu: &Gpu, tuning: &Tuning, kernel: Kernel, access: Access) -> Pipeline {
    let constants = vec![("WORKGROUP", f64::from(tuning.workgroup_size))];
    pass_over_elements(gpu, kernel, access, "factored/lengths", "lengths", constants, 1, Binding::Read)
}

#[expect(clippy::too_many_arguments, reason = "what distinguishes two passes")]
fn pass_over_elements(
    gpu: &Gpu,
    kernel: Kernel,
    access: Access,
    module: &'static str,
    stem: &'static str,
    mut constants: Vec<(&'static str, f64)>,
    tables: usize,
    moments: Binding,
) -> Pipeline {
    let traits = kernel.rule.traits();
    let mut elements = Elements::parameters(kernel, access).and_gradients(kernel);
    elements.features.extend(traits.features);
    elements.when(traits.squares, "squares");
    elements.when(traits.factored, "factored");
    constants.push(flag("COUPLED_DECAY", kernel.coupled_decay));
    constants.extend(elements.constants);
    let read = Binding::Read;
    // Flat tensors have no table of matrices.
    let tensors = if traits.factored { read } else { Binding::Absent };
    let own = [read, read, read, moments, Binding::Absent, Elements::remainders(kernel), tensors];
    let groups: &[&[Binding]] = &[&[read; 2][..tables], &own, &[Binding::Write]];
    Pipeline::new(gpu, &PassSource { module, stem, features: &elements.features, constants: &constants, groups })
}

/// Returns the passes between the two over elements, and the pass after them.
pub(crate) fn dispatches(
    gpu: &Gpu,
    window: &Window,
    memory: &FactorMemory,
    updates: &wgpu::Buffer,
    blocks: &wgpu::Buffer,
    moments: &wgpu::Buffer,
) -> [Vec<Dispatch>; 2] {
    let (read, write, absent) = (Binding::Read, Binding::Write, Binding::Absent);
    let dispatch = |module, stem, tiles: &Tiles, tables: [Binding; 4], own: [(&wgpu::Buffer, Binding); 2]| {
        let accesses = own.map(|(_, access)| access);
        let pipeline = Pipeline::new(
            gpu,
            &PassSource { module, stem, features: &[], constants: &[], groups: &[&tables, &accesses] },
        );
        let shared = [whole(updates), whole(&tiles.table), whole(blocks), whole(&memory.tensors)];
        Dispatch {
            pass: PassName::Factor,
            bind_groups: vec![
                pipeline.bind(gpu.device(), 0, &shared),
                pipeline.bind(gpu.device(), 1, &own.map(|(buffer, _)| whole(buffer))),
            ],
            pipeline: pipeline.pipeline.clone(),
            workgroups: tiles.workgroups,
        }
    };
    let of_moments = Tiles::new(gpu, window.limited.iter().flat_map(stretches_of));
    let each_matrix = |t: &FactoredTensor| {
        let lead = t.lead;
        (0..t.matrices).map(move |matrix| Tile { matrix: lead, row: matrix, column: 0 })
    };
    let of_matrices = Tiles::new(gpu, window.limited.iter().flat_map(each_matrix));
    let of_tensors = Tiles::new(gpu, window.limited.iter().map(|t| Tile { matrix: t.lead, row: 0, column: 0 }));
    let between = if of_matrices.workgroups == 0 {
        Vec::new()
    } else {
        vec![
            dispatch(
                "factored/moments",
                "follow_moments",
                &of_moments,
                [read; 4],
                [(&memory.partials, read), (moments, write)],
            ),
            dispatch(
                "factored/means",
                "average_moments",
                &of_matrices,
                [absent, read, absent, read],
                [(moments, absent), (moments, write)],
            ),
        ]
    };
    let after = dispatch(
        "factored/limit",
        "limit",
        &of_tensors,
        [read, read, read, absent],
        [(&memory.squares, read), (&memory.tensors, write)],
    );
    [between, vec![after]]
}
