"""A generated gigapixel image with objects of known masks.

>>> from napari_hrsam.sample import make_sample, open_sample
>>> sample = make_sample("slide.ome.zarr", size_px=100_000)  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_hrsam.sample.making import make_sample, open_sample
    from napari_hrsam.sample.slide import Sample

__all__ = ["Sample", "make_sample", "open_sample"]


def __getattr__(name: str) -> Any:
    # Late, because these stand on `storage`, which itself reads what `sample.generated` paints.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "slide" if name == "Sample" else "making"
    return getattr(import_module(f"napari_hrsam.sample.{module}"), name)
