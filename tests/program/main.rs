//! Promises of the command line.

#[path = "../common/mod.rs"]
mod common;

mod bench;
mod check;
mod compare;
mod resume;
mod train;
mod tune;
