"""A simulated subject."""
