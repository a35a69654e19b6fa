//! chrischute/real-nvp: `flows.in_couplings`, `flows.out_couplings` and, for the next scale, `flows.next_block`, each
//! coupling with a residual network `st_net` and a gain `rescale`, both with weight norm.

use super::pth::{Checkpoint, numbers};
use super::tensors::{Options, Tensors, size};
use anyhow::{Result, ensure};
use flows::models::{Preprocess, RealNvpConfig};

/// A tensor under weight norm: its magnitudes and its direction, as either version of PyTorch's names them.
fn weight_norm(c: &mut Checkpoint, path: &str, outputs: usize, each: usize) -> Result<[Vec<f64>; 2]> {
    let new = c.shape(&format!("{path}.parametrizations.weight.original1")).is_some();
    let [g, v] = match new {
        true => ["parametrizations.weight.original0", "parametrizations.weight.original1"],
        false => ["weight_g", "weight_v"],
    };
    Ok([c.take(&format!("{path}.{g}"), outputs)?, c.take(&format!("{path}.{v}"), outputs * each)?])
}

/// What a convolution is.
struct Conv {
    inputs: usize,
    outputs: usize,
    k: usize,
    bias: bool,
    /// Channels of zeros behind the inputs: those that ours sees and theirs does not.
    more: usize,
    /// The second half of the outputs first.
    swap: bool,
}

fn conv(c: &mut Checkpoint, t: &mut Tensors, from: &str, to: &str, conv: &Conv) -> Result<()> {
    let &Conv { inputs, outputs, k, bias, more, swap } = conv;
    let from = format!("{from}.conv");
    let each = inputs * k * k;
    let [mut g, mut v] = weight_norm(c, &from, outputs, each)?;
    let mut b = if bias { c.take(&format!("{from}.bias"), outputs)? } else { vec![0.; outputs] };
    if swap {
        g.rotate_left(outputs / 2);
        b.rotate_left(outputs / 2);
        v.rotate_left(outputs / 2 * each);
    }
    let zeros = vec![0.; more * k * k];
    let v: Vec<f64> = v.chunks_exact(each.max(1)).flat_map(|row| row.iter().chain(&zeros).copied()).collect();
    t.put(format!("{to}.weight"), &[outputs, inputs + more, k, k], v)?;
    t.put(format!("{to}.magnitude"), &[outputs], g)?;
    t.put(format!("{to}.bias"), &[outputs], b)
}

/// Batch norm; `double` is what follows it.
fn norm(
    c: &mut Checkpoint,
    t: &mut Tensors,
    from: &str,
    to: &str,
    channels: usize,
    double: bool,
) -> Result<()> {
    let factor = if double { 2. } else { 1. };
    for (theirs, ours, factor) in [
        ("weight", "gamma", factor),
        ("bias", "beta", factor),
        ("running_mean", "mean", 1.),
        ("running_var", "var", 1.),
    ] {
        let values = c.take(&format!("{from}.{theirs}"), channels)?;
        t.put(format!("{to}.{ours}"), &[channels], values.iter().map(|v| v * factor).collect())?;
    }
    let count = format!("{from}.num_batches_tracked");
    c.drop_unused(|name| name == count);
    Ok(())
}

/// A coupling on `channels` inputs of its network, which has `features`.
struct Coupling {
    channels: usize,
    features: usize,
    blocks: usize,
    checkerboard: bool,
}

fn coupling(c: &mut Checkpoint, t: &mut Tensors, from: &str, to: &str, sizes: &Coupling) -> Result<()> {
    let &Coupling { channels, features: f, blocks, checkerboard } = sizes;
    let (from_net, net) = (format!("{from}.st_net"), format!("{to}.net"));
    let plain = |inputs: usize, outputs: usize, k: usize| Conv {
        inputs,
        outputs,
        k,
        bias: true,
        more: 0,
        swap: false,
    };
    norm(c, t, &format!("{from_net}.in_norm"), &format!("{net}.input"), channels, checkerboard)?;
    let first = Conv { more: usize::from(checkerboard), ..plain(2 * channels, f, 3) };
    conv(c, t, &format!("{from_net}.in_conv"), &format!("{net}.first"), &first)?;
    conv(c, t, &format!("{from_net}.in_skip"), &format!("{net}.skip"), &plain(f, f, 1))?;
    for i in 0..blocks {
        let (block, to) = (format!("{from_net}.blocks.{i}"), format!("{net}.block{i}"));
        norm(c, t, &format!("{block}.in_norm"), &format!("{to}.norm1"), f, false)?;
        conv(
            c,
            t,
            &format!("{block}.in_conv"),
            &format!("{to}.conv1"),
            &Conv { bias: false, ..plain(f, f, 3) },
        )?;
        norm(c, t, &format!("{block}.out_norm"), &format!("{to}.norm2"), f, false)?;
        conv(c, t, &format!("{block}.out_conv"), &format!("{to}.conv2"), &plain(f, f, 3))?;
        conv(c, t, &format!("{from_net}.skips.{i}"), &format!("{to}.skip"), &plain(f, f, 1))?;
    }
    norm(c, t, &format!("{from_net}.out_norm"), &format!("{net}.norm"), f, false)?;
    // Log-scales come first there, shifts here.
    let last = Conv { swap: true, ..plain(f, 2 * channels, 1) };
    conv(c, t, &format!("{from_net}.out_conv"), &format!("{net}.last"), &last)?;
    // Of a direction of one number weight norm leaves the sign.
    let [g, v] = weight_norm(c, &format!("{from}.rescale"), channels, 1)?;
    let gains = g.iter().zip(&v).map(|(g, v)| g * v.signum()).collect();
    t.put(format!("{net}.gains"), &[channels], gains)
}

/// Fills `t` and gives the config.
pub(super) fn convert(c: &mut Checkpoint, options: &Options, t: &mut Tensors) -> Result<RealNvpConfig> {
    options.only("real-nvp", false, false)?;
    let constraint = c.take("data_constraint", 1)?[0];
    ensure!(constraint > 0. && constraint < 1., "`data_constraint` is {constraint}, not between 0 and 1");
    let length = |name: String| size(c.shape(&name).map(|s| s.iter().product()), &name);
    let first = "flows.in_couplings.0.st_net.";
    let in_channels = length(format!("{first}in_norm.weight"))?;
    let features = length(format!("{first}out_norm.weight"))?;
    let blocks = numbers(c.names(), &format!("{first}blocks.")).len();
    let mut scales = 1;
    let mut at = "flows.next_block.".to_owned();
    while c.names().any(|name| name.starts_with(&at)) {
        scales += 1;
        at.push_str("next_block.");
    }
    ensure!(scales <= 16, "the checkpoint has {scales} scales, more than an image can be halved");
    let couplings = |c: &Checkpoint, path: &str| numbers(c.names(), path).len();
    let last = format!("flows.{}in_couplings.", "next_block.".repeat(scales - 1));
    let config = RealNvpConfig {
        bits: options.bits,
        // The f32 nearest to 0.9, as it computes with it.
        preprocess: match RealNvpConfig::cifar_code().preprocess {
            Preprocess::Logit { scale, .. } => Preprocess::Logit { alpha: (1. - constraint) / 2., scale },
            other => other,
        },
        scales,
        features,
        blocks,
        checkerboard: couplings(c, "flows.in_couplings."),
        channelwise: couplings(c, "flows.out_couplings."),
        last_checkerboard: couplings(c, &last),
        eps: 1e-5,
        norm_couplings: false,
        norm_input: true,
        channel_gains: true,
        diagonal: true,
        ..RealNvpConfig::cifar_code()
    };
    let sides = options.sides(None)?;
    let config = RealNvpConfig { shape: [in_channels, sides[0], sides[1]], ..config };
    let (mut channels, mut features, mut path) = (in_channels, features, "flows.".to_owned());
    for scale in 0..scales {
        let level = format!("level{scale}");
        let is_last = scale + 1 == scales;
        for k in 0..if is_last { config.last_checkerboard } else { config.checkerboard } {
            let (from, to) = (format!("{path}in_couplings.{k}"), format!("{level}.checker{k}"));
            coupling(c, t, &from, &to, &Coupling { channels, features, blocks, checkerboard: true })?;
        }
        if is_last {
            break;
        }
        for k in 0..config.channelwise {
            let (from, to) = (format!("{path}out_couplings.{k}"), format!("{level}.channel{k}"));
            let sizes =
                Coupling { channels: 2 * channels, features: 2 * features, blocks, checkerboard: false };
            coupling(c, t, &from, &to, &sizes)?;
        }
        let order: Vec<usize> =
            [0, 3, 1, 2].iter().flat_map(|p| (0..channels).map(move |i| 4 * i + p)).collect();
        t.indices(format!("{level}.order.index"), &order)?;
        (channels, features) = (2 * channels, 2 * features);
        path.push_str("next_block.");
    }
    Ok(config)
}
