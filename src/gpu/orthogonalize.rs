//! Muon's own passes over matrices on the host: `shaders/orthogonalize/`.
//!
//! The number of passes does not depend on the number of matrices. Each dispatch covers all matrices of a window, tile by tile.

use half::f16;

use crate::gpu::buffers::{filled, whole, zeroed};
use crate::gpu::context::Gpu;
use crate::gpu::optimizer::{Dispatch, PassName};
use crate::gpu::pass::{Binding, PassSource, Pipeline, flag};
use crate::gpu::sweep::Elements;
use crate::gpu::tuning::Tuning;
use crate::layout::{MATRIX_TILE, Matrix, Squares, Tile};
use crate::plan::{Access, Kernel, QUAD, Window};

/// Memory of a window for its matrices.
#[derive(Debug)]
pub(crate) struct MatrixMemory {
    /// The direction that the update pass reads. In between it may hold the first pass's output and iterates.
    pub(crate) directions: wgpu::Buffer,
    /// In f16, two buffers for alternate iterates. In f32, one buffer for every second iterate, while `directions` holds the others.
    iterates: Vec<wgpu::Buffer>,
    /// Sums of squares of the blocks.
    pub(crate) squares: wgpu::Buffer,
    /// Products of the matrices with their transposes, and polynomials of those.
    grams: [wgpu::Buffer; 2],
}

impl MatrixMemory {
    /// Allocates the memory of a window. Returns `None` if its rule does not work on matrices.
    pub(crate) fn new(gpu: &Gpu, window: &Window) -> Option<Self> {
        let last = window.matrices.last()?;
        let elements = u64::from(window.state_quads) * u64::from(QUAD);
        let grams = u64::from(last.gram_first) + u64::from(last.rows) * u64::from(last.rows);
        let halves = is_in_halves(gpu, window);
        let numbers = |label, count| match halves {
            true => zeroed::<f16>(gpu, label, count),
            false => zeroed::<f32>(gpu, label, count),
        };
        Some(MatrixMemory {
            directions: zeroed::<f32>(gpu, "directions", elements),
            iterates: (0..if halves { 2 } else { 1 }).map(|_| numbers("iterates", elements)).collect(),
            squares: zeroed::<Squares>(gpu, "squares of matrices", window.blocks.len() as u64),
            grams: ["grams", "polynomials"].map(|label| numbers(label, grams)),
        })
    }

    /// Returns the buffer that holds the iterate before iteration `i` of `iterations`. `directions` holds the one after the last iteration.
    fn iterate(&self, i: u32, iterations: u32) -> &wgpu::Buffer {
        match &self.iterates[..] {
            [other] if !(iterations - i).is_multiple_of(2) => other,
            [one, other] if i < iterations => [one, other][i as usize % 2],
            _ => &self.directions,
        }
    }

    /// Returns the buffer that the first pass writes.
    pub(crate) fn prepared(&self, iterations: u32) -> &wgpu::Buffer {
        if self.iterates.len() == 2 { &self.directions } else { self.iterate(0, iterations) }
    }
}

/// Returns true if the matrices of a window are in f16.
fn is_in_halves(gpu: &Gpu, window: &Window) -> bool {
    window.kernel.half_iterates && gpu.device().features().contains(wgpu::Features::SHADER_F16)
}

/// Compiles the first pass for a kernel.
pub(crate) fn prepare_pipeline(gpu: &Gpu, tuning: &Tuning, kernel: Kernel, access: Access) -> Pipeline {
    let mut elements = Elements::parameters(kernel, access).and_gradients(kernel);
    elements.features.extend(kernel.rule.traits().features);
    elements.when(true, "momentum");
    let mut constants =
        vec![("WORKGROUP", f64::from(tuning.workgroup_size)), flag("COUPLED_DECAY", kernel.coupled_decay)];
    constants.extend(elements.constants);
    let own = [
        Binding::Read,
        Binding::Read,
        Binding::Read,
        Binding::Read,
        Binding::Absent,
        Elements::remainders(kernel),
        Binding::Write,
    ];
    Pipeline::new(
        gpu,
        &PassSource {
            module: "orthogonalize/prepare",
            stem: "prepare",
            features: &elements.features,
            constants: &constants,
            groups: &[&[Binding::Read], &own, &[Binding::Write]],
        },
    )
}

/// Returns the passes after the first one.
pub(crate) fn dispatches(
    gpu: &Gpu,
    window: &Window,
    memory: &MatrixMemory,
    updates: &wgpu::Buffer,
    blocks: &wgpu::Buffer,
) -> Vec<Dispatch> {
    let matrices = filled::<Matrix>(gpu, "matrices", &window.matrices);
    // Tiles of the matrices, and tiles of their products on and above the diagonal.
    let tables = [tiles(&window.matrices, |m| (m.columns, false)), tiles(&window.matrices, |m| (m.rows, true))];
    let most = gpu.device().limits().max_compute_workgroups_per_dimension as usize;
    let [of_matrices, of_grams] = tables.map(|tiles| {
        let dispatched = tiles.chunks(most).map(|tiles| (tiles.len() as u32, filled::<Tile>(gpu, "tiles", tiles)));
        dispatched.collect::<Vec<_>>()
    });
    let halves = is_in_halves(gpu, window);
    let mut all = Vec::new();
    let mut add = |(module, stem): (&'static str, &'static str),
                   features: &[&str],
                   tables: &[(u32, wgpu::Buffer)],
                   own: &[&wgpu::Buffer]| {
        let mut accesses = vec![Binding::Read; own.len() - 1];
        accesses.push(Binding::Write);
        let groups: &[&[Binding]] = &[&[Binding::Read; 4], &accesses];
        let features = &[features, if halves { &["halves"] } else { &[] }].concat();
        let pipeline = Pipeline::new(gpu, &PassSource { module, stem, features, constants: &[], groups });
        let own: Vec<_> = own.iter().map(|&buffer| whole(buffer)).collect();
        for (workgroups, tiles) in tables {
            let shared = [whole(updates), whole(blocks), whole(&matrices), whole(tiles)];
            all.push(Dispatch {
                pass: PassName::Orthogonalize,
                bind_groups: vec![pipeline.bind(gpu.device(), 0, &shared), pipeline.bind(gpu.device(), 1, &own)],
                pipeline: pipeline.pipeline.clone(),
                workgroups: *workgroups,
            });
        }
    };
    let iterations = window.kernel.iterations;
    let [gram, polynomial] = &memory.grams;
    let normalize = ("orthogonalize/normalize", "normalize_matrices");
    let multiply = ("orthogonalize/multiply", "multiply");
    // The normalization is in place, or from one buffer to another in f16.
    let mut of_norms = vec![&memory.squares, memory.prepared(iterations)];
    of_norms.extend(halves.then(|| memory.iterate(0, iterations)));
    add(normalize, &[], &of_matrices, &of_norms);
    for i in 0..iterations {
        let [x, next] = [i, i + 1].map(|i| memory.iterate(i, iterations));
        let advance: &[&str] = if i + 1 == iterations { &["advance", "last"] } else { &["advance"] };
        add(multiply, &[], &of_grams, &[x, gram]);
        add(multiply, &["polynomial"], &of_grams, &[gram, polynomial]);
        add(multiply, advance, &of_matrices, &[polynomial, x, next]);
    }
    all
}

/// Returns the tiles of matrices with these numbers of columns. For symmetric matrices these are the tiles on and above the diagonal.
fn tiles(matrices: &[Matrix], columns_of: impl Fn(&Matrix) -> (u32, bool)) -> Vec<Tile> {
    let mut tiles = Vec::new();
    for (matrix, m) in (0u32..).zip(matrices) {
        let (columns, is_symmetric) = columns_of(m);
        for row in (0..m.rows).step_by(MATRIX_TILE as usize) {
            let first = if is_symmetric { row } else { 0 };
            let of_row = (first..columns).step_by(MATRIX_TILE as usize);
            tiles.extend(of_row.map(|column| Tile { matrix, row, column }));
        }
    }
    tiles
}
