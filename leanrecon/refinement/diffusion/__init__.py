"""Latent diffusion from image to image."""
