//! normflows's Glow: `flows.I.J` are the K blocks of a level and a squeeze without tensors, in the order of sampling, `q0.I`
//! the base distributions, the top one first.

use super::pth::{Checkpoint, numbers};
use super::tensors::{Options, Tensors, glow, law, negated, shifts_first, size};
use anyhow::{Context, Result, bail, ensure};
use flows::models::{GlowConfig, glow as ours};

/// Mean and log standard deviation for each channel, and what classes add to them, (classes, 2 channels).
struct Base {
    mean: Vec<f64>,
    logs: Vec<f64>,
    classes: Option<(usize, Vec<f64>)>,
}

impl Base {
    fn is_standard(&self) -> bool {
        self.mean.iter().chain(&self.logs).all(|&v| v == 0.) && self.classes.is_none()
    }
}

/// One number for each of `rows` rows of `values`, which must all be of one number.
fn constant(values: &[f64], rows: usize, name: &str) -> Result<Vec<f64>> {
    let each = values.len() / rows;
    let rows = values.chunks_exact(each.max(1)).map(|row| {
        ensure!(
            row.iter().all(|v| *v == row[0]),
            "`{name}` differs from pixel to pixel, where a Glow here has one number for each channel: it cannot be imported"
        );
        Ok(row[0])
    });
    rows.collect()
}

/// The base distribution `q0.I` of `channels` channels: GlowBase, DiagGaussian or ClassCondDiagGaussian.
fn base(c: &mut Checkpoint, i: usize, channels: usize) -> Result<Base> {
    let name = |part: &str| format!("q0.{i}.{part}");
    let shape = c
        .shape(&name("loc"))
        .map(<[usize]>::to_vec)
        .with_context(|| format!("there is no `{}`", name("loc")))?;
    let values: usize = shape.iter().product();
    ensure!(values > 0 && channels > 0, "`{}` is empty", name("loc"));
    let (loc, log_scale) = (c.take(&name("loc"), values)?, c.take(&name("log_scale"), values)?);
    if c.shape(&name("loc_logs")).is_some() {
        // GlowBase: loc exp(3 loc_logs), plus the class's.
        let scaled = |values: &[f64], logs: Vec<f64>| {
            values.iter().zip(logs).map(|(v, l)| v * (3. * l).exp()).collect()
        };
        let mean: Vec<f64> = scaled(&loc, c.take(&name("loc_logs"), channels)?);
        let logs: Vec<f64> = scaled(&log_scale, c.take(&name("log_scale_logs"), channels)?);
        let classes = match c.shape(&name("loc_cc")) {
            Some(&[n, _]) => {
                let loc = c.take(&name("loc_cc"), n * channels)?;
                let scale = c.take(&name("log_scale_cc"), n * channels)?;
                let rows = loc.chunks_exact(channels).zip(scale.chunks_exact(channels));
                Some((n, rows.flat_map(|(a, b)| a.iter().chain(b).copied()).collect()))
            }
            _ => None,
        };
        return Ok(Base { mean, logs, classes });
    }
    match shape.as_slice() {
        // DiagGaussian, (1, C, H, W).
        [1, n, _, _] if *n == channels => Ok(Base {
            mean: constant(&loc, channels, &name("loc"))?,
            logs: constant(&log_scale, channels, &name("log_scale"))?,
            classes: None,
        }),
        // ClassCondDiagGaussian, (C, H, W, classes).
        &[n, h, w, classes] if n == channels => {
            let by_class = |values: &[f64]| -> Vec<f64> {
                let pixels = n * h * w;
                (0..classes).flat_map(|y| (0..pixels).map(move |p| values[p * classes + y])).collect()
            };
            let mean = constant(&by_class(&loc), classes * channels, &name("loc"))?;
            let logs = constant(&by_class(&log_scale), classes * channels, &name("log_scale"))?;
            let rows = mean.chunks_exact(channels).zip(logs.chunks_exact(channels));
            let table: Vec<f64> = rows.flat_map(|(a, b)| a.iter().chain(b).copied()).collect();
            let same = table.chunks_exact(2 * channels).all(|row| row == &table[..2 * channels]);
            // Classes that all have one distribution are none.
            if same {
                let (mean, logs) = (mean[..channels].to_vec(), logs[..channels].to_vec());
                return Ok(Base { mean, logs, classes: None });
            }
            Ok(Base { mean: vec![0.; channels], logs: vec![0.; channels], classes: Some((classes, table)) })
        }
        shape => bail!(
            "`{}` has the shape {shape:?}, which is no base distribution of {channels} channels",
            name("loc")
        ),
    }
}

/// The tensors of one block.
fn block(
    c: &mut Checkpoint,
    t: &mut Tensors,
    from: &str,
    to: &str,
    channels: usize,
    plu: bool,
) -> Result<(usize, ours::Law)> {
    // x to z is its inverse, (x - t) exp(-s).
    let ready = c.take(&format!("{from}.flows.2.data_dep_init_done"), 1)?;
    ensure!(ready[0] > 0., "`{from}.flows.2` was never initialised: save the model after its first batch");
    let shift = c.take(&format!("{from}.flows.2.t"), channels)?;
    let scale = c.take(&format!("{from}.flows.2.s"), channels)?;
    t.put(format!("{to}.actnorm.bias"), &[channels], negated(shift))?;
    t.put(format!("{to}.actnorm.logs"), &[channels], scale.iter().map(|s| -s / 3.).collect())?;

    let (mixing, path, square) =
        (format!("{from}.flows.1"), format!("{to}.permutation"), channels * channels);
    if plu {
        let parts = [("P", square), ("L", square), ("U", square), ("sign_S", channels), ("log_S", channels)];
        let [p, lower, upper, sign, logs] = parts.map(|(part, n)| c.take(&format!("{mixing}.{part}"), n));
        t.plu(&path, channels, [p?, lower?, upper?, sign?, logs?])?;
        c.drop_unused(|name| name == format!("{mixing}.eye"));
    } else {
        t.put(format!("{path}.weight"), &[channels, channels], c.take(&format!("{mixing}.W"), square)?)?;
    }

    let net = format!("{from}.flows.0.flows.1.param_map.net.");
    let layers = numbers(c.names(), &net);
    let convs: Vec<usize> =
        layers.iter().copied().filter(|n| c.shape(&format!("{net}{n}.weight")).is_some()).collect();
    let &[first, second, last] = convs.as_slice() else {
        bail!("`{net}` has {} convolutions, three are expected: it is no GlowBlock", convs.len())
    };
    let half = channels / 2;
    let weight = format!("{net}{first}.weight");
    let width = size(c.shape(&weight).and_then(|s| s.first().copied()), &weight)?;
    for (layer, name, inputs, k) in [(first, 1, half, 3), (second, 2, width, 1)] {
        let weight = c.take(&format!("{net}{layer}.weight"), width * inputs * k * k)?;
        t.put(format!("{to}.net.conv{name}.weight"), &[width, inputs, k, k], weight)?;
        let norm = format!("{net}{}.actNorm", layer + 1);
        // A bias, or an actnorm y exp(s) + t, which is ours with the bias t exp(-s).
        let (bias, logs) = match c.shape(&format!("{norm}.s")).is_some() {
            true => {
                let s = c.take(&format!("{norm}.s"), width)?;
                let shift = c.take(&format!("{norm}.t"), width)?;
                let ready = c.take(&format!("{norm}.data_dep_init_done"), 1)?;
                ensure!(
                    ready[0] > 0.,
                    "`{norm}` was never initialised: save the model after its first batch"
                );
                let bias = shift.iter().zip(&s).map(|(t, s)| t * (-s).exp()).collect();
                (bias, s.iter().map(|s| s / 3.).collect())
            }
            false => (c.take(&format!("{net}{layer}.bias"), width)?, vec![0.; width]),
        };
        t.put(format!("{to}.net.norm{name}.bias"), &[width], bias)?;
        t.put(format!("{to}.net.norm{name}.logs"), &[width], logs)?;
    }
    let outputs = c.shape(&format!("{net}{last}.bias")).map_or(0, |s| s.iter().product());
    let law = law(outputs, half)?;
    let mut weight = c.take(&format!("{net}{last}.weight"), outputs * width * 9)?;
    let mut bias = c.take(&format!("{net}{last}.bias"), outputs)?;
    if law == ours::Law::Affine {
        (weight, bias) = (shifts_first(&weight, 9 * width), shifts_first(&bias, 1));
    }
    // Its shift is taken away on the way from x to z, ours is added.
    weight[..half * width * 9].iter_mut().chain(&mut bias[..half]).for_each(|v| *v = -*v);
    t.put(format!("{to}.net.zero.weight"), &[outputs, width, 3, 3], weight)?;
    t.put(format!("{to}.net.zero.bias"), &[outputs], bias)?;
    t.put(format!("{to}.net.zero.logs"), &[outputs], vec![0.; outputs])?;
    Ok((width, law))
}

/// Fills `t` and gives the config.
pub(super) fn convert(c: &mut Checkpoint, options: &Options, t: &mut Tensors) -> Result<GlowConfig> {
    options.only("normflows", true, false)?;
    let scales = numbers(c.names(), "flows.");
    let levels = scales.len();
    ensure!(
        (1..=16).contains(&levels) && scales.last() == Some(&(levels - 1)),
        "the checkpoint has no `flows.0`: it is no MultiscaleFlow of normflows"
    );
    let depth = numbers(c.names(), &format!("flows.{}.", levels - 1)).len();
    let norm = format!("flows.{}.0.flows.2.s", levels - 1);
    let mut channels = size(c.shape(&norm).map(|s| s.iter().product()), &norm)?;
    ensure!(channels.is_multiple_of(4), "`{norm}` is no actnorm after a squeeze: it is no Glow of normflows");
    let plu = c.shape(&format!("flows.{}.0.flows.1.P", levels - 1)).is_some();
    let sides = match c.shape("q0.0.loc") {
        Some(&[1, _, h, w]) if h * w > 1 || c.shape("q0.0.loc_logs").is_none() => {
            Some([h << levels, w << levels])
        }
        Some(&[_, h, w, _]) if c.shape("q0.0.loc_logs").is_none() => Some([h << levels, w << levels]),
        _ => None,
    };
    let sides = options.sides(sides)?;
    let mut config = GlowConfig {
        levels,
        depth,
        permutation: if plu { ours::Permutation::Plu } else { ours::Permutation::Plain },
        preprocess: options.preprocess(),
        ..glow([channels / 4, sides[0], sides[1]], options)
    };
    let mut sizes = None;
    let mut splits = Vec::new();
    for level in 0..levels {
        let scale = levels - 1 - level;
        let blocks = numbers(c.names(), &format!("flows.{scale}."));
        ensure!(
            blocks.len() == depth && blocks.last() == Some(&(depth - 1)),
            "`flows.{scale}` has {} blocks, other levels {depth}: a Glow here has the same number in each",
            blocks.len()
        );
        for step in 0..depth {
            let from = format!("flows.{scale}.{}", depth - 1 - step);
            let found = block(c, t, &from, &format!("level{level}.step{step}"), channels, plu)?;
            ensure!(
                *sizes.get_or_insert(found) == found,
                "`{from}` has another width or law than the blocks before it"
            );
        }
        if level + 1 < levels {
            splits.push(base(c, scale, channels / 2)?);
            channels *= 2;
        }
    }
    (config.width, config.law) = sizes.context("the checkpoint has no block")?;
    config.learn_split = splits.iter().any(|base| !base.is_standard());
    for (level, split) in splits.into_iter().enumerate().filter(|_| config.learn_split) {
        ensure!(
            split.classes.is_none(),
            "`q0.{}` has a distribution for each class, which a Glow here has at the top only: it cannot be imported",
            levels - 1 - level
        );
        // A learned split prior that looks at nothing.
        let half = split.mean.len();
        let path = format!("level{level}.split.zero");
        t.put(format!("{path}.weight"), &[2 * half, half, 3, 3], vec![0.; 18 * half * half])?;
        t.put(format!("{path}.bias"), &[2 * half], negated([split.mean, split.logs].concat()))?;
        t.put(format!("{path}.logs"), &[2 * half], vec![0.; 2 * half])?;
    }
    let top = base(c, 0, channels)?;
    config.learn_top = !top.is_standard();
    if config.learn_top {
        let path = format!("level{}.top", levels - 1);
        t.put(format!("{path}.bias"), &[2 * channels], [top.mean, top.logs].concat())?;
        t.put(format!("{path}.gain"), &[2 * channels], vec![0.; 2 * channels])?;
        if let Some((classes, table)) = top.classes {
            t.put(format!("{path}.emb"), &[classes, 2 * channels], table)?;
            config.classes = Some(classes);
        }
    }
    Ok(config)
}
