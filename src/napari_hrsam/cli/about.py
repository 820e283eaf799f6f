"""``napari-hrsam models`` and ``napari-hrsam info``."""

from __future__ import annotations

import argparse
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import napari_hrsam
from napari_hrsam.cli.options import add_command, add_json, put_json, table

if TYPE_CHECKING:
    from napari_hrsam.cli.options import Commands

_PACKAGES = (
    "torch",
    "numpy",
    "scikit-image",
    "napari",
    "PySide6",
    "PyQt6",
    "xformers",
    "mamba-ssm",
    "numba",
)


def add_commands(commands: Commands) -> None:
    """Add the commands ``models`` and ``info``."""
    parser = add_command(
        commands,
        "models",
        summary="list the models, and where their weights are",
        example="napari-hrsam models --json",
    )
    add_json(parser)
    parser.set_defaults(run=_models)
    parser = add_command(
        commands,
        "info",
        summary="tell versions, devices, and which backends are used and why",
        example="napari-hrsam info",
    )
    add_json(parser)
    parser.set_defaults(run=_info)


def _models(args: argparse.Namespace) -> None:
    from napari_hrsam.modeling.checkpoints import list_models

    models = list_models()
    if args.json:
        put_json(args.json, [asdict(model) for model in models])
        return
    rows = [
        [
            model.name,
            f"{model.num_parameters / 1e6:.1f}",
            model.licence or "-",
            model.weights or "not here",
            model.trained_on or "-",
        ]
        for model in models
    ]
    print(table(["model", "M parameters", "licence", "weights", "trained on"], rows))


def _info(args: argparse.Namespace) -> None:
    facts = collect_info()
    if args.json:
        put_json(args.json, facts)
        return
    rows = [[name, found or "not installed"] for name, found in facts["versions"].items()]
    print(table(["package", "version"], rows))
    print()
    rows = [[what, used["name"], used["why"]] for what, used in facts["used"].items()]
    print(table(["for", "uses", "because"], rows))


def collect_info() -> dict[str, Any]:
    """Collect versions, and what the choices left on "auto" come to on this machine.

    Returns
    -------
    dict
        ``versions``: package to version, None if not installed; ``used``: device, precision,
        attention and scan, each with ``name`` and ``why``.
    """
    versions: dict[str, str | None] = {
        "napari-hrsam": napari_hrsam.__version__,
        "Python": platform.python_version(),
    }
    versions.update({name: _version(name) for name in _PACKAGES})
    return {"versions": versions, "platform": platform.platform(), "used": _used(versions)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _used(versions: dict[str, str | None]) -> dict[str, dict[str, str]]:
    import torch

    from napari_hrsam.modeling.checkpoints import choose_device, choose_precision

    device = choose_device("auto")
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    precision = choose_precision("auto", device)
    why = "bfloat16 is native on this GPU"
    if precision == "float32":
        why = "bfloat16 is chosen on GPUs that have it; elsewhere it is used when asked for"
    return {
        "device": {"name": str(device), "why": gpu or "no NVIDIA GPU that torch can use"},
        "precision": {"name": precision, "why": why},
        "attention": _attention(device.type, versions["xformers"]),
        "scan": _scan(device.type, versions),
    }


def _attention(device: str, xformers: str | None) -> dict[str, str]:
    from napari_hrsam.modeling.attention import xformers_ready

    if xformers_ready():
        return {"name": "xformers", "why": "installed, and agrees with SDPA on this GPU"}
    return {"name": "sdpa", "why": _why_not("xformers", xformers, device)}


def _scan(device: str, versions: dict[str, str | None]) -> dict[str, str]:
    from napari_hrsam.modeling.scan_mamba import mamba_ready
    from napari_hrsam.modeling.selective_scan import numba_ready

    if device == "cpu":
        if numba_ready():
            return {"name": "numba", "why": "installed; short scans and training use torch"}
        found = versions["numba"]
        return {"name": "torch", "why": "numba is not " + ("usable" if found else "installed")}
    if device == "cuda" and mamba_ready():
        return {"name": "mamba", "why": "installed, and agrees with torch on this GPU"}
    return {"name": "torch", "why": _why_not("mamba-ssm", versions["mamba-ssm"], device)}


def _why_not(package: str, found: str | None, device: str) -> str:
    if device != "cuda":
        return f"{package} runs on CUDA only"
    return f"{package} {found} does not work here" if found else f"{package} is not installed"
