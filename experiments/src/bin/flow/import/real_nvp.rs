//! chrischute/real-nvp: `flows.in_couplings`, `flows.out_couplings` and, for the next scale, `flows.next_block`, each
//! coupling with a residual network `st_net` and a gain `rescale`, both with weight norm.

use super::pth::{Checkpoint, numbers};
use super::tensors::{Conversion, Options};
use anyhow::{Result, ensure};
use flows::models::{Preprocess, RealNvpConfig};

/// Takes a tensor under weight norm: its magnitudes and its direction, as either version of PyTorch names them.
fn weight_norm(c: &mut Checkpoint, path: &str, outputs: usize, each: usize) -> Result<[Vec<f64>; 2]> {
    let new = c.shape(&format!("{path}.parametrizations.weight.original1")).is_some();
    let [g, v] = match new {
        true => ["parametrizations.weight.original0", "parametrizations.weight.original1"],
        false => ["weight_g", "weight_v"],
    };
    Ok([c.take(&format!("{path}.{g}"), outputs)?, c.take(&format!("{path}.{v}"), outputs * each)?])
}

/// What sets a convolution apart from others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Conv {
    Plain,
    /// It has no bias.
    Unbiased,
    /// Ours sees the mask as one more channel, whose weights are zeros here.
    Masked,
    /// Log-scales come first there, shifts here.
    Last,
}

fn conv(c: &mut Conversion, from: &str, to: &str, [outputs, inputs, k]: [usize; 3], is: Conv) -> Result<()> {
    let from = format!("{from}.conv");
    let each = inputs * k * k;
    let [mut g, mut v] = weight_norm(&mut c.from, &from, outputs, each)?;
    let mut b = match is {
        Conv::Unbiased => vec![0.; outputs],
        _ => c.from.take(&format!("{from}.bias"), outputs)?,
    };
    if is == Conv::Last {
        g.rotate_left(outputs / 2);
        b.rotate_left(outputs / 2);
        v.rotate_left(outputs / 2 * each);
    }
    let more = usize::from(is == Conv::Masked);
    let zeros = vec![0.; more * k * k];
    let v: Vec<f64> = v.chunks_exact(each.max(1)).flat_map(|row| row.iter().chain(&zeros).copied()).collect();
    c.put(format!("{to}.weight"), &[outputs, inputs + more, k, k], v)?;
    c.put(format!("{to}.magnitude"), &[outputs], g)?;
    c.put(format!("{to}.bias"), &[outputs], b)
}

/// Converts a batch norm whose output is multiplied by `factor` there.
fn norm(c: &mut Conversion, from: &str, to: &str, channels: usize, factor: f64) -> Result<()> {
    for (theirs, ours, factor) in [
        ("weight", "gamma", factor),
        ("bias", "beta", factor),
        ("running_mean", "mean", 1.),
        ("running_var", "var", 1.),
    ] {
        let values = c.from.take(&format!("{from}.{theirs}"), channels)?;
        c.put(format!("{to}.{ours}"), &[channels], values.iter().map(|v| v * factor).collect())?;
    }
    let count = format!("{from}.num_batches_tracked");
    c.from.drop_unused(|name| name == count);
    Ok(())
}

/// Converts a coupling whose network has `channels` inputs, `f` features and `blocks` blocks.
fn coupling(
    c: &mut Conversion,
    from: &str,
    to: &str,
    [channels, f, blocks]: [usize; 3],
    checkerboard: bool,
) -> Result<()> {
    let (theirs, net) = (format!("{from}.st_net"), format!("{to}.net"));
    let (factor, first) = if checkerboard { (2., Conv::Masked) } else { (1., Conv::Plain) };
    norm(c, &format!("{theirs}.in_norm"), &format!("{net}.input"), channels, factor)?;
    conv(c, &format!("{theirs}.in_conv"), &format!("{net}.first"), [f, 2 * channels, 3], first)?;
    conv(c, &format!("{theirs}.in_skip"), &format!("{net}.skip"), [f, f, 1], Conv::Plain)?;
    for i in 0..blocks {
        let (block, to) = (format!("{theirs}.blocks.{i}"), format!("{net}.block{i}"));
        norm(c, &format!("{block}.in_norm"), &format!("{to}.norm1"), f, 1.)?;
        conv(c, &format!("{block}.in_conv"), &format!("{to}.conv1"), [f, f, 3], Conv::Unbiased)?;
        norm(c, &format!("{block}.out_norm"), &format!("{to}.norm2"), f, 1.)?;
        conv(c, &format!("{block}.out_conv"), &format!("{to}.conv2"), [f, f, 3], Conv::Plain)?;
        conv(c, &format!("{theirs}.skips.{i}"), &format!("{to}.skip"), [f, f, 1], Conv::Plain)?;
    }
    norm(c, &format!("{theirs}.out_norm"), &format!("{net}.norm"), f, 1.)?;
    conv(c, &format!("{theirs}.out_conv"), &format!("{net}.last"), [2 * channels, f, 1], Conv::Last)?;
    // Weight norm divides the direction by its length, so a direction of one number is 1 or -1.
    let [g, v] = weight_norm(&mut c.from, &format!("{from}.rescale"), channels, 1)?;
    let gains = g.iter().zip(&v).map(|(g, v)| g * v.signum()).collect();
    c.put(format!("{net}.gains"), &[channels], gains)
}

/// The config as the names and shapes of the tensors tell it.
fn config(c: &mut Checkpoint, options: &Options) -> Result<RealNvpConfig> {
    options.only("real-nvp", false, false)?;
    let constraint = c.take("data_constraint", 1)?[0];
    ensure!(constraint > 0. && constraint < 1., "`data_constraint` is {constraint}, not between 0 and 1");
    let first = "flows.in_couplings.0.st_net.";
    let in_channels = c.elements(&format!("{first}in_norm.weight"))?;
    let features = c.elements(&format!("{first}out_norm.weight"))?;
    let blocks = numbers(c.names(), &format!("{first}blocks.")).len();
    let mut scales = 1;
    let mut at = "flows.next_block.".to_owned();
    while c.names().any(|name| name.starts_with(&at)) {
        scales += 1;
        at.push_str("next_block.");
    }
    ensure!(scales <= 16, "the checkpoint has {scales} scales, more than an image can be halved");
    let couplings = |path: &str| numbers(c.names(), path).len();
    let last = format!("flows.{}in_couplings.", "next_block.".repeat(scales - 1));
    let [height, width] = options.sides(None)?;
    Ok(RealNvpConfig {
        shape: [in_channels, height, width],
        bits: options.bits,
        // The f32 nearest to 0.9, as it computes with it.
        preprocess: match RealNvpConfig::cifar_code().preprocess {
            Preprocess::Logit { scale, .. } => Preprocess::Logit { alpha: (1. - constraint) / 2., scale },
            other => other,
        },
        scales,
        features,
        blocks,
        checkerboard: couplings("flows.in_couplings."),
        channelwise: couplings("flows.out_couplings."),
        last_checkerboard: couplings(&last),
        eps: 1e-5,
        norm_couplings: false,
        norm_input: true,
        channel_gains: true,
        diagonal: true,
        ..RealNvpConfig::cifar_code()
    })
}

/// Converts the tensors and infers the config.
pub(super) fn convert(c: &mut Conversion, options: &Options) -> Result<RealNvpConfig> {
    let config = config(&mut c.from, options)?;
    let RealNvpConfig { scales, blocks, .. } = config;
    let (mut channels, mut features, mut path) = (config.shape[0], config.features, "flows.".to_owned());
    for scale in 0..scales {
        let level = format!("level{scale}");
        let is_last = scale + 1 == scales;
        for k in 0..if is_last { config.last_checkerboard } else { config.checkerboard } {
            let (from, to) = (format!("{path}in_couplings.{k}"), format!("{level}.checker{k}"));
            coupling(c, &from, &to, [channels, features, blocks], true)?;
        }
        if is_last {
            break;
        }
        for k in 0..config.channelwise {
            let (from, to) = (format!("{path}out_couplings.{k}"), format!("{level}.channel{k}"));
            coupling(c, &from, &to, [2 * channels, 2 * features, blocks], false)?;
        }
        let order = [0, 3, 1, 2].iter().flat_map(|p| (0..channels).map(move |i| 4 * i + p));
        c.indices(format!("{level}.order.index"), order)?;
        (channels, features) = (2 * channels, 2 * features);
        path.push_str("next_block.");
    }
    Ok(config)
}
