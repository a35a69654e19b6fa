//! Every parameter of a model has a gradient when training starts from the model's own initial values. Most other tests move the
//! parameters first, and do not see two factors that both start at zero.

use crate::laws::input;
use crate::small_models::{conditional, features, models};
use candle_core::{DType, Device, Result, Tensor};
use flows::optim::{Optimizer, Rule};
use flows::{Context, Ctx, Memory, Model, ModelConfig};

/// Names of the parameters that a few updates leave without a gradient.
fn untouched(config: ModelConfig) -> Result<Vec<String>> {
    let m = Model::new(config, 3, DType::F64, &Device::Cpu)?;
    let labels = Tensor::new(&[0u32, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0], &Device::Cpu)?;
    let features = features(m.config(), 16);
    let given = Context { labels: Some(&labels), features: features.as_ref() };
    let x = input(m.config(), 16)?;
    m.init(&x, given)?;
    let mut optimizer = Optimizer::new(Rule::Adam { b1: 0.9, b2: 0.999, eps: 1e-8 }, m.params())?;
    // Where the last layer of a network starts at zero, the others have a gradient from the second update on.
    for _ in 0..3 {
        let ctx = Ctx::train().with_context(given);
        let (_, grads) = m.gradients(&x, ctx, Memory::Store, |log_prob| log_prob.mean_all()? * -1.)?;
        optimizer.step(&grads, 1e-3, 1.)?;
    }
    Ok(optimizer.untouched()?.into_iter().map(str::to_owned).collect())
}

#[test]
fn every_parameter_learns() -> Result<()> {
    for (name, config) in models().into_iter().chain(conditional()) {
        assert_eq!(untouched(config)?, Vec::<String>::new(), "{name}");
    }
    Ok(())
}
