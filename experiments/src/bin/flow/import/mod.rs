//! PyTorch checkpoints of other projects as models of ours, with equal log p(x).
//!
//! All sizes are inferred from the tensors, except the height and width of images, which some checkpoints do not hold: then
//! `--size` gives them. What has no counterpart is refused in one sentence; nothing is dropped but what has no part in the
//! likelihood (a classifier's head, counters).
//!
//! | layout | what differs from ours, and how it is carried over |
//! |---|---|
//! | `glow-pytorch` | y0ast/Glow-PyTorch. Shifts and scales are interleaved in the coupling networks' output: its channels are reordered. The learned split prior is a mean and a scale: our coupling applies the negated ones. Actnorm has no factor 3: logs are divided by it. A fixed permutation is no part of its checkpoint: `--reversed` says that it is the reversal, a shuffle cannot be known. |
//! | `real-nvp` | chrischute/real-nvp. No batch norm after couplings, batch norm (doubled under a checkerboard) and ReLU of the networks' input, a gain for each channel, partitions the other way round: settings of our RealNVP. Scales come first in the networks' output: reordered. Where our networks see the mask, the weight is zero. |
//! | `normflows` | normflows's Glow: `MultiscaleFlow` of `GlowBlock`s with default maps (`scale_map="sigmoid"`, `split_mode="channel"`, `leaky=0`), which the checkpoint does not record. It samples forwards, so the order of its blocks is turned round and shifts are negated. A GlowBase is our split or top prior, of a mean and a scale for each channel. A DiagGaussian, a ClassCondDiagGaussian, and a GlowBase with classes below the top are parts of `learn_latent`, a mean and a scale for each dimension of the latent and each class. |
//!
//! Every mapping is checked on random weights against the log p(x) that PyTorch gives (tests/import).

mod convert;
mod glow_pytorch;
mod normflows;
mod pickle;
mod pth;
mod real_nvp;
mod tensors;

pub use convert::convert;
pub use pth::Kind;
pub use tensors::{Layout, Options, Pixels};
