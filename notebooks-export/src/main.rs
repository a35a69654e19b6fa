//! `notebooks-export` exports a run, or a model of the hub, to a Jupyter notebook and the files that its cells read.
//!
//! It reads the folder of a run ([`experiments::run_dir`]): config.json and the weights, and as far as they are there the
//! summary, the log, the pictures, and in `pictures/` what `flow interpolate`, `flow ood` and the like have drawn, each PNG
//! with its numbers beside it as safetensors.

mod arrays;
mod metrics;
mod notebook;
mod output;
mod rust;
mod work;

use anyhow::{Context, Result, bail, ensure};
use arrays::Source;
use candle_core::{DType, Device};
use clap::Parser;
use experiments::data::file_name;
use experiments::data::npy::write_npz;
use experiments::run_dir::{CURVE, METRICS, PICTURES, SAMPLES, SUMMARY, list, read};
use experiments::untrusted::open;
use flows::hub::{Hub, Repository, Revision};
use flows::models::{ContextConfig, Dequantize, PriorConfig};
use flows::storage::{CONFIG, INDEX, WEIGHTS, parse_index, read_header};
use flows::{Model, ModelConfig};
use metrics::Metrics;
use notebook::{Picture, Story, code, escaped};
use rust::Dependencies;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use work::Partial;

/// Exports a run to a Jupyter notebook that needs no code of this project: text, pictures, code, and the arrays it reads.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// A folder with config.json and model.safetensors (a run, or a model of weights/), or a model of the hub.
    #[arg(value_name = "RUN|hf:USER/NAME[@REVISION]")]
    run: String,
    /// The new folder of the notebook and its files.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Also write NAME-rust.ipynb, which uses the library itself from this checkout, for Jupyter's kernel evcxr.
    #[arg(long, value_name = "CHECKOUT")]
    rust: Option<PathBuf>,
    /// Run the cells with Jupyter and keep their outputs.
    #[arg(long)]
    execute: bool,
    /// The Jupyter program that runs the cells.
    #[arg(long, value_name = "PROGRAM", default_value = "jupyter")]
    jupyter: PathBuf,
    /// Number of samples for the attribute and the histograms.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    samples: u32,
    /// The seed of everything that is drawn.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: no other thread exists yet. candle's own pool would take the cores from the one that computes; see `flows`.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
    // Without these settings the hub's storage client retries an unreachable server for minutes. It reads them from the
    // environment only.
    for (name, value) in [
        ("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "2"),
        ("HF_XET_CLIENT_RETRY_BASE_DELAY", "500ms"),
        ("HF_XET_CLIENT_CONNECT_TIMEOUT", "10s"),
    ] {
        if std::env::var_os(name).is_none() {
            // SAFETY: as above.
            unsafe { std::env::set_var(name, value) };
        }
    }
    match export(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // candle puts a backtrace under its sentence.
            let said: Vec<String> =
                error.chain().map(|e| e.to_string().lines().next().unwrap_or_default().to_owned()).collect();
            output::tell(format_args!("error: {}", said.join(": ")));
            ExitCode::FAILURE
        }
    }
}

fn export(cli: &Cli) -> Result<()> {
    work::catch_signals()?;
    let out = &cli.out;
    let (run, name, origin) = locate(&cli.run)?;
    let dependencies = cli.rust.as_deref().map(Dependencies::of).transpose()?;

    let partial = Partial::new(out)?;
    let notebooks = fill(cli, &run, (&name, origin), dependencies.as_ref(), &partial.folder)?;
    partial.finish()?;
    let paths: Vec<PathBuf> = notebooks.iter().map(|name| out.join(name)).collect();
    // The names are printed before the cells run: the files stay even if Jupyter fails.
    paths.iter().try_for_each(|path| output::line(path.display()))?;
    if cli.execute {
        paths.iter().try_for_each(|path| execute(&cli.jupyter, path))?;
    }
    Ok(())
}

/// The folder of a run, what it is called, and how the notebook says where it comes from.
fn locate(run: &str) -> Result<(PathBuf, String, String)> {
    let Some(address) = run.strip_prefix("hf:") else {
        let folder = PathBuf::from(run);
        ensure!(
            folder.join(CONFIG).is_file(),
            "{run} holds no model: a run has a {CONFIG} and a {WEIGHTS}, and a model of the hub is written hf:user/name"
        );
        let full = folder.canonicalize().with_context(|| format!("cannot open {run}"))?;
        let name = full.file_name().map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned());
        let origin = format!("the folder {}", code(&name));
        return Ok((folder, name, origin));
    };
    let (id, revision) = match address.split_once('@') {
        Some((id, revision)) => (id, Revision::new(revision)?),
        None => (address, Revision::default()),
    };
    let snapshot =
        Hub::from_env()?.pull(&Repository::model(id)?, &revision, &[SUMMARY, METRICS, CURVE, SAMPLES])?;
    let name = id.rsplit('/').next().unwrap_or(id).to_owned();
    Ok((snapshot.folder, name, format!("{}, commit {}", code(run), snapshot.commit)))
}

/// Writes the notebooks and all files beside them to `out`, and returns the notebooks' names, the one in Python first.
fn fill(
    cli: &Cli,
    run: &Path,
    (name, origin): (&str, String),
    dependencies: Option<&Dependencies>,
    out: &Path,
) -> Result<Vec<String>> {
    let model = Model::load_as(run, Some(DType::F32), &Device::Cpu)?;
    let config = model.config();
    ensure!(
        matches!(config.prior(), PriorConfig::Gaussian {} | PriorConfig::Logistic {})
            && *config.dequantize() == Dequantize::default(),
        "a notebook's PyTorch code has the fixed priors and uniform noise only, and {name} has others: docs/python/flows_torch.py \
         runs it"
    );
    ensure!(
        !matches!(config, ModelConfig::Composed(_)),
        "a notebook's PyTorch code is that of NICE, RealNVP, Glow or MAF, and {name} lists layers of its own: \
         docs/python/flows_torch.py runs it"
    );
    ensure!(
        *model.config().context() == ContextConfig::default(),
        "the notebook's code is for log p(x), and {name} is a model of p(x | c): docs/python/flows_torch.py runs it"
    );
    let exact = Model::load_as(run, Some(DType::F64), &Device::Cpu)?;
    let samples = cli.samples as usize;
    output::tell(format_args!("{name}: drawing and measuring {samples} samples"));
    let drawn = Source { model: &model, exact: &exact, seed: cli.seed, samples }.arrays()?;
    if !drawn.left_out.is_empty() {
        let (left, of) = drawn.left_out.iter().fold((0, 0), |sum, l| (sum.0 + l.left, sum.1 + l.of));
        output::tell(format_args!(
            "warning: {left} of {of} drawings that are not finite are left out, for the inverse of {name} overflows there: \
             examine it with `flow doctor`"
        ));
    }
    write_npz(&drawn.arrays, &out.join("arrays.npz")).context("cannot write arrays.npz")?;

    for file in model_files(run)? {
        copy(run, out, &file)?;
    }
    let mut summary = None;
    if let Some(bytes) = read(&run.join(SUMMARY))? {
        copy(run, out, SUMMARY)?;
        let damaged = || format!("{SUMMARY} of {name} is damaged: write or fetch it again, or remove it");
        summary = Some(Value::Object(serde_json::from_slice(&bytes).with_context(damaged)?));
    }
    let mut log = None;
    if let Some(bytes) = read(&run.join(METRICS))? {
        let damaged = || format!("{METRICS} of {name} is damaged: fetch it again, or remove it");
        log = Metrics::parse(&String::from_utf8(bytes).with_context(damaged)?).with_context(damaged)?;
    }
    if let Some(log) = &log {
        write(&out.join("metrics.csv"), &log.csv()?)?;
        write(&out.join("metrics.parquet"), &log.parquet()?)?;
    }
    let (pictures, numbers) = pictures(&run.join(PICTURES), &out.join(PICTURES))?;
    let story = Story {
        title: escaped(name),
        origin,
        config: model.config(),
        parameters: model.params().count(),
        summary,
        metrics: log.is_some(),
        curve: picture(&run.join(CURVE))?,
        sheet: picture(&run.join(SAMPLES))?,
        pictures,
        numbers,
        drawn,
        seed: cli.seed,
        samples,
    };
    let mut notebooks = vec![(format!("{name}.ipynb"), story.write()?)];
    if let Some(dependencies) = dependencies {
        notebooks.push((format!("{name}-rust.ipynb"), rust::write(&story, dependencies)?));
    }
    notebooks.iter().try_for_each(|(file, text)| write(&out.join(file), text.as_bytes()))?;
    Ok(notebooks.into_iter().map(|(file, _)| file).collect())
}

/// config.json and the weights, whole or in shards with their index.
fn model_files(run: &Path) -> Result<BTreeSet<String>> {
    let index = read(&run.join(INDEX))?;
    let mut files =
        BTreeSet::from([CONFIG, if index.is_some() { INDEX } else { WEIGHTS }].map(str::to_owned));
    if let Some(text) = index {
        files.extend(parse_index(&text)?.into_values());
    }
    Ok(files)
}

/// The pictures of a folder, in the order of their names; the numbers beside them are copied to `out`. Whether there are any.
fn pictures(folder: &Path, out: &Path) -> Result<(Vec<Picture>, bool)> {
    if !folder.is_dir() {
        return Ok((Vec::new(), false));
    }
    let (mut pictures, mut numbers) = (Vec::new(), false);
    for file in list(folder)? {
        match file.extension().and_then(|e| e.to_str()) {
            Some("png") => pictures.extend(picture(&file)?),
            Some("safetensors") => {
                let damaged = || format!("cannot read {}: draw it again, or remove it", file.display());
                let (mut opened, length) = open(&file, u64::MAX).with_context(damaged)?;
                read_header(&mut opened, length).with_context(damaged)?;
                numbers = true;
                // Without its parents: a signal removes them, and they must not come back.
                if !out.is_dir() {
                    std::fs::create_dir(out).with_context(|| format!("cannot make {}", out.display()))?;
                }
                copy(folder, out, &file_name(&file))?;
            }
            _ => {}
        }
    }
    Ok((pictures, numbers))
}

/// A picture by its file's name, or `None` where there is none.
fn picture(path: &Path) -> Result<Option<Picture>> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    ensure!(bytes.starts_with(b"\x89PNG\r\n"), "{} is no PNG: draw it again, or remove it", path.display());
    Ok(Some((file_name(path), bytes)))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn copy(from: &Path, to: &Path, name: &str) -> Result<()> {
    std::fs::copy(from.join(name), to.join(name))
        .map(|_| ())
        .with_context(|| format!("cannot copy {} to {}", from.join(name).display(), to.display()))
}

/// Runs every cell in place.
fn execute(jupyter: &Path, notebook: &Path) -> Result<()> {
    let written = format!("{} is written without outputs", notebook.display());
    let mut command = Command::new(jupyter);
    let said =
        work::run(command.arg("execute").arg("--inplace").arg(notebook), format!("stopped: {written}"));
    let output = said.with_context(|| {
        format!(
            "{written}, for `{}` cannot be run: pip install nbclient ipykernel, or name Jupyter with --jupyter",
            jupyter.display()
        )
    })?;
    if output.status.success() {
        return Ok(());
    }
    // Tracebacks are in colours.
    let said = anstream::adapter::strip_str(&String::from_utf8_lossy(&output.stderr)).to_string();
    let last = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it does not say why");
    ensure!(
        !last.contains("NoSuchKernel"),
        "{written}, for Jupyter lacks its kernel ({last}): pip install ipykernel, or for Rust cargo install --locked \
         evcxr_jupyter and evcxr_jupyter --install"
    );
    bail!("{written}, for Jupyter stopped: {last}")
}
