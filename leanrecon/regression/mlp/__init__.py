"""A residual network trained from disk."""
