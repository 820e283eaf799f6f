"""Where files that can be made or fetched again are kept on this machine."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "NAPARI_HRSAM_CACHE"
"""Environment variable with the folder for downloads and embeddings, instead of the user's."""

EMBEDDINGS_VARIABLE = "NAPARI_HRSAM_EMBEDDINGS"
"""Environment variable with the folder of embeddings, instead of one in the cache folder."""


def cache_folder() -> Path:
    """Where downloads and embeddings go: `CACHE_VARIABLE`, or the user's cache."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    import pooch

    return Path(pooch.os_cache("napari-hrsam"))


def embeddings_folder() -> Path:
    """Where embeddings go: `EMBEDDINGS_VARIABLE`, or ``embeddings`` in the cache folder."""
    chosen = os.environ.get(EMBEDDINGS_VARIABLE)
    return Path(chosen) if chosen else cache_folder() / "embeddings"
