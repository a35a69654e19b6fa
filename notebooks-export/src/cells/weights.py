import torch
import torch.nn.functional as F
from safetensors.torch import load_file

config = json.loads(Path("config.json").read_text())["config"]
weights = {k: v.double() for file in Path().glob("model*.safetensors") for k, v in load_file(file).items()}


def preprocess(x):  # from [0, 2^bits) to what the flow proper sees, with log |det|
    how, k, n = config["preprocess"], config["preprocess"]["kind"], 2.0 ** config["bits"]
    a, b = {"unit": (1, 0), "logit": (1, 0), "centered": (1, -0.5), "symmetric": (2, -1), "zca": (2, -1)}.get(k, (n, 0))
    x, log_det = a / n * x + b, x[0].numel() * float(np.log(a / n))
    if k == "logit":
        slope = 1 - how["alpha"] * {"paper": 1, "code": 2}[how["scale"]]
        p = how["alpha"] + slope * x
        x, log_det = torch.logit(p), log_det - (p * (1 - p) / slope).log().flatten(1).sum(1)
    return x, log_det
