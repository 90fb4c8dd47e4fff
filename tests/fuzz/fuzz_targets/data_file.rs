//! One file of any kind: CSV, LIBSVM or IDX, gzipped or not, told apart by its bytes.
#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| common::load("file", &[("data", bytes)]));
