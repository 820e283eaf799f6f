"""Objects of other programs' files, drawn into a label image."""
