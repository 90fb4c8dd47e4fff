//! Tests of the command line.

mod bench;
mod check;
mod command;
mod compare;
#[cfg(target_os = "linux")]
mod faults;
mod outputs;
mod policy;
mod resume;
mod signals;
mod train;
mod tune;
