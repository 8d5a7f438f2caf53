"""Calibration of first images: what a decoder blurs and flattens is mended, as learned on train rows alone."""
