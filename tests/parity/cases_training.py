"""Parity checks of clicks, losses and metrics against one fixture folder each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from napari_hrsam.training.clicks import Click, click_candidates, next_click
from napari_hrsam.training.losses import batch_iou, normalized_focal_loss, point_loss
from napari_hrsam.training.metrics import mask_iou, mean_iou_per_click, number_of_clicks

DISTANCE_TOLERANCE = 1e-4
LOSS_TOLERANCE = 1e-6
_SIGNS = {"positive": True, "negative": False, None: None}


def check_click_simulator(folder: Path) -> float:
    """Compare mode and candidates (exactly) and distance maps; return the largest difference."""
    config, io = _load(folder)
    worst = 0.0
    for case in config["cases"]:
        name = case["name"]
        pred, gt = io[f"{name}.pred"] > 0, io[f"{name}.gt"] > 0
        clicked = [(int(y), int(x)) for y, x, *_ in io[f"{name}.points_yx_pos"]]
        k = case["sfc_inner_k"]
        found = click_candidates(pred, gt, clicked, k=k)
        assert found.positive is _SIGNS[case["mode"]], f"{name}: mode {found.positive}"
        candidates = io[f"{name}.candidates"] > 0
        wrong = np.count_nonzero(found.mask != candidates)
        assert wrong == 0, f"{name}: {wrong} candidate pixels differ"
        for ours, theirs in (
            (found.distance_false_negative, io[f"{name}.dist_false_negative"]),
            (found.distance_false_positive, io[f"{name}.dist_false_positive"]),
        ):
            worst = max(worst, _difference(ours, theirs))
        if clicked or gt.any():
            click = next_click(pred, gt, clicked, k=k, rng=np.random.default_rng(0))
            _check_drawn_click(name, click, candidates, found.positive)
    assert worst <= DISTANCE_TOLERANCE, f"distance maps differ by {worst:.3g}"
    return worst


def check_losses_metrics(folder: Path) -> float:
    """Compare losses, their gradients and the metrics; return the largest difference."""
    config, io = _load(folder)
    errors: dict[str, float] = {}
    for case in config["cases"]:
        errors |= _focal_errors(case["name"], case["kwargs"], io)
    for name in _names(io, "ptl"):
        logits = torch.tensor(io[f"{name}.logits"], requires_grad=True)
        coords, labels = torch.tensor(io[f"{name}.coords_xy"]), torch.tensor(io[f"{name}.labels"])
        loss = point_loss(logits, coords, labels)
        loss.backward()
        errors[f"{name}.loss"] = _difference(loss.detach().numpy(), io[f"{name}.loss"])
        assert logits.grad is not None
        errors[f"{name}.grad"] = _difference(logits.grad.numpy(), io[f"{name}.grad"])
    for name in _names(io, "iou"):
        value = batch_iou(torch.tensor(io[f"{name}.logits"]), torch.tensor(io[f"{name}.labels"]))
        errors[name] = _difference(value.numpy(), io[f"{name}.value"])
    for name in _names(io, "biou"):
        pairs = zip(io[f"{name}.pred"], io[f"{name}.gt"], strict=True)
        values = np.array([mask_iou(pred, gt) for pred, gt in pairs])
        errors[name] = _difference(values, io[f"{name}.value"])
    for name in _names(io, "noc"):
        errors |= _noc_errors(name, io)
    name, worst = max(errors.items(), key=lambda item: item[1])
    assert worst <= LOSS_TOLERANCE, f"{name} differs by {worst:.3g}"
    return worst


def _check_drawn_click(
    name: str, click: Click | None, candidates: np.ndarray, positive: bool | None
) -> None:
    if positive is None:
        assert click is None, f"{name}: a click on a perfect mask"
    else:
        assert click is not None, f"{name}: no click"
        assert candidates[click.y, click.x], f"{name}: {click} is no candidate"
        assert click.positive is positive, f"{name}: {click} has the wrong sign"


def _focal_errors(name: str, kwargs: dict[str, Any], io: dict[str, np.ndarray]) -> dict[str, float]:
    logits = torch.tensor(io[f"{name}.logits"], requires_grad=True)
    loss = normalized_focal_loss(logits, torch.tensor(io[f"{name}.labels"]), **kwargs)
    loss.sum().backward()
    assert logits.grad is not None
    return {
        f"{name}.loss": _difference(loss.detach().numpy(), io[f"{name}.loss"]),
        f"{name}.grad": _difference(logits.grad.numpy(), io[f"{name}.grad"]),
    }


def _noc_errors(name: str, io: dict[str, np.ndarray]) -> dict[str, float]:
    ious = io[f"{name}.iou"]
    errors = {
        key: _difference(number_of_clicks(ious, int(key.rpartition("noc")[2]) / 100), value)
        for key, value in io.items()
        if key.startswith(f"{name}.noc")
    }
    curve = io[f"{name}.mean_iou_per_click"]
    return errors | {f"{name}.curve": _difference(mean_iou_per_click(ious), curve)}


def _names(io: dict[str, np.ndarray], kind: str) -> list[str]:
    """Names such as `ptl`, `ptl0` and `ptl_b` in front of the dot."""
    names = {key.partition(".")[0] for key in io}
    return sorted(name for name in names if name.startswith(kind))


def _difference(ours: Any, theirs: Any) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, f"shape {ours.shape}, expected {theirs.shape}"
    return float(np.abs(ours - theirs).max(initial=0.0))


def _load(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(folder / "io.npz") as io:
        return json.loads((folder / "config.json").read_text()), dict(io)
