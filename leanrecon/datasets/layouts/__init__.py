"""Datasets of the field as they are published: thin presets over the builder."""
