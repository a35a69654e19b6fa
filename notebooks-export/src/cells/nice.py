def network(h, path, layers):
    for k in range(layers):
        h = F.linear(F.relu(h) if k else h, weights[f"{path}.{k}.weight"], weights[f"{path}.{k}.bias"])
    return h


def coupling(x, path, layers, swap):  # one half stays, the other is changed as the network says
    kept, moved = x.tensor_split([x.shape[1] // 2], 1)[:: -1 if swap else 1]
    y, s = transform(moved, path, *network(kept, f"{path}.net", layers).split(moved.shape[1], 1))
    return torch.cat([kept, y][:: -1 if swap else 1], 1), s.sum(1)


def log_prob(x):
    x, log_det = preprocess(x)
    x = x.flatten(1)
    if config["preprocess"]["kind"] == "standardize":
        x = (x - weights["standardize.mean"]) / weights["standardize.std"]
        log_det = log_det - weights["standardize.std"].log().sum()
    if config["preprocess"]["kind"] == "zca":
        x = (x - weights["whiten.mean"]) @ weights["whiten.weight"]
        log_det = log_det + weights["whiten.log_det"].sum()
    alternate = config["order"] == "even_odd"
    if alternate:  # even places first, and from then on the halves take turns
        x = x[:, weights["even_odd.index"].long()]
    for i, hidden in enumerate(config["hidden"]):
        x, a = coupling(x, f"coupling{i}", len(hidden) + 1, alternate and i % 2 == 1)
        log_det = log_det + a
        if not alternate:
            x = x[:, weights[f"coupling{i}.reverse.index"].long()]
    logs = weights["diagonal.logs"]
    z, log_det = x * logs.exp(), log_det + logs.sum()
    if config["prior"] == "logistic":
        return log_det - (F.softplus(z) + F.softplus(-z)).sum(1)
    return log_det - 0.5 * (z.square() + np.log(2 * np.pi)).sum(1)
