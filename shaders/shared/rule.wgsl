// What the rules do with four elements. The pass says which RULE.

const SGD = 0u;
const SGDM = 1u;
const NESTEROV = 2u;
const SIGN_SGD = 3u;
const SIGNUM = 4u;

fn has_momentum() -> bool {
    return RULE == SGDM || RULE == NESTEROV || RULE == SIGNUM;
}

fn next_momentum(update: Update, m: vec4<f32>, g: vec4<f32>) -> vec4<f32> {
    return update.momentum_keep * m + update.gradient_share * g;
}

// u, from the gradient and, for rules that have one, the new momentum.
fn direction_of(update: Update, g: vec4<f32>, m: vec4<f32>) -> vec4<f32> {
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
