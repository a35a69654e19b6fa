//! The directions of labels, kept beside the weights that they are of.
//!
//! The file says of which weights, data and labels it is, and is used for these only. A folder that cannot be written does
//! without it, and a file of the same name that this page did not write is left as it is.

use crate::draw::draft::KEY;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use experiments::data::hex;
use experiments::run_dir::ATTRIBUTES;
use experiments::untrusted::{self, TEXT, read_regular};
use flows::models::file;
use flows::storage::write_atomic;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io;
use std::path::Path;

/// The name of the tensor, (labels, D).
const TENSOR: &str = "directions";
/// Bytes of a file that this page can have written, at most.
const LARGEST: u64 = 1 << 32;

/// What directions are of: it changes with the weights, the data and the labels.
fn of(folder: &Path, revision: &str, labels: &[String]) -> Result<Value> {
    let mut hash = Sha256::new();
    for name in file::stored(folder)?.files {
        io::copy(&mut untrusted::open(&folder.join(&name), u64::MAX)?.0, &mut hash)?;
    }
    Ok(json!({ "command": "explore", "weights": hex(&hash.finalize()), "data": revision, "labels": labels }))
}

/// What the file at `path` says it is of, and its bytes, if this page wrote it.
fn written(path: &Path, most: u64) -> Result<(Value, Vec<u8>)> {
    let bytes = read_regular(path, most)?;
    let (_, meta) = SafeTensors::read_metadata(&bytes)?;
    let said = meta.metadata().as_ref().and_then(|meta| meta.get(KEY)).context("it is of another program")?;
    let said: Value = serde_json::from_str(said)?;
    ensure!(said["command"] == "explore", "it is of another command");
    Ok((said, bytes))
}

/// The directions that are kept in the folder, if they are of its weights, of these data and labels.
pub fn read(folder: &Path, revision: &str, labels: &[String], dims: usize) -> Option<Tensor> {
    let read = || -> Result<Tensor> {
        let most = TEXT + 4 * (labels.len() * dims) as u64;
        let (said, bytes) = written(&folder.join(ATTRIBUTES), most)?;
        ensure!(said == of(folder, revision, labels)?, "it is of other weights or data");
        let file = SafeTensors::deserialize(&bytes)?;
        let view = file.tensor(TENSOR)?;
        ensure!(
            view.shape() == [labels.len(), dims] && view.dtype() == safetensors::Dtype::F32,
            "it has another shape"
        );
        Ok(Tensor::from_raw_buffer(view.data(), DType::F32, view.shape(), &Device::Cpu)?)
    };
    read().inspect_err(|error| tracing::debug!("{ATTRIBUTES}: {error:#}")).ok()
}

/// Keeps directions in the folder, where that can be.
pub fn write(folder: &Path, revision: &str, labels: &[String], directions: &Tensor) {
    let write = || -> Result<()> {
        let path = folder.join(ATTRIBUTES);
        ensure!(!path.exists() || written(&path, LARGEST).is_ok(), "{} is not of this page", path.display());
        let meta = HashMap::from([(KEY.to_owned(), of(folder, revision, labels)?.to_string())]);
        write_atomic(&path, &safetensors::serialize([(TENSOR, directions)], Some(meta))?)?;
        Ok(())
    };
    if let Err(error) = write() {
        tracing::debug!("the directions are not kept: {error:#}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flows::models::NiceConfig;
    use flows::{Model, ModelConfig, SaveOptions};
    use std::fs;

    #[test]
    fn directions_are_of_their_weights_and_no_other_file_is_replaced() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let save = |seed: u64| -> Result<()> {
            let nice = NiceConfig { shape: vec![3], hidden: vec![vec![4]], ..NiceConfig::mnist_paper() };
            let model = Model::new(ModelConfig::Nice(nice), seed, DType::F32, &Device::Cpu)?;
            Ok(model.save(dir.path(), &SaveOptions::default())?)
        };
        save(0)?;
        let labels = ["a".to_owned(), "b".to_owned()];
        let directions = Tensor::new(&[[1f32, 2., 3.], [4., 5., 6.]], &Device::Cpu)?;
        let read = |revision: &str, labels: &[String], dims| super::read(dir.path(), revision, labels, dims);
        assert!(read("r", &labels, 3).is_none());
        write(dir.path(), "r", &labels, &directions);
        assert_eq!(
            read("r", &labels, 3).expect("it was written").to_vec2::<f32>()?,
            directions.to_vec2::<f32>()?
        );
        assert!(read("s", &labels, 3).is_none() && read("r", &labels[..1], 3).is_none());
        assert!(read("r", &labels, 4).is_none());
        save(1)?;
        assert!(read("r", &labels, 3).is_none(), "other weights");
        write(dir.path(), "r", &labels, &directions);
        assert!(read("r", &labels, 3).is_some(), "its own file is replaced");

        let path = dir.path().join(ATTRIBUTES);
        for other in [&b"text"[..], &safetensors::serialize([("x", &directions)], None)?] {
            fs::write(&path, other)?;
            write(dir.path(), "r", &labels, &directions);
            assert_eq!(fs::read(&path)?, other);
            assert!(read("r", &labels, 3).is_none());
        }
        // A folder that is not there is none that can be written.
        write(&dir.path().join("none"), "r", &labels, &directions);
        Ok(())
    }
}
