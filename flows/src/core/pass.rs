//! What a pass through a flow may modify, and what it is given beside its input.

use candle_core::Tensor;

/// Whether a pass uses the batch's statistics or the running ones, and whether it writes parameters or statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Running statistics are used, nothing is written.
    Eval,
    /// Statistics of the batch are used, and running statistics are updated.
    Train,
    /// Data-dependent initialisation: layers set their parameters from this batch.
    Init,
    /// As `Train`, but nothing is written: for a pass that is repeated.
    Replay,
    /// As `Train`, but the running statistics become the mean over this batch and the k - 1 before it, where this is the k-th,
    /// counted from 1 ([`Flow::measure`](crate::Flow::measure)).
    Measure(u32),
}

impl Mode {
    /// Whether layers with batch statistics use those of the batch.
    pub fn uses_batch_statistics(self) -> bool {
        !matches!(self, Mode::Eval)
    }

    /// The weight of this batch in a running average: `momentum` in training, 1 in initialisation, 1 / k in the k-th batch of a
    /// measurement, 0 where the pass writes nothing.
    pub fn batch_share(self, momentum: f64) -> f64 {
        match self {
            Mode::Init => 1.,
            Mode::Train => momentum,
            Mode::Measure(k) => 1. / f64::from(k),
            Mode::Eval | Mode::Replay => 0.,
        }
    }
}

/// What a conditional model is given beside its input. A model that is not conditional ignores it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    /// Class labels, u32 of shape (B,).
    pub labels: Option<&'a Tensor>,
    /// Features of each example, (B, E) or (B, E, H, W).
    pub features: Option<&'a Tensor>,
}

impl<'a> Context<'a> {
    /// Nothing beside the input.
    pub fn none() -> Self {
        Self::default()
    }

    /// Class labels, u32 of shape (B,).
    pub fn labels(labels: &'a Tensor) -> Self {
        Self { labels: Some(labels), features: None }
    }

    /// Features of each example, (B, E) or (B, E, H, W).
    pub fn features(features: &'a Tensor) -> Self {
        Self { labels: None, features: Some(features) }
    }
}

impl<'a> From<Option<&'a Tensor>> for Context<'a> {
    /// Class labels, where there are any.
    fn from(labels: Option<&'a Tensor>) -> Self {
        Self { labels, features: None }
    }
}

/// The settings of one pass.
#[derive(Clone, Copy, Debug)]
pub struct Ctx<'a> {
    /// What the pass uses and modifies.
    pub mode: Mode,
    /// What a conditional model is given beside its input.
    pub context: Context<'a>,
    /// Whether parameters are leaves of candle's graph. It is independent of `mode`: tests differentiate the evaluated flow,
    /// and an evaluation must not keep an unused graph.
    pub grad: bool,
}

impl<'a> Ctx<'a> {
    /// Evaluation without a graph.
    pub fn eval() -> Self {
        Self { mode: Mode::Eval, context: Context::none(), grad: false }
    }

    /// A training pass with a graph.
    pub fn train() -> Self {
        Self { mode: Mode::Train, context: Context::none(), grad: true }
    }

    /// Data-dependent initialisation, without a graph.
    pub fn init() -> Self {
        Self { mode: Mode::Init, context: Context::none(), grad: false }
    }

    /// A training pass repeated: with a graph, and nothing is written.
    #[must_use]
    pub fn replay(self) -> Self {
        let mode = if self.mode == Mode::Train { Mode::Replay } else { self.mode };
        Self { mode, grad: true, ..self }
    }

    /// The same pass with another context.
    #[must_use]
    pub fn with_context(self, context: impl Into<Context<'a>>) -> Self {
        Self { context: context.into(), ..self }
    }

    /// The same pass with or without a graph.
    #[must_use]
    pub fn with_grad(self, grad: bool) -> Self {
        Self { grad, ..self }
    }
}
