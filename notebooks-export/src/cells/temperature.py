names = [f"{t:g}" for t in arrays["temperatures"]]
sheet(arrays["temperature_images"], rows=names, title="rows: temperature; columns: one latent each")

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.plot(arrays["temperatures"], arrays["temperature_bits"].mean(1), "o-", color=DARK)
axis.set(xlabel="temperature", ylabel="bits/dim of the samples")
plt.show()
