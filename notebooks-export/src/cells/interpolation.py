columns = [f"{t:g}" for t in arrays["walk_t"].round(3)]
sheet(arrays["walk_images"], rows=["line", "arc"], columns=columns)

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for name, bits, colour, style in zip(["line", "arc"], arrays["walk_bits"], [LIGHT, DARK], ["o--", "s-"]):
    axis.plot(arrays["walk_t"], bits, style, color=colour, label=name)
axis.set(xlabel="t", ylabel="bits/dim on the way")
axis.legend()
plt.show()
