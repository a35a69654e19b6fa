"""The PyTorch peers of the benchmark: NICE, RealNVP, Glow and single convolutions, one case a process.

This is the other side of the benchmark's ratios. The benchmark's driver starts it, tells it over stdin what
to run and reads from stdout how long it took; a person can do the same by hand:

    python -m venv env && env/bin/pip install -r flows/benches/requirements.txt
    echo "train 3" | env/bin/python flows/benches/peers.py torch glow_L3_K8_128 --threads 2

Peers
    torch                 plain eager PyTorch, contiguous (NCHW)
    torch-channels-last   the same with model and input in channels_last; not NICE, which has vectors inside
    torch-compile         `torch` with each step of flow (NICE: network) through torch.compile by itself, for
                          density and for sampling; blocks of one shape share what was compiled. --compile-mode
                          says how
    normflows             the classes of the package normflows, as its own Glow example puts them together

Cases, batch 16 (NICE: 200) unless --batch says otherwise
    glow_L3_K8_128            `GlowConfig::cifar_paper` with these levels, depth and width, or any others
    realnvp_cifar             `RealNvpConfig::cifar_paper`
    nice_mnist                `NiceConfig::mnist_paper`
    conv:C:O:K:SIDE[:BATCH]   KxK, C to O channels, padded to keep SIDE x SIDE

Protocol: one JSON object a line. First

    {"ready": true, "parameters": trained scalars, "peak_bytes": ...,
     "versions": {"python": ..., "torch": ..., "normflows": ...}, "device": a GPU's name}

once model and Adam with its state exist and the data-dependent initialisation, if there is one, has run; or
{"ready": false, "why": ...} and the end, where the peer has no such case. Then for each line of stdin

    train N, eval N, sample N   models: N iterations
                                {"seconds": ..., "images": N x batch, "peak_bytes": ...}
    forward N, backward N       convolutions: backward is the gradients of input and weight, without a forward
                                {"seconds": ..., "flops": of all N, "peak_bytes": ...}
    gemm N                      convolutions: a forward pass's flops as one torch.mm, O x C K^2 by
                                C K^2 x BATCH SIDE^2. That is MKL, whereas convolutions are oneDNN: on some
                                machines MKL is the slower by far
                                {"seconds": ..., "flops": of all N, "peak_bytes": ...}
    check                       models: changes all parameters by a little, for good, and says how well the
                                inverse undoes the forward, the largest |f^-1(f(x)) - x| / 256; before any
                                `train`, for Adam without a warm-up blows the deepest Glow up for some steps
                                {"roundtrip": ..., "bits_per_dim": ...}

until `quit` or the end of stdin. What cannot be done gives {"error": ...}. peak_bytes is VmHWM, whose mark is
reset just before `ready` and never again: it less that of `ready` is what the commands so far needed beyond
parameters and Adam's state. Nothing is warmed up here: the driver throws a first iteration away.

With --device cuda:N everything is made there. peak_bytes is PyTorch's own peak of what it allocated in the
command; a command begins with one iteration more, which is not timed, waits for the GPU before and after the
timed ones, and gives unused memory back if less than half of the GPU's is free, for the others measured.

How the peers are written. The `torch` models are the Rust ones to the parameter: as many trained scalars, and
log p is the same function of them (but the running variances in RealNVP's networks, which PyTorch takes
unbiased). The package's models differ where `normflows_glow` and `normflows_nice` say. What someone who wants
PyTorch fast would do is done: an affine map of channels behind a convolution is folded into its weights,
activations are changed in place where autograd allows, the small matrices of a Glow level's steps are made in
one batch, Adam is the fused one. --precision tf32 lets products round, bf16 is autocast (but for the small
matrices).
"""

import argparse
import ctypes
import gc
import importlib.metadata
import json
import math
import os
import platform
import re
import sys
import time


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("peer", choices=["torch", "torch-channels-last", "torch-compile", "normflows"])
    parser.add_argument("case")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["f32", "tf32", "bf16"], default="f32")
    parser.add_argument("--compile-mode", default="default")
    return parser.parse_args()


if __name__ == "__main__":
    ARGS = arguments()
    # OpenMP reads it once, when torch loads it.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(ARGS.threads)

try:
    import torch  # noqa: E402
except ImportError as e:
    # The driver leaves this peer out, with the reason.
    import json

    print(json.dumps({"ready": False, "why": f"{e}: pip install -r flows/benches/requirements.txt"}))
    sys.exit(0)
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

LOG_2PI = math.log(2 * math.pi)


class NotThere(Exception):
    """This peer does not have this case; the message says why."""


class Flow(nn.Module):
    """log p(x) of x in [0, 256). A model says `encode(x)`, giving z and log |det dz/dx|, and `decode(z)`."""

    shape: tuple

    def init(self, x):
        """Data-dependent initialisation."""

    def log_prior(self, z):
        return -0.5 * (z.square().sum(1) + z.shape[1] * LOG_2PI)

    def draw(self, n):
        return torch.randn(n, math.prod(self.shape))

    def log_prob(self, x):
        z, log_det = self.encode(x)
        return self.log_prior(z) + log_det

    def sample(self, n):
        return self.decode(self.draw(n))


class Multiscale(Flow):
    """After each level but the last the second half of the channels is done; z is what is done, in order."""

    def __init__(self, shape, levels):
        super().__init__()
        self.shape, self.levels = shape, nn.ModuleList(levels)

    def encode(self, x):
        h, log_det = self.preprocess(x)
        done = []
        for i, level in enumerate(self.levels):
            h, d = level.encode(h)
            log_det = log_det + d
            if i + 1 < len(self.levels):
                h, out = h.chunk(2, 1)
                done.append(out.flatten(1))
        done.append(h.flatten(1))
        return torch.cat(done, 1), log_det

    def decode(self, z):
        c, h, w = self.shape
        shapes = []
        for _ in self.levels[1:]:
            shapes.append((2 * c, h // 2, w // 2))
            c, h, w = shapes[-1]
        shapes.append(self.levels[-1].out_shape(c, h, w))
        parts = [p.unflatten(1, s) for p, s in zip(z.split([math.prod(s) for s in shapes], 1), shapes)]
        h = self.levels[-1].decode(parts[-1].to(memory_format=self.memory_format))
        for level, part in zip(self.levels[-2::-1], parts[-2::-1]):
            h = level.decode(torch.cat([h, part.to(memory_format=self.memory_format)], 1))
        return self.postprocess(h)

    memory_format = torch.contiguous_format

    def set_memory_format(self, memory_format):
        self.memory_format = memory_format
        self.to(memory_format=memory_format)


# Glow -------------------------------------------------------------------------------------------------------


def init_actnorm(bias, logs, x):
    """Sets actnorm's parameters, (C,) each, so that (x + bias) exp(3 logs) has mean 0 and variance 1."""
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    bias.copy_(-mean)
    logs.copy_(var.sqrt().clamp(min=1e-4).log() / -3)


class ActNormConv(nn.Module):
    """(w * x + bias) exp(3 logs): a convolution and actnorm, or the zero convolution.

    The factor goes into the weights: they are smaller than the activations, which need no second pass then.
    """

    def __init__(self, inputs, outputs, k, std):
        super().__init__()
        self.weight = nn.Parameter(std * torch.randn(outputs, inputs, k, k))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.logs = nn.Parameter(torch.zeros(outputs))

    def init(self, x):
        init_actnorm(self.bias, self.logs, F.conv2d(x, self.weight, padding="same"))

    def forward(self, x):
        scale = torch.exp(3 * self.logs)
        weight = self.weight * scale[:, None, None, None]
        return F.conv2d(x, weight, self.bias * scale, padding=weight.shape[-1] // 2)


class ConvNet(nn.Module):
    """3x3, actnorm, relu, 1x1, actnorm, relu, 3x3 zero convolution."""

    def __init__(self, inputs, width, outputs):
        super().__init__()
        self.hidden1 = ActNormConv(inputs, width, 3, 0.05)
        self.hidden2 = ActNormConv(width, width, 1, 0.05)
        self.zero = ActNormConv(width, outputs, 3, 0.0)

    def init(self, x):
        self.hidden1.init(x)
        self.hidden2.init(F.relu_(self.hidden1(x)))

    def forward(self, x):
        return self.zero(F.relu_(self.hidden2(F.relu_(self.hidden1(x)))))


class GlowStep(nn.Module):
    """The affine map of channels that is actnorm and the permutation, then the coupling."""

    def __init__(self, channels, width):
        super().__init__()
        self.net = ConvNet(channels // 2, width, channels)

    def init(self, x, w, b):
        self.net.init(F.conv2d(x, w, b).chunk(2, 1)[0])

    def encode(self, x, w, b):
        x1, x2 = F.conv2d(x, w, b).chunk(2, 1)
        t, h = self.net(x1).chunk(2, 1)
        log_s = F.logsigmoid(h + 2)
        return torch.cat([x1, (x2 + t) * log_s.exp()], 1), log_s.sum((1, 2, 3))

    def decode(self, z, w, b):
        z1, z2 = z.chunk(2, 1)
        t, h = self.net(z1).chunk(2, 1)
        return F.conv2d(torch.cat([z1, z2 / torch.sigmoid(h + 2) - t], 1), w, b)


class GlowLevel(nn.Module):
    """Squeeze, `depth` steps of actnorm, 1x1 convolution, coupling; the learned prior of what leaves here."""

    def __init__(self, channels, depth, width, last):
        super().__init__()
        c = self.channels = channels
        # One row for each step, so that the many tiny operations on C x C matrices are a few batched ones.
        self.bias = nn.Parameter(torch.zeros(depth, c))
        self.logs = nn.Parameter(torch.zeros(depth, c))
        p, lower, upper = torch.linalg.lu(torch.linalg.qr(torch.randn(depth, c, c)).Q)
        s = upper.diagonal(dim1=1, dim2=2)
        # L below the diagonal, log |s| on it, U above.
        self.lu = nn.Parameter(lower.tril(-1) + upper.triu(1) + torch.diag_embed(s.abs().log()))
        self.register_buffer("permutation", p)
        self.register_buffer("sign", s.sign())
        self.register_buffer("eye", torch.eye(c))
        self.steps = nn.ModuleList(GlowStep(c, width) for _ in range(depth))
        if last:
            self.split = None
            self.top_bias = nn.Parameter(torch.zeros(2 * c))
            self.top_gain = nn.Parameter(torch.zeros(2 * c))
        else:
            self.split = ActNormConv(c // 2, c, 3, 0.0)

    def out_shape(self, c, h, w):
        return 4 * c, h // 2, w // 2

    def mixing(self):
        """Actnorm and then P L (U + diag(s)), for each step one affine map.

        Matrices (K, C, C), shifts (K, C), and the log-det of all of them for one pixel.
        """
        # Small, and exact: their inverses are needed.
        with torch.autocast(self.lu.device.type, enabled=False):
            log_s = self.lu.diagonal(dim1=1, dim2=2)
            upper = self.lu.triu(1) + torch.diag_embed(self.sign * log_s.exp())
            scale = torch.exp(3 * self.logs)
            w = self.permutation @ (self.lu.tril(-1) + self.eye) @ upper * scale[:, None]
            b = (w @ self.bias[:, :, None]).squeeze(2)
            return w, b, 3 * self.logs.sum() + log_s.sum()

    def top(self):
        return (self.top_bias * torch.exp(3 * self.top_gain))[:, None, None].chunk(2)

    def init(self, x):
        """Step by step: each is set from what the one before gives."""
        x = F.pixel_unshuffle(x, 2)
        for k, step in enumerate(self.steps):
            init_actnorm(self.bias[k], self.logs[k], x)
            w, b, _ = self.mixing()
            w, b = w[k, :, :, None, None], b[k]
            step.init(x, w, b)
            x, _ = step.encode(x, w, b)
        return x

    def encode(self, x):
        x = F.pixel_unshuffle(x, 2)
        w, b, log_det = self.mixing()
        log_det = log_det * (x.shape[2] * x.shape[3])
        for wk, bk, step in zip(w[..., None, None].unbind(), b.unbind(), self.steps):
            x, d = step.encode(x, wk, bk)
            log_det = log_det + d
        if self.split is not None:
            x1, x2 = x.chunk(2, 1)
            t, s = self.split(x1).chunk(2, 1)
            return torch.cat([x1, (x2 + t) * s.exp()], 1), log_det + s.sum((1, 2, 3))
        mean, logs = self.top()
        return (x - mean) * torch.exp(-logs), log_det - logs.sum() * (x.shape[2] * x.shape[3])

    def decode(self, z):
        if self.split is not None:
            z1, z2 = z.chunk(2, 1)
            t, s = self.split(z1).chunk(2, 1)
            z = torch.cat([z1, z2 * torch.exp(-s) - t], 1)
        else:
            mean, logs = self.top()
            z = z * logs.exp() + mean
        w, b, _ = self.mixing()
        # As normflows: matrices are tiny, so their inverses can be good ones.
        v = torch.linalg.inv(w.double()).float()
        b = -(v @ b[:, :, None]).squeeze(2)
        for k in range(len(self.steps) - 1, -1, -1):
            z = self.steps[k].decode(z, v[k, :, :, None, None], b[k])
        return F.pixel_shuffle(z, 2)


class Glow(Multiscale):
    def __init__(self, shape, levels, depth, width):
        channels = [shape[0] * 2 ** (i + 2) for i in range(levels)]
        super().__init__(shape, [GlowLevel(c, depth, width, i + 1 == levels) for i, c in enumerate(channels)])

    def preprocess(self, x):
        return x / 256 - 0.5, -math.log(256) * math.prod(self.shape)

    def postprocess(self, h):
        return (h + 0.5) * 256

    def init(self, x):
        h, _ = self.preprocess(x)
        for level in self.levels:
            h = level.init(h).chunk(2, 1)[0]


# RealNVP ----------------------------------------------------------------------------------------------------


class WeightNormConv(nn.Module):
    """A convolution by gain x direction / |direction|, a gain for each output channel.

    As `torch.nn.utils.parametrizations.weight_norm`, which gives every module a class of its own: torch.compile
    would then compile each of them anew.
    """

    def __init__(self, inputs, outputs, k, zero=False):
        super().__init__()
        self.direction = nn.Parameter(math.sqrt(2 / (inputs * k * k)) * torch.randn(outputs, inputs, k, k))
        self.gain = nn.Parameter(torch.full((outputs, 1, 1, 1), 0.0 if zero else 1.0))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        weight = torch._weight_norm(self.direction, self.gain, 0)
        return F.conv2d(x, weight, self.bias, padding=weight.shape[-1] // 2)


class NormRelu(nn.BatchNorm2d):
    """Batch norm and, in its place, relu: the former's gradient needs its input only."""

    def __init__(self, channels):
        super().__init__(channels, eps=1e-4, momentum=0.1)

    def forward(self, x):
        return F.relu_(super().forward(x))


class Block(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.branch = nn.Sequential(NormRelu(f), WeightNormConv(f, f, 3), NormRelu(f), WeightNormConv(f, f, 3))
        self.skip = WeightNormConv(f, f, 1)


class ResNet(nn.Module):
    """Pre-activation residual blocks on [x, -x, mask], 1x1 convolutions from each of them to the output."""

    def __init__(self, inputs, outputs, features, blocks):
        super().__init__()
        self.first = WeightNormConv(inputs, features, 3)
        self.skip = WeightNormConv(features, features, 1)
        self.blocks = nn.ModuleList(Block(features) for _ in range(blocks))
        self.last = nn.Sequential(NormRelu(features), WeightNormConv(features, outputs, 1, zero=True))

    def forward(self, *inputs):
        h = self.first(torch.cat(inputs, 1))
        out = self.skip(h)
        for block in self.blocks:
            h = block.branch(h).add_(h)
            out += block.skip(h)
        return self.last(out)


class FlowNorm(nn.Module):
    """Batch norm as a flow layer: the running statistics, this batch's share already in them (appendix E)."""

    def __init__(self, channels):
        super().__init__()
        self.momentum, self.eps = 0.1, 1e-4
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def statistics(self, x):
        if not self.training:
            return self.mean, self.var
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        mean, var = self.mean.lerp(mean, self.momentum), self.var.lerp(var, self.momentum)
        # New tensors, not in place: the graph holds the old ones.
        self.mean, self.var = mean.detach(), var.detach()
        return mean, var

    def encode(self, x):
        mean, var = self.statistics(x)
        var = var + self.eps
        log_det = -0.5 * x.shape[2] * x.shape[3] * var.log().sum()
        return (x - mean[:, None, None]) * var.rsqrt()[:, None, None], log_det

    def decode(self, z):
        return z * (self.var + self.eps).sqrt()[:, None, None] + self.mean[:, None, None]


class RealNvpCoupling(nn.Module):
    """x exp(gain tanh(s)) + t, then batch norm."""

    def __init__(self, channels, inputs, outputs, features, blocks):
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(1))
        self.net = ResNet(inputs, 2 * outputs, features, blocks)
        self.norm = FlowNorm(channels)

    def shift_scale(self, *inputs):
        t, h = self.net(*inputs).chunk(2, 1)
        return t, self.gain * torch.tanh(h)

    def encode(self, x):
        x, s = self.couple(x, lambda x, t, s: x * s.exp() + t)
        x, log_det = self.norm.encode(x)
        return x, log_det + s.sum((1, 2, 3))

    def decode(self, z):
        return self.couple(self.norm.decode(z), lambda z, t, s: (z - t) * torch.exp(-s))[0]


class Checkerboard(RealNvpCoupling):
    def __init__(self, channels, side, features, blocks, swap):
        super().__init__(channels, 2 * channels + 1, channels, features, blocks)
        i = torch.arange(side)
        kept = (i[:, None] + i + swap) % 2 == 0
        self.register_buffer("kept", kept.float()[None, None])
        self.register_buffer("changed", 1 - self.kept)

    def couple(self, x, law):
        kept = x * self.kept
        t, s = self.shift_scale(kept, -kept, self.kept.expand(len(x), -1, -1, -1))
        s = s * self.changed
        return law(x, t * self.changed, s), s


class Channelwise(RealNvpCoupling):
    def __init__(self, channels, features, blocks, swap):
        super().__init__(channels, channels, channels // 2, features, blocks)
        self.swap = swap

    def couple(self, x, law):
        kept, changed = x.chunk(2, 1)[:: -1 if self.swap else 1]
        t, s = self.shift_scale(kept, -kept)
        y = law(changed, t, s)
        return torch.cat([y, kept] if self.swap else [kept, y], 1), s


class Squeeze(nn.Module):
    def encode(self, x):
        return F.pixel_unshuffle(x, 2), 0.0

    def decode(self, z):
        return F.pixel_shuffle(z, 2)


class RealNvpLevel(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def out_shape(self, c, h, w):
        return c, h, w

    def encode(self, x):
        log_det = 0.0
        for layer in self.layers:
            x, d = layer.encode(x)
            log_det = log_det + d
        return x, log_det

    def decode(self, z):
        for layer in reversed(self.layers):
            z = layer.decode(z)
        return z


class RealNvp(Multiscale):
    """Two scales: 3 checkerboards, 3 channel-wise couplings, 4 checkerboards."""

    alpha = 0.05

    def __init__(self, shape, features, blocks):
        c, side, _ = shape
        first = [Checkerboard(c, side, features, blocks, k % 2 == 1) for k in range(3)]
        first += [Squeeze()] + [Channelwise(4 * c, 2 * features, blocks, k % 2 == 1) for k in range(3)]
        last = [Checkerboard(2 * c, side // 2, 2 * features, blocks, k % 2 == 1) for k in range(4)]
        super().__init__(shape, [RealNvpLevel(first), RealNvpLevel(last)])

    def preprocess(self, x):
        p = self.alpha + (1 - self.alpha) / 256 * x
        lp, lq = p.log(), torch.log(1 - p)
        log_det = -(lp + lq).sum((1, 2, 3)) + math.log((1 - self.alpha) / 256) * math.prod(self.shape)
        return lp - lq, log_det

    def postprocess(self, h):
        return (torch.sigmoid(h) - self.alpha) * (256 / (1 - self.alpha))

    def init(self, x):
        """The first batch's statistics are the running ones at first."""
        norms = [m for m in self.modules() if isinstance(m, FlowNorm | NormRelu)]
        kept = [m.momentum for m in norms]
        for m in norms:
            m.momentum = 1.0
        self.encode(x)
        for m, momentum in zip(norms, kept):
            m.momentum = momentum


# NICE -------------------------------------------------------------------------------------------------------


class Nice(Flow):
    """Additive couplings between pixels at even and at odd places, a learned diagonal, a logistic prior."""

    def __init__(self, shape, hidden, couplings):
        super().__init__()
        self.shape = shape
        half = math.prod(shape) // 2
        self.nets = nn.ModuleList(self.mlp([half, *hidden, half]) for _ in range(couplings))
        self.logs = nn.Parameter(torch.zeros(2 * half))

    @staticmethod
    def mlp(widths):
        layers = []
        for n, m in zip(widths, widths[1:]):
            layers += [nn.Linear(n, m), nn.ReLU(inplace=True)]
            nn.init.uniform_(layers[-2].weight, -0.01, 0.01)
            nn.init.zeros_(layers[-2].bias)
        return nn.Sequential(*layers[:-1])

    def encode(self, x):
        x = x.flatten(1) / 256
        a, b = x[:, ::2].contiguous(), x[:, 1::2]
        # The kept and the changed half take turns.
        for net in self.nets:
            a, b = b + net(a), a
        if len(self.nets) % 2 == 1:
            a, b = b, a
        return torch.cat([a, b], 1) * self.logs.exp(), self.logs.sum() - math.log(256) * x.shape[1]

    def decode(self, z):
        a, b = (z * torch.exp(-self.logs)).chunk(2, 1)
        if len(self.nets) % 2 == 1:
            a, b = b, a
        for net in reversed(self.nets):
            a, b = b, a - net(b)
        return torch.stack([a, b], 2).reshape(-1, *self.shape) * 256

    def log_prior(self, z):
        return (z - 2 * F.softplus(z)).sum(1)

    def draw(self, n):
        return torch.logit(torch.rand(n, math.prod(self.shape)), eps=1e-7)


# normflows --------------------------------------------------------------------------------------------------


class Normflows(Flow):
    """A model of the package: its flows run from z to x, a density takes their inverses, the last first."""

    def __init__(self, shape, net):
        super().__init__()
        self.shape, self.net = shape, net

    def init(self, x):
        # Actnorm sets itself from the first batch that it sees.
        self.log_prob(x)

    def encode(self, x):
        return self.net.inverse_and_log_det(x)

    def decode(self, z):
        return self.net.forward_and_log_det(z)[0]

    def log_prob(self, x):
        return -self.net.forward(x)

    def sample(self, n):
        return self.net.sample(n)[0]


def normflows_glow(shape, levels, depth, width):
    """The package's Glow example with our sizes, without classes, with actnorm in the couplings' networks.

    It has no prior of what leaves a level given what stays: a level has a mean and a scale for each channel.
    """
    import normflows as nf

    class Centered(nf.flows.Flow):
        def forward(self, z):
            return (z + 0.5) * 256, math.log(256) * math.prod(shape)

        def inverse(self, x):
            return x / 256 - 0.5, -math.log(256) * math.prod(shape)

    c, side, _ = shape
    bases, flows, merges = [], [], []
    # The package counts levels from z: the first is the one with the most channels.
    for i in range(levels, 0, -1):
        channels = c * 2 ** (i + 1)
        blocks = [
            nf.flows.GlowBlock(
                channels,
                width,
                scale=True,
                scale_map="sigmoid",
                split_mode="channel",
                use_lu=True,
                net_actnorm=True,
            )
            for _ in range(depth)
        ]
        flows.append([*blocks, nf.flows.Squeeze()])
        if i < levels:
            merges.append(nf.flows.Merge())
            channels //= 2
        bases.append(nf.distributions.GlowBase((channels, side >> i, side >> i)))
    return Normflows(shape, nf.MultiscaleFlow(bases, flows, merges, transform=Centered(), class_cond=False))


def normflows_nice(shape, hidden, couplings):
    """Couplings, networks and the diagonal are the package's; the logistic base, which it lacks, is not."""
    import normflows as nf

    d = math.prod(shape)

    class Logistic(nf.distributions.BaseDistribution):
        def forward(self, num_samples=1):
            z = torch.logit(torch.rand(num_samples, d), eps=1e-7)
            return z, self.log_prob(z)

        def log_prob(self, z):
            return (z - 2 * F.softplus(z)).sum(1)

    class EvenOdd(nf.flows.Flow):
        """Pixels over 256, those at even places first."""

        def forward(self, z):
            return z.view(len(z), 2, d // 2).transpose(1, 2).reshape(len(z), *shape) * 256, d * math.log(256)

        def inverse(self, x):
            x = x.view(len(x), d // 2, 2).transpose(1, 2).reshape(len(x), d)
            return x / 256, -d * math.log(256)

    flows = [nf.flows.AffineConstFlow((d,), shift=False)]
    for i in range(couplings - 1, -1, -1):
        net = nf.nets.MLP([d // 2, *hidden, d // 2])
        for layer in net.net[::2]:
            nn.init.uniform_(layer.weight, -0.01, 0.01)
            nn.init.zeros_(layer.bias)
        mode = "channel_inv" if i % 2 == 1 else "channel"
        flows.append(nf.flows.AffineCouplingBlock(net, scale=False, split_mode=mode))
    flows.append(EvenOdd())

    class Net(nf.NormalizingFlow):
        """`forward` as in the package's multi-scale flow: -log p(x)."""

        def forward(self, x):
            return -self.log_prob(x)

    return Normflows(shape, Net(Logistic(), flows))


# Cases ------------------------------------------------------------------------------------------------------

CIFAR = (3, 32, 32)
NICE_MNIST = ((1, 28, 28), [1000] * 5, 4)


def build(peer, case):
    """The model of a case."""
    channels_last = peer == "torch-channels-last"
    if glow := re.fullmatch(r"glow_L([1-5])_K(\d+)_(\d+)", case):
        sizes = map(int, glow.groups())
        if peer == "normflows":
            return normflows_glow(CIFAR, *sizes)
        model = Glow(CIFAR, *sizes)
    elif case == "realnvp_cifar":
        if peer == "normflows":
            raise NotThere("normflows has no RealNVP for images: no residual network, no masks of images")
        model = RealNvp(CIFAR, 64, 8)
    elif case == "nice_mnist":
        if channels_last:
            raise NotThere("NICE works on vectors, which have no memory format")
        return normflows_nice(*NICE_MNIST) if peer == "normflows" else Nice(*NICE_MNIST)
    else:
        raise NotThere(f"no case is called {case}")
    if channels_last:
        model.set_memory_format(torch.channels_last)
    return model


def compile_blocks(model, mode):
    """Each repeated block through torch.compile by itself, so that the time does not grow with depth."""
    # One entry for each shape of block, in training, evaluation and sampling.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 256
    for block in model.modules():
        if isinstance(block, GlowStep | RealNvpCoupling):
            block.encode = torch.compile(block.encode, mode=mode, dynamic=False)
            block.decode = torch.compile(block.decode, mode=mode, dynamic=False)
        elif isinstance(block, Nice):
            for net in block.nets:
                net.compile(mode=mode, dynamic=False)


class ModelCase:
    def __init__(self, peer, case, batch):
        self.batch = batch or (200 if case == "nice_mnist" else 16)
        self.model = build(peer, case)
        pixels = torch.randint(0, 256, (self.batch, *self.model.shape), dtype=torch.uint8)
        self.x = pixels + torch.rand(pixels.shape)
        if peer == "torch-channels-last":
            self.x = self.x.to(memory_format=torch.channels_last)
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in self.params)
        with torch.no_grad():
            self.model.init(self.x)
        if peer == "torch-compile":
            compile_blocks(self.model, ARGS.compile_mode)
        self.optimizer = torch.optim.Adam(self.params, lr=1e-6, fused=True)
        # Adam makes its state in the first step; from zero gradients that step changes nothing.
        for p in self.params:
            p.grad = torch.zeros_like(p)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.commands = {"train": self.train, "eval": self.eval, "sample": self.sample}

    def work(self, command, n):
        return {"images": n * self.batch}

    def cast(self):
        """A pass in the precision asked for."""
        # A mode with CUDA graphs may now reuse what the last pass gave.
        torch.compiler.cudagraph_mark_step_begin()
        return torch.autocast(self.x.device.type, torch.bfloat16, enabled=ARGS.precision == "bf16")

    def train(self, n):
        self.model.train()
        scale = -1 / (math.prod(self.model.shape) * math.log(2))
        for _ in range(n):
            self.optimizer.zero_grad(set_to_none=True)
            with self.cast():
                loss = self.model.log_prob(self.x).mean() * scale
            loss.backward()
            nn.utils.clip_grad_norm_(self.params, 1.0, foreach=True)
            self.optimizer.step()

    @torch.inference_mode()
    def eval(self, n):
        self.model.eval()
        for _ in range(n):
            with self.cast():
                self.model.log_prob(self.x)

    @torch.inference_mode()
    def sample(self, n):
        self.model.eval()
        for _ in range(n):
            with self.cast():
                self.model.sample(self.batch)

    @torch.no_grad()
    def check(self):
        self.model.eval()
        for p in self.params:
            p.add_(1e-3 * torch.randn_like(p))
        back = self.model.decode(self.model.encode(self.x)[0])
        bits = -self.model.log_prob(self.x).mean() / (math.prod(self.model.shape) * math.log(2))
        return {"roundtrip": ((back - self.x).abs().max() / 256).item(), "bits_per_dim": bits.item()}


class ConvCase:
    def __init__(self, peer, case, batch):
        if peer == "normflows":
            raise NotThere("normflows has no convolution of its own")
        try:
            c, o, k, side, *given = map(int, case.split(":")[1:])
        except ValueError:
            raise NotThere("a convolution is conv:C:O:K:SIDE[:BATCH]") from None
        if k % 2 == 0:
            raise NotThere("an even kernel has no padding that is the same on both sides")
        batch = batch or (given[0] if given else 16)
        keep_freed_memory()
        memory_format = torch.channels_last if peer == "torch-channels-last" else torch.contiguous_format
        # In bf16 without autocast, which would convert each operand before each operation: what PyTorch can do at most.
        dtype = torch.bfloat16 if ARGS.precision == "bf16" else torch.float32
        normal = lambda *shape: torch.randn(shape).to(dtype, memory_format=memory_format)  # noqa: E731
        self.x, self.w, self.g = (
            normal(batch, c, side, side),
            normal(o, c, k, k),
            normal(batch, o, side, side),
        )
        self.padding = k // 2
        self.a = torch.randn(o, c * k * k).to(dtype)
        self.b = torch.randn(c * k * k, batch * side * side).to(dtype)
        self.out = torch.empty(o, batch * side * side, dtype=dtype)
        self.parameters = self.w.numel()
        self.flops = 2 * c * o * k * k * side * side * batch
        self.commands = {"forward": self.forward, "backward": self.backward, "gemm": self.gemm}

    def work(self, command, n):
        return {"flops": n * self.flops * (2 if command == "backward" else 1)}

    @torch.inference_mode()
    def forward(self, n):
        for _ in range(n):
            F.conv2d(self.x, self.w, padding=self.padding)

    @torch.inference_mode()
    def backward(self, n):
        """The gradients of input and weight by the operation that autograd would call."""
        p = [self.padding] * 2
        for _ in range(n):
            torch.ops.aten.convolution_backward(
                self.g, self.x, self.w, None, [1, 1], p, [1, 1], False, [0, 0], 1, [True, True, False]
            )

    @torch.inference_mode()
    def gemm(self, n):
        for _ in range(n):
            torch.mm(self.a, self.b, out=self.out)


# Protocol ---------------------------------------------------------------------------------------------------


def peak_bytes():
    if ARGS.device != "cpu":
        return torch.cuda.max_memory_allocated()
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM:"))


def reset_peak():
    """Gives freed memory back to the system and lets the high-water mark start from what is left."""
    gc.collect()
    if ARGS.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
    except (AttributeError, OSError):
        pass  # Not glibc, or not allowed: the mark then holds what building the model took.


def keep_freed_memory():
    """Lets malloc keep large blocks when they are freed.

    A convolution alone would else give its output's pages back each time and fault them in anew, at half the
    speed. Whole models, where other blocks lie around, are no faster with it and run without.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_mmap_threshold, 2**30)
    except AttributeError:
        pass  # Not glibc.


def versions():
    try:
        normflows = importlib.metadata.version("normflows")
    except importlib.metadata.PackageNotFoundError:
        normflows = None
    return {"python": platform.python_version(), "torch": torch.__version__, "normflows": normflows}


def say(**line):
    print(json.dumps(line), flush=True)


def make_room():
    free, total = torch.cuda.mem_get_info()
    if free < total / 2:
        torch.cuda.empty_cache()


def answer(case, command, n):
    if command == "check" and isinstance(case, ModelCase):
        return case.check()
    if command not in case.commands:
        return {"error": f"no command is called {command} here"}
    gpu = ARGS.device != "cpu"
    if gpu:
        case.commands[command](1)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    case.commands[command](n)
    if gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = peak_bytes()
    if gpu:
        make_room()
    return {"seconds": seconds, **case.work(command, n), "peak_bytes": peak}


def answer_or_error(case, command, n):
    """What one command cannot do, memory that is not there above all, the next may."""
    try:
        return answer(case, command, n)
    except Exception as e:
        why = str(e).strip().splitlines()
        return {"error": f"{type(e).__name__}: {why[0] if why else ''}"}


def main():
    torch.set_num_threads(ARGS.threads)
    torch.set_num_interop_threads(1)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high" if ARGS.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = ARGS.precision == "tf32"
    try:
        if ARGS.device != "cpu":
            torch.cuda.set_device(ARGS.device)
            torch.set_default_device(ARGS.device)
            torch.backends.cudnn.benchmark = True
        make = ConvCase if ARGS.case.startswith("conv:") else ModelCase
        case = make(ARGS.peer, ARGS.case, ARGS.batch)
    except NotThere as e:
        say(ready=False, why=str(e))
        return
    except ModuleNotFoundError as e:
        say(ready=False, why=f"{e.name} is not installed")
        return
    except (RuntimeError, AssertionError) as e:
        # No memory, no GPU, or a PyTorch without CUDA.
        say(ready=False, why=str(e).strip().splitlines()[0])
        return
    reset_peak()
    device = {} if ARGS.device == "cpu" else {"device": torch.cuda.get_device_name()}
    say(ready=True, parameters=case.parameters, peak_bytes=peak_bytes(), versions=versions(), **device)
    for line in sys.stdin:
        command, _, n = line.strip().partition(" ")
        if command == "quit":
            break
        if n and not n.isdecimal():
            say(error=f"{n!r} is no number of iterations")
            continue
        say(**answer_or_error(case, command, int(n or 1)))


if __name__ == "__main__":
    main()
