kinds = {name.removeprefix("ood_"): arrays[name] for name in arrays.files if name.startswith("ood_")}
for name, bits in kinds.items():
    if not np.isfinite(bits).all():
        print(f"{name}: {(~np.isfinite(bits)).sum()} of {len(bits)} have no finite bits/dim")
kinds = {name: bits[np.isfinite(bits)] for name, bits in kinds.items() if np.isfinite(bits).any()}
# A model may give what it has not learned bits/dim of any size: beyond 20 they are counted at 20.
low = min(bits.min() for bits in kinds.values())
bins = np.linspace(low, min(20, max(bits.max() for bits in kinds.values())) + 1e-3, 80)
figure, axes = plt.subplots(len(kinds), 1, figsize=(8, 1.15 * len(kinds) + 0.8), sharex=True, layout="constrained")
for axis, (name, bits) in zip(axes, kinds.items()):
    axis.hist(bits.clip(max=bins[-1]), bins=bins, color=DARK if name == "samples" else LIGHT)
    axis.set_ylabel(name)
    axis.set_yticks([])
axes[-1].set_xlabel("bits/dim, what is beyond in the last bin")
plt.show()

own = kinds["samples"]
rows = {
    name: {"bits/dim": bits.mean(), "dearer than a sample": (bits[:, None] > own).mean()}
    for name, bits in kinds.items()
    if name != "samples"
}
pd.DataFrame(rows).T.assign(samples=own.mean()).round(4)
