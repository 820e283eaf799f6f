"""Small data sets: an image of two discs, as a shard and as a folder."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

SHAPE = (96, 128)


def _disc(centre_yx: tuple[int, int], radius: int) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[: SHAPE[0], : SHAPE[1]]
    return (rows - centre_yx[0]) ** 2 + (columns - centre_yx[1]) ** 2 <= radius**2


def _png(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def png() -> Callable[[NDArray[Any]], bytes]:
    """Encode an array."""
    return _png


@pytest.fixture
def disc_labels() -> NDArray[np.uint16]:
    """(96, 128): a disc of radius 12 with the label 7 and one of radius 18 with the label 300."""
    labels = np.zeros(SHAPE, np.uint16)
    labels[_disc((30, 30), 12)] = 7
    labels[_disc((55, 90), 18)] = 300
    return labels


@pytest.fixture
def disc_image(disc_labels: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """The discs bright on dark, with a little noise."""
    noise = np.random.default_rng(0).integers(0, 20, SHAPE)
    return (np.where(disc_labels > 0, 200, 40) + noise).astype(np.uint8)


@pytest.fixture
def members(
    disc_image: NDArray[np.uint8], disc_labels: NDArray[np.uint16]
) -> Callable[..., dict[str, bytes]]:
    """Make the members of a shard's sample from its key and the entries of its json."""

    def make(key: str, **info: Any) -> dict[str, bytes]:
        return {
            f"{key}.img.png": _png(disc_image),
            f"{key}.lbl.png": _png(disc_labels),
            f"{key}.json": json.dumps(info).encode(),
        }

    return make


@pytest.fixture
def write_tar(tmp_path: Path) -> Callable[[str, Mapping[str, bytes]], Path]:
    """Write a shard."""

    def write(name: str, contents: Mapping[str, bytes]) -> Path:
        path = tmp_path / name
        with tarfile.open(path, "w") as tar:
            for member, data in contents.items():
                header = tarfile.TarInfo(member)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
        return path

    return write


@pytest.fixture
def pairs(tmp_path: Path, disc_image: NDArray[np.uint8], disc_labels: NDArray[np.uint16]) -> Path:
    """`images/` and `masks/` with one pair, disc.png."""
    folder = tmp_path / "pairs"
    for name, array in (("images", disc_image), ("masks", disc_labels)):
        (folder / name).mkdir(parents=True)
        Image.fromarray(array).save(folder / name / "disc.png")
    return folder
