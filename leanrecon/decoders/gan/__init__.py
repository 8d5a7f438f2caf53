"""The decoder ``gan``: a generator from voxels to images, trained beside a discriminator (Shen et al. 2019)."""
