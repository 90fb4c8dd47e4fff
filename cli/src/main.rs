//! The `wgpu-optim` binary: lists devices, checks them, measures them, and trains models on real data.
#![forbid(unsafe_code)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod check;
mod devices;
mod files;
mod page;
mod parallel;
mod signals;
mod table;
mod target;
mod train;
mod tune;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use wgpu_optim::ErrorKind;
use wgpu_optim_cli::{data, memory, model, words};

/// Optimizers on the GPU that set their own learning rate, and explain it.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 120, after_help = target::ENVIRONMENT)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a small model on real data; without arguments: an MLP on handwritten digits, untuned.
    #[command(after_help = train::EXAMPLES, after_long_help = format!("{}\n\n{}", train::EXAMPLES, train::EXIT_CODES))]
    Train(Box<train::Args>),
    /// List every adapter with its capabilities, and the one that `auto` takes.
    Devices(devices::Args),
    /// Compare every adapter with the CPU path and an f64 reference; the exit code is 1 on any difference.
    Check(check::Args),
    /// Find the fastest kernel geometry for a device, and store it for train, bench and your own runs.
    Tune(tune::Args),
    /// Measure the optimizer step against the device's own copy bandwidth.
    Bench(bench::Args),
}

/// Error that ends a command early, as one line.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("{}", in_options(.0))]
    Optimizer(#[from] wgpu_optim::Error),
    #[error(transparent)]
    Data(#[from] data::DataError),
    #[error(transparent)]
    Model(#[from] model::ModelError),
    #[error("{0}")]
    Usage(String),
    #[error("cannot write {path}: {message}")]
    Write { path: String, message: String },
    #[error("{0}")]
    Failed(String),
    #[error("{words}")]
    Stopped { signal: signals::Signal, words: String },
    #[error("{failures} of {cases} cases failed")]
    CheckFailed { failures: usize, cases: usize },
}

/// Returns an error of the library with its advice in terms of the command line.
fn in_options(error: &wgpu_optim::Error) -> String {
    let advice = [
        (
            "set GpuOptions::allow_software to use one, or build with OptimizerBuilder::build_cpu",
            "name one with --backend or --adapter, or take the CPU path with --backend cpu",
        ),
        (
            "use averaging(Averaging::polynomial_decay()), or a rule without momentum (Rule::sgd(), Rule::sign_sgd(), or Rule::adamw_without_momentum() for AdamW)",
            "use --average polynomial, or --rule sgd, signsgd or adamw, which is then without momentum",
        ),
        (" (f32::INFINITY for none)", " (leave --clip-norm out for none)"),
        (
            "use state(State::F32) in this group, or another rule (Rule::adamw())",
            "leave --state out, or use --rule adamw",
        ),
        (
            "use averaging(Averaging::ScheduleFree), or another regime (Regime::polyak() takes the loss too)",
            "use --average schedule-free, with --rule sgd, signsgd or adamw, or another regime (--regime polyak takes the loss too)",
        ),
        (
            "use averaging(Averaging::polynomial_decay()), or Regime::schedule_free_plus() or Regime::seesaw() for schedule-free training",
            "use --average polynomial, or --regime schedule-free-plus or seesaw for schedule-free training",
        ),
        ("use averaging(Averaging::polynomial_decay())", "use --average polynomial"),
        (
            "(Regime::mechanic() works with every rule, Regime::dog() with sgd)",
            "(--regime mechanic works with every rule, --regime dog with sgd)",
        ),
        ("(Regime::seesaw() works with it)", "(--regime seesaw works with it)"),
    ];
    advice.iter().fold(error.to_string(), |text, (library, options)| text.replace(library, options))
}

impl CliError {
    /// Reports all errors except the last one, which the caller reports and which sets the exit code.
    fn all(failures: impl IntoIterator<Item = CliError>) -> Result<(), CliError> {
        let mut failures: Vec<CliError> = failures.into_iter().collect();
        let last = failures.pop();
        failures.iter().for_each(|failure| table::tell(format!("error: {failure}")));
        last.map_or(Ok(()), Err)
    }

    /// Returns true if the device is lost.
    fn is_lost_device(&self) -> bool {
        match self {
            CliError::Optimizer(error) | CliError::Model(model::ModelError::Device(error)) => {
                error.kind() == ErrorKind::DeviceLost
            }
            _ => false,
        }
    }

    /// Returns 2 for errors that the user can correct in the command, 1 for failures while running, and 128 plus the
    /// number of a signal.
    fn exit_code(&self) -> u8 {
        match self {
            CliError::Stopped { signal, .. } => signal.exit_code(),
            CliError::Optimizer(error)
                if matches!(error.kind(), ErrorKind::DeviceRefused | ErrorKind::DeviceLost | ErrorKind::Readback) =>
            {
                1
            }
            CliError::Model(model::ModelError::Device(_)) | CliError::Failed(_) | CliError::CheckFailed { .. } => 1,
            _ => 2,
        }
    }
}

/// Number of threads above which a machine is only busy starting them.
const MOST_THREADS: u64 = 1024;

/// Returns an error for a number of threads that would overload the machine.
fn check_threads() -> Result<(), CliError> {
    let Some(wanted) = std::env::var_os("RAYON_NUM_THREADS") else { return Ok(()) };
    let wanted = wanted.to_string_lossy();
    // rayon reads the value like this. 0 means one thread for each core there too.
    match &*wanted {
        "" => Ok(()),
        number if number.parse().is_ok_and(|threads: u64| threads <= MOST_THREADS) => Ok(()),
        _ => CliError::usage(format!(
            "RAYON_NUM_THREADS is {}: set it to a number up to {MOST_THREADS}, or unset it for one thread on each core",
            words::quoted(&wanted)
        )),
    }
}

fn main() -> ExitCode {
    // Filters match the beginning of a name, and `wgpu_optim` begins like `wgpu`.
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(
        // Warnings about combinations that are known to fail are switched off, because `train` prints them itself.
        "warn,wgpu_hal=off,wgpu_core=error,wgpu=error,wgpu_optim=warn,wgpu_optim::warnings=off,naga=error",
    ))
    .init();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return report_usage(&error),
    };
    let result = check_threads().and_then(|()| match cli.command {
        Command::Train(args) => train::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Bench(args) => bench::run(&args),
    });
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    table::tell(format!("error: {error}"));
    ExitCode::from(error.exit_code())
}

/// Prints help as it is, and an error in one line.
fn report_usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Help in a pipe is plain text, and a reader that has gone away is not an error.
        return match error.print() {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                table::tell(format!("error: cannot write standard output: {error}"));
                ExitCode::FAILURE
            }
            _ => ExitCode::SUCCESS,
        };
    }
    let text = error.to_string();
    let lines = text.lines().map(str::trim);
    let said = lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let said: Vec<&str> = said.filter(|line| !line.is_empty()).collect();
    if said.is_empty() || error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // For a bare `wgpu-optim` the help is the answer.
        table::tell_text(&text);
    } else {
        table::tell(format!("{} (see --help)", said.join("; ").replace(":;", ":")));
    }
    ExitCode::from(2)
}
