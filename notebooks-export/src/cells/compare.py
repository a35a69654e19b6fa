labels = torch.from_numpy(arrays["labels"]) if "labels" in arrays.files else None
with torch.no_grad():
    ours = log_prob(torch.from_numpy(arrays["x"]).double(), labels).numpy()
theirs = arrays["log_prob"]
difference = np.abs(ours - theirs).max()
print(f"log p(x) of {len(ours)} samples, {theirs.mean():.3f} nats on average: largest difference {difference:.1e}")
assert difference <= 1e-9 * np.abs(theirs).max()
pd.DataFrame({"PyTorch": ours, "the library": theirs, "difference": ours - theirs})
