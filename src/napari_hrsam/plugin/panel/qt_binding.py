"""A warning about Qt bindings that end the interpreter."""

from __future__ import annotations

import sys

from qtpy.QtCore import QObject

NUM_CALLS = 200


def loses_references_to_none() -> bool:
    """Probe the Qt binding in use for a bug that aborts Python 3.11.

    PySide6 6.12.0 drops one reference to None in every Qt call that returns nothing. Before Python
    3.12, where None became immortal, that ends the process with "Fatal Python error: none_dealloc".

    Returns
    -------
    bool
        True on a broken binding.
    """
    probe = QObject()
    probe.setObjectName("probe")
    before = sys.getrefcount(None)
    for _ in range(NUM_CALLS):
        probe.setObjectName("probe")
    return sys.getrefcount(None) < before - NUM_CALLS // 2


def binding_warning() -> str | None:
    """Say what is wrong with the Qt binding, and what to do; None if it works."""
    if sys.version_info >= (3, 12) or not loses_references_to_none():
        return None
    return (
        "This Qt binding makes Python crash (PySide6 6.12.0 does, with Python before 3.12): save "
        "your work and install another, e.g. pip install 'PySide6!=6.12.0', or use Python 3.12"
    )
