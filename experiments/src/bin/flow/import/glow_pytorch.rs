//! y0ast/Glow-PyTorch: `flow.layers.N` are a squeeze, K steps and a split for each level but the last, then `prior_h`, and
//! perhaps `learn_top_fn` and `project_ycond`.

use super::pth::{Checkpoint, numbers};
use super::tensors::{Conversion, Options, glow, law, negated, shifts_first};
use anyhow::{Result, bail, ensure};
use flows::models::{GlowConfig, Preprocess, glow as ours};

/// Takes a zero convolution's weight, bias and logs.
fn zero(c: &mut Conversion, path: &str, inputs: usize, outputs: usize) -> Result<[Vec<f64>; 3]> {
    Ok([
        c.from.take(&format!("{path}.conv.weight"), outputs * inputs * 9)?,
        c.from.take(&format!("{path}.conv.bias"), outputs)?,
        c.from.take(&format!("{path}.logs"), outputs)?,
    ])
}

fn act_norm(c: &mut Conversion, from: &str, to: &str, channels: usize) -> Result<()> {
    let bias = c.from.take(&format!("{from}.bias"), channels)?;
    let logs = c.from.take(&format!("{from}.logs"), channels)?;
    c.act_norm(to, bias, &logs)
}

/// One step: an actnorm, a permutation and a coupling.
fn step(c: &mut Conversion, from: &str, to: &str, channels: usize, config: &GlowConfig) -> Result<()> {
    let (half, width, affine) = (channels / 2, config.width, config.law == ours::CouplingTransform::Affine);
    act_norm(c, &format!("{from}.actnorm"), &format!("{to}.actnorm"), channels)?;
    let (mixing, path) = (format!("{from}.invconv"), format!("{to}.permutation"));
    match config.permutation {
        ours::Permutation::Plu => {
            c.plu(&mixing, &path, channels, ["p", "lower", "upper", "sign_s", "log_s"])?
        }
        ours::Permutation::Plain => {
            c.copy(&format!("{mixing}.weight"), format!("{path}.weight"), &[channels, channels])?
        }
        _ => c.indices(format!("{path}.index"), (0..channels).rev())?,
    }
    let (block, net) = (format!("{from}.block"), format!("{to}.net"));
    c.copy(&format!("{block}.0.conv.weight"), format!("{net}.conv1.weight"), &[width, half, 3, 3])?;
    act_norm(c, &format!("{block}.0.actnorm"), &format!("{net}.norm1"), width)?;
    c.copy(&format!("{block}.2.conv.weight"), format!("{net}.conv2.weight"), &[width, width, 1, 1])?;
    act_norm(c, &format!("{block}.2.actnorm"), &format!("{net}.norm2"), width)?;
    let outputs = if affine { channels } else { half };
    let parts = zero(c, &format!("{block}.4"), width, outputs)?;
    c.zero(&net, width, if affine { parts.map(|v| shifts_first(&v, outputs)) } else { parts })
}

/// The config as the names and shapes of the tensors tell it, and the number of channels at the top.
fn config(c: &mut Checkpoint, options: &Options) -> Result<(GlowConfig, usize)> {
    let Some(&[1, top, top_h, top_w]) = c.shape("prior_h") else {
        bail!("the checkpoint has no `prior_h` of four sides: it is none of Glow-PyTorch")
    };
    c.take("prior_h", top * top_h * top_w)?;
    let layers = numbers(c.names(), "flow.layers.");
    let is_split = |c: &Checkpoint, n: usize| c.shape(&format!("flow.layers.{n}.conv.conv.weight")).is_some();
    let levels = layers.iter().filter(|&&n| is_split(c, n)).count() + 1;
    // Each level is a squeeze without tensors, K steps, and a split.
    let depth = layers.iter().take_while(|&&n| !is_split(c, n)).count();
    let whole = levels * depth + levels - 1;
    ensure!(
        depth > 0 && layers.len() == whole && layers.last() == Some(&(levels * (depth + 2) - 2)),
        "the checkpoint's `flow.layers` are not the same number of steps in each level: it is of another layout"
    );
    let [first, conv] = ["flow.layers.1.actnorm.bias", "flow.layers.1.block.0.conv.weight"];
    let channels = c.elements(first)?;
    ensure!(
        channels.is_multiple_of(4),
        "`{first}` is for {channels} channels, a squeeze makes a multiple of four"
    );
    let width = c.outputs(conv)?;
    let outputs = c.shape("flow.layers.1.block.4.conv.bias").map_or(0, |s| s.iter().product());
    ensure!(levels <= 16, "the checkpoint has {levels} levels, more than an image can be halved");
    let sides = options.sides(Some([top_h << levels, top_w << levels]))?;
    let mixing = ["lower", "weight"].map(|part| c.shape(&format!("flow.layers.1.invconv.{part}")).is_some());
    let permutation = match mixing {
        [true, _] => ours::Permutation::Plu,
        [_, true] => ours::Permutation::Plain,
        _ if options.reversed => ours::Permutation::Reverse,
        _ => bail!(
            "the checkpoint has no 1x1 convolutions, and Glow-PyTorch does not save fixed permutations: if the channels were \
             reversed give --reversed, a shuffle cannot be imported"
        ),
    };
    options.only("this model of glow-pytorch", false, permutation == ours::Permutation::Reverse)?;
    let law = law(outputs, channels / 2)?;
    let config = GlowConfig {
        levels,
        depth,
        width,
        law,
        permutation,
        preprocess: Preprocess::Centered {},
        learn_split: true,
        ..glow([channels / 4, sides[0], sides[1]], options)
    };
    Ok((config, top))
}

/// Converts the prior of the last latents.
fn top(c: &mut Conversion, path: &str, top: usize, config: &mut GlowConfig) -> Result<()> {
    // The top prior's convolution is applied to zeros, so only its bias counts.
    let learned = c.from.shape("learn_top_fn.conv.bias").is_some();
    let [_, bias, gain] = match learned {
        true => zero(c, "learn_top_fn", top, top)?,
        false => [vec![], vec![0.; top], vec![0.; top]],
    };
    config.learn_top = learned;
    if let Some(&[n, classes]) = c.from.shape("project_ycond.linear.weight") {
        ensure!(n == top, "`project_ycond` is for {n} channels, the top has {top}");
        let weight = c.from.take("project_ycond.linear.weight", n * classes)?;
        let linear = c.from.take("project_ycond.linear.bias", n)?;
        let logs = c.from.take("project_ycond.logs", n)?;
        // Two factors of their own: the sum for each class is the table's row.
        let row = |y: usize| {
            let (weight, linear, logs, bias, gain) = (&weight, &linear, &logs, &bias, &gain);
            (0..n).map(move |i| {
                bias[i] * (3. * gain[i]).exp() + (weight[i * classes + y] + linear[i]) * (3. * logs[i]).exp()
            })
        };
        c.put(format!("{path}.emb"), &[classes, n], (0..classes).flat_map(row).collect())?;
        for part in ["bias", "gain"] {
            c.put(format!("{path}.{part}"), &[n], vec![0.; n])?;
        }
        config.classes = Some(classes);
        config.learn_top = true;
        // The classifier of the latent's mean has no part in log p(x).
        c.from.drop_unused(|name| name.starts_with("project_class."));
    } else if learned {
        c.put(format!("{path}.bias"), &[top], bias)?;
        c.put(format!("{path}.gain"), &[top], gain)?;
    }
    Ok(())
}

/// Converts the tensors and infers the config.
pub(super) fn convert(c: &mut Conversion, options: &Options) -> Result<GlowConfig> {
    let (mut config, of_prior) = config(&mut c.from, options)?;
    let levels = config.levels;
    let mut channels = 4 * config.shape[0];
    let mut layer = 0;
    for level in 0..levels {
        for k in 0..config.depth {
            layer += 1;
            let (from, to) = (format!("flow.layers.{layer}"), format!("level{level}.step{k}"));
            step(c, &from, &to, channels, &config)?;
        }
        layer += 1;
        if level + 1 < levels {
            // z = (x - mean) exp(-logs) is our coupling's (x + t) exp(s).
            let half = channels / 2;
            let parts = zero(c, &format!("flow.layers.{layer}.conv"), half, channels)?;
            let [weight, bias, logs] = parts.map(|v| shifts_first(&v, channels));
            c.zero(&format!("level{level}.split"), half, [negated(weight), negated(bias), logs])?;
            // The squeeze of the next level.
            layer += 1;
            channels *= 2;
        }
    }
    ensure!(
        of_prior == 2 * channels,
        "`prior_h` is for {} channels, the last level has {channels}",
        of_prior / 2
    );
    top(c, &format!("level{}.top", levels - 1), of_prior, &mut config)?;
    Ok(config)
}
