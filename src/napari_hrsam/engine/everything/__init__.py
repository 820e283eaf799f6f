"""All objects of an image at once: one field of maps, objects block by block, a label image."""
