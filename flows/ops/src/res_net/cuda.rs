//! The residual network through kernels, in the precision set for networks, channels last.

use super::kernels::{signed_input, signed_input_backward};
use super::spec::{Conv, Output, ResNetGradients, ResNetParams, SavedState};
use crate::act_norm;
use crate::conv::reference::{conv_last, conv_last_backward};
use crate::cuda::network::{
    Act, Norm, bias_backward, from_last, moments, relu_backward, to_last, weight_norm, weight_norm_backward,
};
use crate::precision;
use candle_core::{DType, Result, Shape, Tensor, bail};

/// What a convolution's backward pass needs: its input, its kernel and 1/|v|.
struct ConvPass {
    x: Tensor,
    w: Tensor,
    inverse: Option<Tensor>,
}

/// w * x without the bias, and what the backward pass needs.
fn conv(conv: &Conv, x: &Tensor) -> Result<(Tensor, ConvPass)> {
    let (w, inverse) = match &conv.magnitude {
        Some(g) => {
            let (w, inverse) = weight_norm(&conv.weight, g, x.dtype())?;
            (w, Some(inverse))
        }
        None => (to_last(&conv.weight, x.dtype())?, None),
    };
    Ok((conv_last(x, &w)?, ConvPass { x: x.clone(), w, inverse }))
}

/// The gradients of x and of the convolution, from that of its output and that of its bias.
fn conv_backward(conv: &Conv, pass: ConvPass, gy: &Tensor, bias: Tensor) -> Result<(Tensor, Conv)> {
    let (gx, gw) = conv_last_backward(&pass.x, &pass.w, gy)?;
    let (weight, magnitude) = match (&conv.magnitude, &pass.inverse) {
        (Some(g), Some(inverse)) => {
            let (gv, gg) = weight_norm_backward(&gw, &conv.weight, g, inverse)?;
            (gv, Some(gg))
        }
        _ => (from_last(&gw, conv.weight.dtype())?, None),
    };
    Ok((gx, Conv { weight, magnitude, bias }))
}

/// What the backward pass of a normalisation with its ReLU, or of ReLU alone, needs: the input, or the output.
enum NormPass {
    Norm(Tensor, Norm),
    Relu(Tensor),
}

/// The gradient of the input, and those of gain and shift.
fn norm_relu_backward(pass: NormPass, gy: &Tensor) -> Result<(Tensor, Option<[Tensor; 2]>)> {
    match pass {
        NormPass::Norm(x, norm) => {
            let (gx, gamma, beta) = norm.backward(&x, gy, true)?;
            Ok((gx, Some([gamma, beta])))
        }
        NormPass::Relu(y) => Ok((relu_backward(&y, gy)?, None)),
    }
}

/// What a pass keeps, in the order of the parameters.
struct Pass {
    channels: usize,
    /// The output's.
    shape: Shape,
    dtype: DType,
    convs: Vec<ConvPass>,
    norms: Vec<NormPass>,
}

/// Runs a network's layers in the order of the pass, and keeps what each leaves.
struct Forward<'a> {
    p: &'a ResNetParams,
    pass: Pass,
    statistics: Vec<Option<Tensor>>,
}

impl Forward<'_> {
    /// The next convolution without its bias, and the bias.
    fn bare_conv(&mut self, x: &Tensor) -> Result<(Tensor, &Tensor)> {
        let of = &self.p.convs[self.pass.convs.len()];
        let (y, pass) = conv(of, x)?;
        self.pass.convs.push(pass);
        Ok((y, &of.bias))
    }

    /// The next convolution, with `add` added.
    fn conv(&mut self, x: &Tensor, add: Option<&Tensor>) -> Result<Tensor> {
        let (y, bias) = self.bare_conv(x)?;
        Act { bias: Some(bias), add, ..Act::default() }.run(&y)
    }

    /// The next normalisation with its ReLU.
    fn norm(&mut self, h: Tensor) -> Result<Tensor> {
        let (p, own) = (self.p, self.p.batch_statistics);
        let Some(norm) = &p.norms[self.pass.norms.len()] else {
            let y = Act { relu: true, ..Act::default() }.run(&h)?;
            self.pass.norms.push(NormPass::Relu(y.clone()));
            self.statistics.push(None);
            return Ok(y);
        };
        let batch = if own { Some(moments(&h)?) } else { None };
        let (mean, var) = match &batch {
            Some(m) => (m.get(0)?, m.get(1)?),
            None => (norm.mean.clone(), norm.var.clone()),
        };
        self.statistics.push(batch);
        let norm = Norm { mean, var, gamma: norm.gamma.clone(), beta: norm.beta.clone(), eps: p.eps, own };
        let y = norm.forward(&h, true)?;
        self.pass.norms.push(NormPass::Norm(h, norm));
        Ok(y)
    }
}

/// [`super::forward`].
pub(crate) fn forward(p: &ResNetParams, x: &Tensor, keep: bool) -> Result<Output> {
    let (channels, inside) = (x.dim(1)?, precision::inside(x));
    let u = signed_input(x, p.signed_input, p.mask.as_ref())?;
    let (shape, dtype) = (x.shape().clone(), x.dtype());
    let pass = Pass { channels, shape, dtype, convs: Vec::new(), norms: Vec::new() };
    let mut run = Forward { p, pass, statistics: Vec::new() };
    let mut h = run.conv(&to_last(&u, inside)?, None)?;
    let mut sum = if p.skip { Some(run.conv(&h, None)?) } else { None };
    for _ in 0..p.blocks() {
        let r = run.norm(h.clone())?;
        let r = run.conv(&r, None)?;
        let r = run.norm(r)?;
        h = run.conv(&r, Some(&h))?;
        if let Some(s) = sum {
            sum = Some(run.conv(&h, Some(&s))?);
        }
    }
    let h = run.norm(sum.unwrap_or(h))?;
    // The output is in full precision from here on.
    let (y, bias) = run.bare_conv(&h)?;
    let y = act_norm::cuda::act_norm(&from_last(&y, x.dtype())?, None, bias, None, 0., false)?;
    run.pass.shape = y.shape().clone();
    Ok(Output { y, statistics: run.statistics, saved: keep.then(|| SavedState(Box::new(run.pass))) })
}

/// Runs backward through a network's layers, and gathers their gradients.
struct Backward<'a> {
    p: &'a ResNetParams,
    pass: Pass,
    convs: Vec<Conv>,
    norms: Vec<Option<[Tensor; 2]>>,
}

impl Backward<'_> {
    /// Through the last convolution that is left, given the gradient of its bias.
    fn bare_conv(&mut self, gy: &Tensor, bias: Tensor) -> Result<Tensor> {
        let pass = self.pass.convs.pop().expect("one for each convolution");
        let (gx, g) = conv_backward(&self.p.convs[self.pass.convs.len()], pass, gy, bias)?;
        self.convs.push(g);
        Ok(gx)
    }

    /// Through the last convolution that is left.
    fn conv(&mut self, gy: &Tensor) -> Result<Tensor> {
        self.bare_conv(gy, bias_backward(gy)?)
    }

    /// Through the last normalisation that is left.
    fn norm(&mut self, gy: &Tensor) -> Result<Tensor> {
        let (gx, g) = norm_relu_backward(self.pass.norms.pop().expect("one for each norm"), gy)?;
        self.norms.push(g);
        Ok(gx)
    }
}

/// [`super::backward`].
pub(crate) fn backward(p: &ResNetParams, saved: SavedState, gy: &Tensor) -> Result<ResNetGradients> {
    let Ok(pass) = saved.0.downcast::<Pass>() else { bail!("the pass was not one through kernels") };
    let mut run = Backward { p, pass: *pass, convs: Vec::new(), norms: Vec::new() };
    if (gy.shape(), gy.dtype()) != (&run.pass.shape, run.pass.dtype) {
        let (got, want) = ((gy.shape(), gy.dtype()), (&run.pass.shape, run.pass.dtype));
        bail!("the gradient of an output {want:?} was given as {got:?}")
    }
    let inside = run.pass.convs.last().map_or(gy.dtype(), |pass| pass.x.dtype());
    let g = run.bare_conv(&to_last(gy, inside)?, act_norm::cuda::bias_backward(gy)?)?;
    // The gradient of the sum of skips, or without skips that of the residual stream.
    let g = run.norm(&g)?;
    let mut of_stream = if p.skip { None } else { Some(g.clone()) };
    for _ in 0..p.blocks() {
        if p.skip {
            of_stream = Some(plus(of_stream, run.conv(&g)?)?);
        }
        let gh = of_stream.expect("without a skip the stream is the output");
        let r = run.conv(&gh)?;
        let r = run.norm(&r)?;
        let r = run.conv(&r)?;
        let r = run.norm(&r)?;
        of_stream = Some((gh + r)?);
    }
    if p.skip {
        of_stream = Some(plus(of_stream, run.conv(&g)?)?);
    }
    let gh = of_stream.expect("without a skip the stream is the output");
    let gu = from_last(&run.conv(&gh)?, gy.dtype())?;
    let x = signed_input_backward(&gu, run.pass.channels, p.signed_input)?;
    run.convs.reverse();
    run.norms.reverse();
    Ok(ResNetGradients { x, convs: run.convs, norms: run.norms })
}

fn plus(a: Option<Tensor>, b: Tensor) -> Result<Tensor> {
    match a {
        Some(a) => a + b,
        None => Ok(b),
    }
}
