"""Several subjects as one dataset, in a shared space."""
