//! One file of any kind: CSV, LIBSVM or IDX, gzipped or not, as its bytes show.
#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| common::load("file", &[("data", bytes)]));
