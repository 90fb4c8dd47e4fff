//! Promises of the command line.

mod bench;
mod check;
mod command;
mod compare;
mod outputs;
mod resume;
mod signals;
mod train;
mod tune;
