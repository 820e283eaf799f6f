"""``napari-hrsam models`` and ``napari-hrsam info``."""

from __future__ import annotations

import argparse
import os
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import napari_hrsam
from napari_hrsam.cache import (
    CACHE_VARIABLE,
    EMBEDDINGS_VARIABLE,
    MODELS_VARIABLE,
    cache_folder,
    embeddings_folder,
    models_folder,
)
from napari_hrsam.cli.options import add_command, add_json, put_json, say, table

if TYPE_CHECKING:
    from napari_hrsam.cli.options import Commands
    from napari_hrsam.modeling.registry import ModelInfo

_PACKAGES = (
    "torch",
    "numpy",
    "scikit-image",
    "napari",
    "PySide6",
    "PyQt6",
    "xformers",
    "mamba-ssm",
    "triton",
    "numba",
)


def add_commands(commands: Commands) -> None:
    """Add the commands ``models`` and ``info``."""
    parser = add_command(
        commands,
        "models",
        summary="list the models with size and licence, where their weights are and what they were "
        "trained on; fetch weights",
        example="napari-hrsam models --download mobile-sam",
    )
    parser.add_argument(
        "--download", metavar="NAME", help="first fetch the weights of this model (with resume)"
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
    if args.download:
        _download(args.download)
    from napari_hrsam.modeling.registry import list_models

    models = list_models()
    if args.json:
        put_json(args.json, [asdict(model) for model in models])
        return
    rows = [
        [
            model.name,
            f"{model.num_parameters / 1e6:.1f}",
            str(model.tile_px),
            _cut(model.licence or "-", 12),
            _where(model),
            _cut(model.trained_on or "-", 34),
        ]
        for model in models
    ]
    print(table(["model", "M param.", "tile px", "licence", "weights", "trained on"], rows))
    print()
    rows = [[what, path] for what, path in collect_folders().items()]
    print(table(["folder", "path"], rows))


def _where(model: ModelInfo) -> str:
    """Tell where weights are, or what it takes to get them, in few words."""
    if model.source == "yours":
        return "yours"
    if model.weights:
        return "here, from authors" if model.source == "authors" else f"here, {model.source}"
    if model.source == "download":
        return f"to fetch, {model.download_bytes / 1e6:.0f} MB"
    return "from the authors" if model.source == "authors" else "not here"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."


def _download(name: str) -> None:
    """Fetch what a model needs."""
    from napari_hrsam.modeling.download import fetch
    from napari_hrsam.modeling.models import find_config
    from napari_hrsam.modeling.registry import locate

    located = locate(find_config(name))
    entry = located.entry or located.base_entry
    if entry is None or not (entry.url or entry.get):
        say(f"{name} is not fetched: its weights come with napari-hrsam")
        return
    if entry.url:
        say(f"fetching {entry.file} ({entry.num_bytes / 1e6:.0f} MB) from {entry.url}")
    say(f"{fetch(entry, progress=_Percent())}, SHA-256 as registered")


class _Percent:
    """Tell of every tenth of a download once."""

    def __init__(self) -> None:
        self.told = -1

    def __call__(self, done: int, total: int) -> None:
        """Take the bytes there and in all."""
        if (tenth := 10 * done // total) > self.told:
            self.told = tenth
            say(f"{done / 1e6:.0f} of {total / 1e6:.0f} MB")


def _info(args: argparse.Namespace) -> None:
    facts = collect_info()
    if args.json:
        put_json(args.json, facts)
        return
    rows = [[name, found or "not installed"] for name, found in facts["versions"].items()]
    print(table(["package", "version"], rows))
    print()
    rows = [[name, str(value)] for name, value in facts["torch"].items()]
    print(table(["torch", "is"], rows))
    print()
    rows = [
        [backend["for"], backend["name"], "yes" if backend["usable"] else "no", backend["why"]]
        for backend in facts["backends"]
    ]
    print(table(["for", "backend", "usable", "because"], rows))
    print()
    rows = [[what, used["name"], used["why"]] for what, used in facts["used"].items()]
    print(table(["for", "uses", "because"], rows))
    print()
    rows = [[what, path] for what, path in facts["folders"].items()]
    print(table(["folder", "path"], rows))


def collect_info() -> dict[str, Any]:
    """Collect versions, and what the choices left on "auto" come to on this machine.

    Returns
    -------
    dict
        ``versions``: package to version, None if not installed; ``torch``: build, CUDA, devices,
        threads; ``backends``: each with ``for``, ``name``, ``usable`` and ``why``; ``used``:
        device, precision, attention and scan, each with ``name`` and ``why``; ``folders``: where
        weights are looked for.
    """
    versions: dict[str, str | None] = {
        "napari-hrsam": napari_hrsam.__version__,
        "Python": platform.python_version(),
    }
    versions.update({name: _version(name) for name in _PACKAGES})
    return {
        "versions": versions,
        "platform": platform.platform(),
        "torch": _torch_facts(),
        "backends": _backends(versions),
        "used": _used(versions),
        "folders": collect_folders(),
    }


def collect_folders() -> dict[str, str]:
    """Tell the folders where weights are looked for, in that order, and whether they exist."""
    from napari_hrsam.modeling import registry

    chosen = os.environ.get(registry.WEIGHTS_VARIABLE)
    shipped = [folder for folder in registry.shipped_folders() if folder.is_dir()]
    return {
        registry.WEIGHTS_VARIABLE: chosen or "not set",
        "shipped": ", ".join(map(str, shipped)) or "none",
        f"downloads ({CACHE_VARIABLE})": str(cache_folder()),
        f"embeddings ({EMBEDDINGS_VARIABLE})": str(embeddings_folder()),
        f"your models ({MODELS_VARIABLE})": str(models_folder()),
    }


def _torch_facts() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {
        "build": torch.__version__,
        "built for CUDA": torch.version.cuda or "no",
        "CUDA usable": "yes" if torch.cuda.is_available() else "no",
        "GPUs": ", ".join(gpus) or "none",
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
    }


def _backends(versions: dict[str, str | None]) -> list[dict[str, Any]]:
    """Every kernel there is, whether it can be used here, and why."""
    from napari_hrsam.modeling.attention import triton_attention_ready, xformers_ready
    from napari_hrsam.modeling.devices import choose_device
    from napari_hrsam.modeling.scan_mamba import mamba_ready
    from napari_hrsam.modeling.selective_scan import numba_ready, triton_ready

    device = choose_device("auto").type
    ready = {
        ("attention", "xformers"): xformers_ready(),
        ("attention", "triton"): triton_attention_ready(),
        ("scan", "mamba"): mamba_ready(),
        ("scan", "triton"): triton_ready(),
        ("scan", "numba"): numba_ready(),
    }
    reasons = {
        "xformers": _why_not("xformers", versions.get("xformers"), device),
        "mamba": _why_not("mamba-ssm", versions.get("mamba-ssm"), device),
        "triton": _why_not("triton", versions.get("triton"), device),
        "numba": "numba is not " + ("usable" if versions.get("numba") else "installed"),
    }
    always = {
        "sdpa": "part of torch",
        "torch": "part of torch",
        "reference": "plain and slow, for checks",
    }
    kernels = [("attention", n) for n in ("xformers", "triton", "sdpa", "reference")]
    kernels += [("scan", n) for n in ("mamba", "triton", "numba", "torch", "reference")]
    return [
        {
            "for": what,
            "name": name,
            "usable": ready.get((what, name), True),
            "why": always.get(name)
            or ("installed and tried" if ready[what, name] else reasons[name]),
        }
        for what, name in kernels
    ]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _used(versions: dict[str, str | None]) -> dict[str, dict[str, str]]:
    import torch

    from napari_hrsam.modeling.devices import choose_device, choose_precision

    device = choose_device("auto")
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    precision = choose_precision("auto", device, on_cpu=True)
    why = "bfloat16 is native here" + ("" if gpu else "; our own models use it, others float32")
    if precision == "float32":
        why = "bfloat16 is chosen where it is native; elsewhere it is used when asked for"
    return {
        "device": {"name": str(device), "why": gpu or "no NVIDIA GPU that torch can use"},
        "precision": {"name": precision, "why": why},
        "attention": _attention(device.type, versions["xformers"]),
        "scan": _scan(device.type, versions),
    }


def _attention(device: str, xformers: str | None) -> dict[str, str]:
    from napari_hrsam.modeling.attention import triton_attention_ready, xformers_ready

    if xformers_ready():
        return {"name": "xformers", "why": "installed, and agrees with SDPA on this GPU"}
    if triton_attention_ready():
        return {"name": "triton", "why": "agrees with SDPA on this GPU; in float32 SDPA is used"}
    return {"name": "sdpa", "why": _why_not("xformers", xformers, device)}


def _scan(device: str, versions: dict[str, str | None]) -> dict[str, str]:
    from napari_hrsam.modeling.scan_mamba import mamba_ready
    from napari_hrsam.modeling.selective_scan import numba_ready, triton_ready

    if device == "cpu":
        if numba_ready():
            return {"name": "numba", "why": "installed; short scans and training use torch"}
        found = versions["numba"]
        return {"name": "torch", "why": "numba is not " + ("usable" if found else "installed")}
    if device == "cuda" and mamba_ready():
        return {"name": "mamba", "why": "installed, and agrees with torch on this GPU"}
    if device == "cuda" and triton_ready():
        return {"name": "triton", "why": "installed, and agrees with torch on this GPU"}
    return {"name": "torch", "why": _why_not("triton", versions["triton"], device)}


def _why_not(package: str, found: str | None, device: str) -> str:
    if device != "cuda":
        return f"{package} runs on CUDA only"
    return f"{package} {found} does not work here" if found else f"{package} is not installed"
