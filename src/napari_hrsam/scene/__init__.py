"""A drawn scene: thousands of objects of known outlines, pixels at any place and level on demand.

Ground floor: NumPy only. `storage` makes the chunks of a generated image from it, `sample` tells
the true masks.
"""
