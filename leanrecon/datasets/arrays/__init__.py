"""Datasets from any lab's arrays."""
