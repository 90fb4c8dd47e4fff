// Definitions that all kernels share: the picture's size, and a Gaussian prepared for drawing.
//
// The picture is a sum over Gaussians (as in GaussianImage, Zhang et al., arXiv:2403.08551, but with an opacity of its own):
//     picture(p) = Σ opacity · weight(q(p)) · colour,    q = u² + v²,
// where (u, v) is p - centre, turned by the angle and divided by the two sigmas.

override WIDTH: u32;
override HEIGHT: u32;
override SPLATS: u32;

// A Gaussian ends where q reaches RIM. Its weight at RIM is subtracted everywhere, so that the loss is continuous.
const RIM = 12.0;
const WEIGHT_AT_RIM = 0.0024787522; // exp(-RIM / 2)

struct Splat {
    // In pixels.
    centre: vec2f,
    // Half the box in which q < RIM, in pixels.
    extent: vec2f,
    // u = dot(axes.xy, p - centre), v = dot(axes.zw, p - centre).
    axes: vec4f,
    colour: vec3f,
    // In (0, 1).
    opacity: f32,
    // In pixels.
    sigma: vec2f,
}

// Start of each tensor in the parameters and in the gradients.
fn position_at(splat: u32) -> u32 { return 2u * splat; }
fn shape_at(splat: u32) -> u32 { return 2u * SPLATS + 3u * splat; }
fn colour_at(splat: u32) -> u32 { return 5u * SPLATS + 3u * splat; }
fn opacity_at(splat: u32) -> u32 { return 8u * SPLATS + splat; }

// Positions and sizes are in units of the longer side.
fn side() -> f32 { return f32(max(WIDTH, HEIGHT)); }

// Added to each sigma, in pixels, so that no Gaussian is narrower than the pixels can show.
const NARROWEST = 0.35;

// Pixels along a tile's side.
const TILE = 8u;
// Tiles along the picture's sides.
fn tiles() -> vec2u { return (vec2u(WIDTH, HEIGHT) + TILE - 1u) / TILE; }
// Number of words with a bit for every Gaussian.
fn words() -> u32 { return (SPLATS + 31u) / 32u; }
