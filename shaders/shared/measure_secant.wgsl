// What pass 1 measures beside the norm where the memory is the last gradient: the change y = g_t - g_{t-1} against the direction u_{t-1}
// of the last step, as slow_dot = u·y, direction_square = u·u and absolute = y·y.

override RULE: u32;

alias Memory = vec4<f32>;

// β₂ times Lion's average β₁ m_{t-2} + (1-β₁) g_{t-1} has the same sign, and follows from what there is: m_{t-1} = β₂ m_{t-2} + (1-β₂) g_{t-1}.
fn lions_last(beta_1: f32, beta_2: f32, m: vec4<f32>, g: vec4<f32>) -> vec4<f32> {
    return sign(beta_1 * m + (beta_2 - beta_1) * g);
}

fn measure(block: Block, quad: u32, g: vec4<f32>, gradient_scale: f32, momentum_scale: f32, sums: ptr<function, AlignmentSums>) {
    let at = block.state_quad + quad;
    let last = memory[at];
    let y = gradient_scale * g - gradient_scale * last;
    var u = gradient_scale * (states[block.group].last_clip * last);
    if RULE == SGDM {
        u = momentum_scale * momentum[at];
    } else if RULE == NESTEROV {
        u = momentum_scale * (states[block.group].last_clip * last)
            + groups[block.group].momentum * (momentum_scale * momentum[at]);
    } else if RULE == SIGN_SGD {
        u = sign(last);
    } else if RULE == SIGNUM {
        u = sign(momentum[at]);
    } else if RULE == ADAM_W {
        let s = &states[block.group];
        let v = momentum[arrayLength(&momentum) / 2u + at];
        u = preconditioned(momentum[at], v, (*s).first_correction, (*s).second_correction, groups[block.group].epsilon);
    } else if RULE == ADAM_W_WITHOUT_MOMENTUM {
        let s = &states[block.group];
        let clipped = admitted((*s).last_clip * last);
        u = preconditioned(clipped, momentum[at], (*s).first_correction, (*s).second_correction, groups[block.group].epsilon);
    } else if RULE == LION {
        u = lions_last(groups[block.group].direction_momentum, groups[block.group].momentum, momentum[at], states[block.group].last_clip * last);
    }
    (*sums).slow_dot += u * y;
    (*sums).direction_squares += u * u;
    (*sums).absolute += y * y;
}
