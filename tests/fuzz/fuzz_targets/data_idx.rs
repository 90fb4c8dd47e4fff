//! The two files of an IDX set: images up to the first byte's share of the input, labels after it.
#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&share, bytes)) = bytes.split_first() else {
        return;
    };
    let (images, labels) = bytes.split_at(bytes.len() * usize::from(share) / 256);
    common::load("idx", &[("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)]);
});
