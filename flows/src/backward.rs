//! The way back: gradients of a whole flow, layer by layer, from kept inputs or from inputs that are rebuilt.
//!
//! ```text
//! x = f^-1(z),     g_x = J^T g_z + g_ld d log|det J| / dx,     and the same for each parameter of f
//! ```
//!
//! A flow is invertible, so its training step needs no stored activations: [`Memory::Recompute`] walks from the output to
//! the input, rebuilds each layer's input by the inverse, and takes that layer's gradient alone. Memory is then that of one
//! layer, however deep the flow is; a coupling runs its network once more, which serves both its inverse and its gradient
//! (the kept half is the same on both sides). [`Memory::Store`] keeps what each layer needs and rebuilds nothing. Both go
//! through [`Bijection::backward`]; a layer without one of its own is differentiated by candle's graph, of that layer only.
//!
//! Why not candle's graph of the whole flow: it adds every gradient to a fresh tensor of zeros, keeps all activations
//! whatever happens, and its ops keep no state. It remains for what is not a training step ([`Ctx::grad`]), and the law
//! holds each layer's own backward against it.

use crate::bijection::{Bijection, Ctx};
use crate::bijections::Net;
use crate::params::{Param, Params};
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, TensorId, Var};
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::collections::{BTreeMap, HashMap};

/// The gradients of the trained parameters, by name. A parameter that the loss does not depend on is absent.
pub type Grads = BTreeMap<String, Tensor>;

/// What a training pass keeps for its way back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// All that the gradients need: fastest, and memory grows with depth.
    #[default]
    Store,
    /// The output alone; inputs are rebuilt by the inverse.
    Recompute,
}

/// What one layer kept on its way forward; only that layer knows what it is.
#[derive(Default)]
pub struct Saved(Option<Box<dyn Any>>);

impl Saved {
    /// Nothing: the input is to be rebuilt.
    pub fn nothing() -> Self {
        Self(None)
    }

    /// `state`, for [`Saved::take`] of the same type.
    pub fn new<T: Any>(state: T) -> Self {
        Self(Some(Box::new(state)))
    }

    /// Whether a `T` was kept.
    pub fn is<T: Any>(&self) -> bool {
        self.0.as_ref().is_some_and(|s| s.is::<T>())
    }

    /// What was kept, or `None` if nothing was.
    pub fn take<T: Any>(self) -> Option<T> {
        let state: Box<T> = self.0?.downcast().expect("a layer takes what it kept itself");
        Some(*state)
    }

    /// What was kept, to look at.
    pub fn get<T: Any>(&self) -> Option<&T> {
        Some(self.0.as_ref()?.downcast_ref().expect("a layer reads what it kept itself"))
    }
}

/// Where layers put their parameters' gradients.
pub struct Gradients {
    names: HashMap<TensorId, String>,
    by_name: Grads,
}

impl Gradients {
    /// Empty, for the trained parameters of `params`.
    pub fn new(params: &Params) -> Self {
        let names = params.trained().into_iter().map(|(name, p)| (p.var().id(), name)).collect();
        Self { names, by_name: Grads::new() }
    }

    /// For whoever wants the gradient of the input alone: every parameter's is dropped.
    pub(crate) fn none() -> Self {
        Self { names: HashMap::new(), by_name: Grads::new() }
    }

    /// Adds the gradient `g` of `p`; that of a parameter which is not trained is dropped.
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

    /// Adds what candle's graph found.
    pub fn absorb(&mut self, store: &GradStore) -> Result<()> {
        // The order in which a hash map gives them does not matter: each is added to its own sum.
        for &id in store.get_ids() {
            if self.names.contains_key(&id) {
                self.add_id(id, store.get_id(id).expect("listed").detach())?;
            }
        }
        Ok(())
    }

    /// The gradients by name.
    pub fn into_grads(self) -> Grads {
        self.by_name
    }
}

/// A layer's pass on candle's graph: its input as a leaf, and its outputs.
pub(crate) struct Graph {
    x: Var,
    outputs: Vec<Tensor>,
}

impl Graph {
    /// Runs `f` on `x` as a leaf.
    pub(crate) fn new(x: &Tensor, f: impl FnOnce(&Tensor) -> Result<Vec<Tensor>>) -> Result<Self> {
        let x = Var::from_tensor(&x.detach())?;
        let outputs = f(x.as_tensor())?;
        Ok(Self { x, outputs })
    }

    /// The outputs, outside the graph.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = Tensor> {
        self.outputs.iter().map(Tensor::detach)
    }

    /// The input.
    pub(crate) fn x(&self) -> Tensor {
        self.x.as_tensor().detach()
    }

    /// The gradient of the input, given those of the outputs; parameters' go to `grads`.
    pub(crate) fn backward(self, of_outputs: &[&Tensor], grads: &mut Gradients) -> Result<Tensor> {
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
        let Some(sum) = sum else { return self.x.zeros_like() };
        let mut store = sum.backward()?;
        drop(sum);
        let gx = store.remove(self.x.as_tensor());
        grads.absorb(&store)?;
        // candle's gradients hang on its graph: without this, the layer before would differentiate them again.
        match gx {
            Some(g) => Ok(g.detach()),
            None => self.x.zeros_like(),
        }
    }
}

/// The default of [`Bijection::forward_saved`].
pub(crate) fn forward_saved<B: Bijection + ?Sized>(
    f: &B,
    x: &Tensor,
    ctx: Ctx,
    memory: Memory,
) -> Result<(Tensor, Tensor, Saved)> {
    match memory {
        Memory::Recompute => {
            let (z, log_det) = f.forward(x, ctx.with_grad(false))?;
            Ok((z, log_det, Saved::nothing()))
        }
        Memory::Store => {
            let graph = Graph::new(x, |x| f.forward(x, ctx.with_grad(true)).map(|(z, l)| vec![z, l]))?;
            let mut out = graph.outputs();
            let (z, log_det) = (out.next().expect("two outputs"), out.next().expect("two outputs"));
            drop(out);
            Ok((z, log_det, Saved::new(graph)))
        }
    }
}

/// The default of [`Bijection::backward`].
pub(crate) fn backward<B: Bijection + ?Sized>(
    f: &B,
    z: &Tensor,
    saved: Saved,
    (gz, gld): (&Tensor, &Tensor),
    ctx: Ctx,
    grads: &mut Gradients,
) -> Result<(Tensor, Tensor)> {
    let graph = match saved.take::<Graph>() {
        Some(graph) => graph,
        None => {
            let x = f.inverse(z, ctx.cond)?;
            Graph::new(&x, |x| f.forward(x, ctx.replay()).map(|(z, l)| vec![z, l]))?
        }
    };
    Ok((graph.x(), graph.backward(&[gz, gld], grads)?))
}

/// The way back of a layer that only moves elements: nothing is kept, and gradients move as the elements do.
macro_rules! moves_elements {
    () => {
        fn forward_saved(
            &self,
            x: &candle_core::Tensor,
            ctx: $crate::Ctx,
            _memory: $crate::Memory,
        ) -> candle_core::Result<(candle_core::Tensor, candle_core::Tensor, $crate::Saved)> {
            let (z, log_det) = self.forward(x, ctx.with_grad(false))?;
            Ok((z, log_det, $crate::Saved::nothing()))
        }

        fn backward(
            &self,
            z: &candle_core::Tensor,
            _saved: $crate::Saved,
            (gz, _): (&candle_core::Tensor, &candle_core::Tensor),
            ctx: $crate::Ctx,
            _grads: &mut $crate::Gradients,
        ) -> candle_core::Result<(candle_core::Tensor, candle_core::Tensor)> {
            Ok((self.inverse(z, ctx.cond)?, self.inverse(gz, ctx.cond)?))
        }
    };
}
pub(crate) use moves_elements;

/// The default of [`Net::forward_saved`].
pub(crate) fn net_forward_saved<N: Net + ?Sized>(net: &N, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Saved)> {
    let graph = Graph::new(x, |x| Ok(vec![net.forward(x, ctx.with_grad(true))?]))?;
    let y = graph.outputs().next().expect("one output");
    Ok((y, Saved::new(graph)))
}

/// The default of [`Net::backward`].
pub(crate) fn net_backward(saved: Saved, gy: &Tensor, grads: &mut Gradients) -> Result<Tensor> {
    saved.take::<Graph>().expect("kept by forward_saved").backward(&[gy], grads)
}
