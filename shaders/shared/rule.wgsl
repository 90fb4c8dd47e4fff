// What the rules do with four elements. The pass says which RULE.

const SGD = 0u;
const SGDM = 1u;
const NESTEROV = 2u;
const SIGN_SGD = 3u;
const SIGNUM = 4u;
const ADAM_W = 5u;
const LION = 6u;
// AdamW with β₁ = 0.
const ADAM_W_WITHOUT_MOMENTUM = 7u;

// The largest element of a gradient that AdamW takes as it is (src/rule.rs).
const LARGEST_SQUARED = 1.8e19;

fn has_momentum() -> bool {
    return RULE != SGD && RULE != SIGN_SGD && RULE != ADAM_W_WITHOUT_MOMENTUM;
}

fn has_squares() -> bool {
    return RULE == ADAM_W || RULE == ADAM_W_WITHOUT_MOMENTUM;
}

// Where the mean of squares of a quad lies in a memory of so many quads: in the second half, behind the momentum, or alone.
fn squares_at(quads: u32, at: u32) -> u32 {
    return select(at, quads / 2u + at, has_momentum());
}

// The gradient as the rule takes it.
fn admitted(g: vec4<f32>) -> vec4<f32> {
    if has_squares() {
        return clamp(g, vec4<f32>(-LARGEST_SQUARED), vec4<f32>(LARGEST_SQUARED));
    }
    return g;
}

fn next_momentum(update: Update, m: vec4<f32>, g: vec4<f32>) -> vec4<f32> {
    return update.momentum_keep * m + update.gradient_share * g;
}

fn next_squares(update: Update, v: vec4<f32>, g: vec4<f32>) -> vec4<f32> {
    return update.square_keep * v + (1.0 - update.square_keep) * (g * g);
}

// u of AdamW, from the new moments.
fn preconditioned(m: vec4<f32>, v: vec4<f32>, first_correction: f32, second_correction: f32, epsilon: f32) -> vec4<f32> {
    return (first_correction * m) / (second_correction * sqrt(v) + epsilon);
}

// u, from the gradient and, for rules that have them, the momentum before and after the step, and the new mean of squares.
fn direction_of(update: Update, g: vec4<f32>, last: vec4<f32>, m: vec4<f32>, v: vec4<f32>) -> vec4<f32> {
    if RULE == SGDM {
        return m;
    }
    if RULE == NESTEROV {
        return g + update.momentum * m;
    }
    if RULE == SIGN_SGD {
        return sign(g);
    }
    if RULE == SIGNUM {
        return sign(m);
    }
    if RULE == ADAM_W {
        return preconditioned(m, v, update.first_correction, update.second_correction, update.epsilon);
    }
    if RULE == ADAM_W_WITHOUT_MOMENTUM {
        return preconditioned(admitted(g), v, update.first_correction, update.second_correction, update.epsilon);
    }
    if RULE == LION {
        return sign(update.momentum * last + (1.0 - update.momentum) * g);
    }
    return g;
}

fn next_counters(word: u32, g: vec4<f32>) -> u32 {
    let signs = sign(g);
    let q = clamp(counters_of(word) + signs, vec4<f32>(-COUNTER_LIMIT), vec4<f32>(COUNTER_LIMIT));
    return pack_counters(q, signs);
}

fn moved(update: Update, w: vec4<f32>, direction: vec4<f32>) -> vec4<f32> {
    return update.shrink * w - update.learning_rate * direction;
}
