"""Anything may be done at any moment: nothing fails that was not expected to."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest
from monkey import Monkey
from numpy.typing import NDArray

SECONDS = float(os.environ.get("NAPARI_HRSAM_MONKEY_S", "15"))
SEED = int(os.environ.get("NAPARI_HRSAM_MONKEY_SEED", "0"))


@pytest.mark.slow
def test_a_monkey_breaks_nothing(open_window: Any, pixels: NDArray[np.uint8]) -> None:
    """`NAPARI_HRSAM_MONKEY_S=1800` makes it long; `NAPARI_HRSAM_MONKEY_SEED` another one."""
    window = open_window(show=True)
    monkey = Monkey(window, pixels, SEED)
    monkey.watch()
    end = time.monotonic() + SECONDS
    # What an event handler raises is raised here by pytest-qt, at the end of the test.
    # On a machine that is slow or busy it goes on until most kinds of things were done.
    while time.monotonic() < end or len(set(monkey.done)) < 8:
        monkey.act()
    window.idle()
    assert monkey.errors_that_no_one_expected() == [], monkey.done[-20:]
    window.viewer.close()
