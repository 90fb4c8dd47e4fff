//! The two files of an IDX set. The first byte gives the share of the input that is images, and labels follow.
#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&share, bytes)) = bytes.split_first() else {
        return;
    };
    let (images, labels) = bytes.split_at(bytes.len() * usize::from(share) / 256);
    common::load("idx", &[("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)]);
});
