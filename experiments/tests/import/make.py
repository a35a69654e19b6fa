"""Checkpoints in other projects' layouts, with random weights, and the log p(x) that they mean.

    python -m venv env && env/bin/pip install torch normflows safetensors numpy
    env/bin/python experiments/tests/import/make.py

Committed as made with torch 2.15.0, normflows 1.7.3, numpy 2.4.6 and safetensors 0.8.0 on a CPU. For each model there is NAME.pth, as
torch.save writes it, and NAME.safetensors with

    x         inputs in the units of pixels, [0, 256), (B, C, H, W), f64
    log_prob  log p(x), nats, (B,), f64
    cond      class labels, u32, where the model has classes

The layouts of y0ast/Glow-PyTorch and chrischute/real-nvp are written here from their equations, as functions of a dictionary
whose keys are those projects' names for their parameters; normflows's models are made by normflows itself. Weights are
rounded to f32, as those projects save them, and the values are computed from them in f64.
"""

import math
from collections import OrderedDict
from pathlib import Path

import normflows
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

HERE = Path(__file__).parent
LOG_2PI = math.log(2 * math.pi)


class Weights(OrderedDict):
    """A state_dict that makes a parameter when it is first asked for."""

    def __init__(self, seed):
        super().__init__()
        self.rng = np.random.default_rng(seed)

    def get(self, name, *shape, mean=0.0, std=0.1):
        if name not in self:
            self[name] = torch.from_numpy((mean + std * self.rng.standard_normal(shape)).astype(np.float32))
        return self[name].double()

    def put(self, name, value):
        self[name] = value.to(torch.int64 if value.dtype == torch.int64 else torch.float32).clone()
        return self[name].double()


def gaussian(x, mean, logs):
    return (-0.5 * (LOG_2PI + 2 * logs + (x - mean) ** 2 / torch.exp(2 * logs))).flatten(1).sum(1)


def space_to_depth(x):
    """Channel 4c + 2u + v is the pixel (u, v) of each 2x2 square of channel c."""
    return torch.stack([x[:, :, u::2, v::2] for u in (0, 1) for v in (0, 1)], 2).flatten(1, 2)


# y0ast/Glow-PyTorch --------------------------------------------------------------------------------------------------


def glow_pytorch(w, x, levels, depth, width, affine, mixing, learn_top, classes, y):
    """log p(x) of x in [0, 256); fills w."""
    b, c, h, s = x.shape
    total = -math.log(256) * c * h * s
    x = x / 256 - 0.5
    layer = 0

    def act_norm(path, x):
        bias, logs = w.get(f"{path}.bias", 1, x.shape[1], 1, 1), w.get(f"{path}.logs", 1, x.shape[1], 1, 1)
        return (x + bias) * torch.exp(logs), logs.sum() * x.shape[2] * x.shape[3]

    def zeros(path, x, out):
        y = F.conv2d(x, w.get(f"{path}.conv.weight", out, x.shape[1], 3, 3), w.get(f"{path}.conv.bias", out), padding=1)
        return y * torch.exp(3 * w.get(f"{path}.logs", out, 1, 1))

    def mix(path, x):
        n = x.shape[1]
        if mixing == "reversed":
            return x.flip(1), 0.0
        q = torch.linalg.qr(torch.from_numpy(w.rng.standard_normal((n, n))))[0]
        if mixing == "plain":
            m = w.put(f"{path}.weight", q)
            return torch.einsum("ij,bjhw->bihw", m, x), torch.linalg.slogdet(m)[1] * x.shape[2] * x.shape[3]
        p, lower, upper = torch.linalg.lu(q)
        d = torch.diagonal(upper)
        p, sign = w.put(f"{path}.p", p), w.put(f"{path}.sign_s", d.sign())
        lower, logs = w.put(f"{path}.lower", lower), w.put(f"{path}.log_s", d.abs().log() + 0.1)
        upper = w.put(f"{path}.upper", upper.triu(1))
        m = p @ (lower.tril(-1) + torch.eye(n)) @ (upper.triu(1) + torch.diag(sign * logs.exp()))
        return torch.einsum("ij,bjhw->bihw", m, x), logs.sum() * x.shape[2] * x.shape[3]

    for level in range(levels):
        x = space_to_depth(x)
        for _ in range(depth):
            layer += 1
            path, n = f"flow.layers.{layer}", x.shape[1]
            x, log_det = act_norm(f"{path}.actnorm", x)
            total = total + log_det
            x, log_det = mix(f"{path}.invconv", x)
            total = total + log_det
            kept, changed = x[:, : n // 2], x[:, n // 2 :]
            h = F.conv2d(kept, w.get(f"{path}.block.0.conv.weight", width, n // 2, 3, 3), padding=1)
            h = F.relu(act_norm(f"{path}.block.0.actnorm", h)[0])
            h = F.relu(act_norm(f"{path}.block.2.actnorm", F.conv2d(h, w.get(f"{path}.block.2.conv.weight", width, width, 1, 1, std=0.3)))[0])
            h = zeros(f"{path}.block.4", h, n if affine else n // 2)
            if affine:
                scale = torch.sigmoid(h[:, 1::2] + 2)
                changed = (changed + h[:, 0::2]) * scale
                total = total + scale.log().flatten(1).sum(1)
            else:
                changed = changed + h
            x = torch.cat([kept, changed], 1)
        layer += 1
        if level + 1 < levels:
            kept, done = x.chunk(2, 1)
            h = zeros(f"flow.layers.{layer}.conv", kept, x.shape[1])
            total = total + gaussian(done, h[:, 0::2], h[:, 1::2])
            x = kept
            layer += 1
    n = x.shape[1]
    h = w.put("prior_h", torch.zeros(1, 2 * n, *x.shape[2:]))
    if learn_top:
        h = zeros("learn_top_fn", h, 2 * n)
    h = h.expand(b, -1, -1, -1)
    if classes:
        one_hot = F.one_hot(y, classes).double()
        row = F.linear(one_hot, w.get("project_ycond.linear.weight", 2 * n, classes), w.get("project_ycond.linear.bias", 2 * n))
        h = h + (row * torch.exp(3 * w.get("project_ycond.logs", 2 * n)))[:, :, None, None]
        w.get("project_class.linear.weight", classes, n), w.get("project_class.linear.bias", classes), w.get("project_class.logs", classes)
    return total + gaussian(x, h[:, :n], h[:, n:])


# chrischute/real-nvp -------------------------------------------------------------------------------------------------


def real_nvp(w, x, scales, features, blocks, new_names):
    """log p(x) of x in [0, 256); fills w."""
    b, c, h, s = x.shape
    limit = w.put("data_constraint", torch.tensor([0.9]))
    p = ((2 * x / 256 - 1) * limit + 1) / 2
    total = (limit.log() - math.log(256) - p.log() - (1 - p).log()).flatten(1).sum(1)
    x = p.log() - (1 - p).log()

    def direction(path, *shape, std=0.1):
        names = ("parametrizations.weight.original0", "parametrizations.weight.original1") if new_names else ("weight_g", "weight_v")
        g = w.get(f"{path}.{names[0]}", shape[0], *[1] * (len(shape) - 1), mean=0.7, std=0.2)
        v = w.get(f"{path}.{names[1]}", *shape, std=std)
        return g * v / v.flatten(1).norm(dim=1).reshape(g.shape)

    def conv(path, x, out, k, bias=True):
        bias = w.get(f"{path}.conv.bias", out) if bias else None
        return F.conv2d(x, direction(f"{path}.conv", out, x.shape[1], k, k), bias, padding=k // 2)

    def norm(path, x):
        n = x.shape[1]
        gamma, beta = w.get(f"{path}.weight", n, mean=1.0), w.get(f"{path}.bias", n)
        mean, var = w.get(f"{path}.running_mean", n), w.get(f"{path}.running_var", n, mean=1.0)
        w.put(f"{path}.num_batches_tracked", torch.tensor(7))
        return F.batch_norm(x, mean, var, gamma, beta, training=False, eps=1e-5)

    def net(path, x, features, out, double):
        u = norm(f"{path}.in_norm", x) * (2 if double else 1)
        u = conv(f"{path}.in_conv", F.relu(torch.cat([u, -u], 1)), features, 3)
        skips = conv(f"{path}.in_skip", u, features, 1)
        for i in range(blocks):
            r = conv(f"{path}.blocks.{i}.in_conv", F.relu(norm(f"{path}.blocks.{i}.in_norm", u)), features, 3, False)
            u = u + conv(f"{path}.blocks.{i}.out_conv", F.relu(norm(f"{path}.blocks.{i}.out_norm", r)), features, 3)
            skips = skips + conv(f"{path}.skips.{i}", u, features, 1)
        return conv(f"{path}.out_conv", F.relu(norm(f"{path}.out_norm", skips)), out, 1)

    def log_scale_shift(path, seen, changed, features, double):
        st = net(f"{path}.st_net", seen, features, 2 * changed, double)
        return direction(f"{path}.rescale", changed, 1, 1, std=1.0) * torch.tanh(st[:, :changed]), st[:, changed:]

    def checkers(path, x, k, features):
        i, j = torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")
        kept = ((i + j + k) % 2).double()
        s, t = log_scale_shift(f"{path}.{k}", x * kept, x.shape[1], features, True)
        return torch.where(kept > 0, x, (x + t) * s.exp()), (s * (1 - kept)).flatten(1).sum(1)

    def halves(path, x, k, features):
        first, second = x.chunk(2, 1)
        kept, changed = (first, second) if k % 2 else (second, first)
        s, t = log_scale_shift(f"{path}.{k}", kept, changed.shape[1], features, False)
        changed = (changed + t) * s.exp()
        return torch.cat([kept, changed] if k % 2 else [changed, kept], 1), s.flatten(1).sum(1)

    path = "flows."
    for scale in range(scales):
        last = scale + 1 == scales
        for k in range(4 if last else 3):
            x, log_det = checkers(f"{path}in_couplings", x, k, features)
            total = total + log_det
        if last:
            return total + gaussian(x, torch.zeros(()).double(), torch.zeros(()).double())
        n = x.shape[1]
        x = space_to_depth(x)
        for k in range(3):
            x, log_det = halves(f"{path}out_couplings", x, k, 2 * features)
            total = total + log_det
        # The diagonal of each 2x2 square goes on, all channels of a pixel together.
        pixel = lambda p: x[:, p::4]
        done = torch.cat([pixel(1), pixel(2)], 1)
        x = torch.cat([pixel(0), pixel(3)], 1)
        assert x.shape[1] == 2 * n
        total = total + gaussian(done, torch.zeros(()).double(), torch.zeros(()).double())
        path, features = path + "next_block.", 2 * features


# normflows -----------------------------------------------------------------------------------------------------------


def normflows_glow(seed, shape, levels, depth, width, bases, **block):
    """A model of the package, every parameter moved, rounded to f32 and computed in f64."""
    c, h, s = shape
    q0, merges, flows = [], [], []
    for i in range(levels):
        flows_ = [
            normflows.flows.GlowBlock(c * 2 ** (levels + 1 - i), width, split_mode="channel", **block) for _ in range(depth)
        ]
        flows.append(flows_ + [normflows.flows.Squeeze()])
        if i > 0:
            merges.append(normflows.flows.Merge())
        top = 2 ** (levels + 1) if i == 0 else 2 ** (levels - i)
        side = 2 ** (levels - i)
        q0.append(bases(i, (c * top, h // side, s // side)))
    model = normflows.MultiscaleFlow(q0, flows, merges)
    rng = np.random.default_rng(seed)
    state = model.state_dict()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if not name.endswith((".L", ".U")):
                std = 0.3 if name.startswith("q0") else 0.1
                value += torch.from_numpy(std * rng.standard_normal(value.shape)).float()
        for name, value in state.items():
            if name.endswith("data_dep_init_done"):
                value.fill_(1.0)
    model.load_state_dict(state)
    return model


# Files ---------------------------------------------------------------------------------------------------------------


def write(name, checkpoint, x, log_prob, y=None):
    torch.save(checkpoint, HERE / f"{name}.pth")
    values = {"x": x.numpy(), "log_prob": log_prob.detach().numpy()}
    if y is not None:
        values["cond"] = y.numpy().astype(np.uint32)
    values = {k: np.ascontiguousarray(v) for k, v in values.items()}
    assert all(np.isfinite(v).all() for v in values.values())
    save_file(values, HERE / f"{name}.safetensors")
    bits = -log_prob / (x[0].numel() * math.log(2))
    print(f"{name}: {(HERE / f'{name}.pth').stat().st_size} bytes, bits/dim {[round(v, 3) for v in bits.tolist()]}")


def pixels(seed, *shape):
    return torch.from_numpy(256 * np.random.default_rng(seed).random(shape))


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = pixels(1, 3, 3, 8, 8), torch.tensor([2, 0, 1])
    for name, affine, mixing, learn_top, classes in [
        ("glow_pytorch", True, "lu", True, None),
        ("glow_pytorch_classes", False, "plain", True, 3),
        ("glow_pytorch_reversed", True, "reversed", False, None),
    ]:
        w = Weights(2)
        log_prob = glow_pytorch(w, x, 2, 2, 6, affine, mixing, learn_top, classes, y)
        # As ignite's ModelCheckpoint saves it, with an optimiser beside it; and plain.
        checkpoint = {"model": OrderedDict(w), "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 5e-4}]}}
        write(name, OrderedDict(w) if classes else checkpoint, x, log_prob, y if classes else None)
    for name, shape, scales, blocks, new_names in [
        ("real_nvp", (2, 8, 8), 2, 1, False),
        ("real_nvp_scales", (1, 8, 12), 3, 0, True),
    ]:
        w, x = Weights(3), pixels(4, 3, *shape)
        log_prob = real_nvp(w, x, scales, 3, blocks, new_names)
        net = OrderedDict((f"module.{k}", v) for k, v in w.items())
        write(name, {"net": net, "test_loss": 1.5, "epoch": 7}, x, log_prob)
    dist = normflows.distributions
    mixed = [dist.GlowBase, lambda s: dist.GlowBase(s, num_classes=3), dist.GlowBase, dist.DiagGaussian]
    for name, shape, levels, depth, bases, classes, block in [
        ("normflows", (3, 8, 8), 2, 2, lambda i, s: dist.DiagGaussian(s, trainable=i < 1), False, {}),
        ("normflows_classes", (3, 8, 8), 2, 2, lambda i, s: dist.GlowBase(s, num_classes=3 if i == 0 else None), True,
         {"use_lu": False, "net_actnorm": True, "scale": False}),
        # As in the package's own example.
        ("normflows_class_diagonal", (3, 8, 8), 2, 1, lambda i, s: dist.ClassCondDiagGaussian(s, 3), True, {"scale": True}),
        # Classes in one level, which is not the top.
        ("normflows_mixed", (1, 16, 16), 4, 1, lambda i, s: mixed[i](s), True, {}),
    ]:
        model = normflows_glow(6, shape, levels, depth, 6, bases, **block)
        checkpoint = OrderedDict((k, v.clone()) for k, v in model.state_dict().items())
        x, d = pixels(5, 3, *shape), math.prod(shape)
        # A base distribution without classes takes no notice of them.
        log_prob = model.double().log_prob(x / 256, y if classes else None)
        write(name, checkpoint, x, log_prob - d * math.log(256), y if classes else None)


if __name__ == "__main__":
    with torch.no_grad():
        main()
