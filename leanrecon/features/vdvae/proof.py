"""A test of VDVAE weights: a synthetic picture is encoded and decoded again."""

from typing import TYPE_CHECKING

import numpy as np

from leanrecon.features.space import Array

if TYPE_CHECKING:
    from leanrecon.features.vdvae.network import VDVAE


def drawn_picture(size: int) -> Array:
    """A landscape [size, size, 3] in uint8: a sky that darkens upwards, a sun, hills, and texture with a 1/f spectrum."""
    y, x = np.mgrid[0:size, 0:size] / size
    rng = np.random.Generator(np.random.Philox(key=64))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :])
    frequency[0, 0] = np.inf
    texture = np.fft.ifft2(np.fft.fft2(rng.standard_normal((size, size))) / frequency).real
    texture /= np.abs(texture).max()
    picture = np.stack((120 + 90 * y, 160 + 60 * y, 225 - 20 * y), -1)
    picture[np.hypot(x - 0.72, y - 0.25) < 0.1] = (250, 225, 140)
    for height, colour in ((0.55, (95, 120, 115)), (0.7, (60, 95, 50))):
        hill = y > height + 0.08 * np.sin(2 * np.pi * (1.3 * x + height)) + 0.05 * texture[0]
        picture[hill] = colour
    picture += 30 * texture[..., None] * (0.3 + y[..., None])
    levels: Array = np.clip(np.rint(picture), 0, 255)
    return levels.astype(np.uint8)


def prove(model: "VDVAE") -> dict[str, float]:
    """Encode a drawn picture and decode it again: with all latents (means), and with the first 31 and the prior's means.

    Returns the peak signal-to-noise ratio in dB and the correlation of pixels of both. Weights that were not trained
    give a correlation near 0.
    """
    config = model.config
    picture = drawn_picture(config.image_size)
    every = len(config.decoder)
    flat = model.encode(picture[None], every)
    figures: dict[str, float] = {"latents": every}
    for name, latents in (("", every), ("_of_31", min(31, every))):
        decoded = model.decode(flat[:, : config.dims(latents)])[0]
        error = float(np.mean((decoded.astype(float) - picture) ** 2))
        figures[f"psnr_db{name}"] = 10 * float(np.log10(255**2 / max(error, 1e-10)))
        same = decoded.std() == 0
        figures[f"correlation{name}"] = 0.0 if same else float(np.corrcoef(decoded.ravel(), picture.ravel())[0, 1])
    return figures
