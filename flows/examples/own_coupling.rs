//! Your own coupling: a network of candle-nn's layers inside the library's coupling, a bijection of your own beside it, and
//! the law that tells whether both are right.
//!
//! `cargo run --release --example own_coupling`

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Linear, Module, linear};
use flows::bijections::{Coupling, Net, Partition, Scale, Transform};
use flows::params::{Init, Param};
use flows::testing::{Deviation, check, normal};
use flows::{Bijection, Chain, Ctx, Params, Vb};

/// A network: whatever maps the kept part to (shift, raw scale).
struct TanhNet(Linear, Linear);

impl Net for TanhNet {
    fn forward(&self, x: &Tensor, _ctx: Ctx) -> Result<Tensor> {
        self.1.forward(&self.0.forward(x)?.tanh()?)
    }
}

/// A bijection of your own: z = sinh(asinh(x) + a_d), log-det = sum log cosh(asinh(x) + a) - log cosh(asinh(x)).
struct SinhShift {
    a: Param,
}

impl SinhShift {
    fn new(dims: usize, vb: &Vb) -> Result<Self> {
        Ok(Self { a: vb.get(dims, "a", Init::Const(0.))? })
    }
}

/// log(x + sqrt(x^2 + 1)).
fn asinh(x: &Tensor) -> Result<Tensor> {
    (x + (x.sqr()? + 1.)?.sqrt()?)?.log()
}

fn sinh_cosh(u: &Tensor) -> Result<(Tensor, Tensor)> {
    let (p, m) = (u.exp()?, u.neg()?.exp()?);
    Ok((((&p - &m)? / 2.)?, ((p + m)? / 2.)?))
}

impl Bijection for SinhShift {
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        let (z, cosh) = sinh_cosh(&asinh(x)?.broadcast_add(self.a.get(ctx.grad))?)?;
        let before = ((x.sqr()? + 1.)?.log()? / 2.)?;
        Ok((z, (cosh.log()? - before)?.sum(1)?))
    }

    fn inverse(&self, z: &Tensor, _cond: Option<&Tensor>) -> Result<Tensor> {
        Ok(sinh_cosh(&asinh(z)?.broadcast_sub(self.a.value())?)?.0)
    }
}

fn main() -> Result<()> {
    let params = Params::seeded(0, DType::F64, &Device::Cpu);
    let vb = params.vb();
    let net = vb.pp("net").candle();
    let net = TanhNet(linear(2, 16, net.pp("in"))?, linear(16, 4, net.pp("out"))?);
    let mut flow = Chain::new();
    flow.push("sinh", SinhShift::new(4, &vb.pp("sinh"))?);
    flow.push(
        "coupling",
        Coupling {
            partition: Partition::Halves { swap: false },
            net: Box::new(net),
            transform: Transform::Affine { scale: Scale::Sigmoid, shift_first: true },
        },
    );
    params.shake(1, 0.1)?;
    let met = check(&flow, &normal(&[3, 4], 2, &Device::Cpu)?, None, &params, Deviation::LAYER)?;
    println!(
        "the law holds: inverse {:.0e}, log-det {:.0e}, gradient {:.0e}",
        met.inverse, met.log_det, met.gradient
    );
    Ok(())
}
