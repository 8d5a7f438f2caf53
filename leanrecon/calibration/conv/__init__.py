"""The calibration ``conv``: a small residual U-Net from first images to true ones."""
