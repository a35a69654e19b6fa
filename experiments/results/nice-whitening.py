"""What whitening alone gives NICE on CIFAR-10: z = s W (x - mean), a logistic prior, and no coupling.

W = (C + epsilon I)^(-1/2) of the covariance C of 40,000 training images in [-1, 1], with or without their mirror images; s is fitted by
maximum likelihood. Prints nats and bits/dim of 10,000 training images and of the 10,000 validation images.

python nice-whitening.py DIR      # DIR has cifar-10-batches-bin; numpy 2, three minutes on one thread
"""

import sys

import numpy as np

D = 3072


def images(folder):
    read = lambda i: np.fromfile(f"{folder}/cifar-10-batches-bin/data_batch_{i}.bin", np.uint8)
    x = np.concatenate([read(i).reshape(-1, D + 1)[:, 1:] for i in range(1, 6)]).astype(np.float32)
    return (x + np.random.default_rng(0).random(x.shape, dtype=np.float32)) / 128 - 1


def scales(y):
    s = np.log(1.8 / y.std(0))
    for _ in range(30):
        z = y * np.exp(s)
        s += 0.5 * (1 - (np.tanh(z / 2) * z).mean(0))
    return s


def log_likelihood(y, s):
    z = np.abs(y * np.exp(s))
    return (-z - 2 * np.log1p(np.exp(-z))).sum(1).mean() + s.sum()


def main():
    x = images(sys.argv[1])
    train, valid = x[:40000], x[40000:]
    mean = train.mean(0)
    mirrored = train.reshape(-1, 3, 32, 32)[..., ::-1].reshape(train.shape)
    cov = lambda a: (a - mean).T @ (a - mean) / len(a)
    plain = cov(train)
    for name, c in [("images", plain), ("and mirrored", (plain + cov(mirrored)) / 2)]:
        values, vectors = np.linalg.eigh(c.astype(np.float64))
        for epsilon in [1e-3, 1e-4, 3e-5, 1e-5, 1e-6]:
            w = ((vectors * (values + epsilon) ** -0.5) @ vectors.T).astype(np.float32)
            s = scales((train - mean) @ w)
            nats = [log_likelihood((a - mean) @ w, s) - 0.5 * np.log(values + epsilon).sum() for a in (train[:10000], valid)]
            bits = [7 - n / (D * np.log(2)) for n in nats]
            print(f"{name:12} {epsilon:.0e}  train {nats[0]:.1f} {bits[0]:.4f}  validation {nats[1]:.1f} {bits[1]:.4f}", flush=True)


if __name__ == "__main__":
    main()
