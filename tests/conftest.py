"""Settings that every test needs before napari, Qt or torch is imported."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

# napari's viewer fixture resets the settings: without this it would wipe the user's own file.
os.environ["NAPARI_CONFIG"] = ""
os.environ.setdefault("NAPARI_ENSURE_PLUGIN_MAIN_THREAD", "1")
os.environ.setdefault("QT_API", "pyside6")


@pytest.fixture(scope="session", autouse=True)
def _torch_threads() -> None:
    """Leave other work on the machine alone, and give one result whatever its size."""
    import torch

    # Processes that pytest-xdist runs beside one another share the cores.
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(autouse=True)
def _own_embeddings(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Neither the user's embeddings nor those of another test are found."""
    place = tmp_path_factory.getbasetemp() / "embeddings" / uuid.uuid4().hex
    monkeypatch.setenv("NAPARI_HRSAM_EMBEDDINGS", str(place))


@pytest.fixture(scope="session")
def untrained_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hrsam-tiny as it is initialised: a weight file that needs no training."""
    import torch

    from napari_hrsam.modeling.checkpoints import save_weights
    from napari_hrsam.modeling.models import MODELS
    from napari_hrsam.modeling.segmenter import Segmenter

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "untrained.safetensors"
    save_weights(Segmenter(MODELS["hrsam-tiny"]), path)
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
