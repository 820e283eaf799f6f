"""Work on several machines, by Dask; the only room that knows it."""
