summary = json.loads(Path("summary.json").read_text())
rows = {split: summary[split] for split in ("test", "validation", "train") if summary.get(split)}
table = pd.DataFrame(rows).T
codecs = summary.get("codecs") or {}
beside = {
    "paper": (summary.get("paper") or {}).get("bits_per_dim"),
    "entropy, at least": summary.get("entropy_lower"),
    "entropy, at most": summary.get("entropy_upper"),
    "a Gaussian for each subpixel": (summary.get("gaussian") or {}).get("bits_per_dim"),
    "PNG": codecs.get("png_bits_per_dim"),
    "WebP, lossless": codecs.get("webp_bits_per_dim"),
    "JPEG XL, lossless": codecs.get("jxl_bits_per_dim"),
    "this model on the codecs' images": codecs.get("model_bits_per_dim"),
}
for name, value in beside.items():
    if value is not None:
        table.loc[name, "bits_per_dim"] = value
columns = [c for c in ("bits_per_dim", "std_err", "prior_bits", "log_det_bits", "images") if c in table]
table[columns].astype(float).round(4).astype(object).where(table[columns].notna(), "")
