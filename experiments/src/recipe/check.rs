//! Values that no run could use, refused by the name of their key.

use super::types::{Recipe, Schedule, Train};
use crate::data;
use crate::suggest::did_you_mean;
use anyhow::{Context, Result, ensure};
use flows::ModelConfig;
use flows::models::ContextConfig;
use flows::optim::Rule;

impl Recipe {
    /// Refuses values that no run could use, by the name of their key.
    ///
    /// # Errors
    /// At the first impossible value.
    pub fn validate(&self) -> Result<()> {
        let Self { data, model, train, eval, paper, .. } = self;
        // It names a folder, and is printed.
        let plain = |c: char| c.is_alphanumeric() || "-_@.+".contains(c);
        ensure!(
            !self.name.is_empty()
                && self.name.len() <= 100
                && self.name.chars().all(plain)
                && !self.name.starts_with('.'),
            "`name` = {:?} is no name: at most 100 bytes of letters, digits, - _ @ + and ., which is not the first",
            self.name.chars().take(40).collect::<String>()
        );
        ensure!(
            data::known(&data.set).is_some(),
            "`data.set` = {:?}: choose one of {}{}",
            data.set,
            data::names(),
            did_you_mean(&data.set, data::SETS.iter().map(|set| set.name))
        );
        for (key, n) in [
            ("data.train", data.train),
            ("data.test", data.test),
            ("data.size", data.size),
            ("train.validate_images", train.validate_images),
            ("eval.batch", Some(eval.batch)),
            ("eval.noise_draws", Some(eval.noise_draws)),
            ("eval.importance_samples", Some(eval.importance_samples)),
        ] {
            ensure!(n != Some(0), "`{key}` = 0: it must be at least 1");
        }
        ensure!(
            data.size.is_none() || data.set == "folder",
            "`data.size`: only images of a folder are cropped and resized, `{}` has examples of one size",
            data.set
        );
        // Sizes are checked by `limits`, whose message names the memory that they need.
        model.check_numbers().context("the table `model`")?;
        if let ModelConfig::Glow(glow) = model {
            ensure!(glow.depth > 0, "`model.depth` = 0: it must be at least 1");
        }
        if let Some(n) = data.train {
            ensure!(
                train.batch <= n,
                "`train.batch` = {} is more than the {n} examples of `data.train`: lower it",
                train.batch
            );
        }
        train.validate()?;
        not_negative("eval.temperature", eval.temperature)?;
        if let Some(paper) = paper {
            ensure!(paper.bits_per_dim.is_finite(), "`paper.bits_per_dim` = {}", paper.bits_per_dim);
        }
        self.check_shape()
    }

    /// Refuses a model that does not take the examples of the data set.
    fn check_shape(&self) -> Result<()> {
        let Self { data, model, train, .. } = self;
        ensure!((1..=8).contains(&model.bits()), "`model.bits` = {}: it must be 1 to 8", model.bits());
        let shape = model.shape();
        ensure!(
            !shape.is_empty() && !shape.contains(&0),
            "`model.shape` = {shape:?}: every side must be at least 1"
        );
        if let Some(want) = data::known(&data.set).and_then(|set| set.shape) {
            ensure!(
                shape == want,
                "`model.shape` = {shape:?}, but the examples of `data.set` = {:?} are {want:?}",
                data.set
            );
            let vectors = want.len() == 1;
            ensure!(
                vectors == model.preprocess().is_for_vectors(),
                "`model.preprocess`: `none` and `standardize` are for vectors and only for them, `{}` has examples of {want:?}",
                data.set
            );
        }
        let given = matches!(model.context(), ContextConfig::Features { .. });
        ensure!(
            !given || (!train.hflip && train.shift == 0.),
            "`train.hflip`, `train.shift`: an image whose context is given with it cannot be moved"
        );
        if shape.len() != 3 {
            ensure!(!train.hflip, "`train.hflip`: vectors cannot be flipped");
            ensure!(train.shift == 0., "`train.shift`: vectors cannot be shifted");
        }
        Ok(())
    }
}

impl Train {
    /// Refuses counts of 0 and a run without an end, with which training cannot be started.
    ///
    /// # Errors
    /// At the first impossible value.
    pub fn check_counts(&self) -> Result<()> {
        for (key, n) in [
            ("batch", Some(self.batch as u64)),
            ("updates", self.updates),
            ("init_images", Some(self.init_images as u64)),
            ("validate_every", Some(self.validate_every)),
            ("checkpoint_every", Some(self.checkpoint_every)),
            ("log_every", Some(self.log_every)),
            ("probe_every", Some(self.probe_every)),
            ("patience", self.patience.map(u64::from)),
        ] {
            ensure!(n != Some(0), "`train.{key}` = 0: it must be at least 1");
        }
        let limited = self.epochs.is_some() || self.updates.is_some();
        ensure!(
            limited || self.minutes.is_some(),
            "`train` says no end: give `train.epochs`, `train.updates` or `train.minutes`"
        );
        ensure!(
            limited || !matches!(self.schedule, Schedule::Cosine { .. }),
            "`train.schedule` is a cosine, which needs its end in `train.updates` or `train.epochs`"
        );
        Ok(())
    }

    fn validate(&self) -> Result<()> {
        self.check_counts()?;
        for (key, x) in [
            ("train.epochs", self.epochs),
            ("train.minutes", self.minutes),
            ("train.lr", Some(self.lr)),
            ("train.clip_norm", self.clip_norm),
        ] {
            if let Some(x) = x {
                ensure!(x > 0. && x.is_finite(), "`{key}` = {x}: it must be above 0");
            }
        }
        not_negative("train.l2", self.l2)?;
        not_negative("train.weight_decay", self.weight_decay)?;
        ensure!(
            (0. ..0.5).contains(&self.shift),
            "`train.shift` = {}: a share from 0 to below 0.5",
            self.shift
        );
        if let Some(decay) = self.ema {
            ensure!(decay > 0. && decay < 1., "`train.ema` = {decay}: a decay is between 0 and 1");
        }
        if let Some(lower) = self.lower {
            let factor = lower.factor;
            ensure!(
                factor > 0. && factor <= 1.,
                "`train.lower.factor` = {factor}: it must be above 0 and at most 1"
            );
        }
        let (shares, eps) = match self.optimizer {
            Rule::Adam { b1, b2, eps } | Rule::Adamax { b1, b2, eps, .. } => ([("b1", b1), ("b2", b2)], eps),
            Rule::RmsProp { rho, momentum, eps } => ([("rho", rho), ("momentum", momentum)], eps),
        };
        for (key, x) in shares {
            ensure!((0. ..1.).contains(&x), "`train.optimizer.{key}` = {x}: it must be from 0 to below 1");
        }
        ensure!(eps > 0. && eps.is_finite(), "`train.optimizer.eps` = {eps}: it must be above 0");
        match self.schedule {
            Schedule::Constant => {}
            Schedule::Divide { factor, min } => {
                ensure!(
                    factor >= 1. && factor.is_finite(),
                    "`train.schedule.factor` = {factor}: a divisor is at least 1"
                );
                ensure!(
                    min >= 0. && min <= self.lr,
                    "`train.schedule.min` = {min}: it must be from 0 to `train.lr`"
                );
            }
            Schedule::Cosine { end } => {
                ensure!((0. ..=1.).contains(&end), "`train.schedule.end` = {end}: a share from 0 to 1");
            }
        }
        Ok(())
    }
}

fn not_negative(key: &str, x: f64) -> Result<()> {
    ensure!(x >= 0. && x.is_finite(), "`{key}` = {x}: it must be 0 or more");
    Ok(())
}
