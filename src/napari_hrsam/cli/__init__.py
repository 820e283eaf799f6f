"""The command line ``napari-hrsam``: one module per group of commands."""

from napari_hrsam.cli.main import main

__all__ = ["main"]
