//! The data sets and the models of the program `wgpu-optim`, which others in this repository train on too.
#![forbid(unsafe_code)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod data;
pub mod memory;
pub mod model;
pub mod words;
