"""Values of other libraries: splines as nflows has them, MAF and MADE as zuko has them, mixtures of logistics by torch.

    python -m venv env && env/bin/pip install torch safetensors numpy nflows zuko
    env/bin/python flows/tests/golden/peers.py     # peers.safetensors, beside this script

The committed values were made with nflows 0.14, zuko 1.6.0, torch 2.15.0, numpy 2.4.6 and safetensors 0.8.0 on Python 3.11,
on a CPU in f64. flows/tests/all/peers.rs compares the library with them.

Where their parameters are others than ours, ours are written and theirs computed from them:

- nflows adds no constant to the slopes' parameters, so that it is no identity at zero; we add c (`slope_constant`).
- zuko's masked networks order the hidden units differently, and keep the numbers of a dimension together; its affine map
  bounds the log-scale, so that torch's AffineTransform stands in for it.
- Our means of a mixture have fixed factors, and our log-scales are 7 tanh(h / 7).
"""

import math
from pathlib import Path

import numpy as np
import torch
import zuko
from layers import bell
from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline
from safetensors.torch import save_file
from torch import distributions as dist


def normal(name, *shape):
    return torch.from_numpy(bell(f"peers/{name}", math.prod(shape))).reshape(shape)


def spline(bins=5, bound=2.0, least=1e-3):
    """h (B, k C) with the first number of all elements first; some x are at the ends and beyond them."""
    b, c, k = 7, 3, 3 * bins - 1
    h, x = 1.5 * normal("spline.h", b, k * c), 1.2 * normal("spline.x", b, c)
    x[0] = torch.tensor([-bound, bound, 1e6], dtype=x.dtype)
    each = h.reshape(b, k, c).transpose(1, 2)
    slope_constant = math.log(math.expm1(1 - least))
    widths, heights, slopes = each.split([bins, bins, bins - 1], -1)
    args = dict(tail_bound=bound, min_bin_width=least, min_bin_height=least, min_derivative=least)
    y, log_slope = unconstrained_rational_quadratic_spline(x, widths, heights, slopes + slope_constant, **args)
    back, _ = unconstrained_rational_quadratic_spline(x, widths, heights, slopes + slope_constant, inverse=True, **args)
    return {"h": h, "x": x, "y": y, "log_slope": log_slope, "inverse": back}


def mixture(components=4):
    b, c, k = 6, 2, 3 * components + 2
    h, x = normal("mixture.h", b, k * c), 2 * normal("mixture.x", b, c)
    each = h.reshape(b, k, c).transpose(1, 2)
    weights, means, scales, a, shift = each.split([components] * 3 + [1, 1], -1)
    means = means * torch.tensor([(-1) ** i * (i + 1) / components for i in range(components)], dtype=means.dtype)
    bounded = lambda h: 7 * torch.tanh(h / 7)
    uniform = dist.Uniform(torch.zeros_like(means), torch.ones_like(means), validate_args=False)
    to_logistic = [dist.SigmoidTransform().inv, dist.AffineTransform(means, bounded(scales).exp())]
    logistic = dist.TransformedDistribution(uniform, to_logistic)
    of = dist.MixtureSameFamily(dist.Categorical(logits=weights), logistic, validate_args=False)
    cdf, a = of.cdf(x), bounded(a[..., 0])
    y = torch.logit(cdf) * a.exp() + shift[..., 0]
    return {"h": h, "x": x, "y": y, "log_slope": of.log_prob(x) - cdf.log() - (-cdf).log1p() + a}


def layer(name, order, features, hidden):
    """Our tensors of a MAF's layer, and zuko's layer with the same."""
    d, k = len(order), 2
    affine = lambda shift, log_scale: dist.AffineTransform(shift, log_scale.exp())
    theirs = zuko.flows.MaskedAutoregressiveTransform(
        d, features, order=np.argsort(order), univariate=affine, shapes=[(), ()], hidden_features=hidden
    ).double()
    ours = {f"{name}.order": torch.tensor(order, dtype=torch.uint32)}
    columns = torch.arange(d + features)
    # The number of inputs on which a unit depends.
    seen = torch.eye(d + features)
    linear = [m for m in theirs.hyper if isinstance(m, torch.nn.Linear)]
    for i, m in enumerate(linear):
        seen = ((m.mask.float() @ seen) > 0).float()
        if i + 1 < len(linear):
            rows = seen.sum(1).argsort(stable=True)
        else:
            rows = torch.tensor([[j * k + p for j in range(d)] for p in range(k)]).flatten()
        w = normal(f"{name}.{i}.weight", *m.weight.shape) / m.weight.shape[1] ** 0.5
        bias = 0.3 * normal(f"{name}.{i}.bias", len(m.bias))
        with torch.no_grad():
            m.weight[rows[:, None], columns[None]] = w
            m.bias[rows] = bias
        ours |= {f"{name}.{i}.weight": w, f"{name}.{i}.bias": bias}
        columns = rows
    return ours, theirs


def maf(features):
    b, orders = 5, [[0, 1, 2, 3], [2, 0, 3, 1]]
    # Widths that the numbers of degrees divide.
    hidden = [8, 12] if features else [6, 9]
    tensors, transforms = {}, []
    for i, order in enumerate(orders):
        ours, theirs = layer(f"layer{i}", order, features, hidden)
        tensors |= ours
        transforms.append(theirs)
    base = zuko.lazy.UnconditionalDistribution(zuko.distributions.DiagNormal, torch.zeros(4).double(), torch.ones(4).double())
    flow = zuko.lazy.Flow(transforms, base)
    x, c = normal("maf.x", b, 4), normal("maf.c", b, features) if features else None
    with torch.no_grad():
        at = flow(c)
        z = at.transform(x)
        values = {"x": x, "z": z, "log_prob": at.log_prob(x), "inverse": at.transform.inv(x)}
    return tensors | values | ({"c": c} if features else {})


if __name__ == "__main__":
    torch.set_num_threads(1)
    parts = {"spline": spline(), "mixture": mixture(), "maf": maf(0), "conditional": maf(2)}
    values = {f"{part}/{name}": t.contiguous() for part, of in parts.items() for name, t in of.items()}
    assert all(t.isfinite().all() for t in values.values() if t.is_floating_point())
    save_file(values, Path(__file__).parent / "peers.safetensors")
    print({name: list(t.shape) for name, t in values.items()})
