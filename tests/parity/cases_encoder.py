"""Encoder parity: HRSAM, HRSAM++ and the later windowed encoder, with taps and index lists."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from parity_folders import ErrorTable, ParityFolder, plain_size, refuse_unknown
from torch import Tensor, nn

from napari_hrsam.modeling.attention import AttentionBackend, leading_padding, window_indices
from napari_hrsam.modeling.configs import HRSAMConfig, ScanBackend
from napari_hrsam.modeling.hrsam import HRSAMEncoder, Sizes

OUTPUT_TOLERANCE = {
    "hrsam_vit": 1e-5,
    "hrsam_plusplus_vit": 1e-5,
    "flash_swin_kv_only": 2e-5,
    "flash_swin_kv_only_flexible": 5e-5,
}
# The reference's own float32 error is written down in the configuration. Where that is large (other
# sizes, residual streams) it may be met once in theirs and about once in ours.
OWN_ERRORS = 3.0
_IGNORED = {"in_dim", "drop_rate", "attn_drop_rate", "drop_path_rate", "use_checkpoint", "type"}


@dataclass(frozen=True)
class Backends:
    attention: AttentionBackend
    scan: ScanBackend
    grad: bool = False

    @property
    def name(self) -> str:
        return f"{self.attention}-{self.scan}" + ("-grad" if self.grad else "")


ATTENTION: tuple[AttentionBackend, ...] = ("sdpa", "reference")
SCANS: tuple[ScanBackend, ...] = ("torch", "reference", "numba")
BACKENDS = (
    Backends("auto", "auto"),
    *(Backends(attention, scan) for attention in ATTENTION for scan in SCANS),
    Backends("sdpa", "torch", grad=True),
)


def encoder_config(kwargs: dict[str, Any], *, windowed_only: bool = False) -> HRSAMConfig:
    """Translate the reference's constructor arguments."""
    names = {
        "patch_size": "patch_size",
        "embed_dim": "embed_dim",
        "depth": "depth",
        "num_heads": "num_heads",
        "mlp_ratio": "mlp_ratio",
        "window_size": "window_size",
        "state_dim": "state_dim",
        "extend_ratio": "num_cycles",
        "final_embed_dim": "out_channels",
        "flexible_resize": "anchor_keep_aspect",
    }
    special = {"img_size", "out_indices", "downsample_sizes"}
    refuse_unknown(kwargs, {*names, *special, *_IGNORED}, "encoder")
    assert kwargs.get("in_dim", 3) == 3, f"images have 3 channels, got {kwargs['in_dim']}"
    side, window = plain_size(kwargs["img_size"]), plain_size(kwargs["window_size"])
    assert isinstance(side, int), f"the stored position map is square, got img_size {side}"
    assert isinstance(window, int), f"HRSAM's windows are square, got {window}"
    anchors = kwargs.get("downsample_sizes", [])
    # A bare number is one square.
    anchors = [anchors] if isinstance(anchors, int) else anchors
    ours = {names[key]: value for key, value in kwargs.items() if key in names}
    ours["window_size"] = window
    if windowed_only:
        ours |= {"state_dim": 0, "shift_small": False}
    return HRSAMConfig(
        **ours,
        stage_ends=tuple(kwargs["out_indices"]),
        anchor_sizes=tuple(plain_size(size) for size in anchors),
        pos_grid=side // kwargs["patch_size"],
    )


def build_encoder(folder: ParityFolder, backends: Backends) -> HRSAMEncoder:
    windowed_only = folder.kind.startswith("flash_swin")
    encoder = HRSAMEncoder(encoder_config(folder.config["kwargs"], windowed_only=windowed_only))
    prefix = folder.config.get("key_prefix_in_official_checkpoint", "backbone.")
    encoder.load_state_dict({k.removeprefix(prefix): v for k, v in folder.weights.items()})
    encoder.attention_backend, encoder.scan_backend = backends.attention, backends.scan
    return encoder.eval()


class Taps:
    """Outputs of named modules during one run."""

    def __init__(self, encoder: nn.Module, names: set[str]) -> None:
        self.calls: dict[str, list[Tensor]] = defaultdict(list)
        for name in names:
            encoder.get_submodule(name).register_forward_hook(
                lambda _module, _args, out, name=name: self.calls[name].append(out)
            )

    def like(self, name: str, theirs: Tensor) -> Tensor:
        """The tap in the reference's layout."""
        calls = self.calls[name]
        if name.startswith("lateral_convs"):
            (tap,) = calls
            return tap.transpose(1, 2).unflatten(2, theirs.shape[2:])
        if name.startswith("multi_scale_fusion"):
            # We normalize map by map; the reference joins the channels inside its module.
            return torch.cat(calls, dim=-1).unflatten(1, theirs.shape[1:3])
        # Called once for each map (or once for all): maps follow one another in a sample.
        return torch.cat(calls, dim=1).flatten(0, 1)


def check_encoder(folder: ParityFolder, case: str, table: ErrorTable, backends: Backends) -> None:
    """Compare the output and every tap of one case."""
    marker = f"{case}.tap."
    taps = {key.removeprefix(marker): key for key in folder.io if key.startswith(marker)}
    block_keys = {
        "blocks.0": f"{case}.plain.block_output",
        "blocks.1": f"{case}.shift.block_output",
    }
    taps |= {name: key for name, key in block_keys.items() if key in folder.io}
    encoder = build_encoder(folder, backends)
    recorded = Taps(encoder, set(taps))
    with torch.set_grad_enabled(backends.grad):
        output = encoder(folder.tensor(f"{case}.input"))[0]
    flexible = folder.config["kwargs"].get("flexible_resize", False)
    kind = "flash_swin_kv_only_flexible" if flexible else folder.kind
    compared = {"output": (output, folder.tensor(f"{case}.output"))}
    for name, key in taps.items():
        compared[name] = (recorded.like(name, folder.tensor(key)), folder.tensor(key))
    for name, (ours, theirs) in compared.items():
        tolerance = max(OUTPUT_TOLERANCE[kind], OWN_ERRORS * folder.own_error(case, name))
        row = name if name == "output" else "inner taps"
        table.close(folder, row, ours, theirs, tolerance)


def check_index_lists(folder: ParityFolder, case: str, table: ErrorTable) -> None:
    """Compare the index lists of plain and shifted blocks, exactly."""
    config = encoder_config(folder.config["kwargs"], windowed_only=True)
    image = folder.tensor(f"{case}.input")
    sizes = _map_sizes(HRSAMEncoder(config), image)
    for block, shift in (("plain", 0), ("shift", config.window_size // 2)):
        ours = index_lists(sizes, config.window_size, shift, batch=image.shape[0])
        for name, list_ in ours.items():
            key = f"{case}.{block}.{name}"
            table.close(folder, "index lists", list_, folder.io[key], 0.0)


def _map_sizes(encoder: HRSAMEncoder, image: Tensor) -> Sizes:
    """Token grids of the maps, read off the encoder itself."""
    sizes: list[Sizes] = []
    encoder.blocks[0].register_forward_pre_hook(lambda _module, args: sizes.append(args[1]))
    with torch.no_grad():
        encoder(image)
    return sizes[0]


def index_lists(
    sizes: Sizes, window: int, shift: int, *, batch: int, shift_small: bool = False
) -> dict[str, np.ndarray]:
    """Join the lists of single maps over the maps of a sample and over the samples.

    The reference numbers the tokens of the whole batch; the padding token comes last.
    """
    num_tokens = sum(h * w for h, w in sizes)
    paddings = [leading_padding(size, window, shift, shift_small) for size in sizes]
    maps = [window_indices(s, window, p) for s, p in zip(sizes, paddings, strict=True)]
    lists: dict[str, list[np.ndarray]] = defaultdict(list)
    for sample in range(batch):
        offset = sample * num_tokens
        for (height, width), index in zip(sizes, maps, strict=True):
            is_padding = index.key == height * width
            lists["q_indices"].append(index.query + offset)
            lists["kv_indices"].append(np.where(is_padding, batch * num_tokens, index.key + offset))
            lists["inv_indices"].append(index.inverse + offset)
            lists["q_lengths"].append(index.query_lengths)
            lists["kv_lengths"].append(index.key_lengths)
            offset += height * width
    joined = {name: np.concatenate(parts) for name, parts in lists.items()}
    joined["padding_list"] = np.array([(p, p) for p in paddings])
    joined["pad_hw_shapes"] = np.array([index.padded_hw for index in maps])
    return joined
