//! `flow import`: a model of another project's PyTorch checkpoint.

use crate::card;
use crate::files::{self, FileArgs};
use crate::import::{Kind, Layout, Options, Pixels, convert};
use anyhow::{Context, Result};
use experiments::{data, untrusted};
use std::path::PathBuf;

/// `import`.
#[derive(clap::Args)]
pub struct ImportArgs {
    /// Checkpoint written by torch.save, or its tensors in a safetensors file.
    file: PathBuf,
    /// Project that the checkpoint comes from.
    #[arg(long, value_enum)]
    from: Layout,
    /// Height and width of the images, 32 or 32x48, if the checkpoint does not hold them.
    #[arg(long, value_name = "HxW", value_parser = sides)]
    size: Option<[usize; 2]>,
    /// Bits of a pixel value in training.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=8))]
    bits: u8,
    /// Preprocessing of the pixels, for normflows (default: unit).
    #[arg(long, value_enum)]
    pixels: Option<Pixels>,
    /// Reverse the channels between couplings, for glow-pytorch, whose checkpoint does not hold the permutation.
    #[arg(long)]
    reversed: bool,
    #[command(flatten)]
    weights: FileArgs,
    /// Print the result as one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Height and width.
fn sides(text: &str) -> Result<[usize; 2], String> {
    let (h, w) = text.split_once('x').unwrap_or((text, text));
    let side = |text: &str| text.parse().ok().filter(|n| (1..=1 << 16).contains(n));
    let sides = side(h).zip(side(w)).map(<[usize; 2]>::from);
    sides.ok_or_else(|| "a size is 32, or 32x48 for height and width".to_owned())
}

/// Imports a checkpoint.
///
/// # Errors
/// Those of [`convert`], and when the folder cannot be written.
pub fn run(args: &ImportArgs) -> Result<()> {
    args.weights.check()?;
    let ImportArgs { size, bits, pixels, reversed, .. } = *args;
    let name = args.file.display().to_string();
    // Before gigabytes are read that are none.
    Kind::check(&untrusted::head(&args.file, 16)?, &name)?;
    let bytes = untrusted::read_regular(&args.file, data::LARGEST)?;
    let model = convert(&bytes, &name, args.from, &Options { size, bits, pixels, reversed })
        .with_context(|| format!("{name} cannot be imported"))?;
    args.weights.advise();
    let out = &args.weights.out;
    let _lock = files::take(out)?;
    model.save(out, &args.weights.options())?;
    files::accompany(out, &[])?;
    card::write(out)?;
    files::tell(out, args.json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_sides() {
        assert_eq!((sides("32"), sides("8x12")), (Ok([32, 32]), Ok([8, 12])));
        assert!(["", "x", "8x", "0", "-1", "70000", "8x8x8"].into_iter().all(|text| sides(text).is_err()));
    }
}
