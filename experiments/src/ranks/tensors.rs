//! The parameters of a model, given to all ranks.

use super::spec::Ranks;
use anyhow::{Result, bail};
use candle_core::Tensor;
use flows::ParamStore;
use std::collections::BTreeMap;

/// Gives the parameters of all ranks, of the same model, the values of rank 0.
///
/// # Errors
/// When the models are not the same, or there is no memory for a copy.
pub fn share_params(ranks: &dyn Ranks, params: &ParamStore) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let mut bytes = Vec::new();
    if ranks.rank() == 0 {
        let all = params.all();
        let tensors: BTreeMap<&str, &Tensor> =
            all.iter().map(|(name, p)| (name.as_str(), p.value())).collect();
        bytes = safetensors::serialize(tensors, None)?;
    }
    ranks.broadcast(0, &mut bytes);
    if ranks.rank() > 0 {
        let tensors = candle_core::safetensors::load_buffer(&bytes, params.device())?;
        for (name, p) in params.all() {
            let Some(t) = tensors.get(&name) else { bail!("rank 0 has no parameter `{name}`") };
            p.set(t)?;
        }
    }
    Ok(())
}
