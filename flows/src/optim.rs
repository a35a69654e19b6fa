//! Update rules, clipping and moving averages. The training loop is in `experiments`.
//!
//! [`Optimizer`] is a rule and its state, [`Ema`] a moving average; [`Updater`] makes a whole update of a training run with both,
//! by the same calls on every device.
//!
//! All updates are in place and in name order, so that a run that is repeated on the same machine with the same number of
//! threads gives the same bits.

use crate::core::Grads;
use crate::ops::cuda::runs_kernels;
use crate::ops::update::{self, FusedUpdate, Numbers, RuleStep};
pub use crate::ops::update::{Penalty, Tally};
use crate::params::{Param, ParamStore};
use candle_core::{DType, Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An update rule; `lr` is given at each step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Rule {
    /// p <- p - lr sqrt(1 - b2^t)/(1 - b1^t) m / (sqrt(v) + eps sqrt(1 - b2^t)) (Kingma and Ba 2015, algorithm 1)
    Adam {
        /// Decay of the first moment.
        b1: f64,
        /// Decay of the second moment.
        b2: f64,
        /// Added to the denominator.
        eps: f64,
    },
    /// u <- max(b2 u, |g|);  p <- p - lr/(1 - b1^t) m / (u + eps) (Kingma and Ba 2015, algorithm 2)
    Adamax {
        /// Decay of the first moment.
        b1: f64,
        /// Decay of the infinity norm.
        b2: f64,
        /// Added to the denominator.
        eps: f64,
        /// Glow's code multiplies lr by sqrt(1 - b2^t), Adam's correction of a second moment that Adamax does not have.
        adam_correction: bool,
    },
    /// v <- rho v + (1 - rho) g^2;  m <- momentum m + lr g / sqrt(v + eps);  p <- p - m
    RmsProp {
        /// Decay of the mean square.
        rho: f64,
        /// Momentum.
        momentum: f64,
        /// Added under the root.
        eps: f64,
    },
}

impl Rule {
    /// The numbers of step `t`, counted from 1.
    fn step(self, t: u64, lr: f64) -> RuleStep {
        let t = t as f64;
        match self {
            Rule::Adam { b1, b2, eps } => {
                let (c1, c2) = (1. - b1.powf(t), 1. - b2.powf(t));
                RuleStep::Adam { b1, b2, a: lr / c1, c: c2.powf(-0.5), eps }
            }
            Rule::Adamax { b1, b2, eps, adam_correction } => {
                let c2 = if adam_correction { (1. - b2.powf(t)).sqrt() } else { 1. };
                RuleStep::Adamax { b1, b2, a: lr * c2 / (1. - b1.powf(t)), eps }
            }
            Rule::RmsProp { rho, momentum, eps } => RuleStep::RmsProp { rho, momentum, lr, eps },
        }
    }
}

/// Global norm of all gradients, sqrt(sum g^2), in f64 and in name order.
///
/// # Errors
/// When a gradient cannot be read from its device.
pub fn global_norm(grads: &Grads) -> Result<f64> {
    Ok(grads.values().map(update::sum_of_squares).sum::<Result<f64>>()?.sqrt())
}

/// An update rule over all trained parameters, with its state.
pub struct Optimizer {
    rule: Rule,
    params: Vec<(String, Param)>,
    /// The weight decay of each parameter.
    decay: Vec<f64>,
    /// Two rows for each parameter.
    state: BTreeMap<String, Tensor>,
    /// Steps taken.
    step: u64,
}

impl Optimizer {
    /// The rule with a state of zeros.
    ///
    /// # Errors
    /// When the device has no memory for the state.
    pub fn new(rule: Rule, params: &ParamStore) -> Result<Self> {
        let params = params.trained();
        let zeros = |v: &Tensor| Tensor::zeros((2, v.elem_count()), v.dtype(), v.device());
        let state = params.iter().map(|(name, p)| Ok((name.clone(), zeros(p.value())?)));
        let decay = vec![0.; params.len()];
        Ok(Self { rule, state: state.collect::<Result<_>>()?, params, decay, step: 0 })
    }

    /// The same with decoupled weight decay, p <- p - lr decay p beside each step of the rule (AdamW, Loshchilov and Hutter 2019,
    /// algorithm 2); `decay` says it for a parameter's name.
    #[must_use]
    pub fn with_decay(mut self, decay: impl Fn(&str) -> f64) -> Self {
        self.decay = self.params.iter().map(|(name, _)| decay(name)).collect();
        self
    }

    /// Steps taken.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// One step along `grads`, each multiplied by `factor` (1 leaves them; clipping gives less).
    ///
    /// # Errors
    /// When a gradient has another size or dtype than its parameter.
    pub fn step(&mut self, grads: &Grads, lr: f64, factor: f64) -> Result<()> {
        self.step += 1;
        let step = self.rule.step(self.step, lr);
        for ((name, p), decay) in self.params.iter().zip(&self.decay) {
            let Some(g) = grads.get(name) else { continue };
            let keep = 1. - lr * decay;
            update::step(p.value(), &self.state[name], g, factor, keep, step)?;
            p.changed();
        }
        Ok(())
    }

    /// Names of the parameters that have no gradient: zero in every step so far, or for so long that the first moment has decayed to zero
    /// (some 600 steps where it keeps 0.9). Two factors of a product that both start at zero are an example, each one's gradient is a
    /// multiple of the other; a network whose rectified units are zero for every input is another.
    ///
    /// # Errors
    /// When the state cannot be read from the device.
    pub fn without_gradient(&self) -> Result<Vec<&str>> {
        let largest =
            |state: &Tensor| state.get(0)?.abs()?.max_all()?.to_dtype(DType::F64)?.to_scalar::<f64>();
        let names =
            self.state.iter().map(|(name, state)| Ok((largest(state)? == 0.).then_some(name.as_str())));
        Ok(names.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// The state by parameter name, (2, N) each, for a checkpoint; with [`Optimizer::step_count`] it is complete.
    pub fn state(&self) -> &BTreeMap<String, Tensor> {
        &self.state
    }

    /// Restores a saved state.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn restore(&mut self, saved: &BTreeMap<String, Tensor>, step: u64) -> Result<()> {
        restore(&self.state, saved, "optimizer state")?;
        self.step = step;
        Ok(())
    }
}

/// Overwrites the values of `tensors` by those of the same names in `saved`. In place, because a recorded CUDA
/// graph holds their addresses.
fn restore(tensors: &BTreeMap<String, Tensor>, saved: &BTreeMap<String, Tensor>, what: &str) -> Result<()> {
    for (name, t) in tensors {
        match saved.get(name) {
            Some(s) if s.shape() == t.shape() => {
                update::set(t, &s.to_device(t.device())?.to_dtype(t.dtype())?)?
            }
            Some(s) => bail!("the {what} of `{name}` has shape {:?}, not {:?}", s.shape(), t.shape()),
            None => bail!("the checkpoint has no {what} of `{name}`"),
        }
    }
    Ok(())
}

/// Exponential moving average of the trained parameters:
///
/// ```text
/// e <- d e + (1 - d) p,     d = min(decay, (1 + t) / (10 + t))
/// ```
///
/// With a constant d the first averages would still be mostly the random initial values. Running statistics of batch norm are not
/// averaged: [`Flow::measure`](crate::Flow::measure) takes those of the averaged parameters.
pub struct Ema {
    decay: f64,
    params: ParamStore,
    average: BTreeMap<String, Tensor>,
    step: u64,
}

impl Ema {
    /// The average at its first values: the parameters as they are.
    ///
    /// # Errors
    /// When the device has no memory for the copies.
    pub fn new(decay: f64, params: &ParamStore) -> Result<Self> {
        let copies = params.trained().into_iter().map(|(name, p)| Ok((name, p.value().copy()?)));
        Ok(Self { decay, params: params.clone(), average: copies.collect::<Result<_>>()?, step: 0 })
    }

    /// Restarts from the current parameters.
    ///
    /// # Errors
    /// When a copy on the device fails.
    pub fn restart(&mut self) -> Result<()> {
        for (name, p) in self.params.trained() {
            update::set(&self.average[&name], p.value())?;
        }
        self.step = 0;
        Ok(())
    }

    /// Counts a step and returns its d.
    fn next_decay(&mut self) -> f64 {
        self.step += 1;
        let t = self.step as f64;
        self.decay.min((1. + t) / (10. + t))
    }

    /// One update of the average.
    ///
    /// # Errors
    /// When an operation on the device fails.
    pub fn update(&mut self) -> Result<()> {
        let d = self.next_decay();
        for (name, p) in self.params.trained() {
            update::average(&self.average[&name], p.value(), d)?;
        }
        Ok(())
    }

    /// The averages by name.
    pub fn average(&self) -> &BTreeMap<String, Tensor> {
        &self.average
    }

    /// Steps taken.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// Restores saved averages.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn restore(&mut self, saved: &BTreeMap<String, Tensor>, step: u64) -> Result<()> {
        restore(&self.average, saved, "moving average")?;
        self.step = step;
        Ok(())
    }

    /// Exchanges the model's trained parameters with the averages, in place; a second call undoes it.
    ///
    /// # Errors
    /// When a copy on the device fails.
    pub fn swap(&mut self) -> Result<()> {
        for (name, p) in self.params.trained() {
            let e = &self.average[&name];
            let old = p.value().copy()?;
            p.set(e)?;
            update::set(e, &old)?;
        }
        Ok(())
    }
}

/// The settings of [`Updater`] besides the rule.
#[derive(Clone, Copy, Debug, Default)]
pub struct UpdateSettings {
    /// Gradients are scaled down to this global norm.
    pub clip_norm: Option<f64>,
    /// Decay of the moving average.
    pub ema: Option<f64>,
}

/// All that a training update does to parameters:
///
/// ```text
/// g <- g + 2 l2 p,   g <- g min(1, clip / |g|),   p <- rule(p, g, lr) - lr decay p,   e <- d e + (1 - d) p
/// ```
///
/// On a GPU it is three kernel launches for all parameters that never wait for the host: what changes from update to update is
/// written to the device by [`Updater::begin`], so that [`Updater::apply`] can be part of a recorded CUDA graph, and loss and
/// norm are summed on the device until [`Updater::tally`] reads them. On the CPU the same calls compute at once.
///
/// After a loss or gradient that is not finite neither that update nor a later one changes anything.
pub struct Updater {
    optimizer: Optimizer,
    ema: Option<Ema>,
    /// One for each parameter.
    penalties: Vec<Penalty>,
    clip_norm: Option<f64>,
    lr: f64,
    /// On a GPU.
    fused: Option<FusedUpdate>,
    /// On the CPU.
    tally: Tally,
}

impl Updater {
    /// For the trained parameters of `params`, each with the penalty of its name.
    ///
    /// # Errors
    /// When there is no parameter to train, or no memory for the state.
    pub fn new(
        rule: Rule,
        params: &ParamStore,
        settings: UpdateSettings,
        penalty: impl Fn(&str) -> Penalty,
    ) -> Result<Self> {
        let optimizer = Optimizer::new(rule, params)?.with_decay(|name| penalty(name).decay);
        let penalties: Vec<Penalty> = optimizer.params.iter().map(|(name, _)| penalty(name)).collect();
        let ema = settings.ema.map(|decay| Ema::new(decay, params)).transpose()?;
        let fused = if runs_kernels(params.device()) {
            let names = || optimizer.params.iter().map(|(name, _)| name);
            let values = optimizer.params.iter().map(|(_, p)| p.value().clone()).collect();
            let state = names().map(|name| optimizer.state[name].clone()).collect();
            let average = ema.as_ref().map(|e| names().map(|name| e.average[name].clone()).collect());
            Some(FusedUpdate::new(values, state, average, &penalties)?)
        } else {
            None
        };
        let (clip_norm, tally) = (settings.clip_norm, Tally::default());
        Ok(Self { optimizer, ema, penalties, clip_norm, lr: 0., fused, tally })
    }

    /// The rule and its state.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// The moving average.
    pub fn ema(&self) -> Option<&Ema> {
        self.ema.as_ref()
    }

    /// The rule's state and the moving average, to be restored.
    pub fn parts(&mut self) -> (&mut Optimizer, Option<&mut Ema>) {
        (&mut self.optimizer, self.ema.as_mut())
    }

    /// Exchanges the parameters with their averages, where there are any; a second call undoes it.
    ///
    /// # Errors
    /// When a copy on the device fails.
    pub fn swap_average(&mut self) -> Result<()> {
        self.ema.as_mut().map_or(Ok(()), Ema::swap)
    }

    /// Prepares the next update, at learning rate `lr`.
    ///
    /// # Errors
    /// When the device does not take the numbers.
    pub fn begin(&mut self, lr: f64) -> Result<()> {
        self.lr = lr;
        let Some(fused) = &self.fused else { return Ok(()) };
        self.optimizer.step += 1;
        self.optimizer.params.iter().for_each(|(_, p)| p.changed());
        fused.set(&Numbers {
            step: self.optimizer.rule.step(self.optimizer.step, lr),
            lr,
            decay: self.ema.as_mut().map_or(0., Ema::next_decay),
            max_norm: self.clip_norm.unwrap_or(f64::INFINITY),
        })
    }

    /// Makes the update along `grads`; `log_prob` is the batch's mean log p(x), a scalar.
    ///
    /// # Errors
    /// When a gradient has another size or dtype than its parameter.
    pub fn apply(&mut self, mut grads: Grads, log_prob: &Tensor) -> Result<()> {
        if let Some(fused) = &mut self.fused {
            let of = |(name, _): &(String, Param)| grads.get(name).map(Tensor::contiguous).transpose();
            let grads = self.optimizer.params.iter().map(of).collect::<Result<Vec<_>>>()?;
            return fused.run(&grads, log_prob);
        }
        if self.tally.not_finite.is_some() || self.reject(log_prob)? {
            return Ok(());
        }
        for ((name, p), Penalty { l2, .. }) in self.optimizer.params.iter().zip(&self.penalties) {
            if *l2 > 0.
                && let Some(g) = grads.get_mut(name)
            {
                *g = (&*g + (p.value() * (2. * l2))?)?;
            }
        }
        let norm = global_norm(&grads)?;
        if !norm.is_finite() {
            self.tally.not_finite = Some(false);
            return Ok(());
        }
        let factor = self.clip_norm.map_or(1., |most| if norm > most { most / norm } else { 1. });
        self.optimizer.step(&grads, self.lr, factor)?;
        if let Some(ema) = &mut self.ema {
            ema.update()?;
        }
        self.tally.log_prob += number(log_prob)?;
        self.tally.norm += norm;
        self.tally.clip += factor;
        self.tally.updates += 1;
        Ok(())
    }

    /// Marks the update as failed if its mean log p(x) is not finite, and returns whether it was: called when a backward pass
    /// ended in an error, which that may explain. Always false on a GPU, where `log_prob` is not read.
    ///
    /// # Errors
    /// When `log_prob` is no scalar.
    pub fn reject(&mut self, log_prob: &Tensor) -> Result<bool> {
        if self.fused.is_some() || number(log_prob)?.is_finite() {
            return Ok(false);
        }
        self.tally.not_finite = Some(true);
        Ok(true)
    }

    /// Sums over the updates since the last call; waits for them.
    ///
    /// # Errors
    /// When the device fails.
    pub fn tally(&mut self) -> Result<Tally> {
        if let Some(fused) = &self.fused {
            return fused.tally();
        }
        let next = Tally { not_finite: self.tally.not_finite, ..Tally::default() };
        Ok(std::mem::replace(&mut self.tally, next))
    }
}

fn number(scalar: &Tensor) -> Result<f64> {
    scalar.to_dtype(DType::F64)?.to_scalar()
}
#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Init;
    use candle_core::{DType, Device};

    /// One parameter at 1 with gradients .5, then -1: each rule against its equations, by hand.
    fn run(rule: Rule, lr: f64) -> Result<f64> {
        let params = ParamStore::seeded(0, DType::F64, &Device::Cpu);
        let p = params.vb().get(1, "p", Init::Const(1.))?;
        let mut opt = Optimizer::new(rule, &params)?;
        for g in [0.5, -1.] {
            let g = Tensor::new(&[g], &Device::Cpu)?;
            opt.step(&Grads::from([("p".to_string(), g)]), lr, 1.)?;
        }
        p.value().squeeze(0)?.to_scalar()
    }

    #[test]
    fn the_rules_are_their_equations() -> Result<()> {
        let (b1, b2, eps, lr) = (0.9f64, 0.99f64, 1e-8, 0.1);
        let (m1, m2) = (0.1 * 0.5, 0.9 * 0.1 * 0.5 - 0.1);
        let (v1, v2) = (0.01 * 0.25, 0.99 * 0.01 * 0.25 + 0.01);
        let adam =
            |m: f64, v: f64, t: i32| lr * (m / (1. - b1.powi(t))) / ((v / (1. - b2.powi(t))).sqrt() + eps);
        let want = 1. - adam(m1, v1, 1) - adam(m2, v2, 2);
        assert!((run(Rule::Adam { b1, b2, eps }, lr)? - want).abs() < 1e-14);
        let (u1, u2) = (0.5, 1.);
        for adam_correction in [false, true] {
            let c = |t: i32| if adam_correction { (1. - f64::powi(b2, t)).sqrt() } else { 1. };
            let step = |m: f64, u: f64, t: i32| lr * c(t) / (1. - b1.powi(t)) * m / (u + eps);
            let want = 1. - step(m1, u1, 1) - step(m2, u2, 2);
            let got = run(Rule::Adamax { b1, b2, eps, adam_correction }, lr)?;
            assert!((got - want).abs() < 1e-14);
        }
        let (rho, momentum, eps) = (0.9, 0.5, 1e-6);
        let (v1, v2) = (0.1 * 0.25, 0.9 * 0.1 * 0.25 + 0.1);
        let m1 = lr * 0.5 / f64::sqrt(v1 + eps);
        let m2 = momentum * m1 - lr / f64::sqrt(v2 + eps);
        let got = run(Rule::RmsProp { rho, momentum, eps }, lr)?;
        assert!((got - (1. - m1 - m2)).abs() < 1e-14);
        Ok(())
    }

    #[test]
    fn swapping_the_average_twice_changes_nothing() -> Result<()> {
        let params = ParamStore::seeded(0, DType::F32, &Device::Cpu);
        let p = params.vb().get(3, "p", Init::Normal(1.))?;
        let before = p.value().to_vec1::<f32>()?;
        let mut ema = Ema::new(0.9, &params)?;
        p.set(&(p.value() + 1.)?)?;
        ema.update()?;
        let moved = p.value().to_vec1::<f32>()?;
        ema.swap()?;
        let d = 2. / 11.;
        for (got, b) in p.value().to_vec1::<f32>()?.iter().zip(&before) {
            assert!((got - (b + (1. - d))).abs() < 1e-6);
        }
        ema.swap()?;
        assert_eq!(p.value().to_vec1::<f32>()?, moved);
        Ok(())
    }
}
