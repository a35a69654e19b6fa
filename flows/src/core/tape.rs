//! The backward pass: what a forward pass saves for it, where gradients of parameters are collected, and candle's graph of
//! one layer.
//!
//! ```text
//! x = f^-1(z),     g_x = J^T g_z + g_ld d log|det J| / dx,     and the same for each parameter of f
//! ```
//!
//! A flow is invertible, so its training step needs no stored activations: under [`Memory::Recompute`] the backward pass
//! goes from the output to the input, reconstructs each layer's input by the inverse, and computes the gradient of that layer
//! alone. Memory is then that of one layer, however deep the flow is. A coupling runs its network once more, which serves
//! both its inverse and its gradient, because the kept part is the same on both sides. [`Memory::Store`] keeps what each
//! layer needs and reconstructs nothing. Both use [`Bijection::backward`](super::Bijection::backward); a layer that does not
//! override it is differentiated by candle's graph of that layer only, [`Graph`].
//!
//! Why not candle's graph of the whole flow: it adds every gradient to a new tensor of zeros, keeps all activations in any
//! case, and its ops keep no state. It remains for what is not a training step ([`Ctx::grad`](super::Ctx::grad)), and the
//! tests compare each layer's own backward with it.

use crate::params::{Param, ParamStore};
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, TensorId, Var, bail};
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::collections::{BTreeMap, HashMap};

/// The gradients of the trained parameters, by name. A parameter that the loss does not depend on is absent.
pub type Grads = BTreeMap<String, Tensor>;

/// What a training pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// All that the gradients need: fastest, and memory grows with depth.
    #[default]
    Store,
    /// The output alone; inputs are reconstructed by the inverse.
    Recompute,
}

/// What one layer saved in a forward pass. Only that layer knows its type.
#[derive(Default)]
pub struct SavedState(Option<Box<dyn Any>>);

impl SavedState {
    /// Nothing: the input is to be reconstructed.
    pub fn nothing() -> Self {
        Self(None)
    }

    /// Saves `state`, for [`SavedState::take`] of the same type.
    pub fn new<T: Any>(state: T) -> Self {
        Self(Some(Box::new(state)))
    }

    /// `state` under [`Memory::Store`], and nothing under [`Memory::Recompute`].
    pub fn if_stored<T: Any>(memory: Memory, state: T) -> Self {
        if memory == Memory::Store { Self::new(state) } else { Self::nothing() }
    }

    /// Whether a `T` was saved.
    pub fn is<T: Any>(&self) -> bool {
        self.0.as_ref().is_some_and(|s| s.is::<T>())
    }

    /// What was saved, or `None` if nothing was.
    pub fn take<T: Any>(self) -> Option<T> {
        let state: Box<T> = self.0?.downcast().expect("a layer takes what it saved itself");
        Some(*state)
    }

    /// What was saved, by reference.
    pub fn get<T: Any>(&self) -> Option<&T> {
        Some(self.0.as_ref()?.downcast_ref().expect("a layer reads what it saved itself"))
    }
}

/// Collects the gradients of parameters in a backward pass. `Gradients::default()` drops all of them, for a pass that needs the
/// input's gradient only.
#[derive(Default)]
pub struct Gradients {
    names: HashMap<TensorId, String>,
    by_name: Grads,
}

impl Gradients {
    /// Empty, for the trained parameters of `params`.
    pub fn new(params: &ParamStore) -> Self {
        let names = params.trained().into_iter().map(|(name, p)| (p.var().id(), name)).collect();
        Self { names, by_name: Grads::new() }
    }

    /// Adds the gradient `g` of `p`; that of a parameter which is not trained is dropped.
    ///
    /// # Errors
    /// When `g` has another shape than an earlier gradient of `p`.
    pub fn add(&mut self, p: &Param, g: Tensor) -> Result<()> {
        self.add_id(p.var().id(), g)
    }

    fn add_id(&mut self, id: TensorId, g: Tensor) -> Result<()> {
        let Some(name) = self.names.get(&id) else { return Ok(()) };
        let g = match self.by_name.remove(name) {
            Some(before) => (before + g)?,
            None => g,
        };
        self.by_name.insert(name.clone(), g);
        Ok(())
    }

    /// Adds the gradients of parameters that candle's graph has computed.
    ///
    /// # Errors
    /// As [`Gradients::add`].
    pub fn add_all(&mut self, store: &GradStore) -> Result<()> {
        // The order in which a hash map gives them does not matter: each is added to its own sum.
        store.get_ids().try_for_each(|&id| self.add_id(id, store.get_id(id).expect("listed").detach()))
    }

    /// The gradients by name.
    pub fn into_grads(self) -> Grads {
        self.by_name
    }
}

/// A function on candle's graph: its inputs as leaves, and its outputs.
pub struct Graph {
    inputs: Vec<Var>,
    outputs: Vec<Tensor>,
}

impl Graph {
    /// Runs `f` on `inputs` as leaves of a graph of their own.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn new(inputs: &[&Tensor], f: impl FnOnce(&[Tensor]) -> Result<Vec<Tensor>>) -> Result<Self> {
        let inputs = inputs.iter().map(|t| Var::from_tensor(&t.detach())).collect::<Result<Vec<_>>>()?;
        let leaves: Vec<Tensor> = inputs.iter().map(|v| v.as_tensor().clone()).collect();
        let outputs = f(&leaves)?;
        Ok(Self { inputs, outputs })
    }

    /// As [`Graph::new`], for a function of one tensor with `N` outputs; these come with it, outside the graph.
    pub(crate) fn of<const N: usize>(
        x: &Tensor,
        f: impl FnOnce(&Tensor) -> Result<[Tensor; N]>,
    ) -> Result<(Self, [Tensor; N])> {
        let mut outputs = None;
        let graph = Self::new(&[x], |x| {
            let found = f(&x[0])?;
            outputs = Some(std::array::from_fn(|i| found[i].detach()));
            Ok(found.into())
        })?;
        Ok((graph, outputs.expect("the function has run")))
    }

    /// The first input, outside the graph.
    pub(crate) fn x(&self) -> Tensor {
        self.inputs[0].as_tensor().detach()
    }

    /// The gradients of the inputs, given those of the outputs; gradients of parameters go to `grads`.
    ///
    /// # Errors
    /// When a gradient's shape does not fit its output.
    pub fn backward(&self, of_outputs: &[&Tensor], grads: &mut Gradients) -> Result<Vec<Tensor>> {
        if of_outputs.len() != self.outputs.len() {
            bail!("{} gradients were given for {} outputs", of_outputs.len(), self.outputs.len());
        }
        let mut sum: Option<Tensor> = None;
        for (y, g) in self.outputs.iter().zip(of_outputs) {
            if !y.track_op() {
                continue;
            }
            let term = (y * *g)?.sum_all()?;
            sum = Some(match sum {
                Some(s) => (s + term)?,
                None => term,
            });
        }
        let zeros = |v: &Var| v.zeros_like();
        let Some(sum) = sum else { return self.inputs.iter().map(zeros).collect() };
        let mut store = sum.backward()?;
        drop(sum);
        // candle's gradients are on its graph: without `detach` the layer before would differentiate them again.
        let of_inputs = self
            .inputs
            .iter()
            .map(|v| store.remove(v.as_tensor()).map_or_else(|| zeros(v), |g| Ok(g.detach())))
            .collect::<Result<Vec<_>>>()?;
        grads.add_all(&store)?;
        Ok(of_inputs)
    }
}
