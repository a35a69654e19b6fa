//! Operations that a model must do, counted from the shapes of its weights, and what a GPU can do at most.
//!
//! Counted are convolutions and products, which are what matrix units do: a weight (O, C, k, k) applied at n pixels takes
//! 2 O C k^2 n operations, a matrix (O, I) applied to n vectors 2 O I n. The forward pass does each once for each image; a
//! step of training does three times as many (the gradients of the input and of the weights are as large again; that of
//! the pixels themselves is not needed, but counted). Not counted are the laws, the norms, the optimiser and what is done
//! to weights alone (weight norm, P L U): their cost does not grow with the batch or is bound by memory.

use candle_core::{Result, bail};
use flows::{Model, ModelConfig};

/// Operations of log p of one image: twice the multiplications of all convolutions and products.
///
/// An error if the model trains a matrix that no rule here places, rather than a count without it.
pub fn forward_flops(model: &Model) -> Result<f64> {
    let mut flops = 0.;
    for (name, param) in model.params().trained() {
        let shape = param.value().dims();
        // Vectors scale and shift.
        if shape.len() < 2 {
            continue;
        }
        let Some(places) = places(model.config(), &name) else {
            bail!("no rule says at how many places `{name}` {shape:?} is applied");
        };
        flops += 2. * shape.iter().product::<usize>() as f64 * places as f64;
    }
    Ok(flops)
}

/// At how many pixels of one image the weight `name` is applied.
fn places(config: &ModelConfig, name: &str) -> Option<usize> {
    let kind = name.rsplit('.').next()?;
    let halvings = match config {
        // Fully connected: once for each image.
        ModelConfig::Nice(_) | ModelConfig::Maf(_) => return (kind == "weight").then_some(1),
        // Level i works after i + 1 squeezes.
        ModelConfig::Glow(_) if matches!(kind, "weight" | "lu") => level(name)? + 1,
        // Level i works after i squeezes, its channel-wise couplings after one more.
        ModelConfig::RealNvp(_) if kind == "weight" => level(name)? + usize::from(name.contains(".channel")),
        // A composed model squeezes where it likes; it has no peer either.
        _ => return None,
    };
    let [_, h, w] = config.shape() else { return None };
    Some((h >> halvings) * (w >> halvings))
}

/// `levelN.` at the start of a name.
fn level(name: &str) -> Option<usize> {
    name.strip_prefix("level")?.split_once('.')?.0.parse().ok()
}

/// What products are rounded to before they are multiplied; sums are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Not at all: outside the matrix units.
    F32,
    /// 10 bits of mantissa.
    Tf32,
    /// 7 bits of mantissa.
    Bf16,
}

/// Operations a second at most, in 1e12, of f32, TF32 and bf16 (sums in f32), without sparsity, from NVIDIA's data sheets.
///
/// The first that fits: the longer names of a family stand before the shorter ones.
const PEAKS: [(&str, [f64; 3]); 8] = [
    ("H200 NVL", [60., 417.5, 835.5]),
    ("H200", [66.9, 494.7, 989.4]),
    ("H100 NVL", [60., 417.5, 835.5]),
    ("H100 PCIe", [51.2, 378., 756.]),
    ("H100", [66.9, 494.7, 989.4]),
    ("A100", [19.5, 156., 312.]),
    ("L40S", [91.6, 183., 362.]),
    ("RTX 4090", [82.6, 82.6, 165.2]),
];

/// The most that the device of this name can do, in 1e12 operations a second; `None` where the table has no such name.
pub fn peak(device: &str, precision: Precision) -> Option<f64> {
    // A laptop's or a cut-down chip carries a longer name of the same family.
    let (_, peaks) = PEAKS.iter().find(|(name, _)| {
        device.split_once(name).is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with(['-', ' ']))
            && !device.contains("Laptop")
            && !device.contains("RTX 4090 D")
    })?;
    Some(peaks[precision as usize])
}
