//! normflows's Glow: `flows.I.J` are the K blocks of a level and a squeeze without tensors, in the order of sampling, `q0.I`
//! the base distributions, the top one first.

use super::pth::{Checkpoint, numbers};
use super::tensors::{Conversion, Options, glow, law, negated, shifts_first};
use anyhow::{Context, Result, bail, ensure};
use experiments::limits;
use flows::ModelConfig;
use flows::models::{GlowConfig, glow as ours};

/// The layer of a Glow that a base distribution becomes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A split prior, whose network gives the same for every image.
    Split,
    /// The top prior.
    Top,
    /// A part of the learned latent.
    Latent,
}

/// A base distribution: a Gaussian with a mean and a log standard deviation for each channel (GlowBase) or for each dimension
/// (DiagGaussian, ClassCondDiagGaussian).
struct Base {
    place: Place,
    /// (C, H, W).
    latent: [usize; 3],
    classes: Option<usize>,
    /// Means and log standard deviations, each with a row for each class, or one.
    numbers: [Vec<f64>; 2],
}

impl Base {
    fn is_standard(&self) -> bool {
        self.classes.is_none() && self.numbers.iter().flatten().all(|&v| v == 0.)
    }

    /// Means and log standard deviations of a class.
    fn rows(&self, class: usize) -> [&[f64]; 2] {
        let rows = self.classes.unwrap_or(1);
        self.numbers.each_ref().map(|all| {
            let each = all.len() / rows;
            &all[class % rows * each..][..each]
        })
    }
}

/// The base distribution `q0.I` of latents of this shape.
fn base(c: &mut Checkpoint, i: usize, latent: [usize; 3]) -> Result<Base> {
    let name = |part: &str| format!("q0.{i}.{part}");
    let of_loc = name("loc");
    let shape = c.shape(&of_loc).map(<[usize]>::to_vec).with_context(|| format!("there is no `{of_loc}`"))?;
    let by_channel = c.shape(&name("loc_logs")).is_some();
    let classes = match shape.as_slice() {
        _ if by_channel => c.shape(&name("loc_cc")).and_then(|shape| shape.first().copied()),
        [1, sides @ ..] if *sides == latent => None,
        [sides @ .., classes] if *sides == latent => Some(*classes),
        _ => {
            bail!(
                "`{of_loc}` has the shape {shape:?}, which is no base distribution of latents of {latent:?}"
            )
        }
    };
    ensure!(classes != Some(0), "`q0.{i}` has no class: the checkpoint is damaged");
    let n = classes.unwrap_or(1);
    let [mean, logs] = ["loc", "log_scale"].map(|part| -> Result<Vec<f64>> {
        if !by_channel {
            let values = c.take(&name(part), n * latent.iter().product::<usize>())?;
            // Classes are the last side in the checkpoint and the first one here.
            return Ok((0..n).flat_map(|y| values.iter().skip(y).step_by(n)).copied().collect());
        }
        let (values, logs) =
            (c.take(&name(part), latent[0])?, c.take(&name(&format!("{part}_logs")), latent[0])?);
        let values: Vec<f64> = values.iter().zip(logs).map(|(v, l)| v * (3. * l).exp()).collect();
        if classes.is_none() {
            return Ok(values);
        }
        let added = c.take(&name(&format!("{part}_cc")), n * latent[0])?;
        Ok(added.iter().zip(values.iter().cycle()).map(|(a, v)| a + v).collect())
    });
    let place = match (by_channel, i) {
        (true, 0) => Place::Top,
        (true, _) if classes.is_none() => Place::Split,
        _ => Place::Latent,
    };
    Ok(Base { place, latent, classes, numbers: [mean?, logs?] })
}

/// The base distributions in the order in which levels are factored out, and the classes that they agree on.
fn bases(c: &mut Checkpoint, config: &GlowConfig) -> Result<(Vec<Base>, Option<usize>)> {
    let ([mut channels, mut h, mut w], mut classes) = (config.shape, None);
    let mut all = Vec::with_capacity(config.levels);
    for i in (0..config.levels).rev() {
        channels *= if i == 0 { 4 } else { 2 };
        (h, w) = (h / 2, w / 2);
        let base = base(c, i, [channels, h, w])?;
        if let Some(n) = base.classes {
            let other = *classes.get_or_insert(n);
            ensure!(
                n == other,
                "`q0.{i}` has {n} classes and another base distribution {other}: all must have the same labels"
            );
        }
        all.push(base);
    }
    Ok((all, classes))
}

/// Converts the base distributions.
fn priors(c: &mut Conversion, config: &mut GlowConfig) -> Result<()> {
    let (all, classes) = bases(&mut c.from, config)?;
    config.classes = classes;
    let learned = |place| all.iter().any(|base| base.place == place && !base.is_standard());
    config.learn_split = learned(Place::Split);
    config.learn_top = learned(Place::Top);
    config.learn_latent = learned(Place::Latent);
    // Classes of one base distribution times pixels of another may be far more numbers than the checkpoint has.
    let model = ModelConfig::Glow(config.clone());
    limits::held(&model, "the imported model", "use a machine with more memory")?;

    let (top, lower) = all.split_last().context("the checkpoint has no level")?;
    for (level, base) in lower.iter().enumerate().filter(|_| config.learn_split) {
        // The weights are zero, so that the prior is the same for every image.
        let half = base.latent[0];
        let bias = match base.place {
            Place::Split => negated(base.rows(0).concat()),
            _ => vec![0.; 2 * half],
        };
        c.zero(&format!("level{level}.split"), half, [vec![0.; 18 * half * half], bias, vec![0.; 2 * half]])?;
    }
    if config.learn_top {
        let (path, outputs) = (format!("level{}.top", config.levels - 1), 2 * top.latent[0]);
        // Rows of classes, or a bias to which every class adds zero.
        let row = |class| top.rows(class).concat();
        let bias = if top.classes.is_some() { vec![0.; outputs] } else { row(0) };
        c.put(format!("{path}.bias"), &[outputs], bias)?;
        c.put(format!("{path}.gain"), &[outputs], vec![0.; outputs])?;
        if let Some(n) = classes {
            let emb = match top.classes {
                Some(_) => (0..n).flat_map(row).collect(),
                None => vec![0.; n * outputs],
            };
            c.put(format!("{path}.emb"), &[n, outputs], emb)?;
        }
    }
    if config.learn_latent { latent(c, config, &all) } else { Ok(()) }
}

/// Puts the learned latent, a row for each class.
fn latent(c: &mut Conversion, config: &GlowConfig, all: &[Base]) -> Result<()> {
    let (classes, dims) = (config.classes.unwrap_or(1), config.shape.iter().product::<usize>());
    for (part, name) in ["mean", "logs"].into_iter().enumerate() {
        let mut values = Vec::with_capacity(classes * dims);
        for (class, base) in (0..classes).flat_map(|class| all.iter().map(move |base| (class, base))) {
            let n: usize = base.latent.iter().product();
            match base.place {
                Place::Latent => {
                    let row = base.rows(class)[part];
                    values.extend(row.iter().flat_map(|&v| std::iter::repeat_n(v, n / row.len())));
                }
                _ => values.resize(values.len() + n, 0.),
            }
        }
        c.put(format!("latent.{name}"), &[classes, dims], values)?;
    }
    Ok(())
}

/// Takes the shift and the log-scale of an actnorm, which must have seen a batch.
fn act_norm(c: &mut Checkpoint, path: &str, channels: usize) -> Result<[Vec<f64>; 2]> {
    let ready = c.take(&format!("{path}.data_dep_init_done"), 1)?;
    ensure!(ready[0] > 0., "`{path}` was never initialised: save the model after its first batch");
    Ok([c.take(&format!("{path}.t"), channels)?, c.take(&format!("{path}.s"), channels)?])
}

/// Converts one block and gives the width of its network and its law.
fn block(
    c: &mut Conversion,
    from: &str,
    to: &str,
    channels: usize,
    plu: bool,
) -> Result<(usize, ours::CouplingTransform)> {
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
    if law == ours::CouplingTransform::Affine {
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
    // A base distribution that is not GlowBase has the sides of its latents.
    let sides = (0..levels).filter(|i| c.shape(&format!("q0.{i}.loc_logs")).is_none()).find_map(|i| {
        let (h, w) = match *c.shape(&format!("q0.{i}.loc"))? {
            [1, _, h, w] | [_, h, w, _] => (h, w),
            _ => return None,
        };
        Some([h, w].map(|n| n << (levels - i)))
    });
    let [height, width] = options.sides(sides)?;
    let config = GlowConfig {
        levels,
        depth,
        permutation: if plu { ours::Permutation::Plu } else { ours::Permutation::Plain },
        preprocess: options.preprocess(),
        ..glow([channels / 4, height, width], options)
    };
    ModelConfig::Glow(config.clone()).check()?;
    Ok(config)
}

/// Converts the tensors and infers the config.
pub(super) fn convert(c: &mut Conversion, options: &Options) -> Result<GlowConfig> {
    let mut config = config(&c.from, options)?;
    let (levels, depth, plu) = (config.levels, config.depth, config.permutation == ours::Permutation::Plu);
    let mut channels = 4 * config.shape[0];
    let mut sizes = None;
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
        channels *= 2;
    }
    (config.width, config.law) = sizes.context("the checkpoint has no block")?;
    priors(c, &mut config)?;
    Ok(config)
}
