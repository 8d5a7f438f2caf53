"""The stages of a study, one file each, and the pipeline that runs them."""
