"""Numbers from names, layers, transforms and priors of the golden values' models, from the papers' equations. See make.py."""

import hashlib
import math

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file


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


class Normal:
    """z = (x - mean) / std, both from `mean_std` of y."""

    def forward(self, x, y):
        mean, std = self.mean_std(y)
        return (x - mean) / std

    def inverse(self, z, y):
        mean, std = self.mean_std(y)
        return z * std + mean


class ClassPrior(Normal):
    """Mean and std are each a function of the channel and of the class: Glow's top prior."""

    def __init__(self, get, path, channels, classes):
        self.bias = get(f"{path}.bias", [2 * channels], std=0.3)
        self.gain = get(f"{path}.gain", [2 * channels])
        self.emb = None if classes is None else get(f"{path}.emb", [classes, 2 * channels], std=0.5)

    def mean_std(self, y):
        h = self.bias[None] if self.emb is None else self.bias + self.emb[y]
        mean, logs = (h * torch.exp(3 * self.gain))[:, :, None, None].chunk(2, 1)
        return mean, logs.exp()


class LatentPrior(Normal):
    """Mean and std are each a function of the dimension of the latent and of the class."""

    def __init__(self, get, path, dims, classes):
        self.classes = classes
        self.mean = get(f"{path}.mean", [classes or 1, dims], std=0.4)
        self.logs = get(f"{path}.logs", [classes or 1, dims], std=0.3)

    def mean_std(self, y):
        row = slice(None) if self.classes is None else y
        return self.mean[row], self.logs[row].exp()


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
