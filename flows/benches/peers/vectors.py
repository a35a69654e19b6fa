"""RealNVP, MAF and NSF of vectors beside zuko's: nats of the test rows and seconds of training.

    python -m venv env && env/bin/pip install torch numpy "zuko==1.6.*"
    cargo build --release && env/bin/python flows/benches/peers/vectors.py --flow target/release/flow [--seeds 3] [--updates 2000]

Both sides train on the same rows, standardized by the training rows, with the same numbers of transforms, of hidden units and of
updates, the same batch, rate and schedule (Adam, cosine), clipping and average of weights, on one thread; initial values and orders of
rows differ, three seeds of each. Log-likelihoods are in the units of the data. Seconds are of the processor, which other work on the
machine changes little; ours are of the whole command `flow train`, with reading and validation. Densities:

    moons         two half circles and noise, as the data set `moons` has them
    checkerboard  eight squares; H = ln 8
    moons8        four independent pairs of moons, turned by a random rotation; H = 4 H(moons)
"""

import argparse
import copy
import json
import math
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import zuko

MOONS = 1.007585  # as the data set `moons` of experiments has it
WIDTH, BATCH, RATE, AVERAGE, CLIP = [64, 64], 256, 2e-3, 0.99, 10.0
SPLINE = "model.transform={rational_quadratic_spline={bins=8,bound=5}}"


def moons(n, rng):
    lower, t = rng.integers(0, 2, n).astype(bool), rng.random(n) * math.pi
    x = np.where(lower, 0.5 + np.cos(t), -0.5 + np.cos(t))
    y = np.where(lower, 0.25 - np.sin(t), -0.25 + np.sin(t))
    return np.stack([x, y], 1) + 0.1 * rng.standard_normal((n, 2))


def checkerboard(n, rng):
    row = rng.integers(0, 4, n)
    column = 2 * rng.integers(0, 2, n) + row % 2
    return np.stack([column, row], 1) - 2 + rng.random((n, 2))


def moons8(n, rng):
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
    return np.concatenate([moons(n, rng) for _ in range(4)], 1) @ turn.T


SETS = {"moons": (moons, MOONS), "checkerboard": (checkerboard, math.log(8)), "moons8": (moons8, 4 * MOONS)}
# Of each model: its settings here, and zuko's class with as many transforms.
MODELS = {
    "RealNVP": (["model=realnvp"], lambda d: zuko.flows.RealNVP(d, transforms=8, hidden_features=WIDTH)),
    "MAF": (["model=maf"], lambda d: zuko.flows.MAF(d, transforms=8, hidden_features=WIDTH)),
    "NSF": (["model=maf", "model.layers=4", SPLINE], lambda d: zuko.flows.NSF(d, transforms=4, hidden_features=WIDTH)),
}


def ours(args, folder, sets, seed):
    """Nats, seconds and parameters of our model."""
    sets = [*sets, f"train.updates={args.updates}", f"train.validate_every={args.updates}", "eval.samples=0"]
    run = lambda command: subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    with tempfile.TemporaryDirectory() as out:
        command = [args.flow, "train", "vectors", "--threads", "1", "--data", folder, "--seed", seed, "--out", f"{out}/run"]
        before = used()
        run([*command, *(part for s in sets for part in ("--set", s))])
        seconds = used() - before
        said = run([args.flow, "eval", f"{out}/run", "--threads", "1", "--data", folder, "--split", "test", "--json"])
        parameters = json.loads(Path(out, "run/summary.json").read_text())["parameters"]
    return json.loads(said.splitlines()[-1])["nats"], seconds, parameters


def theirs(args, folder, make, seed):
    """The same of zuko's."""
    torch.manual_seed(seed)
    train, test = (torch.from_numpy(np.load(folder / f"{part}.npy")) for part in ("train", "test"))
    mean, std = train.double().mean(0), train.double().std(0, correction=0)
    train, scaled = ((t - mean).div(std).float() for t in (train, test))
    flow = make(train.shape[1])
    average = copy.deepcopy(flow)
    optimizer = torch.optim.Adam(flow.parameters(), lr=RATE)
    schedule = lambda u: 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * u / args.updates))
    order, at, start = torch.randperm(len(train)), 0, time.process_time()
    for update in range(args.updates):
        if at + BATCH > len(train):
            order, at = torch.randperm(len(train)), 0
        x, at = train[order[at : at + BATCH]], at + BATCH
        for group in optimizer.param_groups:
            group["lr"] = RATE * schedule(update)
        loss = -flow().log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), CLIP)
        optimizer.step()
        with torch.no_grad():
            for a, p in zip(average.parameters(), flow.parameters()):
                a.lerp_(p, 1 - AVERAGE)
    seconds = time.process_time() - start
    with torch.no_grad():
        nats = -average().log_prob(scaled).double().mean().item() + std.log().sum().item()
    return nats, seconds, sum(p.numel() for p in flow.parameters())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--flow", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| density | entropy | model | parameters | nats | zuko | seconds | zuko |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for name in args.sets:
        draw, entropy = SETS[name]
        with tempfile.TemporaryDirectory() as folder:
            for part, (n, seed) in {"train": (20000, 1), "valid": (2000, 2), "test": (10000, 3)}.items():
                np.save(Path(folder, part), draw(n, np.random.default_rng(seed)).astype(np.float32))
            for model, (sets, make) in MODELS.items():
                rows = [(ours(args, folder, sets, s), theirs(args, Path(folder), make, s)) for s in range(args.seeds)]
                mean = lambda side, i: np.mean([row[side][i] for row in rows])
                spread = lambda side: np.std([row[side][0] for row in rows], ddof=1) if args.seeds > 1 else 0
                nats = [f"{mean(side, 0):.4f} ± {spread(side):.4f}" for side in (0, 1)]
                size = f"{rows[0][0][2]}, {rows[0][1][2]}"
                print(f"| {name} | {entropy:.4f} | {model} | {size} | {nats[0]} | {nats[1]} | {mean(0, 1):.1f} | {mean(1, 1):.1f} |", flush=True)


if __name__ == "__main__":
    main()
