def transform(x, path, *h):  # a rational-quadratic spline on [-bound, bound], the identity beyond: y and log dy/dx
    c = (config.get("law") or config["transform"])["rational_quadratic_spline"]
    k, bound = c["bins"], c["bound"]
    wide, high, d = torch.stack(h, -1).split([k, k, k - 1], -1)
    knots = []
    for share, least in ((wide.softmax(-1), c["min_width"]), (high.softmax(-1), c["min_height"])):
        inner = 2 * bound * (least + (1 - k * least) * share).cumsum(-1)[..., :-1] - bound
        knots.append(F.pad(F.pad(inner, (1, 0), value=-bound), (0, 1), value=bound))
    # Slopes at the knots, 1 where h = 0 and at both ends.
    d = F.pad(c["min_slope"] + F.softplus(d + np.log(np.expm1(1 - c["min_slope"]))), (1, 1), value=1.0)
    inside = x.abs() <= bound
    within = torch.where(inside, x, torch.zeros_like(x))
    i = (within[..., None] >= knots[0][..., 1:-1]).sum(-1, keepdim=True)
    (x0, x1), (y0, y1), (d0, d1) = ([a.gather(-1, i + j)[..., 0] for j in (0, 1)] for a in (*knots, d))
    s, t = (y1 - y0) / (x1 - x0), (within - x0) / (x1 - x0)
    u = t * (1 - t)
    below = s + (d0 + d1 - 2 * s) * u
    y = y0 + (y1 - y0) * (s * t.square() + d0 * u) / below
    slope = s.square() * (d1 * t.square() + 2 * s * u + d0 * (1 - t).square()) / below.square()
    return torch.where(inside, y, x), torch.where(inside, slope, torch.ones_like(x)).log()
