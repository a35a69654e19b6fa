metrics = pd.read_parquet("metrics.parquet")  # or pd.read_csv("metrics.csv")
figure, axis = plt.subplots(figsize=(8, 4.2), layout="constrained")
for column, colour, width in [("train_bits_per_dim", LIGHT, 1), ("validation_bits_per_dim", DARK, 2)]:
    if column in metrics:
        line = metrics[["update", column]].dropna()
        marker = "o" if len(line) < 20 else ""  # one value alone has no line
        style = {"color": colour, "linewidth": width, "marker": marker, "markersize": 3 * width}
        axis.plot(line["update"], line[column], label=column.split("_")[0], **style)
marks = []
if Path("summary.json").exists():
    summary = json.loads(Path("summary.json").read_text())
    codecs = summary.get("codecs") or {}
    low, high = summary.get("entropy_lower"), summary.get("entropy_upper")
    known = low is not None and high is not None and f"{low:.3f}" == f"{high:.3f}"
    marks = [
        ("paper", (summary.get("paper") or {}).get("bits_per_dim"), ":"),
        ("entropy" if known else "entropy at most", high, "--"),
        ("entropy at least", None if known else low, "-."),
        ("WebP, lossless", codecs.get("webp_bits_per_dim"), (0, (12, 3, 2, 3, 2, 3))),
        ("JPEG XL, lossless", codecs.get("jxl_bits_per_dim"), (0, (12, 3))),
    ]
    marks = [mark for mark in marks if mark[1] is not None]
for name, value, style in marks:
    axis.axhline(value, color="black", linewidth=1, linestyle=style, label=f"{name}, {value:.3f}")
# What matters is the end: the first tenth would flatten it.
shown = [c for c in ("train_bits_per_dim", "validation_bits_per_dim") if c in metrics]
late = metrics[metrics["update"] >= 0.1 * metrics["update"].max()][shown].stack().dropna()
if len(late):
    values = [late.min(), late.quantile(0.99), *(mark[1] for mark in marks)]
    margin = 0.06 * max(max(values) - min(values), 1e-3)
    axis.set_ylim(min(values) - margin, max(values) + margin)
axis.set(xlabel="updates", ylabel="bits/dim")
figure.legend(loc="outside upper center", ncols=3, frameon=False)
plt.show()
metrics.tail()
