strengths, images = arrays["attribute_strengths"], arrays["attribute_images"]
columns = [f"{s:+g}" if s else "0" for s in strengths]
sheet(images, columns=columns, title="rows: a sample each; columns: strength of the attribute")

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.plot(strengths, images.mean((2, 3, 4)).T, ".-", color=DARK, alpha=0.7)
axis.set(xlabel="strength", ylabel="mean of the pixels")
plt.show()
