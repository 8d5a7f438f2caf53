"""Reconstruct the images a person saw from their fMRI, in a stated memory budget."""

__version__ = "0.1.0"
