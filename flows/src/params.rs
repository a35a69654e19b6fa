//! Named, seeded, strict parameters.
//!
//! A [`ParamStore`] holds every tensor of a model under its path; the path is the key in the safetensors file. A value at
//! initialisation depends on the seed and on the name only, so adding a layer changes no other layer's values, and the
//! order in which layers are built does not matter.
//!
//! A model is built from [`ParamBuilder`], a path into a `ParamStore`, with the idiom of candle's `VarBuilder`: `vb.pp("net")`,
//! `vb.get(..)`. It is a type of our own because candle's cannot express what flows need: buffers that are saved yet not
//! trained (permutations, running statistics), initial values that are computed (an orthogonal matrix), and a strict
//! load (a missing, unknown or misshapen tensor is an error that names the key). [`ParamBuilder::candle`] gives the same path as
//! candle's `VarBuilder`, so that candle-nn's layers can be used inside a network.

use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// The initial values of a parameter.
pub enum Init<'a> {
    /// Every element the same.
    Const(f64),
    /// Independent N(0, std^2).
    Normal(f64),
    /// Independent U(-a, a).
    Uniform(f64),
    /// Computed on the host from the parameter's own generator, row-major.
    With(&'a dyn Fn(&mut ChaCha8Rng) -> Vec<f64>),
}

/// A tensor of a model: trained or kept.
///
/// `var` is the graph's leaf; `frozen` shares its storage without being one, so a pass that needs no gradient builds no
/// graph at all.
#[derive(Clone, Debug)]
pub struct Param {
    var: Var,
    frozen: Tensor,
    /// How often the values have changed: layers that cache something computed from them compare this number.
    version: Arc<AtomicU64>,
}

impl Param {
    fn new(t: &Tensor) -> Result<Self> {
        let var = Var::from_tensor(t)?;
        let frozen = var.as_tensor().detach();
        Ok(Self { var, frozen, version: Arc::default() })
    }

    /// The tensor as a leaf of the graph (`grad`), or the same storage outside any graph.
    pub fn get(&self, grad: bool) -> &Tensor {
        if grad { self.var.as_tensor() } else { &self.frozen }
    }

    /// The variable, for optimisers.
    pub fn var(&self) -> &Var {
        &self.var
    }

    /// The values, outside any graph.
    pub fn value(&self) -> &Tensor {
        &self.frozen
    }

    /// Overwrites the values in place.
    ///
    /// # Errors
    /// When shape or dtype differ.
    pub fn set(&self, t: &Tensor) -> Result<()> {
        self.var.set(&t.detach())?;
        self.changed();
        Ok(())
    }

    /// Records that the values were changed in place without [`Param::set`], as optimisers do: a layer may keep what it
    /// computed from them (the inverse of a 1x1 convolution).
    pub fn changed(&self) {
        self.version.fetch_add(1, Ordering::Release);
    }

    /// How often the values have changed.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }
}

/// What a tensor of a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The optimiser moves it.
    Trained,
    /// A training pass moves it: running statistics.
    Running,
    /// It stays as it was initialised.
    Kept,
}

#[derive(Clone, Debug)]
struct Entry {
    param: Param,
    role: Role,
}

/// Where the tensors of a loaded model come from. Names, shapes and dtypes are known before any of them is read, so that
/// what does not fit the model costs no memory.
pub trait Source: std::fmt::Debug + Send + Sync {
    /// Every tensor's name.
    fn names(&self) -> Vec<String>;

    /// The dtype and the shape of a tensor, or `None` where there is none of this name.
    fn info(&self, name: &str) -> Option<(DType, Shape)>;

    /// The tensor itself; only asked for names that [`Source::info`] knows.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, name: &str) -> Result<Tensor>;
}

impl Source for BTreeMap<String, Tensor> {
    fn names(&self) -> Vec<String> {
        self.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<(DType, Shape)> {
        self.get(name).map(|t| (t.dtype(), t.shape().clone()))
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        self.get(name).cloned().ok_or_else(|| candle_core::Error::msg(format!("there is no tensor `{name}`")))
    }
}

/// Where values come from.
#[derive(Debug)]
enum Origin {
    /// The seed.
    Seed,
    /// Every tensor must come from here.
    Source(Box<dyn Source>),
    /// The model is built and the source is dropped.
    Done,
}

#[derive(Debug)]
struct Store {
    seed: u64,
    dtype: DType,
    device: Device,
    origin: Mutex<Origin>,
    entries: Mutex<BTreeMap<String, Entry>>,
}

/// Every tensor of a model, by name, in name order.
#[derive(Clone, Debug)]
pub struct ParamStore(Arc<Store>);

impl ParamStore {
    /// Fresh parameters: each value depends on `seed` and its name only.
    pub fn seeded(seed: u64, dtype: DType, device: &Device) -> Self {
        Self::with_origin(seed, dtype, device, Origin::Seed)
    }

    /// Parameters that must all be found in `source`, with the shapes the model asks for. Each tensor is read when a layer asks
    /// for it and after its shape was compared.
    pub fn from_source(source: impl Source + 'static, dtype: DType, device: &Device) -> Self {
        Self::with_origin(0, dtype, device, Origin::Source(Box::new(source)))
    }

    fn with_origin(seed: u64, dtype: DType, device: &Device, origin: Origin) -> Self {
        let (origin, entries) = (Mutex::new(origin), Mutex::default());
        Self(Arc::new(Store { seed, dtype, device: device.clone(), origin, entries }))
    }

    /// The root path.
    pub fn vb(&self) -> ParamBuilder {
        ParamBuilder { store: self.0.clone(), path: String::new() }
    }

    /// The device of all parameters.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// The dtype of all floating-point parameters.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// Ends the building of a model: compares the names of the source with those that layers have asked for, and drops the
    /// source.
    ///
    /// # Errors
    /// When the source holds a tensor that no layer has asked for.
    pub fn finish(&self) -> Result<()> {
        let mut origin = self.0.origin.lock().unwrap();
        let Origin::Source(source) = &*origin else { return Ok(()) };
        let entries = self.0.entries.lock().unwrap();
        let extra: BTreeSet<_> = source.names().into_iter().filter(|k| !entries.contains_key(k)).collect();
        if let Some(name) = extra.first() {
            let n = extra.len();
            bail!(
                "{n} tensor(s) in the file belong to no layer of this model, the first is `{name}`: the config and the \
                 weights are not of the same model, fetch both again"
            )
        }
        *origin = Origin::Done;
        Ok(())
    }

    /// Trained parameters, in name order.
    pub fn trained(&self) -> Vec<(String, Param)> {
        self.collect(|e| e.role == Role::Trained)
    }

    /// Running statistics, which training passes move, in name order.
    pub fn running(&self) -> Vec<(String, Param)> {
        self.collect(|e| e.role == Role::Running)
    }

    /// Every tensor of the file: trained parameters and buffers, in name order.
    pub fn all(&self) -> Vec<(String, Param)> {
        self.collect(|_| true)
    }

    fn collect(&self, keep: impl Fn(&Entry) -> bool) -> Vec<(String, Param)> {
        let entries = self.0.entries.lock().unwrap();
        entries.iter().filter(|(_, e)| keep(e)).map(|(k, e)| (k.clone(), e.param.clone())).collect()
    }

    /// Number of trained scalars.
    pub fn count(&self) -> usize {
        self.trained().iter().map(|(_, p)| p.value().elem_count()).sum()
    }

    /// Adds N(0, std^2) to every trained parameter, seeded by name: at initialisation zero convolutions make every
    /// coupling trivial and hide bugs, so laws are tested on perturbed parameters.
    ///
    /// # Errors
    /// When the device has no memory left.
    pub fn perturb(&self, seed: u64, std: f64) -> Result<()> {
        for (name, p) in self.trained() {
            let v = p.value();
            let mut rng = rng_for(seed, &name);
            let noise = Tensor::from_vec(normal(v.elem_count(), std, &mut rng), v.shape(), v.device())?;
            let noise = noise.to_dtype(v.dtype())?;
            p.set(&(v + noise)?)?;
        }
        Ok(())
    }

    /// The name of the first tensor (in name order) that holds a NaN or an infinity.
    ///
    /// # Errors
    /// When a tensor cannot be read back.
    pub fn find_non_finite(&self) -> Result<Option<String>> {
        for (name, p) in self.all() {
            if p.value().dtype().is_float() && !is_finite(p.value())? {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }
}

/// Whether every element of `t` is finite (one pass; `x - x` is 0 exactly for finite x).
///
/// # Errors
/// When `t` is of integers, or cannot be read back.
pub fn is_finite(t: &Tensor) -> Result<bool> {
    let s = t.sub(t)?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
    Ok(s == 0.)
}

/// `n` independent draws from N(0, std^2).
pub(crate) fn normal(n: usize, std: f64, rng: &mut ChaCha8Rng) -> Vec<f64> {
    (0..n).map(|_| rng.sample::<f64, _>(StandardNormal) * std).collect()
}

/// Reads the tensor `key`, and checks that it has this shape, is a float where `dtype` is one, and holds
/// finite numbers only.
fn load(source: &dyn Source, key: &str, shape: &Shape, dtype: DType) -> Result<Tensor> {
    let Some((held, found)) = source.info(key) else {
        bail!("tensor `{key}` is missing from the weights: they are not of this model, fetch both again")
    };
    if found != *shape {
        bail!(
            "tensor `{key}` has shape {:?}, the model needs {:?}: the config and the weights are not of the same model, \
             fetch both again",
            found.dims(),
            shape.dims()
        );
    }
    if held.is_float() != dtype.is_float() {
        bail!(
            "tensor `{key}` has dtype {held:?}, the model needs {dtype:?}: save the weights again as floats, indices as u32"
        );
    }
    let t = source.read(key)?.to_dtype(dtype)?;
    if dtype.is_float() && !is_finite(&t)? {
        bail!("tensor `{key}` holds a NaN or an infinity: the weights are damaged, fetch them again");
    }
    Ok(t)
}

/// A generator whose stream depends on `seed` and `name` only (64-bit FNV-1a of the name fills the second key word).
pub fn rng_for(seed: u64, name: &str) -> ChaCha8Rng {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&hash.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// A path into [`ParamStore`].
#[derive(Clone, Debug)]
pub struct ParamBuilder {
    store: Arc<Store>,
    path: String,
}

impl ParamBuilder {
    /// The sub-path `name`.
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self { store: self.store.clone(), path: self.key(&name.to_string()) }
    }

    /// The device parameters are made on.
    pub fn device(&self) -> &Device {
        &self.store.device
    }

    /// The dtype parameters are made in.
    pub fn dtype(&self) -> DType {
        self.store.dtype
    }

    /// The path so far, for messages.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The generator of the tensor `name` under this path.
    pub fn rng(&self, name: &str) -> ChaCha8Rng {
        rng_for(self.store.seed, &self.key(name))
    }

    fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }

    /// A trained parameter.
    ///
    /// # Errors
    /// When it is missing from the weights or has another shape there, or another layer has this name.
    pub fn get(&self, shape: impl Into<Shape>, name: &str, init: Init) -> Result<Param> {
        self.entry(shape.into(), name, init, Role::Trained, self.store.dtype)
    }

    /// A tensor that is saved and not trained: signs, whitening matrices.
    ///
    /// # Errors
    /// As [`ParamBuilder::get`].
    pub fn buffer(&self, shape: impl Into<Shape>, name: &str, init: Init) -> Result<Param> {
        self.entry(shape.into(), name, init, Role::Kept, self.store.dtype)
    }

    /// A running statistic, which is saved and which training passes move: processes that train together average it.
    ///
    /// # Errors
    /// As [`ParamBuilder::get`].
    pub fn running(&self, shape: impl Into<Shape>, name: &str, init: Init) -> Result<Param> {
        self.entry(shape.into(), name, init, Role::Running, self.store.dtype)
    }

    /// A saved tensor of indices (u32): permutations.
    ///
    /// # Errors
    /// As [`ParamBuilder::get`].
    pub fn indices(&self, len: usize, name: &str, init: Init) -> Result<Param> {
        self.entry(len.into(), name, init, Role::Kept, DType::U32)
    }

    /// A saved permutation of 0..`len`, and its inverse.
    ///
    /// # Errors
    /// As [`ParamBuilder::get`], and when the indices that a file has are no permutation.
    pub fn permutation(&self, len: usize, name: &str, init: Init) -> Result<(Param, Vec<u32>)> {
        let index = self.indices(len, name, init)?;
        let mut inverse = vec![u32::MAX; len];
        for (to, from) in index.value().to_vec1::<u32>()?.into_iter().enumerate() {
            match inverse.get_mut(from as usize) {
                Some(slot) if *slot == u32::MAX => *slot = to as u32,
                _ => bail!(
                    "the indices of `{}` are no permutation of 0..{len}: {from} is out of range or twice there",
                    self.path
                ),
            }
        }
        Ok((index, inverse))
    }

    fn entry(&self, shape: Shape, name: &str, init: Init, role: Role, dtype: DType) -> Result<Param> {
        let key = self.key(name);
        let tensor = match &*self.store.origin.lock().unwrap() {
            Origin::Done => bail!("`{key}` is asked for after the model was built"),
            Origin::Source(source) => load(source.as_ref(), &key, &shape, dtype)?,
            Origin::Seed => {
                let n = shape.elem_count();
                let mut rng = self.rng(name);
                let values: Vec<f64> = match init {
                    Init::Const(v) => vec![v; n],
                    Init::Normal(std) => normal(n, std, &mut rng),
                    Init::Uniform(a) => (0..n).map(|_| rng.random_range(-a..=a)).collect(),
                    Init::With(f) => f(&mut rng),
                };
                if values.len() != n {
                    bail!("the initial values of `{key}` are {} numbers, not {n}", values.len());
                }
                Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?
            }
        };
        let param = Param::new(&tensor.to_device(&self.store.device)?)?;
        let entry = Entry { param: param.clone(), role };
        if self.store.entries.lock().unwrap().insert(key.clone(), entry).is_some() {
            bail!("two layers ask for the same parameter `{key}`: give them different paths");
        }
        Ok(param)
    }

    /// The same path as candle's `VarBuilder`, for candle-nn's layers: what they create is trained.
    pub fn candle(&self) -> candle_nn::VarBuilder<'static> {
        let backend: Box<dyn candle_nn::var_builder::SimpleBackend> = Box::new(self.clone());
        candle_nn::VarBuilder::from_backend(backend, self.store.dtype, self.store.device.clone())
    }
}

impl candle_nn::var_builder::SimpleBackend for ParamBuilder {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: candle_nn::Init,
        _dtype: DType,
        _device: &Device,
    ) -> Result<Tensor> {
        let n = shape.elem_count();
        let values = |rng: &mut ChaCha8Rng| match init {
            candle_nn::Init::Const(v) => vec![v; n],
            candle_nn::Init::Randn { mean, stdev } => {
                normal(n, stdev, rng).iter().map(|x| mean + x).collect()
            }
            candle_nn::Init::Uniform { lo, up } => (0..n).map(|_| rng.random_range(lo..=up)).collect(),
            // candle's default for linear and convolution weights, U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
            candle_nn::Init::Kaiming { .. } => {
                let fan_in = shape.dims().iter().skip(1).product::<usize>().max(1);
                let a = (fan_in as f64).powf(-0.5);
                (0..n).map(|_| rng.random_range(-a..=a)).collect()
            }
        };
        let p = ParamBuilder::get(self, shape.clone(), name, Init::With(&values))?;
        Ok(p.var().as_tensor().clone())
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        bail!("`{}` was asked for without a shape: flows load strictly", self.key(name))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        match &*self.store.origin.lock().unwrap() {
            Origin::Source(source) => source.info(&self.key(name)).is_some(),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(p: &Param) -> Vec<f64> {
        p.value().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_value_depends_on_seed_and_name_only() -> Result<()> {
        let a = ParamStore::seeded(7, DType::F64, &Device::Cpu);
        let b = ParamStore::seeded(7, DType::F64, &Device::Cpu);
        let w = a.vb().pp("x").get(5, "w", Init::Normal(1.))?;
        b.vb().get(5, "another", Init::Normal(1.))?;
        let v = b.vb().pp("x").get(5, "w", Init::Normal(1.))?;
        assert_eq!(values(&w), values(&v));
        let c = ParamStore::seeded(8, DType::F64, &Device::Cpu);
        assert_ne!(values(&w), values(&c.vb().pp("x").get(5, "w", Init::Normal(1.))?));
        Ok(())
    }

    #[test]
    fn loading_is_strict() -> Result<()> {
        let t = |n: usize| Tensor::zeros(n, DType::F32, &Device::Cpu).unwrap();
        let src = BTreeMap::from([("a.w".to_string(), t(3)), ("b".to_string(), t(1))]);
        let p = ParamStore::from_source(src, DType::F32, &Device::Cpu);
        let err = |r: Result<Param>| r.unwrap_err().to_string();
        assert!(err(p.vb().get(3, "w", Init::Const(0.))).contains("`w` is missing"));
        assert!(err(p.vb().pp("a").get(4, "w", Init::Const(0.))).contains("`a.w` has shape [3]"));
        p.vb().pp("a").get(3, "w", Init::Const(0.))?;
        assert!(p.finish().unwrap_err().to_string().contains("`b`"));
        Ok(())
    }

    #[test]
    fn candle_layers_live_under_our_paths() -> Result<()> {
        let p = ParamStore::seeded(0, DType::F32, &Device::Cpu);
        candle_nn::linear(3, 2, p.vb().pp("net").candle().pp("fc"))?;
        let names: Vec<_> = p.trained().into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["net.fc.bias", "net.fc.weight"]);
        Ok(())
    }
}
