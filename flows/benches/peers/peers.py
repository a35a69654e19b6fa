"""The PyTorch peers of the benchmark: NICE, RealNVP, Glow and single convolutions, one case a process.

This is the other side of the benchmark's ratios. The benchmark's driver starts it, tells it over stdin what
to run and reads from stdout how long it took; a person can do the same by hand:

    python -m venv env && env/bin/pip install -r flows/benches/peers/requirements.txt
    echo "train 3" | env/bin/python flows/benches/peers/peers.py torch glow_L3_K8_128 --threads 2

Peers
    torch                 plain eager PyTorch, contiguous (NCHW)
    torch-channels-last   the same with model and input in channels_last; not NICE, which has vectors inside
    torch-compile         `torch` with each step of flow (NICE: network) through torch.compile by itself, for
                          density and for sampling; blocks of one shape share what was compiled. --compile-mode
                          says how
    normflows             the classes of the package normflows, as its own Glow example puts them together

Cases, batch 16 (NICE: 200) unless --batch says otherwise
    glow_L3_K8_128            `GlowConfig::cifar_paper` with these levels, depth and width, or any others
    realnvp_cifar             `RealNvpConfig::cifar_paper`
    nice_mnist                `NiceConfig::mnist_paper`
    conv:C:O:K:SIDE[:BATCH]   KxK, C to O channels, padded to keep SIDE x SIDE

Protocol: one JSON object a line. First

    {"ready": true, "parameters": trained scalars, "peak_bytes": ...,
     "versions": {"python": ..., "torch": ..., "normflows": ...}, "device": a GPU's name}

once model and Adam with its state exist and the data-dependent initialisation, if there is one, has run; or
{"ready": false, "why": ...} and the end, where the peer has no such case. Then for each line of stdin

    train N, eval N, sample N   models: N iterations
                                {"seconds": ..., "images": N x batch, "peak_bytes": ...}
    forward N, backward N       convolutions: backward is the gradients of input and weight, without a forward
                                {"seconds": ..., "flops": of all N, "peak_bytes": ...}
    gemm N                      convolutions: a forward pass's flops as one torch.mm, O x C K^2 by
                                C K^2 x BATCH SIDE^2. That is MKL, whereas convolutions are oneDNN: on some
                                machines MKL is the slower by far
                                {"seconds": ..., "flops": of all N, "peak_bytes": ...}
    check                       models: changes all parameters by a little, for good, and says how well the
                                inverse undoes the forward, the largest |f^-1(f(x)) - x| / 256; before any
                                `train`, for Adam without a warm-up blows the deepest Glow up for some steps
                                {"roundtrip": ..., "bits_per_dim": ...}

until `quit` or the end of stdin. What cannot be done gives {"error": ...}. peak_bytes is VmHWM, whose mark is
reset just before `ready` and never again: it less that of `ready` is what the commands so far needed beyond
parameters and Adam's state. Nothing is warmed up here: the driver throws a first iteration away.

With --device cuda:N everything is made there. peak_bytes is PyTorch's own peak of what it allocated in the
command; a command begins with one iteration more, which is not timed, waits for the GPU before and after the
timed ones, and gives unused memory back if less than half of the GPU's is free, for the others measured.

The models are in models.py, with how they are written. Adam is the fused one. --precision tf32 lets products round, bf16 is autocast
(but for the small matrices of a Glow level's steps).
"""

import argparse
import ctypes
import gc
import importlib.metadata
import json
import math
import os
import platform
import re
import sys
import time


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("peer", choices=["torch", "torch-channels-last", "torch-compile", "normflows"])
    parser.add_argument("case")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["f32", "tf32", "bf16"], default="f32")
    parser.add_argument("--compile-mode", default="default")
    return parser.parse_args()


if __name__ == "__main__":
    ARGS = arguments()
    # OpenMP reads it once, when torch loads it.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(ARGS.threads)

try:
    import torch  # noqa: E402
except ImportError as e:
    # The driver leaves this peer out, with the reason.
    import json

    print(json.dumps({"ready": False, "why": f"{e}: pip install -r flows/benches/peers/requirements.txt"}))
    sys.exit(0)
import torch.nn.functional as F  # noqa: E402
from models import (  # noqa: E402
    Glow,
    GlowStep,
    Nice,
    NotThere,
    RealNvp,
    RealNvpCoupling,
    normflows_glow,
    normflows_nice,
)
from torch import nn  # noqa: E402

CIFAR = (3, 32, 32)
NICE_MNIST = ((1, 28, 28), [1000] * 5, 4)


def build(peer, case):
    """The model of a case."""
    channels_last = peer == "torch-channels-last"
    if glow := re.fullmatch(r"glow_L([1-5])_K(\d+)_(\d+)", case):
        sizes = map(int, glow.groups())
        if peer == "normflows":
            return normflows_glow(CIFAR, *sizes)
        model = Glow(CIFAR, *sizes)
    elif case == "realnvp_cifar":
        if peer == "normflows":
            raise NotThere("normflows has no RealNVP for images: no residual network, no masks of images")
        model = RealNvp(CIFAR, 64, 8)
    elif case == "nice_mnist":
        if channels_last:
            raise NotThere("NICE works on vectors, which have no memory format")
        return normflows_nice(*NICE_MNIST) if peer == "normflows" else Nice(*NICE_MNIST)
    else:
        raise NotThere(f"no case is called {case}")
    if channels_last:
        model.set_memory_format(torch.channels_last)
    return model


def compile_blocks(model, mode):
    """Each repeated block through torch.compile by itself, so that the time does not grow with depth."""
    # One entry for each shape of block, in training, evaluation and sampling.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 256
    for block in model.modules():
        if isinstance(block, GlowStep | RealNvpCoupling):
            block.encode = torch.compile(block.encode, mode=mode, dynamic=False)
            block.decode = torch.compile(block.decode, mode=mode, dynamic=False)
        elif isinstance(block, Nice):
            for net in block.nets:
                net.compile(mode=mode, dynamic=False)


class ModelCase:
    def __init__(self, peer, case, batch):
        self.batch = batch or (200 if case == "nice_mnist" else 16)
        self.model = build(peer, case)
        pixels = torch.randint(0, 256, (self.batch, *self.model.shape), dtype=torch.uint8)
        self.x = pixels + torch.rand(pixels.shape)
        if peer == "torch-channels-last":
            self.x = self.x.to(memory_format=torch.channels_last)
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in self.params)
        with torch.no_grad():
            self.model.init(self.x)
        if peer == "torch-compile":
            compile_blocks(self.model, ARGS.compile_mode)
        self.optimizer = torch.optim.Adam(self.params, lr=1e-6, fused=True)
        # Adam makes its state in the first step; from zero gradients that step changes nothing.
        for p in self.params:
            p.grad = torch.zeros_like(p)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.commands = {"train": self.train, "eval": self.eval, "sample": self.sample}

    def work(self, command, n):
        return {"images": n * self.batch}

    def cast(self):
        """A pass in the precision asked for."""
        # A mode with CUDA graphs may now reuse what the last pass gave.
        torch.compiler.cudagraph_mark_step_begin()
        return torch.autocast(self.x.device.type, torch.bfloat16, enabled=ARGS.precision == "bf16")

    def train(self, n):
        self.model.train()
        scale = -1 / (math.prod(self.model.shape) * math.log(2))
        for _ in range(n):
            self.optimizer.zero_grad(set_to_none=True)
            with self.cast():
                loss = self.model.log_prob(self.x).mean() * scale
            loss.backward()
            nn.utils.clip_grad_norm_(self.params, 1.0, foreach=True)
            self.optimizer.step()

    @torch.inference_mode()
    def eval(self, n):
        self.model.eval()
        for _ in range(n):
            with self.cast():
                self.model.log_prob(self.x)

    @torch.inference_mode()
    def sample(self, n):
        self.model.eval()
        for _ in range(n):
            with self.cast():
                self.model.sample(self.batch)

    @torch.no_grad()
    def check(self):
        self.model.eval()
        for p in self.params:
            p.add_(1e-3 * torch.randn_like(p))
        back = self.model.decode(self.model.encode(self.x)[0])
        bits = -self.model.log_prob(self.x).mean() / (math.prod(self.model.shape) * math.log(2))
        return {"roundtrip": ((back - self.x).abs().max() / 256).item(), "bits_per_dim": bits.item()}


class ConvCase:
    def __init__(self, peer, case, batch):
        if peer == "normflows":
            raise NotThere("normflows has no convolution of its own")
        try:
            c, o, k, side, *given = map(int, case.split(":")[1:])
        except ValueError:
            raise NotThere("a convolution is conv:C:O:K:SIDE[:BATCH]") from None
        if k % 2 == 0:
            raise NotThere("an even kernel has no padding that is the same on both sides")
        batch = batch or (given[0] if given else 16)
        keep_freed_memory()
        memory_format = torch.channels_last if peer == "torch-channels-last" else torch.contiguous_format
        # In bf16 without autocast, which would convert each operand before each operation: what PyTorch can do at most.
        dtype = torch.bfloat16 if ARGS.precision == "bf16" else torch.float32
        normal = lambda *shape: torch.randn(shape).to(dtype, memory_format=memory_format)  # noqa: E731
        self.x, self.w, self.g = (
            normal(batch, c, side, side),
            normal(o, c, k, k),
            normal(batch, o, side, side),
        )
        self.padding = k // 2
        self.a = torch.randn(o, c * k * k).to(dtype)
        self.b = torch.randn(c * k * k, batch * side * side).to(dtype)
        self.out = torch.empty(o, batch * side * side, dtype=dtype)
        self.parameters = self.w.numel()
        self.flops = 2 * c * o * k * k * side * side * batch
        self.commands = {"forward": self.forward, "backward": self.backward, "gemm": self.gemm}

    def work(self, command, n):
        return {"flops": n * self.flops * (2 if command == "backward" else 1)}

    @torch.inference_mode()
    def forward(self, n):
        for _ in range(n):
            F.conv2d(self.x, self.w, padding=self.padding)

    @torch.inference_mode()
    def backward(self, n):
        """The gradients of input and weight by the operation that autograd would call."""
        p = [self.padding] * 2
        for _ in range(n):
            torch.ops.aten.convolution_backward(
                self.g, self.x, self.w, None, [1, 1], p, [1, 1], False, [0, 0], 1, [True, True, False]
            )

    @torch.inference_mode()
    def gemm(self, n):
        for _ in range(n):
            torch.mm(self.a, self.b, out=self.out)


# Protocol ---------------------------------------------------------------------------------------------------


def peak_bytes():
    if ARGS.device != "cpu":
        return torch.cuda.max_memory_allocated()
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM:"))


def reset_peak():
    """Gives freed memory back to the system and lets the high-water mark start from what is left."""
    gc.collect()
    if ARGS.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
    except (AttributeError, OSError):
        pass  # Not glibc, or not allowed: the mark then holds what building the model took.


def keep_freed_memory():
    """Lets malloc keep large blocks when they are freed.

    A convolution alone would else give its output's pages back each time and fault them in anew, at half the
    speed. Whole models, where other blocks lie around, are no faster with it and run without.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_mmap_threshold, 2**30)
    except AttributeError:
        pass  # Not glibc.


def versions():
    try:
        normflows = importlib.metadata.version("normflows")
    except importlib.metadata.PackageNotFoundError:
        normflows = None
    return {"python": platform.python_version(), "torch": torch.__version__, "normflows": normflows}


def say(**line):
    print(json.dumps(line), flush=True)


def make_room():
    free, total = torch.cuda.mem_get_info()
    if free < total / 2:
        torch.cuda.empty_cache()


def answer(case, command, n):
    if command == "check" and isinstance(case, ModelCase):
        return case.check()
    if command not in case.commands:
        return {"error": f"no command is called {command} here"}
    gpu = ARGS.device != "cpu"
    if gpu:
        case.commands[command](1)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    case.commands[command](n)
    if gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = peak_bytes()
    if gpu:
        make_room()
    return {"seconds": seconds, **case.work(command, n), "peak_bytes": peak}


def answer_or_error(case, command, n):
    """What one command cannot do, memory that is not there above all, the next may."""
    try:
        return answer(case, command, n)
    except Exception as e:
        why = str(e).strip().splitlines()
        return {"error": f"{type(e).__name__}: {why[0] if why else ''}"}


def main():
    torch.set_num_threads(ARGS.threads)
    torch.set_num_interop_threads(1)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high" if ARGS.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = ARGS.precision == "tf32"
    try:
        if ARGS.device != "cpu":
            torch.cuda.set_device(ARGS.device)
            torch.set_default_device(ARGS.device)
            torch.backends.cudnn.benchmark = True
        make = ConvCase if ARGS.case.startswith("conv:") else ModelCase
        case = make(ARGS.peer, ARGS.case, ARGS.batch)
    except NotThere as e:
        say(ready=False, why=str(e))
        return
    except ModuleNotFoundError as e:
        say(ready=False, why=f"{e.name} is not installed")
        return
    except (RuntimeError, AssertionError) as e:
        # No memory, no GPU, or a PyTorch without CUDA.
        say(ready=False, why=str(e).strip().splitlines()[0])
        return
    reset_peak()
    device = {} if ARGS.device == "cpu" else {"device": torch.cuda.get_device_name()}
    say(ready=True, parameters=case.parameters, peak_bytes=peak_bytes(), versions=versions(), **device)
    for line in sys.stdin:
        command, _, n = line.strip().partition(" ")
        if command == "quit":
            break
        if n and not n.isdecimal():
            say(error=f"{n!r} is no number of iterations")
            continue
        say(**answer_or_error(case, command, int(n or 1)))


if __name__ == "__main__":
    main()
