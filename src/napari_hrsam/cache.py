"""Where files are kept on this machine: what can be made or fetched again, and own models."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "NAPARI_HRSAM_CACHE"
"""Environment variable with the folder for downloads and embeddings, instead of the user's."""

EMBEDDINGS_VARIABLE = "NAPARI_HRSAM_EMBEDDINGS"
"""Environment variable with the folder of embeddings, instead of one in the cache folder."""

MODELS_VARIABLE = "NAPARI_HRSAM_MODELS"
"""Environment variable with the folder of the user's own models, instead of the user's."""

SERVER_VARIABLE = "NAPARI_HRSAM_SERVER"
"""Environment variable with the URL of a server that encodes tiles."""

TOKEN_VARIABLE = "NAPARI_HRSAM_TOKEN"  # noqa: S105  a name
"""Environment variable with what that server wants to be told."""

CERTIFICATE_VARIABLE = "NAPARI_HRSAM_CERTIFICATE"
"""Environment variable with the path of that server's certificate, if nobody known signed it."""


def cache_folder() -> Path:
    """Where downloads and embeddings go: `CACHE_VARIABLE`, or the user's cache."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_path("napari-hrsam"))


def embeddings_folder() -> Path:
    """Where embeddings go: `EMBEDDINGS_VARIABLE`, or ``embeddings`` in the cache folder."""
    chosen = os.environ.get(EMBEDDINGS_VARIABLE)
    return Path(chosen) if chosen else cache_folder() / "embeddings"


def models_folder() -> Path:
    """Where models of the user's own are kept: `MODELS_VARIABLE`, or the user's data folder."""
    chosen = os.environ.get(MODELS_VARIABLE)
    if chosen:
        return Path(chosen)
    # No cache: what lies here cannot be fetched again.
    import platformdirs

    return Path(platformdirs.user_data_path("napari-hrsam")) / "models"
