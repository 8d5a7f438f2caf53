"""Where files lie: atomic writes, uncached reads and locks."""
