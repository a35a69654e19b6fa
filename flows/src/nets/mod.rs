//! The networks of couplings: NICE's MLP, RealNVP's residual network, Glow's conv net.

mod conv;
mod mlp;
mod resnet;

pub use conv::ConvNet;
pub use mlp::{Mlp, Start};
pub use resnet::{ResNet, ResNetConfig};
