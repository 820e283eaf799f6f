"""Images of any kind and size as levels of pixels."""
