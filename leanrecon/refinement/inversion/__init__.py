"""Searches: the input of a decoder whose image matches what the brain says."""
