"""A generated gigapixel image with objects of known masks.

>>> from napari_hrsam.sample import make_sample, open_sample
>>> sample = make_sample("slide.ome.zarr", size_px=100_000)  # doctest: +SKIP
"""

from napari_hrsam.sample.making import make_sample, open_sample
from napari_hrsam.sample.slide import Sample

__all__ = ["Sample", "make_sample", "open_sample"]
