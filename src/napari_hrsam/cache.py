"""Where files that can be made or fetched again are kept on this machine."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "NAPARI_HRSAM_CACHE"
"""Environment variable with the folder for downloads and embeddings, instead of the user's."""


def cache_folder() -> Path:
    """Where downloads and embeddings go: `CACHE_VARIABLE`, or the user's cache."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    import pooch

    return Path(pooch.os_cache("napari-hrsam"))
