"""What napari finds through the manifest besides the panel: a reader and sample images."""
