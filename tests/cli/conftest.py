"""Small files to work on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def disc_png(tmp_path: Path) -> Path:
    """A bright disc of radius 20 at (50, 60) in a 96 x 128 grey image."""
    rows, cols = np.ogrid[:96, :128]
    disc = (rows - 50) ** 2 + (cols - 60) ** 2 <= 400
    path = tmp_path / "disc.png"
    Image.fromarray(np.where(disc, 220, 30).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def pairs_folder(tmp_path: Path) -> Path:
    """A folder of two image/mask pairs with one disc each."""
    folder = tmp_path / "pairs"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rows, cols = np.ogrid[:96, :96]
    for number, centre in enumerate(((40, 40), (50, 60))):
        disc = (rows - centre[0]) ** 2 + (cols - centre[1]) ** 2 <= 400
        Image.fromarray(np.where(disc, 220, 30).astype(np.uint8)).save(
            folder / "images" / f"{number}.png"
        )
        Image.fromarray(disc.astype(np.uint8)).save(folder / "masks" / f"{number}.png")
    return folder
