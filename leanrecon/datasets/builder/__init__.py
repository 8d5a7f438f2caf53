"""A study from responses, a table of trials, images and voxels, each from whatever files hold them."""
