"""Alignments: from the voxels of several subjects to one shared space."""
