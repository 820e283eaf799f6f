"""Measurements that users can repeat; ``napari-hrsam bench`` and ``benchmarks/`` run them."""
