//! normflows's Glow: `flows.I.J` are the K blocks of a level and a squeeze without tensors, in the order of sampling, `q0.I`
//! the base distributions, the top one first.

use super::pth::{Checkpoint, numbers};
use super::tensors::{Conversion, Options, glow, law, negated, shifts_first};
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

/// One number for each of `rows` rows of `values`, each of which must repeat one number.
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

/// Means and log standard deviations of `channels` numbers a row, joined row by row.
fn joined(mean: &[f64], logs: &[f64], channels: usize) -> Vec<f64> {
    let rows = mean.chunks_exact(channels).zip(logs.chunks_exact(channels));
    rows.flat_map(|(mean, logs)| [mean, logs].concat()).collect()
}

/// The base distribution `q0.I` of `channels` channels: GlowBase, DiagGaussian or ClassCondDiagGaussian.
fn base(c: &mut Checkpoint, i: usize, channels: usize) -> Result<Base> {
    let name = |part: &str| format!("q0.{i}.{part}");
    let [of_loc, of_scale] = ["loc", "log_scale"].map(name);
    let shape = c.shape(&of_loc).map(<[usize]>::to_vec).with_context(|| format!("there is no `{of_loc}`"))?;
    let values: usize = shape.iter().product();
    ensure!(values > 0 && channels > 0, "`{of_loc}` is empty");
    let (loc, log_scale) = (c.take(&of_loc, values)?, c.take(&of_scale, values)?);
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
                Some((n, joined(&loc, &scale, channels)))
            }
            _ => None,
        };
        return Ok(Base { mean, logs, classes });
    }
    match shape.as_slice() {
        // DiagGaussian, (1, C, H, W).
        [1, n, _, _] if *n == channels => Ok(Base {
            mean: constant(&loc, channels, &of_loc)?,
            logs: constant(&log_scale, channels, &of_scale)?,
            classes: None,
        }),
        // ClassCondDiagGaussian, (C, H, W, classes).
        &[n, h, w, classes] if n == channels => {
            let by_class = |values: &[f64], name: &str| {
                let pixels = n * h * w;
                let at = |y: usize| (0..pixels).map(move |p| values[p * classes + y]);
                constant(&(0..classes).flat_map(at).collect::<Vec<_>>(), classes * channels, name)
            };
            let table = joined(&by_class(&loc, &of_loc)?, &by_class(&log_scale, &of_scale)?, channels);
            let first = &table[..2 * channels];
            // Classes that all have one distribution are none.
            if table.chunks_exact(2 * channels).all(|row| row == first) {
                let (mean, logs) = (first[..channels].to_vec(), first[channels..].to_vec());
                return Ok(Base { mean, logs, classes: None });
            }
            Ok(Base { mean: vec![0.; channels], logs: vec![0.; channels], classes: Some((classes, table)) })
        }
        shape => {
            bail!("`{of_loc}` has the shape {shape:?}, which is no base distribution of {channels} channels")
        }
    }
}

/// Takes the shift and the log-scale of an actnorm, which must have seen a batch.
fn act_norm(c: &mut Checkpoint, path: &str, channels: usize) -> Result<[Vec<f64>; 2]> {
    let ready = c.take(&format!("{path}.data_dep_init_done"), 1)?;
    ensure!(ready[0] > 0., "`{path}` was never initialised: save the model after its first batch");
    Ok([c.take(&format!("{path}.t"), channels)?, c.take(&format!("{path}.s"), channels)?])
}

/// Converts one block and gives the width of its network and its law.
fn block(c: &mut Conversion, from: &str, to: &str, channels: usize, plu: bool) -> Result<(usize, ours::Law)> {
    // x to z is its inverse, (x - t) exp(-s).
    let [shift, scale] = act_norm(&mut c.from, &format!("{from}.flows.2"), channels)?;
    c.act_norm(&format!("{to}.actnorm"), negated(shift), &negated(scale))?;
    let (mixing, path) = (format!("{from}.flows.1"), format!("{to}.permutation"));
    if plu {
        c.plu(&mixing, &path, channels, ["P", "L", "U", "sign_S", "log_S"])?;
        c.from.drop_unused(|name| name == format!("{mixing}.eye"));
    } else {
        c.copy(&format!("{mixing}.W"), format!("{path}.weight"), &[channels, channels])?;
    }

    let net = format!("{from}.flows.0.flows.1.param_map.net.");
    let mut convs: Vec<usize> = numbers(c.from.names(), &net).into_iter().collect();
    convs.retain(|n| c.from.shape(&format!("{net}{n}.weight")).is_some());
    let &[first, second, last] = convs.as_slice() else {
        bail!("`{net}` has {} convolutions, three are expected: it is no GlowBlock", convs.len())
    };
    let half = channels / 2;
    let width = c.from.outputs(&format!("{net}{first}.weight"))?;
    for (layer, name, inputs, k) in [(first, 1, half, 3), (second, 2, width, 1)] {
        let conv = format!("{to}.net.conv{name}.weight");
        c.copy(&format!("{net}{layer}.weight"), conv, &[width, inputs, k, k])?;
        let norm = format!("{net}{}.actNorm", layer + 1);
        // A bias, or an actnorm y exp(s) + t, which is ours with the bias t exp(-s).
        let (bias, logs) = match c.from.shape(&format!("{norm}.s")).is_some() {
            true => {
                let [shift, s] = act_norm(&mut c.from, &norm, width)?;
                (shift.iter().zip(&s).map(|(t, s)| t * (-s).exp()).collect(), s)
            }
            false => (c.from.take(&format!("{net}{layer}.bias"), width)?, vec![0.; width]),
        };
        c.act_norm(&format!("{to}.net.norm{name}"), bias, &logs)?;
    }
    let outputs = c.from.shape(&format!("{net}{last}.bias")).map_or(0, |s| s.iter().product());
    let law = law(outputs, half)?;
    let mut weight = c.from.take(&format!("{net}{last}.weight"), outputs * width * 9)?;
    let mut bias = c.from.take(&format!("{net}{last}.bias"), outputs)?;
    if law == ours::Law::Affine {
        (weight, bias) = (shifts_first(&weight, outputs), shifts_first(&bias, outputs));
    }
    // Its shift is subtracted on the way from x to z, ours is added.
    weight[..half * width * 9].iter_mut().chain(&mut bias[..half]).for_each(|v| *v = -*v);
    c.zero(&format!("{to}.net"), width, [weight, bias, vec![0.; outputs]])?;
    Ok((width, law))
}

/// The config as the names and shapes of the tensors tell it, without the law and the width.
fn config(c: &Checkpoint, options: &Options) -> Result<GlowConfig> {
    options.only("normflows", true, false)?;
    let scales = numbers(c.names(), "flows.");
    let levels = scales.len();
    ensure!(
        (1..=16).contains(&levels) && scales.last() == Some(&(levels - 1)),
        "the checkpoint has no `flows.0`: it is no MultiscaleFlow of normflows"
    );
    let depth = numbers(c.names(), &format!("flows.{}.", levels - 1)).len();
    let norm = format!("flows.{}.0.flows.2.s", levels - 1);
    let channels = c.elements(&norm)?;
    ensure!(channels.is_multiple_of(4), "`{norm}` is no actnorm after a squeeze: it is no Glow of normflows");
    let plu = c.shape(&format!("flows.{}.0.flows.1.P", levels - 1)).is_some();
    let of_glow = c.shape("q0.0.loc_logs").is_some();
    let sides = match c.shape("q0.0.loc") {
        Some(&[1, _, h, w]) if h * w > 1 || !of_glow => Some([h, w]),
        Some(&[_, h, w, _]) if !of_glow => Some([h, w]),
        _ => None,
    };
    let [height, width] = options.sides(sides.map(|sides| sides.map(|n| n << levels)))?;
    Ok(GlowConfig {
        levels,
        depth,
        permutation: if plu { ours::Permutation::Plu } else { ours::Permutation::Plain },
        preprocess: options.preprocess(),
        ..glow([channels / 4, height, width], options)
    })
}

/// Converts the tensors and infers the config.
pub(super) fn convert(c: &mut Conversion, options: &Options) -> Result<GlowConfig> {
    let mut config = config(&c.from, options)?;
    let (levels, depth, plu) = (config.levels, config.depth, config.permutation == ours::Permutation::Plu);
    let mut channels = 4 * config.shape[0];
    let mut sizes = None;
    let mut splits = Vec::new();
    for level in 0..levels {
        let scale = levels - 1 - level;
        let blocks = numbers(c.from.names(), &format!("flows.{scale}."));
        ensure!(
            blocks.len() == depth && blocks.last() == Some(&(depth - 1)),
            "`flows.{scale}` has {} blocks, other levels {depth}: a Glow here has the same number in each",
            blocks.len()
        );
        for step in 0..depth {
            let from = format!("flows.{scale}.{}", depth - 1 - step);
            let found = block(c, &from, &format!("level{level}.step{step}"), channels, plu)?;
            ensure!(
                *sizes.get_or_insert(found) == found,
                "`{from}` has another width or law than the blocks before it"
            );
        }
        if level + 1 < levels {
            splits.push(base(&mut c.from, scale, channels / 2)?);
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
        // A learned split prior whose weights are zero, so that it is the same for every image.
        let half = split.mean.len();
        let bias = negated([split.mean, split.logs].concat());
        c.zero(&format!("level{level}.split"), half, [vec![0.; 18 * half * half], bias, vec![0.; 2 * half]])?;
    }
    let top = base(&mut c.from, 0, channels)?;
    config.learn_top = !top.is_standard();
    if config.learn_top {
        let path = format!("level{}.top", levels - 1);
        c.put(format!("{path}.bias"), &[2 * channels], [top.mean, top.logs].concat())?;
        c.put(format!("{path}.gain"), &[2 * channels], vec![0.; 2 * channels])?;
        if let Some((classes, table)) = top.classes {
            c.put(format!("{path}.emb"), &[classes, 2 * channels], table)?;
            config.classes = Some(classes);
        }
    }
    Ok(config)
}
