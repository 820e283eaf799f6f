"""Find parity folders, tell what kind each is, and read them.

A folder holds `config.json`, `io.npz` and, for networks, `weights.safetensors`. The kind is told
by the `model` field of the configuration or else by the folder's name, both up to a suffix.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
# Beside the folders: key names of the released checkpoints.
_NO_FOLDERS = ("manifests",)

TESTED_KINDS = (
    "hrsam_vit",
    "hrsam_plusplus_vit",
    "flash_swin_kv_only",
    "flash_swin_kv_only_flexible",
    "sam_neck_head",
    "sam_tiny",
    "e2e_session_hrsam",
    "e2e_session_hrsam_plusplus",
    "click_simulator",
    "losses_metrics",
    "focsam_refiner",
    "focsam_units",
    "mobile_sam_tinyvit",
    "ba_sam_attention",
    "ba_sam_tinyvit_attention",
)
_MODEL_FIELDS = {
    "sam": "sam_tiny",
    "hrsam": "e2e_session_hrsam",
    "hrsam++": "e2e_session_hrsam_plusplus",
    "click simulator": "click_simulator",
    "losses and metrics": "losses_metrics",
    "focusrefiner": "focsam_refiner",
    "focsam unit modules": "focsam_units",
    "ba-sam vit attention": "ba_sam_attention",
    "ba-sam tinyvit window attention": "ba_sam_tinyvit_attention",
}


def parity_root() -> Path:
    """The folder of folders: NAPARI_HRSAM_PARITY_DIR when it is set, else our own copies."""
    given = os.environ.get("NAPARI_HRSAM_PARITY_DIR")
    return Path(given) if given else GOLDEN


@dataclass(frozen=True)
class ParityFolder:
    """One fixture folder."""

    path: Path
    kind: str

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_config(self.path)

    @cached_property
    def io(self) -> dict[str, np.ndarray]:
        with np.load(self.path / "io.npz") as arrays:
            return dict(arrays)

    def tensor(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.io[key])

    def optional(self, *keys: str) -> torch.Tensor | None:
        """The first of the arrays that the folder has."""
        return next((self.tensor(key) for key in keys if key in self.io), None)

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.path / "weights.safetensors")

    @property
    def case_names(self) -> list[str]:
        return [case["name"] for case in self.config["cases"]]

    def case(self, name: str) -> dict[str, Any]:
        return next(case for case in self.config["cases"] if case["name"] == name)

    def own_error(self, case: str, quantity: str) -> float:
        """The reference's own float32 error against float64, 0 where none is written down."""
        evidence = self.config.get("tolerance_evidence", {}).get(case, {})
        noted = self.config.get("max_abs_err_fp32_vs_fp64", {})
        # One number for the folder, one for each case, or one for each quantity of a case.
        noted = noted.get(case) if isinstance(noted, dict) else noted
        if not isinstance(noted, dict):
            noted = {"output": noted}
        if quantity == "output":
            value = evidence.get("max_abs_err_fp32_vs_fp64", noted.get("output"))
        else:
            value = evidence.get("taps", noted).get(quantity)
        return float(value or 0.0)


def plain_size(size: int | list[int]) -> int | tuple[int, int]:
    """A size of a configuration: one number for a square, or height and width."""
    if isinstance(size, int):
        return size
    height, width = size
    return height if height == width else (height, width)


def refuse_unknown(given: dict[str, Any], known: set[str], what: str) -> None:
    """Fail if a configuration holds keys that the comparison would leave out of account."""
    unknown = sorted(set(given) - known)
    assert not unknown, f"unknown arguments of the {what}: {', '.join(unknown)}"


@dataclass
class ErrorTable:
    """Largest absolute difference of every compared quantity, with its tolerance."""

    rows: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    def note(self, folder: ParityFolder, quantity: str, error: float, tolerance: float) -> None:
        seen = self.rows.get((folder.name, quantity), (0.0, 0.0))
        self.rows[folder.name, quantity] = (max(error, seen[0]), max(tolerance, seen[1]))

    def close(
        self, folder: ParityFolder, quantity: str, ours: Any, theirs: Any, tolerance: float
    ) -> None:
        """Note the largest difference and fail above the tolerance (0 asks for equality)."""
        a, b = (
            np.asarray(x.detach().numpy() if torch.is_tensor(x) else x, np.float64)
            for x in (ours, theirs)
        )
        assert a.shape == b.shape, f"{quantity}: shape {a.shape}, expected {b.shape}"
        error = float(np.abs(a - b).max(initial=0.0))
        self.note(folder, quantity, error, tolerance)
        # Written this way round so that NaN fails.
        assert error <= tolerance, f"{quantity} differs by {error:.3g} (tolerance {tolerance:g})"


def read_config(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    return config


def folder_kind(path: Path) -> str | None:
    """Kind of a folder; None if it is unknown."""
    if not (path / "config.json").is_file() or not (path / "io.npz").is_file():
        return None
    model = str(read_config(path).get("model", "")).strip().lower()
    if model in _MODEL_FIELDS:
        return _MODEL_FIELDS[model]
    # Longer names first: "hrsam_plusplus_vit_2" is no "hrsam".
    kinds = sorted(TESTED_KINDS, key=len, reverse=True)
    for name in (model, path.name.lower()):
        for kind in kinds:
            if name.startswith(kind):
                return kind
    return None


def find_folders(root: Path) -> tuple[list[ParityFolder], list[Path]]:
    """Known folders, sorted by name, and the paths of unknown ones."""
    paths = sorted(
        p
        for p in root.iterdir()
        if p.is_dir() and not p.name.startswith(".") and p.name not in _NO_FOLDERS
    )
    kinds = {path: folder_kind(path) for path in paths}
    known = [ParityFolder(path, kind) for path, kind in kinds.items() if kind is not None]
    return known, [path for path, kind in kinds.items() if kind is None]
