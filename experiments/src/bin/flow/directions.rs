//! Directions of latents: what labels of the data change.
//!
//! The direction of a label is the mean latent of training images with it minus that of images without. Those of several labels
//! take one pass over the images.

use crate::session::{BATCH, Session};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use experiments::data::{Dataset, Split};
use experiments::suggest::did_you_mean;

/// Training images that are averaged, at most, unless another number is asked for.
pub const FIT: usize = 2000;

/// For each example whether it has the label; NAME=LEVEL is one level of an attribute.
///
/// # Errors
/// When the data have no such label.
pub fn has(data: &Dataset, split: &Split, label: &str) -> Result<Vec<bool>> {
    let (name, level) = label.split_once('=').map_or((label, None), |(name, level)| (name, Some(level)));
    let name = name.trim();
    let level = level.map(|level| level.trim().parse::<u8>()).transpose();
    let level = level.with_context(|| format!("--label {label}: a level is a whole number from 0 to 255"))?;
    let column = data.attribute_names.iter().position(|n| n == name);
    if let (Some(column), Some(rows)) = (column, &split.attributes) {
        let has = |row: &Vec<u8>| level.map_or(row[column] > 0, |level| row[column] == level);
        return Ok(rows.iter().map(has).collect());
    }
    let class = data.classes.iter().position(|n| n == name);
    if let (Some(class), Some(labels), None) = (class, &split.labels, level) {
        return Ok(labels.iter().map(|&l| l as usize == class).collect());
    }
    let all = [data.attribute_names.as_slice(), &data.classes].concat();
    let name = &data.name;
    ensure!(
        !all.is_empty(),
        "`{name}` has neither attributes nor classes: a folder's labels.csv can give them"
    );
    bail!("`{name}` has no label `{label}`: choose one of {}{}", all.join(", "), did_you_mean(label, &all))
}

/// The attributes that are there or not, then the classes, of which the examples have some and lack some: each has one direction. One
/// with several levels has one for each pair of them, and is left out.
#[must_use]
pub fn labels(data: &Dataset, split: &Split) -> Vec<String> {
    let binary = |column: &usize| split.attributes.iter().flatten().all(|row| row[*column] <= 1);
    let names = data.attribute_names.iter().enumerate().filter(|(column, _)| binary(column));
    let names = names.map(|(_, name)| name).chain(&data.classes);
    let varies = |flags: Vec<bool>| flags.contains(&true) && flags.contains(&false);
    names.filter(|name| has(data, split, name).is_ok_and(varies)).cloned().collect()
}

/// The mean latents of images with and without each label, as far as they have been encoded.
pub struct Means {
    /// 1 where an image has a label, (labels, images).
    flags: Tensor,
    /// How many have each.
    with: Vec<usize>,
    /// Images that have been encoded.
    done: usize,
    /// The sum of latents with each label, (labels, D), and of all latents, (1, D); none before the first batch.
    sums: Option<(Tensor, Tensor)>,
}

impl Means {
    /// Of the labels of these images: for each label whether an image has it.
    ///
    /// # Errors
    /// When a label has no image on one side.
    pub fn new(labels: &[String], flags: &[Vec<bool>]) -> Result<Self> {
        let n = flags.first().map_or(0, Vec::len);
        let with: Vec<usize> = flags.iter().map(|f| f.iter().filter(|f| **f).count()).collect();
        for (label, &have) in labels.iter().zip(&with) {
            ensure!(
                have > 0 && have < n,
                "of {n} training images {have} have `{label}`: a direction needs images with it and without it, raise --fit or \
                 choose another label"
            );
        }
        let values: Vec<f32> = flags.iter().flatten().map(|f| f32::from(u8::from(*f))).collect();
        let flags = Tensor::from_vec(values, (flags.len(), n), &Device::Cpu)?;
        Ok(Self { flags, with, done: 0, sums: None })
    }

    /// Images encoded, and all.
    #[must_use]
    pub fn progress(&self) -> (usize, usize) {
        (self.done, self.flags.dims()[1])
    }

    /// Encodes the next images of the split; false when there are none left.
    ///
    /// # Errors
    /// When the images are not the model's.
    pub fn step(&mut self, s: &Session, split: &Split) -> Result<bool> {
        let (first, all) = self.progress();
        let end = (first + BATCH).min(all);
        if first == end {
            return Ok(false);
        }
        let places: Vec<u64> = (first as u64..end as u64).collect();
        let batch = s.batch(split.slice(first..end), &places)?;
        let z = s.model.encode(&batch.x.to_dtype(s.model.params().dtype())?, batch.context())?;
        let z = z.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let flags = self.flags.narrow(1, first, end - first)?.contiguous()?;
        let (with, total) =
            (flags.matmul(&z)?.to_dtype(DType::F64)?, z.to_dtype(DType::F64)?.sum_keepdim(0)?);
        self.sums = Some(match self.sums.take() {
            None => (with, total),
            Some((a, b)) => ((a + with)?, (b + total)?),
        });
        self.done = end;
        Ok(end < all)
    }

    /// The direction of each label, (labels, D), once all images have been encoded.
    ///
    /// # Errors
    /// When some have not.
    pub fn directions(&self) -> Result<Tensor> {
        let (done, all) = self.progress();
        let (with, total) =
            self.sums.as_ref().filter(|_| done == all).context("no image has been encoded")?;
        let column = |n: Vec<f64>| Tensor::from_vec(n, (self.with.len(), 1), &Device::Cpu);
        let have = column(self.with.iter().map(|&n| n as f64).collect())?;
        let lack = column(self.with.iter().map(|&n| (all - n) as f64).collect())?;
        let without = total.broadcast_sub(with)?;
        Ok((with.broadcast_div(&have)? - without.broadcast_div(&lack)?)?.to_dtype(DType::F32)?)
    }
}
