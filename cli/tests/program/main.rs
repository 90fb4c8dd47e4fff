//! Promises of the command line.

mod bench;
mod check;
mod command;
mod compare;
mod resume;
mod train;
mod tune;
