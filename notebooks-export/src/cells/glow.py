def norm(x, path):  # actnorm, and the scale at the end of a zero convolution: (x + bias) exp(3 logs)
    logs = 3 * weights[f"{path}.logs"]
    return (x + weights[f"{path}.bias"][:, None, None]) * logs.exp()[:, None, None], logs.sum() * x[0, 0].numel()


def conv(x, path):
    w, edge = weights[f"{path}.weight"], weights.get(f"{path}.edge")
    if edge is None:
        return F.conv2d(x, w, padding=w.shape[2] // 2)
    border = F.pad(torch.zeros_like(x[:, :1]), (1, 1, 1, 1), value=1.0)  # one more channel, which marks the edge
    return F.conv2d(x, w, padding=1) + F.conv2d(border, edge.reshape(-1, 1, 3, 3))


def mix(x, path):  # z = W x at every pixel
    if f"{path}.index" in weights:
        return x[:, weights[f"{path}.index"].long()], 0
    w = weights.get(f"{path}.weight")
    if w is None:  # W = P L (U + diag(sign exp(log s))), L, U and log s in one matrix
        lu, sign, perm = (weights[f"{path}.{name}"] for name in ("lu", "sign", "perm"))
        w = ((lu.tril(-1) + torch.eye(len(lu))) @ (lu.triu(1) + torch.diag(sign * lu.diagonal().exp())))[perm.long()]
    return torch.einsum("ij,bjhw->bihw", w, x), torch.linalg.slogdet(w)[1] * x[0, 0].numel()


def coupling(x, path, hidden, law):  # the first half stays, the second is changed as the network says
    h, moved = x.tensor_split([x.shape[1] // 2], 1)
    for i in hidden:
        h = F.relu(norm(conv(h, f"{path}.conv{i}"), f"{path}.norm{i}")[0])
    y, s = law(moved, path, *norm(conv(h, f"{path}.zero"), f"{path}.zero")[0].split(moved.shape[1], 1))
    return torch.cat([x[:, : x.shape[1] // 2], y], 1), s.flatten(1).sum(1)


def log_prob(x, y=None):
    (x, log_det), done = preprocess(x), []
    for i in range(config["levels"]):
        x = F.pixel_unshuffle(x, 2)
        for path in (f"level{i}.step{k}" for k in range(config["depth"])):
            x, a = norm(x, f"{path}.actnorm")
            x, b = mix(x, f"{path}.permutation")
            x, c = coupling(x, f"{path}.net", (1, 2), transform)
            log_det = log_det + a + b + c
        if i + 1 < config["levels"]:  # the second half of the channels is done, perhaps moved by the first
            exp = lambda x, _, t, s: ((x + t) * s.exp(), s)
            x, a = coupling(x, f"level{i}.split", (), exp) if config["learn_split"] else (x, 0)
            (x, half), log_det = x.tensor_split([x.shape[1] // 2], 1), log_det + a
            done.append(half.flatten(1))
        elif config["learn_top"]:  # the last level's mean and scale, by class where there are classes
            h = weights[f"level{i}.top.bias"][None] + (0 if y is None else weights[f"level{i}.top.emb"][y])
            mean, logs = (h * torch.exp(3 * weights[f"level{i}.top.gain"]))[:, :, None, None].chunk(2, 1)
            x, log_det = (x - mean) * (-logs).exp(), log_det - logs.flatten(1).sum(1) * x[0, 0].numel()
    z = torch.cat([*done, x.flatten(1)], 1)
    if config.get("learn_latent"):  # the latent's mean and scale, by class where there are classes
        mean, logs = (weights[f"latent.{name}"][slice(None) if y is None else y] for name in ("mean", "logs"))
        z, log_det = (z - mean) * (-logs).exp(), log_det - logs.sum(1)
    return log_det - 0.5 * (z.square() + np.log(2 * np.pi)).sum(1)
