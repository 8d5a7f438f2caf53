"""Tasks of stages on the workers of a Dask cluster."""
