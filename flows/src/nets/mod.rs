//! The networks of couplings: NICE's MLP, RealNVP's residual network, Glow's conv net; MADE for autoregressive layers.

mod act_norm;
mod batch_norm;
mod conv;
mod features;
mod made;
mod mlp;
mod resnet;

pub(crate) use act_norm::NetActNorm;
pub(crate) use batch_norm::{RunningMoments, mix};
pub use conv::ConvNet;
pub(crate) use features::fit_moments;
pub use features::{Features, WithFeatures};
pub use made::{Made, MadeConfig, Order};
pub use mlp::{Mlp, Start};
pub use resnet::{ResNet, ResNetConfig};
