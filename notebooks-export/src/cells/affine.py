def transform(x, path, t, h=None):  # x exp(s) + t with s = gain tanh(h), or x + t if additive
    s = torch.zeros_like(t) if h is None else weights[f"{path}.gain"] * torch.tanh(h)
    return x * s.exp() + t, s
