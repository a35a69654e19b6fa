"""The models of peers.py: NICE, RealNVP and Glow in PyTorch, and those of the package normflows.

The first three are the Rust ones to the parameter: as many trained scalars, and log p is the same function of them (but the running
variances in RealNVP's networks, which PyTorch takes unbiased). The package's models differ where `normflows_glow` and
`normflows_nice` say. What someone who wants PyTorch fast would do is done: an affine map of channels behind a convolution is folded
into its weights, activations are changed in place where autograd allows, the small matrices of a Glow level's steps are made in one
batch.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

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
