"""A drawn scene: thousands of objects of known outlines, pixels at any place and level on demand.

Ground floor: NumPy only. `sample.generated` makes the chunks of an image from it, `sample.slide`
tells the true masks.
"""
