"""Datasets: from files or a simulation to a study's betas, stimuli and captions."""
