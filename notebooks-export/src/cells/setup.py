import io
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Image, display

%matplotlib inline
arrays = np.load("arrays.npz")

# White paper under every figure, for dark pages too; two colours of different lightness, and dashes.
plt.rcParams |= {"figure.facecolor": "white", "figure.dpi": 80, "axes.grid": True, "grid.alpha": 0.25}
DARK, LIGHT = "#17486f", "#e58a1f"


def sheet(images, rows=None, columns=None, title="", size=0.85):
    """Bytes of shape (rows, columns, C, H, W) as one picture, with names at its edges."""
    r, c, channels, h, w = images.shape
    gap = 1 if h < 64 else 2
    paper = np.full((r * (h + gap) - gap, c * (w + gap) - gap, 3), 255, np.uint8)
    for i, j in np.ndindex(r, c):
        top, left = i * (h + gap), j * (w + gap)
        paper[top : top + h, left : left + w] = np.moveaxis(images[i, j], 0, 2)
    figure, axis = plt.subplots(figsize=(size * c + 1.2, size * r * h / w + 0.6), layout="constrained")
    axis.imshow(paper, interpolation="nearest")
    axis.grid(False)
    axis.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axis.set_xticks([j * (w + gap) + w / 2 for j in range(c)], columns or [""] * c)
    axis.set_yticks([i * (h + gap) + h / 2 for i in range(r)], rows or [""] * r)
    axis.spines[:].set_visible(False)
    axis.set_title(title)
    # Noise makes large PNGs.
    file = io.BytesIO()
    figure.savefig(file, format="jpeg", dpi=80, pil_kwargs={"quality": 75})
    plt.close(figure)
    display(Image(file.getvalue(), format="jpeg"))
