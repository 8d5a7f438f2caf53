"""Local decoders: a decoder a target, each from voxels of its own, by scikit-learn's estimators."""
