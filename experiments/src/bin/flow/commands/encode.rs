//! `flow encode`: latents and log-likelihoods of a data set, as arrays.

use crate::arrays;
use crate::session::{Base, Session, Which, pooled};
use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};
use clap::Args;
use flows::Ctx;
use serde_json::json;
use std::path::PathBuf;

/// `encode`.
#[derive(Args)]
pub struct EncodeArgs {
    #[command(flatten)]
    base: Base,
    #[command(flatten)]
    from: Which,
    /// Number of examples, at most (default: all).
    #[arg(short, long = "number")]
    n: Option<usize>,
    /// Output file: .npz, .safetensors or .csv with `z` (N, D), `log_prob` (N,) in nats and, where the data have them, `labels`;
    /// .npy with z alone.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Writes z and log p(x) of each example of a part of a data set.
///
/// # Errors
/// When the file is there already or cannot be written, or the data are not the model's.
pub fn run(args: &EncodeArgs) -> Result<()> {
    arrays::writable(&args.out)?;
    ensure!(args.n != Some(0), "-n 0: encode at least one example");
    let s = Session::load(&args.base, args.out.clone(), "encode")?;
    let data = s.part(&args.from)?;
    let split = args.n.map_or_else(|| data.split.clone(), |n| data.split.take(n));
    s.fits(&split, &data.name)?;
    pooled(|| {
        // Both of one pass, side by side.
        let both = s.over(&split, |x, cond| {
            let terms = s.model.terms(x, Ctx::eval().with_context(cond))?;
            let log_prob = terms.log_prob()?.unsqueeze(1)?;
            Ok(Tensor::cat(&[terms.z.to_dtype(DType::F64)?, log_prob.to_dtype(DType::F64)?], 1)?)
        })?;
        let dims = both.dim(1)? - 1;
        let z = both.narrow(1, 0, dims)?.to_dtype(s.model.params().dtype())?;
        let log_prob = both.narrow(1, dims, 1)?.squeeze(1)?;
        let mean: f64 = log_prob.mean_all()?.to_scalar()?;
        let mut tensors = vec![("z", z), ("log_prob", log_prob)];
        if let Some(labels) = &split.labels {
            tensors.push(("labels", Tensor::from_slice(labels, labels.len(), &s.device)?));
        }
        arrays::write(&args.out, &tensors)?;
        let (n, file) = (split.len(), args.out.display().to_string());
        let object = json!({
            "weights": args.base.weights.to_string(), "data": data.name, "split": data.part.name(), "examples": n,
            "log_prob": mean, "file": file,
        });
        super::print(
            args.base.json,
            object,
            format_args!(
                "{n} {} examples of {}, log p(x) {mean:.4} nats on average: {file}",
                data.part.name(),
                data.name
            ),
        )
    })
}
