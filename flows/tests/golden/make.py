"""Golden values: NICE, RealNVP, Glow and MAF once more, in plain PyTorch, to hold the Rust library against.

    python -m venv env && env/bin/pip install torch safetensors numpy
    env/bin/python flows/tests/golden/make.py           # everything, beside this script
    env/bin/python flows/tests/golden/make.py FOLDER    # golden.safetensors for a model that the library saved

The committed values were made with torch 2.15.0, numpy 2.4.6 and safetensors 0.8.0 on Python 3.11, on a CPU in
f64. flows/tests/all/golden.rs compares the library with them.

For each model of `CONFIGS` there is a folder as the library saves one (config.json, model.safetensors) and
golden.safetensors with

    x         inputs in the units of the data              z         latents
    log_prob  log p(x), nats, (B,)                         decoded   f^-1(z)
    encoded   f(x), (B, D)                                 cond      class labels (u32), where the model has classes
                                                           c         features (B, E), where the model is given any

Nothing here comes from the Rust code but the names and shapes of the tensors:

- Weights are a function of the tensor's name and the element's index (`bell`, `even`), sums of integers from SHAKE-256.
- The layers are written from the papers' equations, and log-dets are not written at all: log |det dz/dx| is that of the
  Jacobian which autograd gives for the whole flow, one example at a time.
- Inverses are written out and must undo the forward here before anything is saved.
"""

import hashlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file

CONFIGS = {
    # The paper's MNIST model, small: odd/even partition, additive, logistic prior.
    "nice": {
        "model": "nice", "shape": [1, 4, 4], "bits": 8, "preprocess": {"kind": "unit"}, "order": "even_odd",
        "hidden": [[12, 12], [12], [10, 12], [12]], "law": "additive", "init": 0.01, "prior": "logistic",
    },
    # Odd number of dimensions, whitening, reversals, affine.
    "nice_zca": {
        "model": "nice", "shape": [1, 3, 3], "bits": 8, "preprocess": {"kind": "zca", "epsilon": 1e-4},
        "order": "reverse", "hidden": [[8, 8], [], [10]], "law": "affine", "init": 0.01, "prior": "gaussian",
    },
    # Vectors in units of their own.
    "nice_standardize": {
        "model": "nice", "shape": [5], "bits": 8, "preprocess": {"kind": "standardize"},
        "order": "even_odd", "hidden": [[8], [8]], "law": "affine", "init": 0.01, "prior": "gaussian",
    },
    # The released code's conventions.
    "realnvp": {
        "model": "realnvp", "shape": [2, 8, 8], "bits": 8,
        "preprocess": {"kind": "logit", "alpha": 0.05, "scale": "code"}, "scales": 2, "features": 4, "blocks": 2,
        "checkerboard": 3, "channelwise": 2, "last_checkerboard": 2, "shift_first": True, "signed_input": True,
        "weight_norm": True, "skip": True, "batch_norm": True, "statistics": "running", "momentum": 0.1, "eps": 1e-4,
    },
    # Every switch the other way, sides that differ, three scales.
    "realnvp_plain": {
        "model": "realnvp", "shape": [1, 4, 12], "bits": 5,
        "preprocess": {"kind": "logit", "alpha": 0.01, "scale": "paper"}, "scales": 3, "features": 2, "blocks": 1,
        "checkerboard": 1, "channelwise": 2, "last_checkerboard": 2, "shift_first": False, "signed_input": False,
        "weight_norm": False, "skip": False, "batch_norm": False, "statistics": "batch", "momentum": 0.1, "eps": 1e-4,
    },
    # The paper's law and matrix, the released code's edge bias, both learned priors.
    "glow": {
        "model": "glow", "shape": [3, 8, 8], "bits": 8, "preprocess": {"kind": "centered"}, "levels": 2, "depth": 2,
        "width": 8, "law": "affine", "permutation": "plu", "edge_bias": True, "learn_top": True, "learn_split": True,
    },
    # Class-conditional, additive, plain W, no edge bias, 5 bits.
    "glow_classes": {
        "model": "glow", "shape": [1, 8, 8], "bits": 5, "preprocess": {"kind": "centered"}, "levels": 2, "depth": 2,
        "width": 6, "law": "additive", "permutation": "plain", "edge_bias": False, "learn_top": True,
        "learn_split": False, "classes": 3,
    },
    # A mean and a scale for each dimension of the latent and each class, reversals, no other learned prior.
    "glow_latent": {
        "model": "glow", "shape": [1, 4, 8], "bits": 8, "preprocess": {"kind": "unit"}, "levels": 2, "depth": 1,
        "width": 4, "law": "affine", "permutation": "reverse", "edge_bias": False, "learn_top": False,
        "learn_split": False, "learn_latent": True, "classes": 3,
    },
    # p(x | c), c three numbers beside x.
    "nice_features": {
        "model": "nice", "shape": [5], "bits": 8, "preprocess": {"kind": "standardize"}, "order": "even_odd",
        "hidden": [[8], [7]], "law": "additive", "init": 0.01, "prior": "gaussian",
        "context": {"kind": "features", "shape": [3]},
    },
    # p(x | class), of which all networks see an embedding.
    "glow_embedding": {
        "model": "glow", "shape": [1, 8, 8], "bits": 8, "preprocess": {"kind": "centered"}, "levels": 2, "depth": 1,
        "width": 6, "law": "affine", "permutation": "plain", "edge_bias": False, "learn_top": True, "learn_split": True,
        "context": {"kind": "labels", "classes": 3, "embedding": 4},
    },
    # Splines, whose bound some inputs exceed.
    "nice_spline": {
        "model": "nice", "shape": [5], "bits": 8, "preprocess": {"kind": "standardize"}, "order": "even_odd",
        "hidden": [[7], [6]], "law": {"rational_quadratic_spline": {
            "bins": 4, "bound": 1.5, "min_width": 1e-2, "min_height": 2e-2, "min_slope": 3e-2,
        }}, "init": 0.01, "prior": "gaussian",
    },
    # Mixtures of logistics over images.
    "glow_mixture": {
        "model": "glow", "shape": [1, 4, 4], "bits": 8, "preprocess": {"kind": "centered"}, "levels": 1, "depth": 2,
        "width": 4, "law": {"mixture_of_logistics": {"components": 3}}, "permutation": "reverse", "edge_bias": False,
        "learn_top": True, "learn_split": False,
    },
    # The paper's alternating orders, affine.
    "maf": {
        "model": "maf", "shape": [5], "bits": 8, "preprocess": {"kind": "standardize"}, "order": "reverse",
        "layers": 3, "hidden": [10, 6], "transform": "affine", "prior": "gaussian",
    },
    # Splines in random orders, over images.
    "maf_spline": {
        "model": "maf", "shape": [1, 2, 2], "bits": 8, "preprocess": {"kind": "unit"}, "order": "random", "layers": 2,
        "hidden": [7], "transform": {"rational_quadratic_spline": {
            "bins": 3, "bound": 2.0, "min_width": 1e-3, "min_height": 1e-3, "min_slope": 1e-3,
        }}, "prior": "logistic",
    },
}


# Numbers from names -------------------------------------------------------------------------------------------------


def integers(name, n, k):
    """(n, k) integers below 2^32; row i depends on the name and on i only."""
    return np.frombuffer(hashlib.shake_256(name.encode()).digest(4 * n * k), "<u4").reshape(n, k)


def bell(name, n):
    """About N(0, 1): the sum of twelve uniform numbers less 6. No libm, so the same bits everywhere."""
    return integers(name, n, 12).astype(np.float64).sum(1) / 2.0**32 - 6


def even(name, n):
    """U[0, 1)."""
    return integers(name, n, 1)[:, 0] / 2.0**32


class Maker:
    """Gives each tensor that a model asks for its values and keeps them."""

    def __init__(self, model):
        self.model, self.tensors, self.trained = model, {}, 0

    def __call__(self, key, shape, mean=0.0, std=0.1):
        name, n = f"{self.model}/{key}", math.prod(shape)
        self.trained += n
        return self.keep(key, (mean(name) if callable(mean) else mean) + std * bell(name, n), shape)

    def buffer(self, key, shape, values):
        return self.keep(key, values(f"{self.model}/{key}"), shape)

    def keep(self, key, values, shape):
        assert key not in self.tensors, key
        values = np.ascontiguousarray(values).reshape(shape)
        self.tensors[key] = values if values.dtype == np.uint32 else values.astype(np.float64)
        return torch.from_numpy(self.tensors[key].astype(np.int64 if values.dtype == np.uint32 else np.float64))


class Reader:
    """Gives the tensors of a saved folder."""

    def __init__(self, folder):
        self.tensors = load_file(folder / "model.safetensors")

    def __call__(self, key, shape, mean=0.0, std=0.1):
        return self.buffer(key, shape, None)

    def buffer(self, key, shape, values):
        t = self.tensors.pop(key)
        assert list(t.shape) == list(shape), (key, t.shape, shape)
        return torch.from_numpy(t.astype(np.int64 if t.dtype == np.uint32 else np.float64))


# Layers: forward(x, y) and inverse(z, y), y the class labels or the features -----------------------------------------


class Scale:
    """z = a x + b, a and b numbers or tensors that broadcast."""

    def __init__(self, a, b=0.0):
        self.a, self.b = a, b

    def forward(self, x, y):
        return self.a * x + self.b

    def inverse(self, z, y):
        return (z - self.b) / self.a


class Logit:
    """RealNVP section 4.1: logit(alpha + c x)."""

    def __init__(self, alpha, scale):
        self.alpha, self.c = alpha, {"paper": 1 - alpha, "code": 1 - 2 * alpha}[scale]

    def forward(self, x, y):
        return torch.logit(self.alpha + self.c * x)

    def inverse(self, z, y):
        return (torch.sigmoid(z) - self.alpha) / self.c


class Reshape:
    def __init__(self, shape):
        self.shape = shape

    def forward(self, x, y):
        return x.flatten(1)

    def inverse(self, z, y):
        return z.reshape([-1, *self.shape])


class Matrix:
    """z_i = sum_j W_ij x_j over dimension 1: whitening and the 1x1 convolution."""

    def __init__(self, w):
        self.w = w

    def forward(self, x, y):
        return torch.einsum("ij,bj...->bi...", self.w, x)

    def inverse(self, z, y):
        flat = z.flatten(2) if z.dim() > 2 else z.unsqueeze(2)
        return torch.linalg.solve(self.w, flat).reshape(z.shape)


class Take:
    """z_d = x_index(d)."""

    def __init__(self, index):
        self.index = index

    def forward(self, x, y):
        return x[:, self.index]

    def inverse(self, z, y):
        x = torch.empty_like(z)
        x[:, self.index] = z
        return x


class Squeeze:
    """2x2 pixels to channels: channel 4c + 2u + v is the pixel (u, v) of each 2x2 square of channel c."""

    def forward(self, x, y):
        parts = [x[:, c : c + 1, u::2, v::2] for c in range(x.shape[1]) for u in (0, 1) for v in (0, 1)]
        return torch.cat(parts, 1)

    def inverse(self, z, y):
        b, c, h, w = z.shape
        x = z.new_empty(b, c // 4, 2 * h, 2 * w)
        for k in range(c):
            x[:, k // 4, k % 4 // 2 :: 2, k % 2 :: 2] = z[:, k]
        return x


class Coupling:
    """z = x where kept; elsewhere what a transform makes of x and of the numbers that the network has for it.

    `swap` keeps the second half instead of the first; a `mask`, 1 where kept, is given instead of halves. `beside` puts what the
    network sees of y behind x.
    """

    def __init__(self, net, law, swap=False, mask=None, beside=lambda x, y: x):
        self.net, self.law, self.swap, self.mask, self.beside = net, law, swap, mask, beside

    def parts(self, x):
        c = x.shape[1] // 2
        return (x[:, c:], x[:, :c]) if self.swap else (x[:, :c], x[:, c:])

    def transform(self, x, y, run):
        kept, changed = (x * self.mask, x) if self.mask is not None else self.parts(x)
        new = run(changed, self.net(self.beside(kept, y)))
        if self.mask is not None:
            return torch.where(self.mask > 0, x, new)
        return torch.cat([new, kept] if self.swap else [kept, new], 1)

    def forward(self, x, y):
        return self.transform(x, y, self.law.forward)

    def inverse(self, z, y):
        return self.transform(z, y, self.law.inverse)


class Autoregressive:
    """z_i = T(x_i; h_i), with h_i a function of the x before i in the order."""

    def __init__(self, net, law, order):
        self.net, self.law, self.order = net, law, order.tolist()

    def forward(self, x, y):
        return self.law.forward(x, self.net(x))

    def inverse(self, z, y):
        x, d = torch.zeros_like(z), len(self.order)
        for i in self.order:
            x[:, i : i + 1] = self.law.inverse(z[:, i : i + 1], self.net(x)[:, i::d])
        return x


# Transforms: forward(x, h) and inverse(y, h); h (B, k C, ..) has the first number of all channels, then the second ----------


class Affine:
    """x exp(s) + t or (x + t) exp(s), with s a function of the second number; x + t where there is none."""

    def __init__(self, log_scale=None, shift_first=False):
        self.log_scale, self.shift_first = log_scale, shift_first

    def shift_scale(self, h):
        if self.log_scale is None:
            return h, torch.ones_like(h)
        t, raw = h.chunk(2, 1)
        return t, self.log_scale(raw).exp()

    def forward(self, x, h):
        t, scale = self.shift_scale(h)
        return (x + t) * scale if self.shift_first else x * scale + t

    def inverse(self, y, h):
        t, scale = self.shift_scale(h)
        return y / scale - t if self.shift_first else (y - t) / scale


class Spline:
    """Durkan et al. 2019, section 3.1: rational-quadratic pieces on [-bound, bound], the identity beyond, one piece at a time.

    The slopes' parameters are counted from those of slope 1.
    """

    def __init__(self, bins, bound, min_width, min_height, min_slope):
        self.bins, self.bound, self.least, self.min_slope = bins, bound, (min_width, min_height), min_slope

    def pieces(self, h, c):
        """The pieces from left to right: x, y, their widths and heights, and the slopes at both ends."""
        h = h.reshape(h.shape[0], 3 * self.bins - 1, c, *h.shape[2:])
        wide, high = (
            2 * self.bound * (least + (1 - least * self.bins) * torch.softmax(h[:, i * self.bins : (i + 1) * self.bins], 1))
            for i, least in enumerate(self.least)
        )
        one = torch.ones_like(h[:, 0])
        start = math.log(math.exp(1 - self.min_slope) - 1)
        slopes = [one, *(self.min_slope + F.softplus(h[:, 2 * self.bins :] + start)).unbind(1), one]
        x = y = -self.bound * one
        for k in range(self.bins):
            yield x, y, wide[:, k], high[:, k], slopes[k], slopes[k + 1]
            x, y = x + wide[:, k], y + high[:, k]

    def forward(self, x, h):
        y = x
        for x0, y0, w, height, d0, d1 in self.pieces(h, x.shape[1]):
            s, t = height / w, (x - x0) / w
            new = y0 + height * (s * t**2 + d0 * t * (1 - t)) / (s + (d0 + d1 - 2 * s) * t * (1 - t))
            y = torch.where((t >= 0) & (t < 1) & (x.abs() <= self.bound), new, y)
        return y

    def inverse(self, y, h):
        x = y
        for x0, y0, w, height, d0, d1 in self.pieces(h, y.shape[1]):
            s, r = height / w, y - y0
            a, b, c = height * (s - d0) + r * (d0 + d1 - 2 * s), height * d0 - r * (d0 + d1 - 2 * s), -s * r
            t = 2 * c / (-b - torch.sqrt(torch.clamp(b**2 - 4 * a * c, min=0)))
            x = torch.where((r >= 0) & (r < height) & (y.abs() <= self.bound), x0 + t * w, x)
        return x


class Mixture:
    """Flow++, section 3.2: exp(a) logit F(x) + b with F the distribution function of a mixture of logistics."""

    def __init__(self, components):
        self.k = components

    def parameters(self, h, c):
        k = self.k
        h = h.reshape(h.shape[0], 3 * k + 2, c, *h.shape[2:])
        factors = torch.tensor([(i + 1) / k * (1 if i % 2 == 0 else -1) for i in range(k)], dtype=h.dtype)
        mean = h[:, k : 2 * k] * factors.reshape(1, k, *[1] * (h.dim() - 2))
        scale = torch.exp(7 * torch.tanh(h[:, 2 * k : 3 * k] / 7))
        return torch.softmax(h[:, :k], 1), mean, scale, torch.exp(7 * torch.tanh(h[:, 3 * k] / 7)), h[:, 3 * k + 1]

    def forward(self, x, h):
        weight, mean, scale, a, b = self.parameters(h, x.shape[1])
        u = (x[:, None] - mean) / scale
        return a * ((weight * torch.sigmoid(u)).sum(1).log() - (weight * torch.sigmoid(-u)).sum(1).log()) + b

    def inverse(self, y, h):
        low, high = torch.full_like(y, -1e3), torch.full_like(y, 1e3)
        for _ in range(80):
            middle = (low + high) / 2
            above = self.forward(middle, h) > y
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2


def transform(law, affine):
    """The transform of a config; `affine` makes what the model has for that name."""
    if law == "additive":
        return Affine()
    if law == "affine":
        return affine()
    ((kind, settings),) = law.items()
    return {"rational_quadratic_spline": Spline, "mixture_of_logistics": Mixture}[kind](**settings)


def numbers(law):
    """How many numbers a network gives for each element."""
    if isinstance(law, str):
        return {"additive": 1, "affine": 2}[law]
    ((kind, settings),) = law.items()
    return 3 * settings["bins"] - 1 if kind == "rational_quadratic_spline" else 3 * settings["components"] + 2


class ClassPrior:
    """z = (x - mean) / std, each a function of the channel and of the class: Glow's top prior."""

    def __init__(self, get, path, channels, classes):
        self.bias = get(f"{path}.bias", [2 * channels], std=0.3)
        self.gain = get(f"{path}.gain", [2 * channels])
        self.emb = None if classes is None else get(f"{path}.emb", [classes, 2 * channels], std=0.5)

    def mean_std(self, y):
        h = self.bias[None] if self.emb is None else self.bias + self.emb[y]
        mean, logs = (h * torch.exp(3 * self.gain))[:, :, None, None].chunk(2, 1)
        return mean, logs.exp()

    def forward(self, x, y):
        mean, std = self.mean_std(y)
        return (x - mean) / std

    def inverse(self, z, y):
        mean, std = self.mean_std(y)
        return z * std + mean


class LatentPrior:
    """z = (x - mean) / std, each a function of the dimension of the latent and of the class."""

    def __init__(self, get, path, dims, classes):
        self.classes = classes
        self.mean = get(f"{path}.mean", [classes or 1, dims], std=0.4)
        self.logs = get(f"{path}.logs", [classes or 1, dims], std=0.3)

    def mean_std(self, y):
        row = slice(None) if self.classes is None else y
        return self.mean[row], self.logs[row].exp()

    def forward(self, x, y):
        mean, std = self.mean_std(y)
        return (x - mean) / std

    def inverse(self, z, y):
        mean, std = self.mean_std(y)
        return z * std + mean


class Chain:
    def __init__(self, *layers):
        self.layers = list(layers)

    def forward(self, x, y):
        for layer in self.layers:
            x = layer.forward(x, y)
        return x

    def inverse(self, z, y):
        for layer in reversed(self.layers):
            z = layer.inverse(z, y)
        return z


class Levels:
    """After each level but the last the second half of the channels is done; z is all that is done, in this order."""

    def __init__(self, levels, shape):
        self.levels, self.shape = levels, shape

    def forward(self, x, y):
        done = []
        for level in self.levels[:-1]:
            x, out = level.forward(x, y).chunk(2, 1)
            done.append(out.flatten(1))
        done.append(self.levels[-1].forward(x, y).flatten(1))
        return torch.cat(done, 1)

    def inverse(self, z, y):
        # The shapes of the levels are what the layers make of an input.
        parts, probe = [], torch.zeros(1, *self.shape, dtype=z.dtype)
        for i, level in enumerate(self.levels):
            probe = level.forward(probe, None if y is None else y[:1])
            if i + 1 < len(self.levels):
                probe, out = probe.chunk(2, 1)
            else:
                out = probe
            parts.append(z[:, : out[0].numel()].reshape(-1, *out.shape[1:]))
            z = z[:, out[0].numel() :]
        x = self.levels[-1].inverse(parts[-1], y)
        for level, part in zip(self.levels[-2::-1], parts[-2::-1]):
            x = level.inverse(torch.cat([x, part], 1), y)
        return x


# Networks: functions -------------------------------------------------------------------------------------------------


def mlp(get, path, widths, mask=lambda i: 1):
    layers = []
    for i, (n, m) in enumerate(zip(widths, widths[1:])):
        w, b = get(f"{path}.{i}.weight", [m, n], std=1 / n**0.5), get(f"{path}.{i}.bias", [m], std=0.2)
        layers.append((w * mask(i), b))

    def run(x):
        for i, (w, b) in enumerate(layers):
            x = F.linear(x if i == 0 else F.relu(x), w, b)
        return x

    return run


def made(get, path, order, hidden, k):
    """MADE: a unit's degree is the number of inputs, in the order, that it may depend on; outputs come k for each input."""
    d = len(order)
    place = torch.empty(d, dtype=torch.long)
    place[order] = torch.arange(d)
    degrees = [place + 1]
    degrees += [torch.tensor([1 + i * (d - 1) // n for i in range(n)]) for n in hidden]

    def mask(i):
        if i == len(hidden):
            return (degrees[i][None] <= place[:, None]).repeat(k, 1).double()
        return (degrees[i][None] <= degrees[i + 1][:, None]).double()

    return mlp(get, path, [d, *hidden, k * d], mask)


def resnet(get, path, c, inputs, outputs, features, mask):
    """RealNVP's network: pre-activation residual blocks, 1x1 convolutions from each of them to the output."""

    def conv(name, n, m, k, gain=1.0):
        v = get(f"{path}.{name}.weight", [m, n, k, k], std=gain / (n * k * k) ** 0.5)
        if c["weight_norm"]:
            g = get(f"{path}.{name}.magnitude", [m], mean=gain, std=0.2)
            v = g[:, None, None, None] * v / (v.square().sum((1, 2, 3), keepdim=True) + 1e-12).sqrt()
        b = get(f"{path}.{name}.bias", [m], std=0.2)
        return lambda x: F.conv2d(x, v, b, padding=k // 2)

    def norm_relu(name):
        if not c["batch_norm"]:
            return F.relu
        mean = get.buffer(f"{path}.{name}.mean", [features], lambda n: 0.3 * bell(n, features))
        var = get.buffer(f"{path}.{name}.var", [features], lambda n: 0.5 + even(n, features))
        gamma = get(f"{path}.{name}.gamma", [features], mean=1.0, std=0.2)
        beta = get(f"{path}.{name}.beta", [features], std=0.3)
        return lambda x: F.relu(F.batch_norm(x, mean, var, gamma, beta, training=False, eps=c["eps"]))

    f = features
    extra = 0 if mask is None else 1
    first = conv("first", inputs * (2 if c["signed_input"] else 1) + extra, f, 3)
    skips = [conv("skip", f, f, 1)] if c["skip"] else []
    blocks = []
    for i in range(c["blocks"]):
        b = f"block{i}"
        n1, c1 = norm_relu(f"{b}.norm1"), conv(f"{b}.conv1", f, f, 3)
        n2, c2 = norm_relu(f"{b}.norm2"), conv(f"{b}.conv2", f, f, 3)
        blocks.append((n1, c1, n2, c2))
        if c["skip"]:
            skips.append(conv(f"{b}.skip", f, f, 1))
    norm, last = norm_relu("norm"), conv("last", f, outputs, 1, 0.4)

    def run(x):
        u = [x, -x] if c["signed_input"] else [x]
        if mask is not None:
            u.append(mask.expand(x.shape[0], -1, -1, -1))
        states = [first(torch.cat(u, 1))]
        for n1, c1, n2, c2 in blocks:
            states.append(states[-1] + c2(n2(c1(n1(states[-1])))))
        s = sum(k(h) for k, h in zip(skips, states)) if skips else states[-1]
        return last(norm(s))

    return run


def glow_conv(get, path, n, m, edge_bias, std):
    """3x3; with an edge bias there is one more input channel, 1 on the padding and 0 inside."""
    w = get(f"{path}.weight", [m, n, 3, 3], std=std / (9 * n) ** 0.5)
    if not edge_bias:
        return lambda x: F.conv2d(x, w, padding=1)
    w = torch.cat([w, get(f"{path}.edge", [m, 9], std=0.15).reshape(m, 1, 3, 3)], 1)

    def run(x):
        border = F.pad(torch.zeros_like(x[:, :1]), (1, 1, 1, 1), value=1.0)
        return F.conv2d(torch.cat([F.pad(x, (1, 1, 1, 1)), border], 1), w)

    return run


def zero_conv(get, path, n, m, edge_bias):
    conv = glow_conv(get, path, n, m, edge_bias, 0.5)
    bias = get(f"{path}.bias", [m], std=0.1)
    logs = get(f"{path}.logs", [m], std=0.1)
    return lambda x: (conv(x) + bias[:, None, None]) * torch.exp(3 * logs[:, None, None])


def actnorm(get, path, channels):
    """(a, a b) of a x + a b = exp(3 logs) (x + b), for images."""
    b = get(f"{path}.bias", [channels], std=0.2)[:, None, None]
    a = torch.exp(3 * get(f"{path}.logs", [channels], std=0.07)[:, None, None])
    return a, a * b


def glow_net(get, path, n, width, m, edge_bias):
    conv1 = glow_conv(get, f"{path}.conv1", n, width, edge_bias, 1.5)
    a1, b1 = actnorm(get, f"{path}.norm1", width)
    conv2 = get(f"{path}.conv2.weight", [width, width, 1, 1], std=1.5 / width**0.5)
    a2, b2 = actnorm(get, f"{path}.norm2", width)
    zero = zero_conv(get, f"{path}.zero", width, m, edge_bias)

    def run(x):
        h = F.relu(a1 * conv1(x) + b1)
        h = F.relu(a2 * F.conv2d(h, conv2) + b2)
        return zero(h)

    return run


# Models --------------------------------------------------------------------------------------------------------------


def preprocessing(get, c):
    n, p = 2.0 ** c["bits"], c["preprocess"]
    d = math.prod(c["shape"])
    kind = p["kind"]
    if kind in ("none", "standardize"):
        layers = []
    elif kind == "unit":
        layers = [Scale(1 / n)]
    elif kind == "logit":
        layers = [Scale(1 / n), Logit(p["alpha"], p["scale"])]
    elif kind == "centered":
        layers = [Scale(1 / n, -0.5)]
    elif kind in ("symmetric", "zca"):
        layers = [Scale(2 / n, -1.0)]
    if c["model"] in ("nice", "maf") and len(c["shape"]) > 1:
        layers.append(Reshape(c["shape"]))
    if kind == "standardize":
        mean = get.buffer("standardize.mean", [d], lambda n: 0.2 * bell(n, d))
        std = get.buffer("standardize.std", [d], lambda n: np.exp(0.2 * bell(n, d)))
        layers += [Scale(1.0, -mean), Scale(1.0 / std)]
    if kind == "zca":
        # A^2 + 1/2 for a symmetric A. Its inverse and log-det, which the library keeps beside it, are not used here.
        def positive(name):
            a = 0.2 * bell(name, d * d).reshape(d, d)
            return (a + a.T) @ (a + a.T) + 0.5 * np.eye(d)

        w = get.buffer("whiten.weight", [d, d], positive)
        get.buffer("whiten.inverse", [d, d], lambda _: np.linalg.inv(w.numpy()))
        get.buffer("whiten.log_det", [1], lambda _: np.linalg.slogdet(w.numpy())[1])
        mean = get.buffer("whiten.mean", [d], lambda n: 0.2 * bell(n, d))
        layers += [Scale(1.0, -mean), Matrix(w)]
    return layers


def context(get, c):
    """How many channels a network sees beside x, and what puts them behind it."""
    given = c.get("context", {"kind": "none"})
    if given["kind"] == "none":
        return 0, lambda x, y: x
    if given["kind"] == "labels":
        n = given["embedding"]
        table = get("context.embedding", [given["classes"], n], std=1.0)
        seen = lambda y: table[y]
    else:
        n = given["shape"][0]
        mean = get.buffer("context.mean", [n], lambda name: 0.3 * bell(name, n))
        std = get.buffer("context.std", [n], lambda name: np.exp(0.2 * bell(name, n)))
        seen = lambda y: (y - mean) / std

    def beside(x, y):
        columns = seen(y).reshape(len(x), n, *[1] * (x.dim() - 2))
        return torch.cat([x, columns.expand(-1, -1, *x.shape[2:])], 1)

    return n, beside


def reversal(get, path, d):
    return Take(get.buffer(f"{path}.index", [d], lambda _: np.arange(d, dtype=np.uint32)[::-1]))


def bounded(get, path):
    """x exp(gain tanh(h)) + t."""
    gain = get(path, [1], mean=0.6)
    return Affine(lambda h: gain * torch.tanh(h))


def nice(get, c):
    d = math.prod(c["shape"])
    layers = preprocessing(get, c)
    more, beside = context(get, c)
    if c["order"] == "even_odd":
        index = np.concatenate([np.arange(0, d, 2), np.arange(1, d, 2)]).astype(np.uint32)
        layers.append(Take(get.buffer("even_odd.index", [d], lambda _: index)))
    for i, hidden in enumerate(c["hidden"]):
        swap = c["order"] == "even_odd" and i % 2 == 1
        kept = d - d // 2 if swap else d // 2
        net = mlp(get, f"coupling{i}.net", [kept + more, *hidden, (d - kept) * numbers(c["law"])])
        law = transform(c["law"], lambda: bounded(get, f"coupling{i}.gain"))
        layers.append(Coupling(net, law, swap=swap, beside=beside))
        if c["order"] == "reverse":
            layers.append(reversal(get, f"coupling{i}.reverse", d))
    layers.append(Scale(torch.exp(get("diagonal.logs", [d], std=0.3))))
    return Chain(*layers)


def maf(get, c):
    d = math.prod(c["shape"])
    layers = preprocessing(get, c)
    for i in range(c["layers"]):
        path = f"layer{i}"
        orders = {
            "reverse": lambda name: np.arange(d)[:: 1 if i % 2 == 0 else -1],
            "random": lambda name: np.argsort(even(name, d), kind="stable"),
        }
        order = get.buffer(f"{path}.net.order", [d], lambda name: orders[c["order"]](name).astype(np.uint32))
        net = made(get, f"{path}.net", order, c["hidden"], numbers(c["transform"]))
        law = transform(c["transform"], lambda: bounded(get, f"{path}.gain"))
        layers.append(Autoregressive(net, law, order))
    return Chain(*layers)


def realnvp(get, c):
    channels, h, w = c["shape"]
    layers = preprocessing(get, c)
    levels = []

    def coupling(path, inputs, outputs, features, swap, mask):
        gain = get(f"{path}.gain", [1], mean=0.5)
        net = resnet(get, f"{path}.net", c, inputs, 2 * outputs, features, mask)
        yield Coupling(net, Affine(lambda s: gain * torch.tanh(s), c["shift_first"]), swap, mask)
        if c["batch_norm"]:
            n = channels
            mean = get.buffer(f"{path}.norm.mean", [n], lambda name: 0.3 * bell(name, n))[:, None, None]
            var = get.buffer(f"{path}.norm.var", [n], lambda name: 0.5 + even(name, n))[:, None, None]
            std = torch.sqrt(var + c["eps"])
            yield Scale(1 / std, -mean / std)

    for i in range(c["scales"]):
        last = i + 1 == c["scales"]
        level = []
        features = c["features"] * 2**i
        for k in range(c["last_checkerboard" if last else "checkerboard"]):
            board = torch.arange(h)[:, None] + torch.arange(w)[None]
            mask = ((board + k) % 2 == 0).double()[None, None]
            level += coupling(f"level{i}.checker{k}", channels, channels, features, False, mask)
        if not last:
            level.append(Squeeze())
            channels, h, w = 4 * channels, h // 2, w // 2
            for k in range(c["channelwise"]):
                half = channels // 2
                level += coupling(f"level{i}.channel{k}", half, half, 2 * features, k % 2 == 1, None)
            channels //= 2
        levels.append(Chain(*level))
    return Chain(*layers, Levels(levels, c["shape"]))


def glow(get, c):
    channels = c["shape"][0]
    layers = preprocessing(get, c)
    more, beside = context(get, c)
    levels = []
    for i in range(c["levels"]):
        channels *= 4
        n, half = channels, channels // 2
        level = [Squeeze()]
        for k in range(c["depth"]):
            path = f"level{i}.step{k}"
            level.append(Scale(*actnorm(get, f"{path}.actnorm", n)))
            level.append(mixing(get, f"{path}.permutation", n, c["permutation"]))
            net = glow_net(get, f"{path}.net", half + more, c["width"], half * numbers(c["law"]), c["edge_bias"])
            law = transform(c["law"], lambda: Affine(lambda h: F.logsigmoid(h + 2), True))
            level.append(Coupling(net, law, beside=beside))
        if i + 1 < c["levels"]:
            if c["learn_split"]:
                net = zero_conv(get, f"level{i}.split.zero", half + more, 2 * half, c["edge_bias"])
                level.append(Coupling(net, Affine(lambda s: s, True), beside=beside))
            channels = half
        elif c["learn_top"]:
            level.append(ClassPrior(get, f"level{i}.top", n, c.get("classes")))
        levels.append(Chain(*level))
    layers.append(Levels(levels, c["shape"]))
    if c.get("learn_latent"):
        layers.append(LatentPrior(get, "latent", math.prod(c["shape"]), c.get("classes")))
    return Chain(*layers)


def mixing(get, path, n, kind):
    if kind == "reverse":
        return reversal(get, path, n)
    order = lambda name: np.argsort(even(name, n), kind="stable").astype(np.uint32)
    if kind == "shuffle":
        return Take(get.buffer(f"{path}.index", [n], order))
    if kind == "plain":
        # Near a permutation, hence far from singular.
        return Matrix(get(f"{path}.weight", [n, n], mean=lambda name: np.eye(n)[order(name)].ravel()))
    # W = P L (U + diag(sign exp(log s))): row i of W is row perm[i] of L U.
    perm = get.buffer(f"{path}.perm", [n], order)
    sign = get.buffer(f"{path}.sign", [n], lambda name: np.where(even(name, n) < 0.5, -1.0, 1.0))
    log_s = lambda name: np.diag(0.2 * bell(f"{name}/diagonal", n)).ravel()
    lu = get(f"{path}.lu", [n, n], mean=log_s, std=0.3 / n**0.5)
    lower = lu.tril(-1) + torch.eye(n, dtype=torch.float64)
    upper = lu.triu(1) + torch.diag(sign * torch.exp(lu.diagonal()))
    p = torch.zeros(n, n, dtype=torch.float64)
    p[torch.arange(n), perm] = 1.0
    return Matrix(p @ lower @ upper)


def build(get, c):
    return {"nice": nice, "realnvp": realnvp, "glow": glow, "maf": maf}[c["model"]](get, c)


def log_prior(z, c):
    if c.get("prior") == "logistic":
        return -(F.softplus(z) + F.softplus(-z)).sum(1)
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)


# Values --------------------------------------------------------------------------------------------------------------


def evaluate(folder):
    """Writes golden.safetensors for the model in `folder`."""
    c = json.loads((folder / "config.json").read_text())["config"]
    reader = Reader(folder)
    flow = build(reader, c)
    assert not reader.tensors, f"left over: {sorted(reader.tensors)}"
    b, shape = 3, c["shape"]
    d = math.prod(shape)
    if c["preprocess"]["kind"] in ("none", "standardize"):
        x = bell("x", b * d)
    else:
        x = 2.0 ** c["bits"] * even("x", b * d)
    x = torch.from_numpy(x).reshape(b, *shape)
    z = torch.from_numpy(0.8 * bell("z", b * d)).reshape(b, d)
    given = c.get("context", {})
    classes, features = c.get("classes", given.get("classes")), given.get("shape")
    y = None if classes is None else (torch.arange(b) + 1) % classes
    if features is not None:
        y = torch.from_numpy(bell("c", b * features[0])).reshape(b, *features)
    flat = lambda x, y: flow.forward(x, y).flatten(1)
    encoded = flat(x, y)
    log_det = []
    for i in range(b):
        one = None if y is None else y[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(lambda v: flat(v.reshape(1, *shape), one)[0], x[i].flatten())
        log_det.append(torch.linalg.slogdet(jacobian)[1])
    log_det = torch.stack(log_det)
    decoded = flow.inverse(z, y).reshape(b, *shape)
    # The inverse undoes the forward, both ways.
    back, again = flow.inverse(encoded, y).reshape(x.shape), flat(decoded, y)
    error = lambda a, b: ((a - b).abs() / b.abs().clamp(1)).max()
    worst = torch.stack([error(back, x), error(again, z)]).max()
    assert worst < 1e-9, worst
    log_prob = log_prior(encoded, c) + log_det
    golden = {"x": x, "log_prob": log_prob, "encoded": encoded, "z": z, "decoded": decoded}
    golden = {k: np.ascontiguousarray(v.numpy()) for k, v in golden.items()}
    if classes is not None:
        golden["cond"] = y.numpy().astype(np.uint32)
    if features is not None:
        golden["c"] = y.numpy()
    assert all(np.isfinite(v).all() for v in golden.values())
    save_file(golden, folder / "golden.safetensors")
    bits = [round(v, 3) for v in (-log_prob / (d * math.log(2))).tolist()]
    print(f"{folder.name}: D {d}, bits/dim {bits}, |z| up to {encoded.abs().max():.2f}, decoded from "
          f"{decoded.min():.1f} to {decoded.max():.1f}, inverse to {worst:.1e}")


def make(folder, config):
    """Writes config.json and model.safetensors."""
    folder.mkdir(exist_ok=True)
    get = Maker(folder.name)
    build(get, config)
    save_file(get.tensors, folder / "model.safetensors")
    file = {"format": 1, "flows_version": "0.1.0", "parameters": get.trained, "config": config}
    (folder / "config.json").write_text(json.dumps(file, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        evaluate(Path(sys.argv[1]))
    else:
        for name, config in CONFIGS.items():
            folder = Path(__file__).parent / name
            make(folder, config)
            evaluate(folder)
