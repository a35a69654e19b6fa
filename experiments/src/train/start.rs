//! A run that starts from saved weights instead of random ones.

use super::step::Step;
use crate::checkpoint::{self, Position, Settings};
use crate::data::Dataset;
use crate::ranks::Single;
use crate::recipe::Recipe;
use crate::run_dir::{self, CHECKPOINT};
use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{DType, Device};
use flows::{Model, ParamStore};
use std::collections::BTreeMap;
use std::path::Path;

/// Writes the checkpoint of update 0 with the weights of another model of the same architecture, from which [`train`](super::train())
/// goes on. Everything that a model learns or measures is theirs, what data-dependent initialisation would set included; the
/// optimizer starts anew. A run that has begun already is left as it is.
///
/// # Errors
/// When the folder holds a model without a checkpoint, or the weights do not fit the recipe's model: the message names what differs.
pub fn start_from(
    recipe: &Recipe,
    data: &Dataset,
    device: &Device,
    out: &Path,
    weights: &Path,
) -> Result<()> {
    if out.join(CHECKPOINT).exists() {
        return Ok(());
    }
    ensure!(
        !run_dir::holds_model(out),
        "{} holds a model and no checkpoint to go on from, and training would replace it: name another folder",
        out.display()
    );
    let mut step = Step::new(recipe, &data.train, device, &Single)?;
    let source = Model::load_as(weights, Some(DType::F32), device)?;
    copy(source.params(), step.model.params()).with_context(|| {
        format!("`train.init_from` = {} does not fit this recipe's model", weights.display())
    })?;
    if let Some(differ) = checkpoint::differences(source.config(), step.model.config())? {
        tracing::warn!(
            "{} has tensors of the same names and shapes, and another model: {differ}; training goes on with the recipe's",
            weights.display()
        );
    }
    if let Some(ema) = step.updater.parts().1 {
        ema.restart()?;
    }
    std::fs::create_dir_all(out).with_context(|| format!("cannot make the folder {}", out.display()))?;
    let settings = Settings::new(recipe, data)?;
    checkpoint::save(out, &Position::default(), &settings, step.model.params(), &step.updater)
}

/// Sets every parameter and buffer of `to` from that of the same name.
fn copy(from: &ParamStore, to: &ParamStore) -> Result<()> {
    let source: BTreeMap<_, _> = from.all().into_iter().collect();
    let own: BTreeMap<_, _> = to.all().into_iter().collect();
    let mut differ = Vec::new();
    for (name, p) in &own {
        match source.get(name).map(|s| s.value().clone()) {
            Some(value) if value.shape() == p.value().shape() => {}
            Some(value) => {
                let (there, here) = (value.dims().to_vec(), p.value().dims().to_vec());
                differ.push(format!("`{name}` has the shape {there:?} there and {here:?} here"));
            }
            None => differ.push(format!("`{name}` is not there")),
        }
    }
    differ.extend(
        source.keys().filter(|name| !own.contains_key(*name)).map(|name| format!("`{name}` is not here")),
    );
    if let [first, others @ ..] = differ.as_slice() {
        let more =
            if others.is_empty() { String::new() } else { format!(", and {} more tensors", others.len()) };
        bail!("{first}{more}: give the recipe the settings of `model` that the weights' config.json has");
    }
    for (name, p) in own {
        p.set(&source[&name].value().to_dtype(p.value().dtype())?)?;
    }
    Ok(())
}
