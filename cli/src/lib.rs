//! The data sets and the models of the program `wgpu-optim`, which others in this repository train on too.
#![forbid(unsafe_code)]

pub mod data;
pub mod model;
