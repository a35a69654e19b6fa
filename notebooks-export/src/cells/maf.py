def network(h, path):  # numbers for each dimension, which depend on the dimensions before it
    order = weights[f"{path}.order"].long()
    dims, depth = len(order), len(config["hidden"])
    to = 1 + order.argsort()
    for k in range(depth + 1):
        w, b = weights[f"{path}.{k}.weight"], weights[f"{path}.{k}.bias"]
        before, lowest = to, int(dims > 1)
        to = lowest + torch.arange(len(b)) * (dims - lowest) // len(b)
        if k == depth:
            to = (1 + order.argsort()).repeat(len(b) // dims)
        counts = before < to[:, None] if k == depth else before <= to[:, None]
        h = F.linear(F.relu(h) if k else h, w * counts, b)
    return h


def log_prob(x):
    x, log_det = preprocess(x)
    x = x.flatten(1)
    if config["preprocess"]["kind"] == "standardize":
        x = (x - weights["standardize.mean"]) / weights["standardize.std"]
        log_det = log_det - weights["standardize.std"].log().sum()
    if config["preprocess"]["kind"] == "zca":
        x = (x - weights["whiten.mean"]) @ weights["whiten.weight"]
        log_det = log_det + weights["whiten.log_det"].sum()
    for i in range(config["layers"]):
        x, a = transform(x, f"layer{i}", *network(x, f"layer{i}.net").split(x.shape[1], 1))
        log_det = log_det + a.sum(1)
    if config["prior"] == "logistic":
        return log_det - (F.softplus(x) + F.softplus(-x)).sum(1)
    return log_det - 0.5 * (x.square() + np.log(2 * np.pi)).sum(1)
