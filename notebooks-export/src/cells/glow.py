import math

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

config = json.loads(Path("config.json").read_text())["config"]
tensors = {k: v for file in Path().glob("model*.safetensors") for k, v in load_file(file).items()}
weights = {k: v.double() if v.is_floating_point() else v.long() for k, v in tensors.items()}


def norm(x, path):  # actnorm, and the scale at the end of a zero convolution: (x + bias) exp(3 logs)
    logs = 3 * weights[f"{path}.logs"]
    return (x + weights[f"{path}.bias"][:, None, None]) * logs.exp()[:, None, None], logs.sum() * x[0, 0].numel()


def conv(x, path):
    w = weights[f"{path}.weight"]
    if w.shape[2] == 1 or not config["edge_bias"]:
        return F.conv2d(x, w, padding=w.shape[2] // 2)
    border = F.pad(torch.zeros_like(x[:, :1]), (1, 1, 1, 1), value=1.0)  # a channel that marks the edge
    w = torch.cat([w, weights[f"{path}.edge"].reshape(-1, 1, 3, 3)], 1)
    return F.conv2d(torch.cat([F.pad(x, (1, 1, 1, 1)), border], 1), w)


def mix(x, path):  # z = W x at every pixel
    if config["permutation"] in ("shuffle", "reverse"):
        return x[:, weights[f"{path}.index"]], 0
    if config["permutation"] == "plain":
        log_det, w = torch.linalg.slogdet(weights[f"{path}.weight"])[1], weights[f"{path}.weight"]
    else:  # W = P L (U + diag(sign exp(log s))), L, U and log s in one matrix
        lu, sign, perm = (weights[f"{path}.{name}"] for name in ("lu", "sign", "perm"))
        w = ((lu.tril(-1) + torch.eye(len(lu))) @ (lu.triu(1) + torch.diag(sign * lu.diagonal().exp())))[perm]
        log_det = lu.diagonal().sum()
    return torch.einsum("ij,bjhw->bihw", w, x), log_det * x[0, 0].numel()


def coupling(x, net, log_scale):  # the first half stays, the second becomes (x + t) exp(s), s = 0 if additive
    kept, moved = x.tensor_split([x.shape[1] // 2], 1)
    t, *h = net(kept).split(moved.shape[1], 1)
    s = log_scale(h[0]) if h else torch.zeros_like(t)
    return torch.cat([kept, (moved + t) * s.exp()], 1), s.flatten(1).sum(1)


def network(x, path, hidden=(1, 2)):  # its last convolution starts as zero
    for i in hidden:
        x = F.relu(norm(conv(x, f"{path}.conv{i}"), f"{path}.norm{i}")[0])
    return norm(conv(x, f"{path}.zero"), f"{path}.zero")[0]


def parts(i):  # the layers of a level, each x -> (z, log-det)
    for path in (f"level{i}.step{k}" for k in range(config["depth"])):
        yield lambda x: norm(x, f"{path}.actnorm")
        yield lambda x: mix(x, f"{path}.permutation")
        yield lambda x: coupling(x, lambda h: network(h, f"{path}.net"), lambda h: F.logsigmoid(h + 2))
    if i + 1 < config["levels"] and config["learn_split"]:
        yield lambda x: coupling(x, lambda h: network(h, f"level{i}.split", ()), lambda h: h)


def log_prob(x, y=None):
    n, kind = 2.0 ** config["bits"], config["preprocess"]["kind"]
    a, b = {"none": (1, 0), "unit": (1 / n, 0), "centered": (1 / n, -0.5), "symmetric": (2 / n, -1)}[kind]
    log_det, done, x = x[0].numel() * math.log(a), [], a * x + b
    for i in range(config["levels"]):
        x = F.pixel_unshuffle(x, 2)
        for part in parts(i):
            x, ld = part(x)
            log_det = log_det + ld
        if i + 1 < config["levels"]:  # half of the channels are done
            x, half = x.tensor_split([x.shape[1] // 2], 1)
            done.append(half.flatten(1))
    if config["learn_top"]:
        top = {name: weights.get(f"level{i}.top.{name}") for name in ("bias", "gain", "emb")}
        h = top["bias"][None] if y is None else top["bias"] + top["emb"][y]
        mean, logs = (h * torch.exp(3 * top["gain"]))[:, :, None, None].chunk(2, 1)
        x, log_det = (x - mean) * (-logs).exp(), log_det - logs.flatten(1).sum(1) * x[0, 0].numel()
    z = torch.cat([*done, x.flatten(1)], 1)
    return log_det - 0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
