//! Samples of a model, by one process or shared out among several.

use crate::ranks::{Ranks, Share};
use candle_core::{Result, Tensor};
use flows::params::rng_for;
use flows::{Context, Ctx, Model};

/// `n` samples of a model at a temperature, (n, ..), outside any graph, in the context of each.
///
/// All ranks draw the same latents, and each decodes its share of them: the samples are those of one process but for rounding.
///
/// # Errors
/// As [`Model::sample`].
pub fn sample(
    model: &Model,
    n: usize,
    temperature: f64,
    seed: u64,
    context: Context,
    ranks: &dyn Ranks,
) -> Result<Tensor> {
    if ranks.size() == 1 {
        return model.sample(n, temperature, seed, context);
    }
    let to = (model.params().dtype(), model.params().device());
    let ctx = Ctx::eval().with_context(context);
    let z = model.prior().sample((n, model.dims()), temperature, &mut rng_for(seed, "sample"), ctx, to)?;
    let Share { first, len, .. } = Share::new(n, ranks);
    // What the other ranks decode is zero here.
    let zeros = |n: usize| Tensor::zeros(n * model.dims(), to.0, to.1);
    let mut parts = vec![zeros(first)?];
    if len > 0 {
        let own = |all: Option<&Tensor>| all.map(|all| all.narrow(0, first, len)?.contiguous()).transpose();
        let (labels, features) = (own(context.labels)?, own(context.features)?);
        let context = Context { labels: labels.as_ref(), features: features.as_ref() };
        let x = model.decode(&z.narrow(0, first, len)?.contiguous()?, context)?;
        parts.push(x.flatten_all()?.detach());
    }
    parts.push(zeros(n - first - len)?);
    parts.retain(|part| part.elem_count() > 0);
    ranks.all_reduce(&Tensor::cat(&parts, 0)?)?.reshape([&[n], model.shape()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::{Single, threads};
    use candle_core::{DType, Device};
    use flows::ModelConfig;
    use flows::models::GlowConfig;

    #[test]
    fn ranks_decode_the_same_latents() -> Result<()> {
        let config = GlowConfig {
            shape: [1, 4, 4],
            levels: 2,
            depth: 1,
            width: 4,
            classes: Some(3),
            ..GlowConfig::cifar_paper()
        };
        let model = Model::new(ModelConfig::Glow(config), 1, DType::F64, &Device::Cpu)?;
        model.params().perturb(2, 0.1)?;
        let labels = Tensor::new(&[0u32, 1, 2, 0, 1], &Device::Cpu)?;
        let draw =
            |ranks: &dyn Ranks| sample(&model, 5, 0.7, 3, Context::from(Some(&labels)), ranks).unwrap();
        let alone = draw(&Single);
        for size in [2, 3, 7] {
            for shared in threads::run(size, draw) {
                assert_eq!(shared.dims(), alone.dims());
                let off = (&shared - &alone)?.abs()?.max_all()?.to_scalar::<f64>()?;
                assert!(off < 1e-12, "{size} ranks: {off}");
            }
        }
        Ok(())
    }
}
