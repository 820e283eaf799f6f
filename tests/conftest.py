"""Settings that every test needs before napari, Qt or torch is imported."""

from __future__ import annotations

import os

# napari's viewer fixture resets the settings: without this it would wipe the user's own file.
os.environ["NAPARI_CONFIG"] = ""
os.environ.setdefault("NAPARI_ENSURE_PLUGIN_MAIN_THREAD", "1")
os.environ.setdefault("QT_API", "pyside6")
