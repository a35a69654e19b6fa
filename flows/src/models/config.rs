//! The config of any model.

use super::built::Built;
use super::composed::ComposedConfig;
use super::context::ContextConfig;
use super::dequantize::Dequantize;
use super::glow::GlowConfig;
use super::maf::MafConfig;
use super::nice::NiceConfig;
use super::preprocess::Preprocess;
use super::prior::PriorConfig;
use super::range::{LARGEST_SIZE, positive, range};
use super::realnvp::RealNvpConfig;
use super::size::Size;
use super::transform::CouplingTransform;
use crate::params::ParamBuilder;
use candle_core::{Error, Result, bail};
use serde::{Deserialize, Serialize};

/// One of the papers' models, or one that lists its layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "model", rename_all = "snake_case")]
pub enum ModelConfig {
    /// NICE.
    Nice(NiceConfig),
    /// RealNVP.
    #[serde(rename = "realnvp")]
    RealNvp(RealNvpConfig),
    /// Glow.
    Glow(GlowConfig),
    /// MAF.
    Maf(MafConfig),
    /// A list of layers.
    Composed(ComposedConfig),
}

/// Evaluates one expression for the config of any model.
macro_rules! each {
    ($config:expr, $c:ident => $call:expr) => {
        match $config {
            ModelConfig::Nice($c) => $call,
            ModelConfig::RealNvp($c) => $call,
            ModelConfig::Glow($c) => $call,
            ModelConfig::Maf($c) => $call,
            ModelConfig::Composed($c) => $call,
        }
    };
}

impl ModelConfig {
    pub(crate) fn build(&self, vb: &ParamBuilder) -> Result<Built> {
        self.composed()?.build(vb)
    }

    /// The model as a list of its layers. As [`ModelConfig::Composed`] it has the same parameters under the same names, and the same
    /// density.
    ///
    /// # Errors
    /// When the config builds no model, saying which setting is wrong.
    pub fn composed(&self) -> Result<ComposedConfig> {
        self.dims()?;
        match self {
            ModelConfig::Nice(c) => c.composed(),
            ModelConfig::RealNvp(c) => c.composed(),
            ModelConfig::Glow(c) => c.composed(),
            ModelConfig::Maf(c) => c.composed(),
            ModelConfig::Composed(c) => Ok(c.clone()),
        }
    }

    /// The size of the model.
    ///
    /// # Errors
    /// As [`ModelConfig::composed`].
    pub fn size(&self) -> Result<Size> {
        self.composed()?.size()
    }

    /// The shape of one example.
    pub fn shape(&self) -> &[usize] {
        each!(self, c => &c.shape)
    }

    /// Changes the shape of one example, for a recipe that takes any data set.
    ///
    /// # Errors
    /// When the model takes images and `shape` is not (C, H, W).
    pub fn set_shape(&mut self, shape: &[usize]) -> Result<()> {
        let image = shape
            .try_into()
            .map_err(|_| Error::msg(format!("this model takes images (C, H, W), got {shape:?}")));
        match self {
            ModelConfig::Nice(c) => c.shape = shape.to_vec(),
            ModelConfig::RealNvp(c) => c.shape = image?,
            ModelConfig::Glow(c) => c.shape = image?,
            ModelConfig::Maf(c) => c.shape = shape.to_vec(),
            ModelConfig::Composed(c) => c.shape = shape.to_vec(),
        }
        Ok(())
    }

    /// Checks that no size is above [`ModelConfig::MOST_DIMS`] or [`ModelConfig::LARGEST_SIZE`], so that nothing computed from a
    /// config overflows, and what depends on the config alone, as a mask does, takes at most a few times `MOST_DIMS` numbers; and
    /// that every other number is one that a model can have.
    ///
    /// # Errors
    /// At the first such size or number, by its name.
    pub fn check(&self) -> Result<()> {
        let (shape, most) = (self.shape(), Self::MOST_DIMS);
        let dims = self.dims()?;
        let sizes: Vec<_> = match self {
            ModelConfig::Nice(c) => c.hidden.iter().flatten().map(|&width| ("hidden", width)).collect(),
            ModelConfig::RealNvp(c) => vec![
                ("scales", c.scales),
                ("features", c.features),
                ("blocks", c.blocks),
                ("checkerboard", c.checkerboard),
                ("channelwise", c.channelwise),
                ("last_checkerboard", c.last_checkerboard),
            ],
            ModelConfig::Glow(c) => vec![
                ("levels", c.levels),
                ("depth", c.depth),
                ("width", c.width),
                ("classes", c.classes.unwrap_or_default()),
            ],
            ModelConfig::Maf(c) => {
                let widths = c.hidden.iter().map(|&width| ("hidden", width));
                widths.chain([("layers", c.layers)]).collect()
            }
            // Its layers name theirs.
            ModelConfig::Composed(_) => vec![],
        };
        if let Some((name, size)) =
            sizes.into_iter().chain(self.context().sizes()).find(|(_, size)| *size > Self::LARGEST_SIZE)
        {
            bail!("`{name}` = {size} is more than {}, which no model has: lower it", Self::LARGEST_SIZE);
        }
        let of_prior = self.prior().parameters(dims as f64);
        let of_noise = self.dequantize().parameters(shape.first().map_or(0., |&c| c as f64));
        let of_context: f64 = self.context().numbers(shape).into_iter().sum();
        for (key, parameters) in [("prior", of_prior), ("dequantize", of_noise), ("context", of_context)] {
            if parameters > (most * Self::LARGEST_SIZE) as f64 {
                bail!(
                    "`{key}` would have {parameters:.1e} parameters, which no model has: lower its settings"
                );
            }
        }
        self.check_numbers()
    }

    /// The dimensions of an example.
    fn dims(&self) -> Result<usize> {
        let (shape, most) = (self.shape(), Self::MOST_DIMS);
        let dims = shape.iter().try_fold(1_usize, |product, &side| product.checked_mul(side));
        match dims.filter(|dims| *dims <= most) {
            Some(dims) => Ok(dims),
            None => bail!("`shape` {shape:?} has more than {most} dimensions: crop or resize the data"),
        }
    }

    /// Checks the settings that are no sizes, a part of [`ModelConfig::check`].
    ///
    /// # Errors
    /// At the first number that no model can have, by its name.
    pub fn check_numbers(&self) -> Result<()> {
        let hidden: Vec<usize> = match self {
            ModelConfig::Nice(c) => c.hidden.concat(),
            ModelConfig::Maf(c) => c.hidden.clone(),
            ModelConfig::Composed(_) => return self.size().map(drop),
            ModelConfig::RealNvp(_) | ModelConfig::Glow(_) => vec![],
        };
        if hidden.contains(&0) {
            bail!("`hidden` has a layer of width 0: give each at least 1");
        }
        if let Some(transform) = self.transform() {
            transform.check()?;
        }
        let of_glow = if let ModelConfig::Glow(c) = self { c.classes } else { None };
        let classes = [
            ("classes", of_glow),
            ("prior.classes", self.prior().classes()),
            ("context.classes", self.context().classes()),
        ];
        let given: Vec<_> = classes.into_iter().filter_map(|(key, n)| Some((key, n?))).collect();
        if let [(key, n), others @ ..] = given.as_slice()
            && let Some((other, m)) = others.iter().find(|(_, m)| m != n)
        {
            bail!("`{key}` = {n} and `{other}` = {m}: give both the same number");
        }
        match self {
            ModelConfig::Nice(c) => range("init", c.init, 0., f64::MAX),
            ModelConfig::RealNvp(c) => {
                positive("eps", c.eps, 1.)?;
                range("momentum", c.momentum, 0., 1.)
            }
            ModelConfig::Glow(_) | ModelConfig::Maf(_) | ModelConfig::Composed(_) => Ok(()),
        }
    }

    /// Dimensions of an example, at most: sixteen million, an image of 2364 x 2364 in colour.
    pub const MOST_DIMS: usize = 1 << 24;

    /// Any other size, at most.
    pub const LARGEST_SIZE: usize = LARGEST_SIZE;

    /// Bits of a pixel value.
    pub fn bits(&self) -> u8 {
        each!(self, c => c.bits)
    }

    /// The first layers.
    pub fn preprocess(&self) -> Preprocess {
        each!(self, c => c.preprocess)
    }

    /// The transform of the layers, where the config chooses one.
    pub fn transform(&self) -> Option<CouplingTransform> {
        match self {
            ModelConfig::Nice(c) => Some(c.law),
            ModelConfig::RealNvp(_) | ModelConfig::Composed(_) => None,
            ModelConfig::Glow(c) => Some(c.law),
            ModelConfig::Maf(c) => Some(c.transform),
        }
    }

    /// The noise that is added to pixels.
    pub fn dequantize(&self) -> &Dequantize {
        each!(self, c => &c.dequantize)
    }

    /// What the networks see beside x.
    pub fn context(&self) -> &ContextConfig {
        each!(self, c => &c.context)
    }

    /// Changes the shape of the features that are given with examples, for a recipe that takes any data set; `None` where the data have
    /// none. Without such a context nothing happens.
    pub fn set_context_shape(&mut self, given: Option<&[usize]>) {
        if let ContextConfig::Features { shape } = each!(self, c => &mut c.context) {
            *shape = given.map_or_else(|| shape.clone(), <[usize]>::to_vec);
        }
    }

    /// The prior.
    pub fn prior(&self) -> &PriorConfig {
        each!(self, c => &c.prior)
    }

    /// Classes, if the model is class-conditional.
    pub fn classes(&self) -> Option<usize> {
        let of_prior = self.prior().classes().or(self.context().classes());
        match self {
            ModelConfig::Glow(c) => c.classes.or(of_prior),
            ModelConfig::Composed(c) => c.classes(),
            _ => of_prior,
        }
    }
}
