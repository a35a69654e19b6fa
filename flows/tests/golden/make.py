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
- The layers, in layers.py, are written from the papers' equations, and log-dets are not written at all: log |det dz/dx| is that of the
  Jacobian which autograd gives for the whole flow, one example at a time.
- Inverses are written out and must undo the forward here before anything is saved.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from layers import (
    Affine,
    Autoregressive,
    Chain,
    ClassPrior,
    Coupling,
    LatentPrior,
    Levels,
    Logit,
    Maker,
    Matrix,
    Reader,
    Reshape,
    Scale,
    Squeeze,
    Take,
    bell,
    even,
    numbers,
    transform,
)
from safetensors.numpy import save_file

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
