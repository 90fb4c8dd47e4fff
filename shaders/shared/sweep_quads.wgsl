// How pass 4 goes over a block of whose steps nothing is left.

fn sweep(block: Block, update: Update, lane: u32) {
    for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
        update_quad(block, update, quad);
    }
}
