//! The command line: arguments, logs, signals, exit codes.
//!
//! Standard output holds results and nothing else; with `--json` its last line is one object and no table is printed.
//! Progress and logs go to standard error. Exit codes: 0 done, 1 an error (one sentence on standard error), 2 a wrong
//! argument, 130 interrupted by Ctrl-C (everything is saved, the same command goes on).

use crate::card::{self, CardArgs};
use crate::export::{self, ExportArgs};
use crate::import::{self, ImportArgs};
use crate::progress::{LogWriter, STOP, Stopped};
use crate::recipe::Resolved;
use crate::report::{self, ReportArgs};
use crate::transfer::{self, Address, WEIGHTS, Weights};
use crate::weights::{self, WeightsArgs};
use crate::{explain, output, recipe, run, show, table};
use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::{Args, Parser, Subcommand, ValueEnum};
use flows::hub::{Repository, Revision};
use flows::ops::device::open_device;
use serde_json::json;
use std::path::PathBuf;
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
    Reproduce(RunArgs),
    /// As reproduce, without looking at the test images.
    Train(RunArgs),
    /// Evaluate saved weights.
    Eval(EvalArgs),
    /// Draw samples from saved weights.
    Sample(SampleArgs),
    /// Walk between two images: through latents on a line and on an arc, and through pixels.
    Interpolate(show::InterpolateArgs),
    /// Add what a label changes, the mean latent with it minus the one without, to held-out images.
    Attribute(show::AttributeArgs),
    /// How exactly images come back from their latents, by image and by level.
    Reconstruct(show::ReconstructArgs),
    /// The same latents sampled at several temperatures.
    Temperature(show::TemperatureArgs),
    /// Draw the latents of one level anew and keep the others.
    Levels(show::LevelsArgs),
    /// Fill in what is missing of an image by climbing log p.
    Inpaint(show::InpaintArgs),
    /// Samples beside the training images that are nearest to them.
    Nearest(show::NearestArgs),
    /// Histograms of bits/dim over two data sets.
    Ood(show::OodArgs),
    /// What one image becomes layer by layer, and each layer's log-det.
    Layers(show::LayersArgs),
    /// In the plane: the density learned beside the true one, and what the flow does to a grid.
    Density(show::DensityArgs),
    /// Examine saved weights: inverse, scales, conditioning, normalisation, NaN; fails only for what is broken.
    Doctor(show::DoctorArgs),
    /// Fetch a model from the Hugging Face hub.
    Pull(PullArgs),
    /// Publish a run on the Hugging Face hub.
    Push(PushArgs),
    /// All runs against the papers, or runs side by side.
    Table(TableArgs),
    /// A run as one HTML file: numbers, curves, pictures, settings.
    Report(ReportArgs),
    /// Write saved weights once more: in another dtype, or in shards.
    Export(ExportArgs),
    /// Make a model of another project's PyTorch checkpoint.
    Import(ImportArgs),
    /// Write the model card (README.md) of folders of weights.
    Card(CardArgs),
    /// The trained models of weights/: list them, check them, write their index anew.
    Weights(WeightsArgs),
    /// The built-in recipes.
    List(ListArgs),
    /// Each setting of a recipe and where it comes from; parameters, memory, and the time it takes on this machine.
    Explain(ExplainArgs),
}

/// Which recipe.
#[derive(Args)]
pub struct RecipeArgs {
    /// A built-in recipe (see `flow list`), or the path of a .toml file.
    pub recipe: String,
    #[command(flatten)]
    overrides: Overrides,
    /// The seed of parameters, order, augmentation and noise (the recipe's `train.seed`).
    #[arg(long, allow_negative_numbers = true, value_parser = seed)]
    seed: Option<u64>,
    /// Crop and resize images of your own to this side (the recipe's `data.size`).
    #[arg(long)]
    size: Option<usize>,
}

/// Changed settings.
#[derive(Args)]
struct Overrides {
    /// Change a setting, for example --set train.lr=5e-4 (the value is TOML); may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

impl RecipeArgs {
    /// The recipe with its overrides.
    ///
    /// # Errors
    /// As [`Resolved::load`].
    pub fn resolve(&self) -> Result<Resolved> {
        let mut sets = self.overrides.sets.clone();
        sets.extend(self.seed.map(|seed| format!("train.seed={seed}")));
        sets.extend(self.size.map(|size| format!("data.size={size}")));
        Resolved::load(&self.recipe, &sets)
    }
}

/// Where to compute.
#[derive(Args)]
pub struct Compute {
    /// `cpu`, or `cuda:N` for the Nth GPU.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Threads, at most 512 (default: all cores). Results are equal to the bit only for equal numbers of threads.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=512))]
    threads: Option<u16>,
}

impl Compute {
    /// Sets the number of threads and opens the device.
    ///
    /// # Errors
    /// When there is no such device: one sentence that says why.
    pub fn open(&self) -> Result<Device> {
        if let Some(threads) = self.threads {
            rayon::ThreadPoolBuilder::new()
                .num_threads(usize::from(threads))
                .build_global()
                .context("the number of threads cannot be changed any more")?;
        }
        open_device(&self.device).with_context(|| format!("--device {}", self.device))
    }

    /// The device's name in a summary.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.device
    }
}

/// Where the data are.
#[derive(Args)]
pub struct DataArgs {
    /// The folder of the data (default: the variable FLOW_DATA, then the Hugging Face hub).
    #[arg(long = "data", value_name = "DIR", env = "FLOW_DATA")]
    pub dir: Option<PathBuf>,
}

/// `reproduce` and `train`.
#[derive(Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    #[command(flatten)]
    pub(crate) compute: Compute,
    #[command(flatten)]
    pub(crate) data: DataArgs,
    /// The run's folder (default: runs/RECIPE). The same command resumes there, or prints the result it had.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// The result as one JSON object, the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The training images.
    Train,
    /// The validation images.
    Validation,
    /// The test images.
    Test,
}

impl Part {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

/// `eval`.
#[derive(Args)]
pub struct EvalArgs {
    /// A folder with config.json and model.safetensors (a run, or a model of weights/), or a model of the hub.
    #[arg(value_name = WEIGHTS)]
    pub(crate) weights: Weights,
    /// Data and evaluation settings of this recipe (default: the recipe that the folder holds).
    #[arg(long)]
    pub(crate) recipe: Option<String>,
    #[command(flatten)]
    overrides: Overrides,
    /// The data set, in place of the recipe's.
    #[arg(long, value_name = "NAME")]
    data_set: Option<String>,
    /// Which images.
    #[arg(long, value_enum, default_value = "test")]
    pub(crate) split: Part,
    /// Only the first so many images.
    #[arg(long)]
    pub(crate) images: Option<usize>,
    #[command(flatten)]
    pub(crate) compute: Compute,
    #[command(flatten)]
    pub(crate) data: DataArgs,
    /// The seed of the noise (default: the seed of the run).
    #[arg(long, allow_negative_numbers = true, value_parser = seed)]
    pub(crate) seed: Option<u64>,
    /// The result as one JSON object, the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

impl EvalArgs {
    /// What to change in the recipe.
    ///
    /// # Errors
    /// When it is the model, which is the saved one.
    pub fn sets(&self) -> Result<Vec<String>> {
        let mut sets = self.overrides.sets.clone();
        for set in &sets {
            let key = set.split('=').next().unwrap_or_default().trim();
            ensure!(
                key != "model" && !key.starts_with("model."),
                "--set {set}: saved weights have their model with them, so `eval` cannot change `{key}`; train another \
                 with `flow train`"
            );
        }
        sets.extend(self.data_set.iter().map(|name| format!("data.set={name}")));
        Ok(sets)
    }
}

/// `sample`.
#[derive(Args)]
pub struct SampleArgs {
    /// A folder with config.json and model.safetensors (a run, or a model of weights/), or a model of the hub.
    #[arg(value_name = WEIGHTS)]
    pub(crate) weights: Weights,
    /// The class, for a class-conditional model (default: all in turn).
    #[arg(long)]
    pub(crate) class: Option<u32>,
    /// How many.
    #[arg(short, long = "number", default_value_t = 64)]
    pub(crate) n: usize,
    /// The temperature: samples are drawn with z scaled by it.
    #[arg(long, default_value_t = 1., allow_negative_numbers = true)]
    pub(crate) temperature: f64,
    /// The picture to write, a .png file.
    #[arg(long, value_name = "FILE", default_value = "samples.png")]
    pub(crate) out: PathBuf,
    /// The seed of the samples.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_parser = seed)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) compute: Compute,
    /// The result as one JSON object, the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `pull`.
#[derive(Args)]
pub struct PullArgs {
    /// The model, at a branch, a tag or a commit (default: main).
    #[arg(value_name = "hf:USER/NAME[@REVISION]")]
    pub(crate) address: Address,
    /// Copy its files to this new folder (default: print the folder in the hub's cache).
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// The result as one JSON object, the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `push`.
#[derive(Args)]
pub struct PushArgs {
    /// The folder of a run, or of a model of weights/.
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,
    /// The repository, which is made if it is not there.
    #[arg(value_name = "USER/NAME", value_parser = repository)]
    pub(crate) repository: Repository,
    /// For nobody else to see.
    #[arg(long)]
    pub(crate) private: bool,
    /// The branch.
    #[arg(long, value_name = "BRANCH", default_value = "main", value_parser = revision)]
    pub(crate) revision: Revision,
    /// A name for this state, for good.
    #[arg(long, value_name = "NAME", value_parser = revision)]
    pub(crate) tag: Option<Revision>,
    /// Print the files that would go up, with their lengths and SHA-256, and send nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The result as one JSON object, the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
struct TableArgs {
    /// Folders of runs, or folders that hold them (default: runs, weights and experiments/results).
    runs: Vec<PathBuf>,
    /// How to print.
    #[arg(long, value_enum, default_value = "markdown")]
    format: table::Format,
    /// Each run a column: its figures, and every setting in which the runs differ.
    #[arg(long)]
    side_by_side: bool,
}

#[derive(Args)]
struct ListArgs {
    /// The recipes as one JSON object, the last line of standard output.
    #[arg(long)]
    json: bool,
}

/// `explain`.
#[derive(Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    #[command(flatten)]
    pub(crate) compute: Compute,
    #[command(flatten)]
    pub(crate) data: DataArgs,
    /// Only the settings: no model is built and nothing is timed.
    #[arg(long)]
    pub(crate) settings: bool,
    /// The result as one JSON object, the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A seed as it is given; a recipe is written as TOML, whose numbers end at 2^63 - 1.
pub(crate) fn seed(text: &str) -> Result<u64, String> {
    let seed = text.parse().ok().filter(|&seed: &u64| i64::try_from(seed).is_ok());
    seed.ok_or_else(|| format!("a seed is a whole number from 0 to {}", i64::MAX))
}

fn repository(text: &str) -> Result<Repository> {
    Repository::model(text.strip_prefix("hf:").unwrap_or(text)).map_err(transfer::why)
}

fn revision(text: &str) -> Result<Revision> {
    Revision::new(text).map_err(transfer::why)
}

/// How a command ended.
pub enum End {
    /// With its result.
    Done,
    /// By Ctrl-C.
    Interrupted,
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // What the hub's client logs comes again in our error, as a sentence.
    const HUSHED: &str = "hf_hub=off,xet=off,reqwest_middleware=off,reqwest_retry=off";
    let default = match cli.verbose {
        true => "warn,flow=debug".to_owned(),
        false => format!("warn,flow=info,{HUSHED}"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default)))
        .with_target(false)
        .with_timer(tracing_subscriber::fmt::time::uptime())
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(|| LogWriter)
        .init();
    match catch_signals().and_then(|()| dispatch(cli.command)) {
        Ok(End::Done) => ExitCode::SUCCESS,
        Ok(End::Interrupted) => ExitCode::from(130),
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

fn dispatch(command: Command) -> Result<End> {
    match command {
        Command::Reproduce(args) => run::reproduce(&args, true),
        Command::Train(args) => run::reproduce(&args, false),
        Command::Eval(args) => run::eval(&args),
        Command::Sample(args) => run::sample(&args),
        Command::Interpolate(args) => show::interpolate(&args),
        Command::Attribute(args) => show::attribute(&args),
        Command::Reconstruct(args) => show::reconstruct(&args),
        Command::Temperature(args) => show::temperature(&args),
        Command::Levels(args) => show::levels(&args),
        Command::Inpaint(args) => show::inpaint(&args),
        Command::Nearest(args) => show::nearest(&args),
        Command::Ood(args) => show::ood(&args),
        Command::Layers(args) => show::layers(&args),
        Command::Density(args) => show::density(&args),
        Command::Doctor(args) => show::doctor(&args),
        Command::Pull(args) => transfer::pull(&args),
        Command::Push(args) => transfer::push(&args),
        Command::Table(args) => {
            let render = if args.side_by_side { table::side_by_side } else { table::render };
            output::raw(&render(&table::find(&args.runs)?, args.format)?)?;
            Ok(End::Done)
        }
        Command::Report(args) => report::report(&args),
        Command::Export(args) => export::export(&args),
        Command::Import(args) => import::import(&args),
        Command::Card(args) => card::card(&args),
        Command::Weights(args) => weights::weights(&args),
        Command::List(args) => list(args.json),
        Command::Explain(args) => explain::explain(&args),
    }
}

fn list(as_json: bool) -> Result<End> {
    let recipes = recipe::BUILTIN
        .iter()
        .map(|(name, text)| {
            Ok(Resolved::parse(name, text, &[]).with_context(|| format!("recipe {name}"))?.recipe)
        })
        .collect::<Result<Vec<_>>>()?;
    if as_json {
        let all: Vec<_> = recipes
            .iter()
            .map(|r| {
                json!({
                    "recipe": r.name,
                    "about": r.about,
                    "data": r.data.set,
                    "paper": r.paper.as_ref().map(|p| p.bits_per_dim),
                })
            })
            .collect();
        output::line(json!({ "recipes": all }))?;
        return Ok(End::Done);
    }
    let width = recipes.iter().map(|r| r.name.len()).max().unwrap_or(0);
    for r in recipes {
        let paper = r.paper.map_or_else(String::new, |p| format!(" [paper: {} bits/dim]", p.bits_per_dim));
        output::line(format_args!("{:width$}  {}{paper}", r.name, r.about))?;
    }
    Ok(End::Done)
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
