//! What a layer of one's own gets wrong is an error that names the layer.

use crate::device;
use candle_core::{DType, Result, Tensor};
use flows::bijections::Permute;
use flows::testing::{Deviation, check, normal};
use flows::{Bijection, Chain, Context, Ctx, Gradients, Memory, ParamStore};

/// What is wrong with a layer.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// Its log-det has the shape (B, 1).
    Column,
    /// Its inverse is not one.
    Inverse,
    /// Its output has fewer elements than its input.
    Drops,
    /// Its inverse gives fewer elements.
    InverseDrops,
}

struct Wrong(Fault);

impl Bijection for Wrong {
    fn forward(&self, x: &Tensor, _: Ctx) -> Result<(Tensor, Tensor)> {
        let zeros = Tensor::zeros(x.dim(0)?, x.dtype(), x.device())?;
        match self.0 {
            Fault::Column => Ok((x.clone(), zeros.unsqueeze(1)?)),
            Fault::Drops => Ok((x.narrow(1, 0, 2)?, zeros)),
            Fault::Inverse | Fault::InverseDrops => Ok((x.clone(), zeros)),
        }
    }

    fn inverse(&self, z: &Tensor, _: Context) -> Result<Tensor> {
        if self.0 == Fault::InverseDrops { z.narrow(1, 0, 2) } else { z * 2. }
    }
}

#[test]
fn errors_name_the_layer() -> Result<()> {
    let p = ParamStore::seeded(3, DType::F64, &device());
    let (x, ctx) = (normal(&[3, 4], 1, &device())?, Ctx::train());
    for (i, (fault, says)) in [
        (Fault::Column, "[3, 1]"),
        (Fault::Drops, "[3, 2]"),
        (Fault::Inverse, "the inverse is off"),
        (Fault::InverseDrops, "[3, 2]"),
    ]
    .into_iter()
    .enumerate()
    {
        let (mut inner, mut chain) = (Chain::new(), Chain::new());
        inner.push("wrong", Wrong(fault));
        chain.push("reverse", Permute::reverse(4, &p.vb().pp(i))?);
        chain.push("inner", inner);
        let mut errors = vec![check(&chain, &x, None, &p, Deviation::LAYER).unwrap_err()];
        match fault {
            Fault::Column | Fault::Drops => {
                errors.push(chain.forward(&x, ctx).unwrap_err());
                errors.extend(chain.forward_saved(&x, ctx, Memory::Store).err());
                assert_eq!(errors.len(), 3);
            }
            Fault::InverseDrops => {
                errors.push(chain.inverse(&x, Context::none()).unwrap_err());
                let (z, _, saved) = chain.forward_saved(&x, ctx, Memory::Recompute)?;
                let gradients = (&normal(&[3, 4], 2, &device())?, &normal(&[3], 3, &device())?);
                errors.extend(chain.backward(&z, saved, gradients, ctx, &mut Gradients::new(&p)).err());
                assert_eq!(errors.len(), 3);
            }
            Fault::Inverse => {}
        }
        for e in errors {
            let e = e.to_string();
            assert!(e.contains("inner") && e.contains("wrong") && e.contains(says), "{e}");
        }
    }
    Ok(())
}
