"""The one door to optional packages."""

from __future__ import annotations

import importlib
from types import ModuleType

from napari_hrsam.errors import MissingExtraError


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional module, or say how to install it.

    Parameters
    ----------
    module : str
        Dotted module name, such as ``"xformers.ops"``.
    extra : str
        The extra of napari-hrsam that brings it, such as ``"cuda"``.

    Raises
    ------
    MissingExtraError
        If the module, or a package it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"expected the optional module {module!r}, but importing it failed ({error}); "
            f'install it with: pip install "napari-hrsam[{extra}]"',
            name=module,
        ) from error
