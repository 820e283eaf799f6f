"""What napari finds through the manifest besides the panel: readers, writers and sample images."""
