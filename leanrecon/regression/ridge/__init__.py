"""Ridge regression by the hat matrix, streamed from disk."""
