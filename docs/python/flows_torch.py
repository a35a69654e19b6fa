"""Weights of `flows` in plain PyTorch: NICE, RealNVP, Glow, MAF and composed flows from config.json and model.safetensors, one file.

    import flows_torch
    model = flows_torch.load("weights/faces-glow-small")   # a folder; f32, or dtype=torch.float64
    model.log_prob(x)                                      # x (B, C, H, W) in the units of the data, nats
    model.bits_per_dim(x), model.encode(x)                 # (B,), (B, D)
    model.decode(z), model.sample(16, temperature=0.7)     # images again
    model.state_dict()                                     # keyed as the file is

With class labels y (B,) for class-conditional models: log_prob(x, y); with a context c (B, E) or (B, E, H, W) for models of p(x | c):
log_prob(x, c=c), where model.context_of(x) makes that of a model whose context is a part of the image. Needs torch and safetensors; from the hub,
`load(huggingface_hub.snapshot_download("user/name"))`. Pixels are integers with uniform noise added, in [0, 256).

    python flows_torch.py check FOLDER VALUES              # compare with log p(x) that the library computed

VALUES is a safetensors file with x, log_prob and perhaps cond and c; the largest difference in nats is printed for f64 and f32.
"""

import json
import math
import sys
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

BUFFERS = ("index", "perm", "sign", "mean", "var", "inverse", "log_det")


def load(folder, dtype=torch.float32):
    """A model from a saved folder, whole or in shards."""
    folder = Path(folder)
    file = json.loads((folder / "config.json").read_text())
    if file["format"] > 2:
        raise ValueError(f"{folder}: format {file['format']} is newer than this script, which reads 1 and 2")
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    tensors = {}
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{index}: `{name}` is no name of a shard in this folder")
        tensors |= load_file(folder / name)
    for name, t in tensors.items():
        if t.is_floating_point() and not t.isfinite().all():
            raise ValueError(f"{folder}: tensor `{name}` holds a NaN or an infinity")
    return Model(file["config"], tensors, dtype)


class Model(nn.Module):
    """log p(x) = log p_Z(f(x)) + log |det df/dx|, with every tensor of the file as a parameter or a buffer of its name."""

    def __init__(self, config, tensors, dtype=torch.float32):
        super().__init__()
        self.config, self.used = config, set()
        self.levels, self.layers = known("model", config["model"], MODELS)(config)
        self.base, self.beside = settings(config.get("prior", "gaussian")), settings(config.get("context", "none"))
        self.classes = next(classes([*self.levels, self.layers]), self.base.get("classes", self.beside.get("classes")))
        for name, t in tensors.items():
            *path, last = name.split(".")
            module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module._modules[part]
            t = t.to(dtype) if t.is_floating_point() else t.long()
            trained = last == "mean" and ".".join([*path, "logs"]) in tensors  # that of a learned prior
            named = last in BUFFERS and not trained
            frozen = named or not t.is_floating_point() or path[:1] in (["whiten"], ["standardize"]) or name == "context.std"
            module.register_buffer(last, t) if frozen else module.register_parameter(last, nn.Parameter(t))
        d = math.prod(config["shape"])
        zeros = torch.zeros(1, *config["shape"], dtype=dtype)
        with torch.no_grad():
            z = self.encode(zeros + 0.5, self._labels(zeros), self._no_context(zeros))
            self._log_prior(z, self._labels(zeros))
            self.decode(z, self._labels(zeros), self._no_context(zeros))
        left = set(self.state_dict()) - self.used
        if left:
            raise ValueError(f"{len(left)} tensors belong to no layer of this config, as {min(left)}")
        self.dims = d

    def _labels(self, x):
        return None if self.classes is None else torch.zeros(len(x), dtype=torch.long)

    def _no_context(self, x):
        if self.beside["kind"] == "features":
            return torch.zeros(len(x), *self.beside["shape"], dtype=x.dtype)
        return self.context_of(x)

    def context_of(self, x):
        """The context that is made of images x; None where there is none, or it is given with them."""
        kind = self.beside["kind"]
        if kind == "downsampled":
            return F.avg_pool2d(x.floor(), self.beside["factor"])
        if kind != "masked":
            return None
        h, w = x.shape[2:]
        known = torch.ones(h, w, dtype=x.dtype, device=x.device)
        if self.beside["missing"] == "most":
            known[1::2], known[:, 1::2] = 0, 0
        else:
            part = {
                "right": (slice(None), slice(w // 2, None)), "left": (slice(None), slice(w // 2)),
                "top": (slice(h // 2), slice(None)), "bottom": (slice(h // 2, None), slice(None)),
                "centre": (slice(h // 4, h - h // 4), slice(w // 4, w - w // 4)),
            }
            known[part[self.beside["missing"]]] = 0
        return torch.cat([x.floor() * known, known.expand(len(x), 1, h, w)], 1)

    def _given(self, y, c):
        """What networks see of a context."""
        kind = self.beside["kind"]
        if kind == "none":
            return None
        if kind == "labels":
            return self.get("context.embedding")[y]
        if c is None:
            raise ValueError("this is a model of p(x | c): give c")
        column = lambda path: self.get(path).reshape(-1, *[1] * (c.dim() - 2))
        return (c - column("context.mean")) / column("context.std")

    def _beside(self, x):
        """A network's input with the context behind it, in its sides."""
        c = self.given
        if c is None:
            return x
        if x.dim() == 2:
            c = c.flatten(1)
        elif c.dim() == 2:
            c = c[:, :, None, None].expand(-1, -1, *x.shape[2:])
        elif c.shape[2] > x.shape[2]:
            c = F.pixel_unshuffle(c, c.shape[2] // x.shape[2])
        else:
            k = x.shape[2] // c.shape[2]
            c = c.repeat_interleave(k, 2).repeat_interleave(k, 3)
        return torch.cat([x, c], 1)

    # What can be asked -------------------------------------------------------------------------------------------------

    def log_prob(self, x, y=None, c=None):
        z, log_det = self._run(x, y, c, inverse=False)
        return self._log_prior(z, y) + log_det

    def _log_prior(self, z, y):
        kind = self.base["kind"]
        normal = lambda e: -0.5 * (e.square() + math.log(2 * math.pi)).sum(-1)
        if kind == "logistic":
            return -(F.softplus(z) + F.softplus(-z)).sum(1)
        if kind == "student_t":
            return torch.distributions.StudentT(self._df(z)).log_prob(z).sum(1)
        if kind == "mixture":
            mean, logs = self.get("prior.mean"), self.get("prior.logs")
            each = normal((z[:, None] - mean) * (-logs).exp()) - logs.sum(1)
            return (each + self.get("prior.weights").log_softmax(0)).logsumexp(1)
        if kind == "diagonal_gaussian":
            e, log_det = self._latent("prior")[0](z, y)
            return normal(e) + log_det
        if kind != "gaussian":
            raise ValueError(f"the prior of this model, {kind!r}, is unknown to this script: fetch a newer one")
        return normal(z)

    def _df(self, z):
        if self.base.get("learned", False):
            return self.get("prior.log_df").exp()
        return torch.tensor(float(self.base.get("df", 5)), dtype=z.dtype, device=z.device)

    def bits_per_dim(self, x, y=None, c=None):
        return self.log_prob(x, y, c) / (-math.log(2) * x[0].numel())

    def encode(self, x, y=None, c=None):
        return self._run(x, y, c, inverse=False)[0]

    def decode(self, z, y=None, c=None):
        """x from all of z, (B, D)."""
        return self._run(z, y, c, inverse=True)[0].reshape(-1, *self.config["shape"])

    def sample(self, n, temperature=1.0, y=None, c=None):
        like = next(self.parameters())
        z = torch.randn(n, self.dims, dtype=like.dtype, device=like.device)
        kind = self.base["kind"]
        if kind == "logistic":
            u = torch.rand_like(z).clamp(1e-6, 1 - 1e-6)
            z = u.log() - (-u).log1p()
        z = temperature * z
        if kind == "student_t":
            df = self._df(z).expand_as(z)
            z = z * (torch.distributions.Chi2(df).sample() / df).rsqrt()
        if kind == "mixture":
            k = torch.multinomial(self.get("prior.weights").softmax(0), n, replacement=True)
            z = z * self.get("prior.logs")[k].exp() + self.get("prior.mean")[k]
        if kind == "diagonal_gaussian":
            z = self._latent("prior")[1](z, y)
        return self.decode(z, y, c)

    def forward(self, x, y=None, c=None):
        return self.log_prob(x, y, c)

    # The flow: each step is (x, y) -> (x, log_det) one way and x the other -----------------------------------------------

    def get(self, path):
        self.used.add(path)
        t = self
        for part in path.split("."):
            t = getattr(t, part)
        return t

    def has(self, path):
        *path, last = path.split(".")
        t = self
        for part in path:
            t = getattr(t, part)
        return hasattr(t, last)

    def _run(self, x, y, c, inverse):
        self.given = self._given(y, c)
        shape, levels, sizes = list(self.config["shape"]), [], []
        for i, layers in enumerate(self.levels):
            levels.append(self._steps(layers, shape, f"level{i}"))
            c, h, w = shape
            last = i + 1 == len(self.levels)
            sizes.append((c if last else c - c // 2, h, w))
            shape[0] = c // 2
        before, after = self._preprocess(), self._steps(self.layers, [math.prod(self.config["shape"])], "")
        if not inverse:
            x, log_det = through(before, x, y, torch.zeros(len(x), dtype=x.dtype, device=x.device))
            done = []
            for i, level in enumerate(levels):
                x, log_det = through(level, x, y, log_det)
                half = x.shape[1] // 2 if i + 1 < len(levels) else 0
                done.append(x[:, half:].flatten(1))
                x = x[:, :half]
            x = torch.cat(done, 1) if levels else x
            return through(after, x, y, log_det)
        x = undone(after, x, y)
        if levels:
            parts = x.split([math.prod(s) for s in sizes], 1)
            x = None
            for level, part, size in reversed(list(zip(levels, parts, sizes))):
                part = part.reshape(-1, *size)
                x = undone(level, part if x is None else torch.cat([x, part], 1), y)
        return undone(before, x, y), None

    def _steps(self, layers, shape, path, odd=None):
        """The steps of a list of layers under a path, of examples of a shape, which becomes that of what comes out.

        `odd` is None outside of repeated steps, and otherwise whether the step is every second one."""
        steps, met, has_net = [], Counter(), False
        join = lambda *parts: ".".join(part for part in parts if part)
        for layer in map(settings, layers):
            kind, own = layer["kind"], layer.get("name")
            word, make = known("layer", kind, LAYERS)
            word = own or word
            if kind == "steps":
                for _ in range(layer["repeat"]):
                    within = join(path, f"{word}{met[word]}")
                    steps += self._steps(layer["layers"], shape, within, met[word] % 2 == 1)
                    met[word] += 1
                continue
            name = word if own or not met[word] else f"{word}{met[word]}"
            met[word] += 1
            net = kind in ("coupling", "autoregressive")
            of_step = net and odd is not None and not own and not has_net
            has_net = has_net or net
            steps.append(make(self, layer, shape, path if of_step else join(path, name), bool(odd)))
        return steps

    def _preprocess(self):
        c = self.config
        n, kind = 2.0 ** c["bits"], c["preprocess"]["kind"]
        scale = {"none": None, "standardize": None, "unit": (1 / n, 0), "logit": (1 / n, 0), "centered": (1 / n, -0.5)}.get(kind, (2 / n, -1))
        steps = self._dequantize() + ([] if scale is None else [affine(torch.tensor(scale[0]), scale[1])])
        if kind == "logit":
            a = c["preprocess"]["alpha"]
            slope = 1 - a if c["preprocess"]["scale"] == "paper" else 1 - 2 * a

            def logit(x, y):
                p = a + slope * x
                return torch.logit(p), (math.log(slope) - p.log() - (-p).log1p()).flatten(1).sum(1)

            steps.append((logit, lambda z, y: (torch.sigmoid(z) - a) / slope))
        if not self.levels and len(c["shape"]) > 1:
            steps.append((lambda x, y: (x.flatten(1), 0), lambda z, y: z.reshape(-1, *c["shape"])))
        if kind == "standardize":
            mean, std = self.get("standardize.mean"), self.get("standardize.std")
            steps.append((lambda x, y: ((x - mean) / std, -std.log().sum()), lambda z, y: z * std + mean))
        if kind == "zca":
            w, inverse, mean, ld = (self.get(f"whiten.{k}") for k in ("weight", "inverse", "mean", "log_det"))
            steps.append((lambda x, y: ((x - mean) @ w, ld.sum()), lambda z, y: z @ inverse + mean))
        return steps

    def _dequantize(self):
        noise = settings(self.config.get("dequantize", "uniform"))
        if noise["kind"] == "uniform":
            return []
        if noise["kind"] != "variational":
            raise ValueError(f"the noise of this model, {noise['kind']!r}, is unknown to this script: fetch a newer one")
        edge, steps = 2.0**-16, []
        levels = 2.0 ** self.config["bits"]

        def sees(n):
            n = n.clamp(0, levels - 1)
            off = n - F.avg_pool2d(F.pad(n, (1, 1, 1, 1), mode="replicate"), 3, 1)
            return torch.cat([F.pixel_unshuffle(n, 2) * (4 / levels) - 2, F.pixel_unshuffle(off, 2) * (16 / levels)], 1)

        inner = math.log(1 - 2 * edge)
        log_slope = lambda h: F.logsigmoid(h) + F.logsigmoid(-h)
        for i in range(noise.get("couplings", 4)):
            path = f"dequantize.coupling{i}"
            steps.append((conv_net(self, {}, f"{path}.net", None), tanh(self, f"{path}.gain"), i % 2 == 1))
        with_pixels = lambda pixels: [coupling(lambda x, net=net: 0.1 * net(torch.cat([x, pixels], 1)), shift_scale(scale), swap=swap) for net, scale, swap in steps]

        def forward(x, y):
            n = x.floor()
            h = torch.logit(edge + (1 - 2 * edge) * (x - n))
            log_det = (inner - log_slope(h)).flatten(1).sum(1)
            h = F.pixel_unshuffle(h, 2)
            for step, _ in with_pixels(sees(n)):
                h, ld = step(h, y)
                log_det = log_det + ld
            h = F.pixel_shuffle(h, 2)
            return n + edge + (1 - 2 * edge) * torch.sigmoid(h), log_det + (inner + log_slope(h)).flatten(1).sum(1)

        def back(z, y):
            n = z.floor()
            h = F.pixel_unshuffle(torch.logit(((z - n - edge) / (1 - 2 * edge)).clamp(edge / 256, 1 - edge / 256)), 2)
            for _, step in reversed(with_pixels(sees(n))):
                h = step(h, y)
            v = (torch.sigmoid(F.pixel_shuffle(h, 2)) - edge) / (1 - 2 * edge)
            return n + v.clamp(0, 1 - edge)

        return [(forward, back)]

    def _conv(self, path, x):
        w = self.get(f"{path}.weight")
        if not self.has(f"{path}.edge"):
            return F.conv2d(x, w, padding=1)
        edge = self.get(f"{path}.edge").reshape(-1, 1, 3, 3)
        border = F.pad(torch.zeros_like(x[:, :1]), (1, 1, 1, 1), value=1.0)
        return F.conv2d(torch.cat([F.pad(x, (1, 1, 1, 1)), border], 1), torch.cat([w, edge], 1))

    def _zero(self, path, x):
        y = self._conv(f"{path}.zero", x) + self.get(f"{path}.zero.bias")[:, None, None]
        return y * torch.exp(3 * self.get(f"{path}.zero.logs"))[:, None, None]

    def _latent(self, path):
        def mean_logs(y):
            mean, logs = self.get(f"{path}.mean"), self.get(f"{path}.logs")
            row = y if len(mean) > 1 and self._is_conditional(y) else slice(None)
            return mean[row], logs[row]

        return gaussian(mean_logs)

    def _is_conditional(self, y):
        conditional = self.classes is not None
        if conditional and y is None:
            raise ValueError("this model is class-conditional: give the class labels y")
        return conditional


# The papers' models as lists of layers, as the library builds them ----------------------------------------------------------


def settings(named):
    """A name alone stands for a table with nothing but `kind`."""
    return {"kind": named} if isinstance(named, str) else named


def known(what, name, table):
    if name not in table:
        raise ValueError(f"the {what} {name!r} is unknown to this script, which has {', '.join(table)}: fetch a newer one")
    return table[name]


def classes(lists):
    """The classes that layers depend on."""
    for layer in map(settings, sum(lists, [])):
        yield from classes([layer["layers"]]) if layer["kind"] == "steps" else [layer["classes"]] if layer.get("classes") else []


def law(named, affine):
    """The transform of a paper's model, where `affine` is what it has for that name."""
    if named == "affine":
        return {"kind": "affine", **affine}
    if isinstance(named, str):
        return {"kind": named}
    (kind, own), = named.items()
    return {"kind": kind, **own}


TANH = {"scale": {"kind": "tanh"}, "shift_first": False}


def listed(c):
    return [level["layers"] for level in c.get("levels", [])], c.get("layers", [])


def nice(c):
    even_odd, layers = c["order"] == "even_odd", []
    if even_odd:
        layers.append({"kind": "even_odd", "name": "even_odd"})
    for i, hidden in enumerate(c["hidden"]):
        halves = {"kind": "halves", "swap": even_odd and i % 2 == 1}
        layers.append({"kind": "coupling", "name": f"coupling{i}", "partition": halves, "transform": law(c["law"], TANH), "net": {"kind": "mlp", "hidden": hidden}})
        if not even_odd:
            layers.append({"kind": "reverse", "name": f"coupling{i}.reverse"})
    return [], [*layers, "diagonal"]


def maf(c):
    layer = {"kind": "autoregressive", "transform": law(c["transform"], TANH), "hidden": c["hidden"]}
    return [], [{"kind": "steps", "name": "layer", "repeat": c["layers"], "layers": [layer]}]


def realnvp(c):
    diagonal, gains, levels = c.get("diagonal", False), c.get("channel_gains", False), []
    channels = c["shape"][0]
    transform = {"kind": "affine", "scale": {"kind": "exp" if gains else "tanh"}, "shift_first": c["shift_first"]}
    keys = ("blocks", "signed_input", "weight_norm", "batch_norm", "skip", "eps")
    net = {"kind": "res_net", "norm_input": c.get("norm_input", False), "channel_gains": gains, **{k: c[k] for k in keys}}
    norm = [{"kind": "batch_norm", "eps": c["eps"]}] if c["batch_norm"] and c.get("norm_couplings", True) else []

    def steps(name, repeat, partition):
        layer = {"kind": "coupling", "partition": {"kind": partition, "swap": diagonal, "alternate": True}, "transform": transform, "net": net}
        return {"kind": "steps", "name": name, "repeat": repeat, "layers": [layer, *norm]}

    for i in range(c["scales"]):
        if i + 1 == c["scales"]:
            levels.append([steps("checker", c["last_checkerboard"], "checkerboard")])
            break
        level = [steps("checker", c["checkerboard"], "checkerboard"), "squeeze", steps("channel", c["channelwise"], "halves")]
        levels.append([*level, {"kind": "permute", "name": "order"}] if diagonal else level)
    return levels, []


def glow(c):
    transform = law(c["law"], {"scale": {"kind": "sigmoid"}, "shift_first": True})
    mixing = c["permutation"]
    mixing = mixing if mixing in ("shuffle", "reverse") else {"kind": "conv1x1", "weight": mixing}
    coupling = {"kind": "coupling", "transform": transform, "net": {"kind": "conv_net"}}
    step = [{"kind": "actnorm", "factor": 3}, mixing, coupling]
    levels = []
    for i in range(c["levels"]):
        level = ["squeeze", {"kind": "steps", "repeat": c["depth"], "layers": step}]
        if i + 1 < c["levels"]:
            levels.append([*level, "split_prior"] if c["learn_split"] else level)
        else:
            levels.append([*level, {"kind": "channel_prior", "classes": c.get("classes")}] if c["learn_top"] else level)
    return levels, [{"kind": "diagonal_prior", "classes": c.get("classes")}] if c.get("learn_latent", False) else []


MODELS = {"nice": nice, "realnvp": realnvp, "glow": glow, "maf": maf, "composed": listed}

# Layers: a config's settings, the shape of an example, the path of the tensors, and whether it is in every second step -----------


def squeezed(m, s, shape, path, odd):
    shape[:] = [4 * shape[0], shape[1] // 2, shape[2] // 2]
    return squeeze()


def actnorm(m, s, shape, path, odd):
    scale = torch.exp(s["factor"] * m.get(f"{path}.logs"))
    return affine(scale, scale * m.get(f"{path}.bias"))


def batch_norm(m, s, shape, path, odd):
    std = (m.get(f"{path}.var") + s["eps"]).sqrt()
    return affine(1 / std, -m.get(f"{path}.mean") / std)


def conv1x1(m, s, shape, path, odd):
    if s["weight"] == "plain":
        w = m.get(f"{path}.weight")
        logs = torch.linalg.slogdet(w)[1]
    else:
        # W = P L (U + diag(sign exp(log s))), L and U packed: row i of W is row perm[i] of L U.
        lu, sign, perm = m.get(f"{path}.lu"), m.get(f"{path}.sign"), m.get(f"{path}.perm")
        logs = lu.diagonal()
        w = ((lu.tril(-1) + torch.eye(len(lu)).to(lu)) @ (lu.triu(1) + torch.diag(sign * logs.exp())))[perm]
        logs = logs.sum()
    mix = lambda m, x: torch.einsum("ij,bj...->bi...", m, x)
    return lambda x, y: (mix(w, x), logs * x[0, 0].numel()), lambda z, y: mix(torch.linalg.inv(w), z)


def permutation(m, s, shape, path, odd):
    return take(m.get(f"{path}.index"))


def coupled(m, s, shape, path, odd):
    partition = settings(s.get("partition", "halves"))
    swap = partition.get("swap", False) != (odd and partition.get("alternate", False))
    mask = None
    if known("partition", partition["kind"], {"halves": False, "checkerboard": True}):
        board = torch.arange(shape[1])[:, None] + torch.arange(shape[2])[None]
        mask, swap = ((board + swap) % 2 == 0).to(next(m.parameters()))[None, None], False
    net = settings(s["net"])
    net = known("network", net["kind"], NETS)(m, net, f"{path}.net", mask)
    return coupling(lambda x: net(m._beside(x)), transform(m, s["transform"], path), swap, mask)


def masked(m, s, shape, path, odd):
    order = m.get(f"{path}.net.order")
    dims, depth = len(order), len(s["hidden"])
    features = 0 if m.given is None else m.given[0].numel()
    lowest = int(dims > 1 and features == 0)
    # A weight counts from a unit of lower degree to one of higher, and within hidden layers to one of the same.
    widths = [len(m.get(f"{path}.net.{k}.bias")) for k in range(depth + 1)]
    degrees = [lowest + torch.arange(n).to(order) * (dims - lowest) // n for n in widths[:-1]]
    place = order.argsort() + 1
    degrees = [F.pad(place, (0, features)), *degrees, place.repeat(widths[-1] // dims)]

    def mask(k):
        before, after = degrees[k][None], degrees[k + 1][:, None]
        return (before < after if k == depth else before <= after).to(next(m.parameters()))

    net = connected(m, f"{path}.net", depth + 1, mask)
    return autoregressive(lambda x: net(m._beside(x)), transform(m, s["transform"], path), order)


def diagonal(m, s, shape, path, odd):
    logs = m.get(f"{path}.logs")
    return lambda x, y: (x * logs.exp(), logs.sum()), lambda z, y: z * (-logs).exp()


def split_prior(m, s, shape, path, odd):
    return coupling(lambda x: m._zero(path, m._beside(x)), shift_scale(lambda s: s, True))


def channel_prior(m, s, shape, path, odd):
    def mean_logs(y):
        h = m.get(f"{path}.bias")[None]
        if s.get("classes") and m._is_conditional(y):
            h = h + m.get(f"{path}.emb")[y]
        return (h * torch.exp(3 * m.get(f"{path}.gain")))[:, :, None, None].chunk(2, 1)

    return gaussian(mean_logs)


LAYERS = {  # each with its default name
    "steps": ("step", None),
    "squeeze": ("squeeze", squeezed),
    "actnorm": ("actnorm", actnorm),
    "batch_norm": ("norm", batch_norm),
    "conv1x1": ("permutation", conv1x1),
    "reverse": ("permutation", permutation),
    "shuffle": ("permutation", permutation),
    "even_odd": ("permutation", permutation),
    "permute": ("permutation", permutation),
    "coupling": ("coupling", coupled),
    "autoregressive": ("autoregressive", masked),
    "diagonal": ("diagonal", diagonal),
    "split_prior": ("split", split_prior),
    "channel_prior": ("top", channel_prior),
    "diagonal_prior": ("latent", lambda m, s, shape, path, odd: m._latent(path)),
}

# Networks: a config's settings, the path of the tensors, and the mask --------------------------------------------------------------


def mlp(m, s, path, mask):
    return connected(m, path, len(s["hidden"]) + 1, lambda k: 1)


def connected(m, path, depth, mask):
    layers = [(m.get(f"{path}.{k}.weight") * mask(k), m.get(f"{path}.{k}.bias")) for k in range(depth)]

    def net(x):
        for k, (w, b) in enumerate(layers):
            x = F.linear(x if k == 0 else F.relu(x), w, b)
        return x

    return net


def conv_net(m, s, path, mask):
    def norm(name, x):
        bias, logs = m.get(f"{path}.{name}.bias"), m.get(f"{path}.{name}.logs")
        return (x + bias[:, None, None]) * torch.exp(3 * logs)[:, None, None]

    def net(x):
        x = F.relu(norm("norm1", m._conv(f"{path}.conv1", x)))
        x = F.relu(norm("norm2", F.conv2d(x, m.get(f"{path}.conv2.weight"))))
        return m._zero(path, x)

    return net


def res_net(m, s, path, mask):
    def conv(name, x):
        v, b = m.get(f"{path}.{name}.weight"), m.get(f"{path}.{name}.bias")
        if s["weight_norm"]:
            g = m.get(f"{path}.{name}.magnitude")
            v = v * (g / (v.flatten(1).square().sum(1) + 1e-12).sqrt())[:, None, None, None]
        return F.conv2d(x, v, b, padding=v.shape[2] // 2)

    def norm(name, x):
        mean, var, gamma, beta = (m.get(f"{path}.{name}.{k}") for k in ("mean", "var", "gamma", "beta"))
        return F.batch_norm(x, mean, var, gamma, beta, training=False, eps=s["eps"])

    norm_relu = (lambda name, x: F.relu(norm(name, x))) if s["batch_norm"] else (lambda name, x: F.relu(x))

    def net(x):
        rectify = s["norm_input"]
        x = norm("input", x) if rectify else x
        u = torch.cat([x, -x] if s["signed_input"] else [x], 1)
        if mask is not None:
            u = torch.cat([u, mask.expand(len(x), -1, -1, -1)], 1)
        h = conv("first", F.relu(u) if rectify else u)
        out = conv("skip", h) if s["skip"] else None
        for i in range(s["blocks"]):
            b = f"block{i}"
            h = h + conv(f"{b}.conv2", norm_relu(f"{b}.norm2", conv(f"{b}.conv1", norm_relu(f"{b}.norm1", h))))
            out = out + conv(f"{b}.skip", h) if s["skip"] else None
        out = conv("last", norm_relu("norm", h if out is None else out))
        if s["channel_gains"]:
            t, raw = out.chunk(2, 1)
            out = torch.cat([t, m.get(f"{path}.gains")[:, None, None] * torch.tanh(raw)], 1)
        return out

    return net


NETS = {"mlp": mlp, "conv_net": conv_net, "res_net": res_net}


# Steps ---------------------------------------------------------------------------------------------------------------


def through(steps, x, y, log_det):
    """x and the log-det after steps."""
    for forward, _ in steps:
        x, more = forward(x, y)
        log_det = log_det + more
    return x, log_det


def undone(steps, x, y):
    for _, back in reversed(steps):
        x = back(x, y)
    return x


def affine(a, b):
    """a x + b with a number, or one for each channel."""
    of = lambda v, x: v.reshape(-1, *[1] * (x.dim() - 2)) if torch.is_tensor(v) and v.dim() else v

    def forward(x, y):
        # In double precision: this is D log 256 for pixels.
        each = a.double().abs().log().sum() * (x[0].numel() / a.numel())
        return of(a, x) * x + of(b, x), each.to(x.dtype)

    return forward, lambda z, y: (z - of(b, z)) / of(a, z)


def gaussian(mean_logs):
    """z = (x - mean) exp(-logs) with the mean and the logs of the class, for each channel or each dimension."""

    def forward(x, y):
        mean, logs = mean_logs(y)
        return (x - mean) * (-logs).exp(), -logs.flatten(1).sum(1) * (x[0].numel() // logs[0].numel())

    def back(z, y):
        mean, logs = mean_logs(y)
        return z * logs.exp() + mean

    return forward, back


def take(index):
    """z_d = x_index(d)."""
    return lambda x, y: (x[:, index], 0), lambda z, y: z[:, index.argsort()]


def squeeze():
    """Channel 4c + 2u + v is the pixel (u, v) of each 2x2 square of channel c."""
    return lambda x, y: (F.pixel_unshuffle(x, 2), 0), lambda z, y: F.pixel_shuffle(z, 2)


def coupling(net, law, swap=False, mask=None):
    """x where kept; elsewhere what a transform makes of x and the network's numbers.

    The first half is kept, the second with `swap`, or what a mask says."""

    def parts(x):
        if mask is not None:
            return x * mask, x
        half = x.shape[1] // 2
        return (x[:, half:], x[:, :half]) if swap else (x[:, :half], x[:, half:])

    def join(x, kept, new):
        if mask is not None:
            return torch.where(mask > 0, x, new)
        return torch.cat([new, kept] if swap else [kept, new], 1)

    def forward(x, y):
        kept, changed = parts(x)
        new, s = law[0](changed, net(kept))
        return join(x, kept, new), (s if mask is None else s * (1 - mask)).flatten(1).sum(1)

    def back(z, y):
        kept, changed = parts(z)
        return join(z, kept, law[1](changed, net(kept)))

    return forward, back


def autoregressive(net, law, order):
    """z_i is what a transform makes of x_i and the network's numbers for it, which depend on what is before i in the order."""

    def forward(x, y):
        z, s = law[0](x, net(x))
        return z, s.sum(1)

    def back(z, y):
        x = torch.zeros_like(z)
        for i in order.tolist():
            h = net(x).unflatten(1, (-1, len(order)))[:, :, i]
            x[:, i : i + 1] = law[1](z[:, i : i + 1], h)
        return x

    return forward, back


# Transforms: forward (x, h) -> (y, log dy/dx) and back (y, h) -> x, with the network's numbers h one kind after the other ----


def transform(m, named, path):
    """The transform that a config names, with its own parameters under a path."""
    own = dict(settings(named))
    return known("transform", own.pop("kind"), TRANSFORMS)(m, path, **own)


def additive(m, path):
    return lambda x, h: (x + h, torch.zeros_like(x)), lambda y, h: y - h


def tanh(m, path):
    gain = m.get(path)
    return lambda h: gain * torch.tanh(h)


SCALES = {
    "exp": lambda m, path: lambda h: h,
    "tanh": tanh,
    "sigmoid": lambda m, path: lambda h: F.logsigmoid(h + 2),
}


def scaled(m, path, scale, shift_first):
    return shift_scale(known("scale", settings(scale)["kind"], SCALES)(m, f"{path}.gain"), shift_first)


def shift_scale(log_scale, shift_first=False):
    """x exp(s) + t or (x + t) exp(s), with h = (t, raw) and s = log_scale(raw)."""

    def forward(x, h):
        t, raw = h.chunk(2, 1)
        s = log_scale(raw)
        return (x + t) * s.exp() if shift_first else x * s.exp() + t, s

    def back(y, h):
        t, raw = h.chunk(2, 1)
        s = log_scale(raw)
        return y * (-s).exp() - t if shift_first else (y - t) * (-s).exp()

    return forward, back


def spline(m, path, bins, bound, min_width, min_height, min_slope):
    """A monotone spline of rational-quadratic pieces on [-bound, bound], the identity beyond (arXiv 1906.04032)."""

    def pieces(at, h, axis):
        h = h.unflatten(1, (-1, at.shape[1])).movedim(1, -1)
        knots = []
        for raw, least in zip(h.split([bins, bins, bins - 1], -1), (min_width, min_height)):
            share = least + (1 - least * bins) * raw.softmax(-1)
            inner = 2 * bound * share.cumsum(-1)[..., :-1] - bound
            knots.append(F.pad(F.pad(inner, (1, 0), value=-bound), (0, 1), value=bound))
        inner = min_slope + F.softplus(h[..., 2 * bins :] + math.log(math.expm1(1 - min_slope)))
        inside = at.abs() <= bound
        within = torch.where(inside, at, torch.zeros_like(at))
        k = (within[..., None] >= knots[axis][..., 1:-1]).sum(-1, keepdim=True)
        pick = lambda t, k: t.gather(-1, k)[..., 0]
        x, y = (pick(t, k) for t in knots)
        w, height = pick(knots[0], k + 1) - x, pick(knots[1], k + 1) - y
        d = F.pad(inner, (1, 1), value=1.0)
        return inside, within, x, y, w, height, height / w, pick(d, k), pick(d, k + 1)

    def forward(x, h):
        inside, within, x0, y0, w, height, s, d0, d1 = pieces(x, h, 0)
        t = (within - x0) / w
        u = t * (1 - t)
        denominator = s + (d0 + d1 - 2 * s) * u
        y = y0 + height * (s * t.square() + d0 * u) / denominator
        slope = s.square() * (d1 * t.square() + 2 * s * u + d0 * (1 - t).square()) / denominator.square()
        return torch.where(inside, y, x), torch.where(inside, slope, torch.ones_like(slope)).log()

    def back(y, h):
        inside, within, x0, y0, w, height, s, d0, d1 = pieces(y, h, 1)
        r = within - y0
        bend = d0 + d1 - 2 * s
        a, b, c = height * (s - d0) + r * bend, height * d0 - r * bend, -s * r
        q = -0.5 * (b + torch.where(b >= 0, 1.0, -1.0) * (b.square() - 4 * a * c).clamp(min=0).sqrt())
        t = torch.where(b >= 0, c, q) / torch.where(b >= 0, q, a)
        return torch.where(inside, x0 + t * w, y)

    return forward, back


def mixture(m, path, components):
    """exp(a) logit F(x) + b with F the distribution function of a mixture of logistics (arXiv 1902.00275)."""

    def logit_cdf(x, h):
        h = h.unflatten(1, (-1, x.shape[1]))
        factors = [(-1) ** i * (i + 1) / components for i in range(components)]
        factors = torch.tensor(factors, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.dim() - 1))
        weights, mean, logs, a, b = h.split([components] * 3 + [1, 1], 1)
        weights, mean, logs = weights.log_softmax(1), factors * mean, 7 * torch.tanh(logs / 7)
        a, b = 7 * torch.tanh(a[:, 0] / 7), b[:, 0]

        def run(x):
            u = (x[:, None] - mean) * (-logs).exp()
            below = (weights + F.logsigmoid(u)).logsumexp(1)
            above = (weights + F.logsigmoid(-u)).logsumexp(1)
            density = (weights + F.logsigmoid(u) + F.logsigmoid(-u) - logs).logsumexp(1)
            return below - above, density - below - above

        return run, mean, logs, a, b

    def forward(x, h):
        run, _, _, a, b = logit_cdf(x, h)
        u, s = run(x)
        return u * a.exp() + b, s + a

    def back(y, h):
        run, mean, logs, a, b = logit_cdf(y, h)
        u = (y - b) * (-a).exp()
        ends = mean + logs.exp() * u[:, None]
        low, high = ends.amin(1), ends.amax(1)
        for _ in range(100):
            middle = (low + high) / 2
            above = run(middle)[0] > u
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    return forward, back


TRANSFORMS = {"additive": additive, "affine": scaled, "rational_quadratic_spline": spline, "mixture_of_logistics": mixture}


def check(folder, values):
    """The largest difference of log p(x) from `values`, and of decode(encode(x)) from x, in f64 and in f32."""
    values = load_file(values)
    result = {}
    for name, dtype in [("f64", torch.float64), ("f32", torch.float32)]:
        model = load(folder, dtype)
        x, y = values["x"].to(dtype), values.get("cond")
        y = None if y is None else y.long()
        c = values["c"].to(dtype) if "c" in values else model.context_of(x)
        with torch.no_grad():
            difference = (model.log_prob(x, y, c).double() - values["log_prob"].double()).abs().max().item()
            back = (model.decode(model.encode(x, y, c), y, c) - x).abs().max().item()
        result[name] = {"log_prob": difference, "inverse": back, "size": values["log_prob"].abs().max().item()}
    return result


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] != "check":
        sys.exit("usage: python flows_torch.py check FOLDER VALUES")
    print(json.dumps(check(sys.argv[2], sys.argv[3])))
