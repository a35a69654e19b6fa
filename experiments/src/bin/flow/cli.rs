//! The command line: arguments, logs, signals, exit codes.
//!
//! Standard output holds results and nothing else; with `--json` its last line is one object and no table is printed.
//! Progress and logs go to standard error. Exit codes: 0 done, 1 an error (one sentence on standard error), 2 a wrong
//! argument, 130 interrupted by Ctrl-C (everything is saved, the same command goes on).
//!
//! Under mpirun only rank 0 prints results and logs. An error of any rank is printed by that rank, which then ends all of them.

use crate::commands::*;
use crate::output;
use crate::progress::{LogWriter, STOP, Stopped};
use anyhow::{Context, Result, anyhow};
use clap::{Parser, Subcommand};
use experiments::ranks::{self, Elsewhere, Ranks};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tracing_subscriber::EnvFilter;

/// Train, evaluate and sample flow-based generative models.
#[derive(Parser)]
#[command(name = "flow", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print debug messages (the environment variable RUST_LOG selects messages in detail).
    #[arg(short, long, global = true)]
    verbose: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Train a recipe and evaluate it on the test set.
    ///
    /// Loads the data, trains or resumes training, evaluates on all splits, draws samples and learning curves, and prints the
    /// row of the result table. A finished run is not repeated: its result is printed again.
    Reproduce(reproduce::RunArgs),
    /// Train a recipe without evaluating it on the test set.
    ///
    /// As `flow reproduce`, but the test set is not used.
    Train(reproduce::RunArgs),
    /// Train a recipe with several values of settings and several seeds.
    ///
    /// One folder a run, resumed by the same command; then a table of mean and standard deviation over seeds.
    Sweep(sweep::SweepArgs),
    /// Evaluate saved weights.
    ///
    /// Prints bits/dim with its standard error, its terms, and the baselines: entropy, Gaussian, PNG, WebP, JPEG XL, the paper.
    Eval(eval::EvalArgs),
    /// Draw samples from saved weights.
    ///
    /// Writes one picture, a folder of pictures, or an array.
    Sample(sample::SampleArgs),
    /// Encode a data set: latents and log-likelihoods as arrays.
    Encode(encode::EncodeArgs),
    /// Compress images without loss.
    ///
    /// Writes them in about as many bits as the model claims, by bits-back coding, and says how many it took.
    Compress(compress::CompressArgs),
    /// Decompress the images of a file that `flow compress` wrote.
    Decompress(decompress::DecompressArgs),
    /// Interpolate between two images.
    ///
    /// Draws latents on a line and on an arc between two images, decoded, and a blend of the pixels for comparison.
    Interpolate(interpolate::InterpolateArgs),
    /// Change an attribute of images.
    ///
    /// Adds the attribute's direction, the mean latent of training images with it minus that of images without, to images of
    /// the test set at several strengths.
    Attribute(attribute::AttributeArgs),
    /// Measure the reconstruction error of decode(encode(x)).
    ///
    /// Reports the error for each image and for the latents of each level.
    Reconstruct(reconstruct::ReconstructArgs),
    /// Sample the same latents at several temperatures.
    Temperature(temperature::TemperatureArgs),
    /// Resample the latents of one level and keep the others.
    Levels(levels::LevelsArgs),
    /// Fill in the missing part of images.
    ///
    /// Follows the gradient of log p(x) from samples of the model.
    Inpaint(inpaint::InpaintArgs),
    /// Show samples beside their nearest training images.
    Nearest(nearest::NearestArgs),
    /// Compare bits/dim of two data sets.
    ///
    /// Draws a histogram of each and reports how often an image of the second set has more bits/dim than one of the first.
    Ood(ood::OodArgs),
    /// Show the output and the log-det of each layer for one image.
    Layers(layers::LayersArgs),
    /// Open a local page to play with a model.
    ///
    /// Sliders for temperature, mixtures, attributes and levels; points and densities in two dimensions. The page is served to
    /// this machine only, or written as plain files with --export.
    Explore(explore::ExploreArgs),
    /// Draw the density of a two-dimensional model.
    ///
    /// Shows the learned density beside the true one, and the image of a grid under the inverse.
    Density(density::DensityArgs),
    /// Check saved weights for numerical problems.
    ///
    /// Measures the error of the inverse, scales, condition numbers, normalization statistics and values that are not finite.
    /// Exits with 1 if the weights are broken; unusual values are only reported.
    Doctor(doctor::DoctorArgs),
    /// Download a model from the Hugging Face Hub.
    Pull(pull::PullArgs),
    /// Upload a run to the Hugging Face Hub.
    Push(push::PushArgs),
    /// Print a table of runs.
    ///
    /// One row a run with the paper's number and the baselines, or with --side-by-side one column a run.
    Table(table::TableArgs),
    /// Write a run as one HTML file.
    ///
    /// The file holds numbers, curves, pictures and settings, and needs no network.
    Report(report::ReportArgs),
    /// Convert saved weights to another dtype or to shards.
    Export(export::ExportArgs),
    /// Convert a PyTorch checkpoint of another project.
    Import(import::ImportArgs),
    /// Write the model card (README.md) of saved weights.
    Card(card::CardArgs),
    /// List or check the models in weights/.
    Weights(weights::WeightsArgs),
    /// List the built-in recipes.
    List(list::ListArgs),
    /// Show the settings of a recipe and estimate its cost.
    ///
    /// Prints each setting with its source, then parameters, memory and training time, measured on this machine.
    Explain(explain::ExplainArgs),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let rank = ranks::launched_rank();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if rank == 0 => error.exit(),
        Err(error) => return ExitCode::from(error.exit_code() as u8),
    };
    // The log messages of these crates are turned off: our own error reports the same failure in one sentence.
    const HUSHED: &str = "hf_hub=off,xet=off,reqwest_middleware=off,reqwest_retry=off";
    let default = match cli.verbose {
        _ if rank > 0 => "off".to_owned(),
        true => "warn,flow=debug,experiments=debug".to_owned(),
        false => format!("warn,flow=info,experiments=info,{HUSHED}"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default)))
        .with_target(false)
        .with_timer(tracing_subscriber::fmt::time::uptime())
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(|| LogWriter)
        .init();
    let ranks = match ranks::start() {
        Ok(ranks) => ranks,
        // What is wrong is so for all of them.
        Err(error) => {
            if rank == 0 {
                output::tell(format_args!("error: {}", output::sentence(&error)));
            }
            return ExitCode::FAILURE;
        }
    };
    match catch_signals(ranks.size()).and_then(|()| dispatch(cli.command, &*ranks)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if error.is::<output::Closed>() {
                return ExitCode::SUCCESS;
            }
            if error.is::<Stopped>() {
                return ExitCode::from(130);
            }
            fail(&error, &*ranks)
        }
    }
}

/// Says what is wrong and ends this process, and with it all ranks.
fn fail(error: &anyhow::Error, ranks: &dyn Ranks) -> ExitCode {
    if error.is::<Elsewhere>() {
        // The rank that says why ends this one.
        std::thread::sleep(Duration::from_secs(10));
    } else {
        // What fails on several ranks at about the same time is said by the lowest, which has ended the others by then.
        std::thread::sleep(Duration::from_millis(100 * ranks.rank().min(10) as u64));
        output::tell(format_args!("error: {}", output::sentence(error)));
    }
    if ranks.size() > 1 {
        ranks.abort(1);
    }
    ExitCode::FAILURE
}

fn catch_signals(processes: usize) -> Result<()> {
    /// Signals within this time of the first count as one: Ctrl-C in a terminal reaches a sweep and its runs, and the sweep
    /// sends its runs another.
    const TOGETHER: Duration = Duration::from_secs(1);
    static FIRST: OnceLock<Instant> = OnceLock::new();
    ctrlc::set_handler(move || {
        let again = STOP.swap(true, Ordering::Relaxed);
        let since = FIRST.get_or_init(Instant::now).elapsed();
        if processes > 1 {
            // A launcher sends signals to all, at times twice, also to end those that are left when one has failed; what does not
            // end in time it kills.
            return;
        }
        if !again {
            output::tell("\nstopping at the next chance; Ctrl-C again ends at once");
        } else if since > TOGETHER {
            std::process::exit(130);
        }
    })
    .context("cannot catch Ctrl-C")
}

fn dispatch(command: Command, ranks: &dyn Ranks) -> Result<()> {
    use Command::{Eval, Reproduce, Sample, Train};
    let shared = ranks.size() == 1 || matches!(command, Reproduce(_) | Train(_) | Eval(_) | Sample(_));
    let refused = anyhow!(
        "this command is not shared out among processes, as `train`, `reproduce`, `eval` and `sample` are: start it once, without \
         mpirun or srun"
    );
    ranks::agree(ranks, if shared { Ok(()) } else { Err(refused) })?;
    match command {
        Command::Reproduce(args) => reproduce::run(&args, true, ranks),
        Command::Train(args) => reproduce::run(&args, false, ranks),
        Command::Sweep(args) => sweep::run(&args),
        Command::Eval(args) => eval::run(&args, ranks),
        Command::Sample(args) => sample::run(&args, ranks),
        Command::Encode(args) => encode::run(&args),
        Command::Compress(args) => compress::run(&args),
        Command::Decompress(args) => decompress::run(&args),
        Command::Interpolate(args) => interpolate::run(&args),
        Command::Attribute(args) => attribute::run(&args),
        Command::Reconstruct(args) => reconstruct::run(&args),
        Command::Temperature(args) => temperature::run(&args),
        Command::Levels(args) => levels::run(&args),
        Command::Inpaint(args) => inpaint::run(&args),
        Command::Nearest(args) => nearest::run(&args),
        Command::Ood(args) => ood::run(&args),
        Command::Layers(args) => layers::run(&args),
        Command::Explore(args) => explore::run(&args),
        Command::Density(args) => density::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Push(args) => push::run(&args),
        Command::Table(args) => table::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Card(args) => card::run(&args),
        Command::Weights(args) => weights::run(&args),
        Command::List(args) => list::run(&args),
        Command::Explain(args) => explain::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
