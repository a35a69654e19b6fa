//! Every parameter of a model has a gradient when training starts from the model's own initial values. Most other tests move the
//! parameters first, and do not see two factors that both start at zero.

use crate::laws::input;
use crate::small_models::{conditional, features, models, small_nice};
use candle_core::{DType, Device, Result, Tensor};
use flows::bijections::Diagonal;
use flows::models::{NiceConfig, PriorConfig};
use flows::optim::{Optimizer, Rule};
use flows::{Bijection, Context, Ctx, Memory, Model, ModelConfig, ParamStore};

/// Names of the parameters that a few updates leave without a gradient.
fn without_gradient(config: ModelConfig) -> Result<Vec<String>> {
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
    Ok(optimizer.without_gradient()?.into_iter().map(str::to_owned).collect())
}

/// A network whose units are zero for every input is named once its first moments have decayed, and no other parameter is.
#[test]
fn dead_networks_are_named() -> Result<()> {
    let m = Model::new(ModelConfig::Nice(small_nice()), 3, DType::F64, &Device::Cpu)?;
    let x = input(m.config(), 16)?;
    m.init(&x, Context::default())?;
    let mut optimizer = Optimizer::new(Rule::Adam { b1: 0.5, b2: 0.9, eps: 1e-8 }, m.params())?;
    let name = "coupling1.net.0.bias";
    let mut named = vec![];
    for update in 0..150 {
        if update == 10 {
            let (_, bias) = m.params().trained().into_iter().find(|(n, _)| n == name).expect(name);
            bias.set(&(bias.value() - 1e3)?)?;
        }
        let (_, grads) = m.gradients(&x, Ctx::train(), Memory::Store, |l| l.mean_all()? * -1.)?;
        optimizer.step(&grads, 1e-4, 1.)?;
        named = optimizer.without_gradient()?.into_iter().map(str::to_owned).collect();
        assert!(update > 100 || named.is_empty(), "{update}: {named:?}");
    }
    // The next layer's weight is multiplied by the zeros.
    assert_eq!(named, [name, "coupling1.net.0.weight", "coupling1.net.1.weight"]);
    Ok(())
}

/// The first batch gives each output the prior's standard deviation, and a constant dimension no scale.
#[test]
fn diagonal_from_data() -> Result<()> {
    for (prior, want) in
        [(PriorConfig::Gaussian {}, 1.), (PriorConfig::Logistic {}, std::f64::consts::PI / 3f64.sqrt())]
    {
        let config = NiceConfig { diagonal_from_data: true, prior, ..small_nice() };
        let m = Model::new(ModelConfig::Nice(config), 3, DType::F64, &Device::Cpu)?;
        let x = input(m.config(), 64)?;
        m.init(&x, Context::default())?;
        let z = m.encode(&x, Context::default())?;
        let std = z.broadcast_sub(&z.mean_keepdim(0)?)?.sqr()?.mean(0)?.sqrt()?.flatten_all()?;
        assert!(std.to_vec1::<f64>()?.iter().all(|std| (std / want - 1.).abs() < 1e-9), "{std}");
    }
    let params = ParamStore::seeded(3, DType::F64, &Device::Cpu);
    let diagonal = Diagonal::new(2, &params.vb())?.from_data(2.);
    let x = Tensor::new(&[[1., 5.], [3., 5.]], &Device::Cpu)?;
    let (z, _) = diagonal.forward(&x, Ctx::init())?;
    assert_eq!(z.to_vec2::<f64>()?, [[2., 5.], [6., 5.]]);
    Ok(())
}

#[test]
fn every_parameter_learns() -> Result<()> {
    for (name, config) in models().into_iter().chain(conditional()) {
        assert_eq!(without_gradient(config)?, Vec::<String>::new(), "{name}");
    }
    Ok(())
}
