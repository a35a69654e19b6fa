//! Optimisers, clipping and averages. The training loop itself is in `experiments`.
//!
//! All updates are in place and in name order, so that a run is bit-exact when repeated on the same machine with the same
//! number of threads.

pub use crate::backward::Grads;
use crate::ops::update::{self, Accumulate, Apply, Hyper, Tally, Update};
use crate::params::{Param, Params};
use candle_core::{Result, Tensor, bail};
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

/// The global norm sqrt(sum g^2), in f64, in name order.
pub fn global_norm(grads: &Grads) -> Result<f64> {
    let mut sum = 0.;
    for g in grads.values() {
        sum += update::sum_of_squares(g)?;
    }
    Ok(sum.sqrt())
}

/// g + 2 weight p for the parameters whose name passes: the gradient of weight |p|^2.
pub fn add_l2(grads: &mut Grads, params: &Params, weight: f64, on: impl Fn(&str) -> bool) -> Result<()> {
    for (name, p) in params.trained() {
        if on(&name)
            && let Some(g) = grads.get_mut(&name)
        {
            *g = (&*g + (p.value() * (2. * weight))?)?;
        }
    }
    Ok(())
}

/// An optimiser over all trained parameters.
pub struct Optimizer {
    rule: Rule,
    params: Vec<(String, Param)>,
    /// Two rows for each parameter.
    state: BTreeMap<String, Tensor>,
    /// Steps taken.
    step: u64,
}

impl Optimizer {
    /// State of zeros.
    pub fn new(rule: Rule, params: &Params) -> Result<Self> {
        let params = params.trained();
        let mut state = BTreeMap::new();
        for (name, p) in &params {
            let v = p.value();
            state.insert(name.clone(), Tensor::zeros((2, v.elem_count()), v.dtype(), v.device())?);
        }
        Ok(Self { rule, params, state, step: 0 })
    }

    /// Steps taken.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// One step along `grads`, each multiplied by `clip` (1 leaves them).
    pub fn step(&mut self, grads: &Grads, lr: f64, clip: f64) -> Result<()> {
        self.step += 1;
        let t = self.step as f64;
        let (accumulate, apply) = match self.rule {
            Rule::Adam { b1, b2, eps } => {
                let (c1, c2) = (1. - b1.powf(t), 1. - b2.powf(t));
                (Accumulate::Adam { b1, b2 }, Apply::Adam { a: lr / c1, c: c2.powf(-0.5), eps })
            }
            Rule::Adamax { b1, b2, eps, adam_correction } => {
                let c1 = 1. - b1.powf(t);
                let c2 = if adam_correction { (1. - b2.powf(t)).sqrt() } else { 1. };
                (Accumulate::Adamax { b1, b2 }, Apply::Adamax { a: lr * c2 / c1, c: 1., eps })
            }
            Rule::RmsProp { rho, momentum, eps } => {
                (Accumulate::RmsProp { rho, mu: momentum, lr, eps }, Apply::Momentum)
            }
        };
        for (name, p) in &self.params {
            let Some(g) = grads.get(name) else { continue };
            let state = &self.state[name];
            update::accumulate(state, g, clip, accumulate)?;
            update::apply(p.value(), state, apply)?;
            p.changed();
        }
        Ok(())
    }

    /// The numbers of step `t` for the kernels.
    fn numbers(&self, lr: f64) -> Hyper {
        let t = self.step as f64;
        match self.rule {
            Rule::Adam { b1, b2, eps } => {
                let (c1, c2) = (1. - b1.powf(t), 1. - b2.powf(t));
                Hyper { rule: 0., b1, b2, eps, a: lr / c1, c: c2.powf(-0.5), ..Hyper::default() }
            }
            Rule::Adamax { b1, b2, eps, adam_correction } => {
                let c2 = if adam_correction { (1. - b2.powf(t)).sqrt() } else { 1. };
                Hyper { rule: 1., b1, b2, eps, a: lr * c2 / (1. - b1.powf(t)), c: 1., ..Hyper::default() }
            }
            Rule::RmsProp { rho, momentum, eps } => {
                Hyper { rule: 2., b2: rho, eps, lr, momentum, ..Hyper::default() }
            }
        }
    }

    /// The state by parameter name, (2, N) each, for a checkpoint; with [`Optimizer::step_count`] it is all there is.
    pub fn state(&self) -> &BTreeMap<String, Tensor> {
        &self.state
    }

    /// Takes up a saved state. Errors if a tensor is missing or misshapen.
    pub fn restore(&mut self, saved: &BTreeMap<String, Tensor>, step: u64) -> Result<()> {
        for (name, state) in &mut self.state {
            match saved.get(name) {
                Some(t) if t.shape() == state.shape() => {
                    *state = t.to_device(state.device())?.to_dtype(state.dtype())?.copy()?
                }
                Some(t) => {
                    bail!("optimiser state of `{name}` has shape {:?}, not {:?}", t.shape(), state.shape())
                }
                None => bail!("the checkpoint has no optimiser state of `{name}`"),
            }
        }
        self.step = step;
        Ok(())
    }
}

/// Exponential moving average of every tensor of a model (buffers are copied):
///
/// ```text
/// e <- d e + (1 - d) p,     d = min(decay, (1 + t) / (10 + t))
/// ```
///
/// The ramp keeps the first averages from being the random start.
pub struct Ema {
    decay: f64,
    average: BTreeMap<String, Tensor>,
    step: u64,
}

impl Ema {
    /// Starts at the parameters as they are.
    pub fn new(decay: f64, params: &Params) -> Result<Self> {
        let mut average = BTreeMap::new();
        for (name, p) in params.trained() {
            average.insert(name, p.value().copy()?);
        }
        Ok(Self { decay, average, step: 0 })
    }

    /// Counts a step; what the averages keep in it.
    fn next_decay(&mut self) -> f64 {
        self.step += 1;
        let t = self.step as f64;
        self.decay.min((1. + t) / (10. + t))
    }

    /// Follows the parameters by one step.
    pub fn update(&mut self, params: &Params) -> Result<()> {
        let d = self.next_decay();
        for (name, p) in params.trained() {
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

    /// Takes up saved averages.
    pub fn restore(&mut self, saved: &BTreeMap<String, Tensor>, step: u64) -> Result<()> {
        for (name, e) in &mut self.average {
            match saved.get(name) {
                Some(t) if t.shape() == e.shape() => {
                    *e = t.to_device(e.device())?.to_dtype(e.dtype())?.copy()?
                }
                _ => bail!("the checkpoint has no average of `{name}` with shape {:?}", e.shape()),
            }
        }
        self.step = step;
        Ok(())
    }

    /// Exchanges the model's trained parameters with the averages, in place; called twice, all is as before.
    pub fn swap(&mut self, params: &Params) -> Result<()> {
        for (name, p) in params.trained() {
            let e = self.average.get(&name).expect("made from the same parameters");
            let old = p.value().copy()?;
            p.set(e)?;
            update::set(e, &old)?;
        }
        Ok(())
    }
}

/// Clipping, optimiser and moving average of a training step on a GPU: three launches for all parameters, and nothing
/// waits. Whatever changes from step to step is written by [`OnDevice::set`] before the step, so that the step itself can
/// be recorded and replayed ([`crate::ops::cuda::Graph`]).
///
/// It works on the optimiser's state and on the averages in place: make it when they have been restored.
pub struct OnDevice {
    params: Vec<(String, Param)>,
    update: Update,
}

impl OnDevice {
    /// `l2(name)` is the weight of |p|^2 in the loss, as in [`add_l2`].
    pub fn new(optimizer: &Optimizer, ema: Option<&Ema>, l2: impl Fn(&str) -> f64) -> Result<Self> {
        let params = optimizer.params.clone();
        let weights: Vec<f64> = params.iter().map(|(name, _)| 2. * l2(name)).collect();
        let values = params.iter().map(|(_, p)| p.value().clone()).collect();
        let state = params.iter().map(|(name, _)| optimizer.state[name].clone()).collect();
        let average = ema.map(|e| params.iter().map(|(name, _)| e.average[name].clone()).collect());
        Ok(Self { update: Update::new(values, state, average, &weights)?, params })
    }

    /// Counts a step, and writes its numbers to the device.
    pub fn set(
        &self,
        optimizer: &mut Optimizer,
        ema: Option<&mut Ema>,
        lr: f64,
        max_norm: Option<f64>,
    ) -> Result<()> {
        optimizer.step += 1;
        let hyper = Hyper {
            decay: ema.map_or(0., Ema::next_decay),
            max_norm: max_norm.unwrap_or(f64::INFINITY),
            ..optimizer.numbers(lr)
        };
        self.params.iter().for_each(|(_, p)| p.changed());
        self.update.set(&hyper)
    }

    /// The step along `grads`; `log_prob` is the batch's mean log p(x), a scalar. Where it or the gradients are not finite,
    /// neither this step nor any later one changes anything.
    pub fn run(&mut self, grads: &Grads, log_prob: &Tensor) -> Result<()> {
        let of = |(name, _): &(String, Param)| grads.get(name).map(Tensor::contiguous).transpose();
        let grads = self.params.iter().map(of).collect::<Result<Vec<_>>>()?;
        self.update.run(&grads, log_prob)
    }

    /// Sums over the steps since the last call; waits for them.
    pub fn tally(&self) -> Result<Tally> {
        self.update.tally()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Init;
    use candle_core::{DType, Device};

    /// One parameter at 1 with gradients .5, then -1: each rule against its equations, by hand.
    fn run(rule: Rule, lr: f64) -> Result<f64> {
        let params = Params::seeded(0, DType::F64, &Device::Cpu);
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
        let params = Params::seeded(0, DType::F32, &Device::Cpu);
        let p = params.vb().get(3, "p", Init::Normal(1.))?;
        let before = p.value().to_vec1::<f32>()?;
        let mut ema = Ema::new(0.9, &params)?;
        p.set(&(p.value() + 1.)?)?;
        ema.update(&params)?;
        let moved = p.value().to_vec1::<f32>()?;
        ema.swap(&params)?;
        let d = 2. / 11.;
        for (got, b) in p.value().to_vec1::<f32>()?.iter().zip(&before) {
            assert!((got - (b + (1. - d))).abs() < 1e-6);
        }
        ema.swap(&params)?;
        assert_eq!(p.value().to_vec1::<f32>()?, moved);
        Ok(())
    }
}
