points = arrays["points"]
if "density" in arrays.files:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.4), sharex=True, sharey=True, layout="constrained")
    right.imshow(np.sqrt(arrays["density"]), origin="lower", extent=arrays["window"], cmap="Blues", aspect="auto")
    right.set_title("density (its root, for the tails)")
    right.grid(False)
else:
    figure, left = plt.subplots(figsize=(4.6, 4.4), layout="constrained")
left.plot(points[:, 0], points[:, min(1, points.shape[1] - 1)], ".", color=DARK, markersize=2)
left.set_title("samples, first two dimensions")
plt.show()
