// The loss of each row, and its gradient in place of the outputs, already divided by the batch's rows.
//
// Reads:  cursor, batch_labels.
// Writes: outputs (batch x CLASSES, rows padded to whole quads; replaced by their gradient), row_results (loss; 1 where the label's
//         output is above every other and all are finite; 1 where an output is not finite; unused).
// Grid:   one invocation per row of the batch.
// Assumes: CLASSES below 16,384: three loops over them in one invocation.
//
// Softmax: mean of -ln p_label; SQUARED_HINGE: mean of the sum over classes of max(0, 1 - y s)², y = 1 for the label, else -1.

override WORKGROUP: u32;
override CLASSES: u32;
override SQUARED_HINGE: bool;

@group(0) @binding(0) var<storage, read> cursor: Cursor;
@group(0) @binding(1) var<storage, read> batch_labels: array<u32>;
@group(0) @binding(2) var<storage, read_write> outputs: array<f32>;
@group(0) @binding(3) var<storage, read_write> row_results: array<vec4<f32>>;

@compute @workgroup_size(WORKGROUP)
fn loss(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x;
    let rows = rows_of(cursor);
    if row >= rows {
        return;
    }
    let first = row * ((CLASSES + 3u) / 4u * 4u);
    let label = batch_labels[row];
    let share = 1.0 / f32(rows);

    var best = 0u;
    var above_others = true;
    var all_finite = true;
    for (var k = 0u; k < CLASSES; k++) {
        let output = outputs[first + k];
        if output > outputs[first + best] {
            best = k;
        }
        if k != label && !(outputs[first + label] > output) {
            above_others = false;
        }
        all_finite = all_finite && is_finite(output);
    }
    var row_loss = 0.0;
    if SQUARED_HINGE {
        for (var k = 0u; k < CLASSES; k++) {
            let y = select(-1.0, 1.0, k == label);
            let margin = 1.0 - y * outputs[first + k];
            let hinge = positive_part(vec4<f32>(margin)).x;
            row_loss += hinge * hinge;
            outputs[first + k] = -2.0 * share * y * hinge;
        }
    } else {
        // Shifted by the largest, so that no exponential overflows.
        let shift = outputs[first + best];
        let at_label = outputs[first + label] - shift;
        var sum = 0.0;
        for (var k = 0u; k < CLASSES; k++) {
            let e = exp(outputs[first + k] - shift);
            outputs[first + k] = e;
            sum += e;
        }
        for (var k = 0u; k < CLASSES; k++) {
            let probability = outputs[first + k] / sum;
            outputs[first + k] = share * (probability - select(0.0, 1.0, k == label));
        }
        row_loss = log(sum) - at_label;
    }
    row_results[row] = vec4<f32>(row_loss, select(0.0, 1.0, above_others && all_finite), select(1.0, 0.0, all_finite), 0.0);
}
