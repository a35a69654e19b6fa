//! The command line: arguments, logs, signals, exit codes.
//!
//! Standard output holds results and nothing else; with `--json` its last line is one object and no table is printed.
//! Progress and logs go to standard error. Exit codes: 0 done, 1 an error (one sentence on standard error), 2 a wrong
//! argument, 130 interrupted by Ctrl-C (everything is saved, the same command goes on).

use crate::commands::*;
use crate::output;
use crate::progress::{LogWriter, STOP, Stopped};
use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use tracing_subscriber::EnvFilter;

/// Flow-based generative models: reproduce the papers' numbers, train, evaluate, sample.
#[derive(Parser)]
#[command(name = "flow", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Log more (the variable RUST_LOG says exactly what).
    #[arg(short, long, global = true)]
    verbose: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Data, training (or what is left of it), evaluation on the test images, samples, pictures, the row of the table.
    Reproduce(reproduce::RunArgs),
    /// As reproduce, without looking at the test images.
    Train(reproduce::RunArgs),
    /// Evaluate saved weights.
    Eval(eval::EvalArgs),
    /// Draw samples from saved weights.
    Sample(sample::SampleArgs),
    /// Walk between two images: through latents on a line and on an arc, and through pixels.
    Interpolate(interpolate::InterpolateArgs),
    /// Add what a label changes, the mean latent with it minus the one without, to held-out images.
    Attribute(attribute::AttributeArgs),
    /// How exactly images come back from their latents, by image and by level.
    Reconstruct(reconstruct::ReconstructArgs),
    /// The same latents sampled at several temperatures.
    Temperature(temperature::TemperatureArgs),
    /// Draw the latents of one level anew and keep the others.
    Levels(levels::LevelsArgs),
    /// Fill in what is missing of an image by climbing log p.
    Inpaint(inpaint::InpaintArgs),
    /// Samples beside the training images that are nearest to them.
    Nearest(nearest::NearestArgs),
    /// Histograms of bits/dim over two data sets.
    Ood(ood::OodArgs),
    /// What one image becomes layer by layer, and each layer's log-det.
    Layers(layers::LayersArgs),
    /// In the plane: the density learned beside the true one, and what the flow does to a grid.
    Density(density::DensityArgs),
    /// Examine saved weights: inverse, scales, conditioning, normalisation, NaN; fails only for what is broken.
    Doctor(doctor::DoctorArgs),
    /// Fetch a model from the Hugging Face hub.
    Pull(pull::PullArgs),
    /// Publish a run on the Hugging Face hub.
    Push(push::PushArgs),
    /// All runs against the papers, or runs side by side.
    Table(table::TableArgs),
    /// A run as one HTML file: numbers, curves, pictures, settings.
    Report(report::ReportArgs),
    /// Write saved weights once more: in another dtype, or in shards.
    Export(export::ExportArgs),
    /// Make a model of another project's PyTorch checkpoint.
    Import(import::ImportArgs),
    /// Write the model card (README.md) of folders of weights.
    Card(card::CardArgs),
    /// The trained models of weights/: list them, check them, write their index anew.
    Weights(weights::WeightsArgs),
    /// The built-in recipes.
    List(list::ListArgs),
    /// Each setting of a recipe and where it comes from; parameters, memory, and the time it takes on this machine.
    Explain(explain::ExplainArgs),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // What the hub's client logs comes again in our error, as a sentence.
    const HUSHED: &str = "hf_hub=off,xet=off,reqwest_middleware=off,reqwest_retry=off";
    let default = match cli.verbose {
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
    match catch_signals().and_then(|()| dispatch(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if error.is::<output::Closed>() {
                return ExitCode::SUCCESS;
            }
            if error.is::<Stopped>() {
                return ExitCode::from(130);
            }
            output::tell(format_args!("error: {}", sentence(&error)));
            ExitCode::FAILURE
        }
    }
}

/// The chain of an error in one line, without what a cause repeats and without candle's backtraces.
fn sentence(error: &anyhow::Error) -> String {
    let frame = |line: &str| {
        let digits = line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit());
        line.starts_with(' ') && (digits.starts_with(": ") || digits.starts_with("at "))
    };
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        let lines: Vec<&str> = cause.lines().filter(|line| !frame(line)).map(str::trim).collect();
        let cause = lines.join(" ");
        let cause = cause.trim();
        if !text.contains(cause) {
            text = if text.is_empty() { cause.to_owned() } else { format!("{text}: {cause}") };
        }
    }
    text
}

fn catch_signals() -> Result<()> {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            // The second one: whoever asks twice does not want to wait.
            std::process::exit(130);
        }
        output::tell("\nstopping at the next chance; Ctrl-C again ends at once");
    })
    .context("cannot catch Ctrl-C")
}

fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Reproduce(args) => reproduce::run(&args, true),
        Command::Train(args) => reproduce::run(&args, false),
        Command::Eval(args) => eval::run(&args),
        Command::Sample(args) => sample::run(&args),
        Command::Interpolate(args) => interpolate::run(&args),
        Command::Attribute(args) => attribute::run(&args),
        Command::Reconstruct(args) => reconstruct::run(&args),
        Command::Temperature(args) => temperature::run(&args),
        Command::Levels(args) => levels::run(&args),
        Command::Inpaint(args) => inpaint::run(&args),
        Command::Nearest(args) => nearest::run(&args),
        Command::Ood(args) => ood::run(&args),
        Command::Layers(args) => layers::run(&args),
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

    #[test]
    fn an_error_is_one_sentence_without_repeats() {
        let error =
            anyhow::anyhow!("no such file").context("cannot read x: no such file").context("recipe x");
        assert_eq!(sentence(&error), "recipe x: cannot read x: no such file");
        let traced = anyhow::anyhow!(
            "shapes differ\n   0: some::function\n             at src/some.rs:1:2\n  11: main"
        );
        assert_eq!(sentence(&traced), "shapes differ");
    }
}
