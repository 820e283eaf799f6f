"""How much memory a stored image may ask for; known without zarr, which takes long to import."""

MAX_CHUNK_BYTES = 448 * 2**20
"""An image whose smallest readable part is larger cannot be read in little memory."""
