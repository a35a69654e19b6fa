images = arrays["level_images"]
rows = ["sample"] + [f"level {l} anew" for l in range(len(images) - 1)]
sheet(images, rows=rows)

change = images[1:].astype(float) - images[0]
size = np.sqrt((change**2).mean((1, 2, 3, 4)))
pd.Series(size, index=rows[1:], name="root mean square change, grey levels").round(1)
