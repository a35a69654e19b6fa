labels = [torch.from_numpy(arrays["labels"])] if "labels" in arrays.files else []
with torch.no_grad():
    ours = log_prob(torch.from_numpy(arrays["x"]).double(), *labels).numpy()
theirs = arrays["log_prob"]
difference = np.abs(ours - theirs).max()
print(f"log p(x) of {len(ours)} samples, {theirs.mean():.3f} nats on average: largest difference {difference:.1e}")
assert difference <= 1e-11 * np.abs(theirs).max()  # rounding in double precision, and no more
pd.DataFrame({"PyTorch": ours, "the library": theirs, "difference": ours - theirs})
