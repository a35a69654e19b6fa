//! y0ast/Glow-PyTorch: `flow.layers.N` are a squeeze, K steps and a split for each level but the last, then `prior_h`, and
//! perhaps `learn_top_fn` and `project_ycond`.

use super::pth::{Checkpoint, numbers};
use super::tensors::{Options, Tensors, glow, law, negated, shifts_first, size};
use anyhow::{Result, bail, ensure};
use flows::models::{GlowConfig, Preprocess, glow as ours};

/// A zero convolution's weight, bias and logs.
fn zero(c: &mut Checkpoint, path: &str, inputs: usize, outputs: usize) -> Result<[Vec<f64>; 3]> {
    Ok([
        c.take(&format!("{path}.conv.weight"), outputs * inputs * 9)?,
        c.take(&format!("{path}.conv.bias"), outputs)?,
        c.take(&format!("{path}.logs"), outputs)?,
    ])
}

fn put_zero(t: &mut Tensors, path: &str, inputs: usize, [weight, bias, logs]: [Vec<f64>; 3]) -> Result<()> {
    let outputs = bias.len();
    t.put(format!("{path}.zero.weight"), &[outputs, inputs, 3, 3], weight)?;
    t.put(format!("{path}.zero.bias"), &[outputs], bias)?;
    t.put(format!("{path}.zero.logs"), &[outputs], logs)
}

/// Its actnorm is (x + bias) exp(logs), ours (x + bias) exp(3 logs).
fn act_norm(c: &mut Checkpoint, t: &mut Tensors, from: &str, to: &str, channels: usize) -> Result<()> {
    t.put(format!("{to}.bias"), &[channels], c.take(&format!("{from}.bias"), channels)?)?;
    let logs = c.take(&format!("{from}.logs"), channels)?;
    t.put(format!("{to}.logs"), &[channels], logs.iter().map(|l| l / 3.).collect())
}

/// Fills `t` and gives the config.
pub(super) fn convert(c: &mut Checkpoint, options: &Options, t: &mut Tensors) -> Result<GlowConfig> {
    let prior = c.shape("prior_h").map(<[usize]>::to_vec);
    let Some([1, top, top_h, top_w]) =
        prior.as_deref().map(|s| <[usize; 4]>::try_from(s).unwrap_or_default())
    else {
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
    let elements = |name: &str| c.shape(name).map(|s| s.iter().product());
    let [first, conv] = ["flow.layers.1.actnorm.bias", "flow.layers.1.block.0.conv.weight"];
    let mut channels = size(elements(first), first)?;
    ensure!(
        channels.is_multiple_of(4),
        "`{first}` is for {channels} channels, a squeeze makes a multiple of four"
    );
    let width = size(c.shape(conv).and_then(|s| s.first().copied()), conv)?;
    let outputs = c.shape("flow.layers.1.block.4.conv.bias").map_or(0, |s| s.iter().product());
    ensure!(levels <= 16, "the checkpoint has {levels} levels, more than an image can be halved");
    let sides = options.sides(Some([top_h << levels, top_w << levels]))?;
    let inverted = c.shape("flow.layers.1.invconv.lower").is_some();
    let permutation = match (inverted, c.shape("flow.layers.1.invconv.weight").is_some()) {
        (true, _) => ours::Permutation::Plu,
        (_, true) => ours::Permutation::Plain,
        _ if options.reversed => ours::Permutation::Reverse,
        _ => bail!(
            "the checkpoint has no 1x1 convolutions, and Glow-PyTorch does not save fixed permutations: if the channels were \
             reversed give --reversed, a shuffle cannot be imported"
        ),
    };
    options.only("this model of glow-pytorch", false, permutation == ours::Permutation::Reverse)?;
    let law = law(outputs, channels / 2)?;
    let mut config = GlowConfig {
        levels,
        depth,
        width,
        law,
        permutation,
        preprocess: Preprocess::Centered {},
        learn_split: true,
        ..glow([channels / 4, sides[0], sides[1]], options)
    };
    let mut layer = 0;
    for level in 0..levels {
        for step in 0..depth {
            layer += 1;
            let (from, to) = (format!("flow.layers.{layer}"), format!("level{level}.step{step}"));
            act_norm(c, t, &format!("{from}.actnorm"), &format!("{to}.actnorm"), channels)?;
            let (mixing, path) = (format!("{from}.invconv"), format!("{to}.permutation"));
            let square = channels * channels;
            match permutation {
                ours::Permutation::Plu => {
                    let parts = [
                        ("p", square),
                        ("lower", square),
                        ("upper", square),
                        ("sign_s", channels),
                        ("log_s", channels),
                    ];
                    let parts = parts.map(|(part, n)| c.take(&format!("{mixing}.{part}"), n));
                    let [p, lower, upper, sign, logs] = parts;
                    t.plu(&path, channels, [p?, lower?, upper?, sign?, logs?])?;
                }
                ours::Permutation::Plain => {
                    t.put(
                        format!("{path}.weight"),
                        &[channels, channels],
                        c.take(&format!("{mixing}.weight"), square)?,
                    )?;
                }
                _ => t.indices(format!("{path}.index"), &(0..channels).rev().collect::<Vec<_>>())?,
            }
            let half = channels / 2;
            let (block, net) = (format!("{from}.block"), format!("{to}.net"));
            let weight = c.take(&format!("{block}.0.conv.weight"), width * half * 9)?;
            t.put(format!("{net}.conv1.weight"), &[width, half, 3, 3], weight)?;
            act_norm(c, t, &format!("{block}.0.actnorm"), &format!("{net}.norm1"), width)?;
            let weight = c.take(&format!("{block}.2.conv.weight"), width * width)?;
            t.put(format!("{net}.conv2.weight"), &[width, width, 1, 1], weight)?;
            act_norm(c, t, &format!("{block}.2.actnorm"), &format!("{net}.norm2"), width)?;
            let outputs = if law == ours::Law::Affine { channels } else { half };
            let mut parts = zero(c, &format!("{block}.4"), width, outputs)?;
            if law == ours::Law::Affine {
                parts = [
                    shifts_first(&parts[0], 9 * width),
                    shifts_first(&parts[1], 1),
                    shifts_first(&parts[2], 1),
                ];
            }
            put_zero(t, &net, width, parts)?;
        }
        layer += 1;
        if level + 1 < levels {
            // z = (x - mean) exp(-logs) is our coupling's (x + t) exp(s).
            let half = channels / 2;
            let [weight, bias, logs] = zero(c, &format!("flow.layers.{layer}.conv"), half, channels)?;
            let [weight, bias] = [negated(shifts_first(&weight, 9 * half)), negated(shifts_first(&bias, 1))];
            put_zero(t, &format!("level{level}.split"), half, [weight, bias, shifts_first(&logs, 1)])?;
            // The squeeze of the next level.
            layer += 1;
            channels *= 2;
        }
    }
    ensure!(top == 2 * channels, "`prior_h` is for {} channels, the last level has {channels}", top / 2);
    // An image of zeros leaves of the top's convolution its bias.
    let learned = c.shape("learn_top_fn.conv.bias").is_some();
    let [_, bias, gain] = match learned {
        true => zero(c, "learn_top_fn", top, top)?,
        false => [vec![], vec![0.; top], vec![0.; top]],
    };
    let path = format!("level{}.top", levels - 1);
    config.learn_top = learned;
    if let Some(&[n, classes]) = c.shape("project_ycond.linear.weight") {
        ensure!(n == top, "`project_ycond` is for {n} channels, the top has {top}");
        let weight = c.take("project_ycond.linear.weight", n * classes)?;
        let linear = c.take("project_ycond.linear.bias", n)?;
        let logs = c.take("project_ycond.logs", n)?;
        // Two factors of their own: the sum for each class is the table's row.
        let row = |y: usize| {
            let (weight, linear, logs, bias, gain) = (&weight, &linear, &logs, &bias, &gain);
            (0..n).map(move |i| {
                bias[i] * (3. * gain[i]).exp() + (weight[i * classes + y] + linear[i]) * (3. * logs[i]).exp()
            })
        };
        t.put(format!("{path}.emb"), &[classes, n], (0..classes).flat_map(row).collect())?;
        t.put(format!("{path}.bias"), &[n], vec![0.; n])?;
        t.put(format!("{path}.gain"), &[n], vec![0.; n])?;
        config.classes = Some(classes);
        config.learn_top = true;
        // The classifier of the latent's mean has no part in log p(x).
        c.drop_unused(|name| name.starts_with("project_class."));
    } else if learned {
        t.put(format!("{path}.bias"), &[top], bias)?;
        t.put(format!("{path}.gain"), &[top], gain)?;
    }
    Ok(config)
}
