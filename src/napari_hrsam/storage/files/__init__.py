"""Files, folders and servers: written so that nothing is lost, read so that nothing overflows."""
