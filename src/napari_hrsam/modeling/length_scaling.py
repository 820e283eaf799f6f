"""BA-SAM's arithmetic: attention over more tokens than in training (arXiv 2401.02317).

Three changes, each with its own switch in `BASAMConfig`:

1. *New scaling factor*: logits times log(M) / log(N), M tokens now and N in training, so that the
   softmax stays as sharp when the sum has more terms. The position terms are not scaled.
2. *Bias-mode mask*: a penalty that grows with the distance of query and key. The paper shows it in
   a figure; its slope and distance could not be had, and the released code has none in any commit.
   Ours: ``-m_h * dist``, Euclidean in tokens, ``m_h = m0 * 2 ** (-8 (h + 1) / heads)``.
3. *Coefficient*: a learned scalar per attention layer times the relative-position term. This is
   what the released code calls its bias.

The two forms, ``BASAMConfig.form``:

===============  =====================================  =========================================
what             "paper"                                "released"
===============  =====================================  =========================================
M                real number of tokens, any map         N r**2, r = longer side // side in training
below training   factor < 1                             r = 0, where the code fails: factor 1
coefficient      in training and use; starts at 1       ViT: the same; TinyViT: in training mode
                 (plain SAM)                            only; starts at 0.1
===============  =====================================  =========================================

The released code takes r from the image size it was configured with, by whole division; ours takes
the longer side of the image it is given.

In both forms the ViT has factor and mask in its global layers only, with N = 4096 (64 x 64 cells).
TinyViT has them in all layers, all of which are windows, with N = 1444, a number that the released
code does not explain. In TinyViT's "paper" form M = 1444 * (cells of the embedding) / 4096, which
meets the released factor at every whole multiple of 1024 px.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from napari_hrsam.errors import ConfigError
from napari_hrsam.modeling.configs import BASAMConfig

TINY_VIT_TRAINING_TOKENS = 1444
TINY_VIT_TRAINING_SIDE = 64


def length_factor(
    ba: BASAMConfig | None,
    grid_hw: tuple[int, int],
    *,
    training_side: int,
    training_tokens: int,
) -> float:
    """Factor of the attention logits for a map of another size than in training.

    Parameters
    ----------
    ba : BASAMConfig or None
        None, or with ``scale`` off, gives 1.
    grid_hw : tuple of int
        Cells of the embedding, height and width.
    training_side : int
        Side in cells of the square map of the training.
    training_tokens : int
        N; for SAM's ViT ``training_side ** 2``, for TinyViT 1444.

    Returns
    -------
    float
        log(M) / log(N): exactly 1 at the training size, 0 or more below it.

    Raises
    ------
    ConfigError
        If N is below 2, where the logarithm cannot be divided by.
    """
    if ba is None or not ba.scale:
        return 1.0
    if training_tokens < 2:
        raise ConfigError(
            f"the scaling factor needs 2 or more tokens in training, got {training_tokens}; "
            "give the encoder the grid of its training or switch the scale off"
        )
    height, width = grid_hw
    if ba.form == "released":
        ratio = max(height, width) // training_side
        return 1.0 if ratio <= 1 else _log_ratio(training_tokens * ratio**2, training_tokens)
    return _log_ratio(training_tokens * height * width / training_side**2, training_tokens)


def _log_ratio(tokens: float, training_tokens: int) -> float:
    # Less than one token of TinyViT's count (maps below 32 px) must not turn the sign.
    return math.log(max(tokens, 1.0)) / math.log(training_tokens)


def initial_coefficient(ba: BASAMConfig) -> float:
    """Value of a new coefficient: 1, which is plain SAM, or 0.1 as in the released code."""
    return 1.0 if ba.form == "paper" else 0.1


def distance_slopes(num_heads: int, slope: float) -> Tensor:
    """Slopes ``m_h = m0 * 2 ** (-8 (h + 1) / heads)`` of the distance bias: (heads,) float32."""
    steps = torch.arange(1, num_heads + 1, dtype=torch.float32)
    return slope * 2.0 ** (-8.0 * steps / num_heads)


def distance_bias(slopes: Tensor, grid_hw: tuple[int, int], rows: slice, columns: slice) -> Tensor:
    """Penalty of every key for the queries of one part of the map.

    Parameters
    ----------
    slopes : (heads,) float
        From `distance_slopes`.
    grid_hw : tuple of int
        Height and width of the map in cells.
    rows, columns : slice
        The part of the map that the queries cover.

    Returns
    -------
    (heads, n, H * W) float
        ``-m_h * dist(query, key)``, n queries of the part in row-major order; zero where query and
        key are the same cell.
    """
    height, width = grid_hw
    y = torch.arange(height, device=slopes.device, dtype=slopes.dtype)
    x = torch.arange(width, device=slopes.device, dtype=slopes.dtype)
    dy, dx = y[rows, None] - y, x[columns, None] - x
    distance = torch.hypot(dy[:, None, :, None], dx[None, :, None, :])
    return -slopes[:, None, None] * distance.flatten(2).flatten(0, 1)
