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

    from napari_hrsam.modeling.attention import xformers_ready
    from napari_hrsam.modeling.checkpoints import choose_device, choose_precision

    device = choose_device("auto")
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    precision = choose_precision("auto", device)
    return {
        "device": {"name": str(device), "why": gpu or "no GPU that torch can use"},
        "precision": {
            "name": precision,
            "why": f"bfloat16 is {'' if precision == 'bfloat16' else 'not '}native on this device",
        },
        "attention": _choice(
            "xformers",
            "sdpa",
            ready=xformers_ready(),
            found=versions["xformers"],
            device=device.type,
        ),
    }


def _choice(
    fast: str, plain: str, *, ready: bool, found: str | None, device: str
) -> dict[str, str]:
    """Tell which of two backends "auto" takes."""
    if ready:
        return {"name": fast, "why": f"{fast} {found} agrees with {plain} on this GPU"}
    if device != "cuda":
        return {"name": plain, "why": f"{fast} runs on CUDA only"}
    if found is None:
        return {"name": plain, "why": f"{fast} is not installed (extra [cuda])"}
    return {"name": plain, "why": f"{fast} {found} does not run or disagrees here"}
