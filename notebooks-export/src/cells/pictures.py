from safetensors import safe_open

for path in sorted(Path("pictures").glob("*.safetensors")):
    with safe_open(path, "np") as file:
        figures = json.loads((file.metadata() or {}).get("flow", "{}"))
        numbers = {name: file.get_tensor(name) for name in file.keys()}
    command = figures.get("command", path.stem)
    print(f"{path}: flow {command}:", {name: array.shape for name, array in numbers.items()})
    if command == "ood":
        figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
        both = np.concatenate([numbers["bits_per_dim"], numbers["against_bits_per_dim"]])
        bins = np.linspace(*np.quantile(both, [0.002, 0.998]), 60)
        other = figures["against"]
        axis.hist(numbers["bits_per_dim"], bins, color=DARK, label=figures["data"])
        axis.hist(numbers["against_bits_per_dim"], bins, color=LIGHT, histtype="step", linewidth=2, label=other)
        axis.set(xlabel="bits/dim", title=f"an image of {other} is dearer in {figures['auroc']:.1%} of pairs")
        axis.legend()
        plt.show()
    elif command == "interpolate":
        ways = [way for way in ("linear", "spherical", "pixels") if way in numbers]
        images = np.stack([numbers[way] for way in ways]).squeeze()
        sheet(images.clip(0, 255).astype(np.uint8), rows=ways, columns=[f"{t:g}" for t in figures["t"]], title=command)
    elif numbers.get("images", np.empty(0)).ndim == 5:
        columns = [f"{s:+g}" if s else "0" for s in numbers.get("strengths", [])]
        title = f"{command} {figures.get('label', '')}".strip()
        sheet(numbers["images"].clip(0, 255).astype(np.uint8), columns=columns, title=title)
