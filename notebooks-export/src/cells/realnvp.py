def conv(x, path):
    v = weights[f"{path}.weight"]
    if config["weight_norm"]:  # a channel's kernel is magnitude v / |v|
        v = v * (weights[f"{path}.magnitude"] / (v.flatten(1).square().sum(1) + 1e-12).sqrt())[:, None, None, None]
    return F.conv2d(x, v, weights[f"{path}.bias"], padding=v.shape[2] // 2)


def norm(x, path):  # batch norm with running statistics, and in networks a scale and a shift
    mean, var, *learned = (weights.get(f"{path}.{name}") for name in ("mean", "var", "gamma", "beta"))
    return x if var is None else F.batch_norm(x, mean, var, *learned, eps=config["eps"])


def network(x, path, mask):  # a residual network: its shift t, and what becomes the log-scale s
    x = norm(x, f"{path}.input")
    u = torch.cat([x, *[-x] * config["signed_input"], *[m.expand(len(x), 1, -1, -1) for m in mask]], 1)
    h = conv(F.relu(u) if config.get("norm_input") else u, f"{path}.first")
    s = conv(h, f"{path}.skip") if config["skip"] else h
    for block in (f"{path}.block{i}" for i in range(config["blocks"])):
        r = conv(F.relu(norm(h, f"{block}.norm1")), f"{block}.conv1")
        h = h + conv(F.relu(norm(r, f"{block}.norm2")), f"{block}.conv2")
        s = s + conv(h, f"{block}.skip") if config["skip"] else h
    return conv(F.relu(norm(s, f"{path}.norm")), f"{path}.last").chunk(2, 1)


def coupling(x, log_det, path, swap):  # what is not kept becomes x exp(s) + t or (x + t) exp(s)
    if "checker" in path:  # the mask is 1 where a pixel is kept
        mask = ((torch.arange(x.shape[2])[:, None] + torch.arange(x.shape[3]) + swap) % 2 == 0).to(x)[None, None]
        t, s = network(x * mask, f"{path}.net", [mask])
        kept, moved, t, s = [], x, t * (1 - mask), s * (1 - mask)
    else:
        kept, moved = x.tensor_split([x.shape[1] // 2], 1)[:: -1 if swap else 1]
        (t, s), kept = network(kept, f"{path}.net", []), [kept]
    s = weights.get(f"{path}.gain", weights.get(f"{path}.net.gains")).reshape(-1, 1, 1) * torch.tanh(s)
    moved = (moved + t) * s.exp() if config["shift_first"] else moved * s.exp() + t
    x, log_det = torch.cat([*kept, moved][:: -1 if swap else 1], 1), log_det + s.flatten(1).sum(1)
    if f"{path}.norm.var" in weights:  # a layer of the flow, too
        log_det = log_det - 0.5 * (weights[f"{path}.norm.var"] + config["eps"]).log().sum() * x[0, 0].numel()
    return norm(x, f"{path}.norm"), log_det


def log_prob(x):
    (x, log_det), done = preprocess(x), []
    for i in range(config["scales"]):
        kinds = ["checkerboard", "channelwise"] if i + 1 < config["scales"] else ["last_checkerboard"]
        for kind in kinds:
            x = F.pixel_unshuffle(x, 2) if kind == "channelwise" else x
            for k in range(config[kind]):
                path = f"level{i}.channel{k}" if kind == "channelwise" else f"level{i}.checker{k}"
                x, log_det = coupling(x, log_det, path, k % 2 != config.get("diagonal", False))
        if i + 1 < config["scales"]:  # half of the channels are done
            x = x[:, weights[f"level{i}.order.index"].long()] if config.get("diagonal") else x
            x, half = x.tensor_split([x.shape[1] // 2], 1)
            done.append(half.flatten(1))
    return log_det - 0.5 * (torch.cat([*done, x.flatten(1)], 1).square() + np.log(2 * np.pi)).sum(1)
