"""Arrays and captions in files: .npy, .npz, .mat and HDF5."""
