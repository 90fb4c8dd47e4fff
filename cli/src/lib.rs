//! Data sets and models of the program `wgpu-optim`, which other packages of this repository also train.
#![forbid(unsafe_code)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod data;
pub mod memory;
pub mod model;
pub mod words;
