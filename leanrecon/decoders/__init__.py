"""Decoders that go from betas to images in one step (``[decode]``)."""
