"""Measure the demo's small models on scenes that none was trained on, and write figures and pictures.

    python scripts/evaluate_demo_models.py            # prints, and writes figures.json, samples.png, vdvae.png and curves.svg

The models run in transformers and diffusers themselves; only the VDVAE runs in leanrecon's class. Captions and images are
those of held-out scenes. Figures "in new colours" are for objects in colours that were not in training.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_models.autoencoder import as_bytes
from demo_models.autoencoder import pixels as autoencoder_pixels
from demo_models.clip import different, retrieval
from demo_models.clip import pixels as clip_pixels
from demo_models.data import Scenes, held_out
from demo_models.diffusion import text_states
from demo_models.tokens import Tokens
from demo_models.vdvae import CONFIG
from diffusers import AutoencoderKL, DDIMScheduler, LCMScheduler, UNet2DConditionModel
from peft import PeftModel
from PIL import Image
from torch import Tensor
from transformers import CLIPModel

from leanrecon.datasets.simulated.scenes import HELD_OUT, MODELS_SEED, TEST, compose
from leanrecon.evaluation.metrics import compare, prepare
from leanrecon.features.vdvae.network import VDVAE
from leanrecon.weights.packaged import write_manifest

Array = np.ndarray[Any, Any]

GROUPS, AMONG = 6, 64
GUIDANCE = 3.0
MEASURED = 200
GRID = 8


class Judge:
    """CLIP's embeddings, of unit length."""

    def __init__(self, models: Path) -> None:
        self.model = CLIPModel.from_pretrained(models / "clip", torch_dtype=torch.float32).eval()
        self.tokens = Tokens(models / "clip")

    @torch.no_grad()
    def images(self, images: Array) -> Array:
        parts = [
            self.model.visual_projection(self.model.vision_model(pixel_values=clip_pixels(images[at : at + 64], "cpu")).pooler_output)
            for at in range(0, len(images), 64)
        ]  # fmt: skip
        return _unit(torch.cat(parts))

    @torch.no_grad()
    def captions(self, captions: list[str]) -> Array:
        tokens = torch.from_numpy(self.tokens.of(captions).astype(np.int64))
        return _unit(self.model.text_projection(self.model.text_model(input_ids=tokens).pooler_output))


def clip_figures(judge: Judge, scenes: Scenes) -> dict[str, float]:
    """Retrieval of a caption by its image and of an image by its caption, among 64 different captions."""
    image, text = judge.images(scenes.images), judge.captions(scenes.captions)
    new = np.flatnonzero([_is_new(i) for i in range(len(scenes))])
    of_new = [scenes.captions[i] for i in new]
    return {
        "image to caption": retrieval(image, text, scenes.captions),
        "caption to image": retrieval(text, image, scenes.captions),
        "image to caption, in new colours": retrieval(image[new], text[new], of_new),
        "caption to image, in new colours": retrieval(text[new], image[new], of_new),
    }


def vdvae_figures(models: Path, scenes: Scenes) -> tuple[dict[str, float], Array]:
    """SSIM of reconstructions from the means of the first latents and of all; images for all."""
    model = VDVAE.from_checkpoint(models / "vdvae" / "vdvae.safetensors", CONFIG)
    images = np.ascontiguousarray(scenes.images[:MEASURED])
    found, back = {}, images
    for n in (6, 9, len(CONFIG.decoder)):
        back = model.decode(model.encode(images, n))
        found[f"{n} latents"] = _ssim(back, images)
    return found, back[:GRID]


@torch.no_grad()
def autoencoder_figures(models: Path, scenes: Scenes) -> dict[str, float]:
    """SSIM of reconstructions."""
    vae = _autoencoder(models)
    images = scenes.images[:MEASURED]
    back = vae.decode(vae.encode(autoencoder_pixels(images, "cpu")).latent_dist.mode()).sample
    return {"all latents": _ssim(as_bytes(back), images)}


def diffusion_figures(models: Path, judge: Judge, scenes: Scenes) -> tuple[dict[str, Any], dict[str, Array]]:
    """Retrieval of each sample's caption and seconds for each sample, by sampler; and some samples."""
    unet = UNet2DConditionModel.from_pretrained(models / "diffusion" / "unet", torch_dtype=torch.float32).eval()
    merged = UNet2DConditionModel.from_pretrained(models / "diffusion" / "unet", torch_dtype=torch.float32)
    merged = PeftModel.from_pretrained(merged, models / "lcm-lora").merge_and_unload().eval()
    folder = models / "diffusion" / "scheduler"
    lcm = LCMScheduler.from_config(DDIMScheduler.load_config(folder))
    ddim = DDIMScheduler.from_pretrained(folder)
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "DDIM, 50 steps": lambda x, c: sample(unet, ddim, 50, x, c, empty, GUIDANCE),
        "LCM-LoRA, 4 steps": lambda x, c: sample(merged, lcm, 4, x, c, empty, 1.0),
        "LCM without LoRA, 4 steps": lambda x, c: sample(unet, lcm, 4, x, c, empty, 1.0),
        "DDIM without LoRA, 4 steps": lambda x, c: sample(unet, ddim, 4, x, c, empty, GUIDANCE),
    }
    empty = torch.from_numpy(text_states([""], models, "cpu")).float()
    vae = _autoencoder(models)
    rows = different(scenes.captions)[: GROUPS * AMONG]
    captions = [scenes.captions[row] for row in rows]
    states = torch.from_numpy(text_states(captions, models, "cpu")).float()
    shape = (len(rows), unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, np.float32))
    text = judge.captions(captions)
    figures: dict[str, Any] = {}
    shown = {}
    for name, draw in ways.items():
        began = time.perf_counter()
        latents = torch.cat(
            [draw(noise[at : at + AMONG], states[at : at + AMONG]) for at in range(0, len(rows), AMONG)]
        )
        seconds = (time.perf_counter() - began) / len(rows)
        with torch.no_grad():
            images = as_bytes(vae.decode(latents / vae.config.scaling_factor).sample)
        figures[name] = {"retrieval": retrieval(judge.images(images), text, captions), "seconds": round(seconds, 4)}
        shown[name] = images[:GRID]
    return figures, shown


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel, scheduler: Any, steps: int, x: Tensor, states: Tensor, empty: Tensor, guidance: float
) -> Tensor:
    """Latents sampled from noise under text embeddings."""
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    how = {"generator": generator} if isinstance(scheduler, LCMScheduler) else {}
    for t in scheduler.timesteps:
        if guidance == 1:
            found = unet(x, t, states).sample
        else:
            own, without = unet(torch.cat((x, x)), t, torch.cat((states, empty.expand_as(states)))).sample.chunk(2)
            found = without + guidance * (own - without)
        x = scheduler.step(found, t, x, **how).prev_sample
    return x


def _autoencoder(models: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(models / "diffusion" / "vae", torch_dtype=torch.float32).eval()


def _is_new(row: int) -> bool:
    return any((thing.kind, thing.colour) in HELD_OUT for thing in compose(MODELS_SEED, TEST + row).things)


def _ssim(found: Array, images: Array) -> float:
    scores = [
        compare(prepare(a, ["ssim"]), prepare(b, ["ssim"]), ["ssim"])["ssim"]
        for a, b in zip(found, images, strict=True)
    ]
    return float(np.mean(scores))


def _unit(vectors: Tensor) -> Array:
    unit: Array = (vectors / vectors.norm(dim=-1, keepdim=True)).cpu().numpy()
    return unit


def grid(rows: list[Array], path: Path, zoom: int = 2, gap: int = 6) -> None:
    """Write images in rows, enlarged."""
    n, side = len(rows[0]), rows[0].shape[1] * zoom
    page = np.full((len(rows) * (side + gap) - gap, n * (side + gap) - gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            large = image.repeat(zoom, axis=0).repeat(zoom, axis=1)
            page[i * (side + gap) : i * (side + gap) + side, j * (side + gap) : j * (side + gap) + side] = large
    Image.fromarray(page).save(path, optimize=True)


def curves(logs: Path, path: Path, width: int = 300, height: int = 170, edge: int = 34) -> None:
    """Draw every model's losses over its steps: training as a line, held-out scenes as dots."""
    panels = []
    for i, log in enumerate(sorted(logs.glob("*.jsonl"))):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        train = [(line["step"], line["loss"]) for line in lines]
        unseen = next((k for k in ("held_out_loss", "held_out_bits") if any(k in line for line in lines)), "")
        dots = [(line["step"], line[unseen]) for line in lines if unseen in line]
        last, values = train[-1][0], [loss for _, loss in train[len(train) // 50 :]]
        low, high = min(values), max(values)

        def at(step: float, loss: float, last: int = last, low: float = low, high: float = high) -> str:
            y = height - edge - (min(loss, high) - low) / (high - low) * (height - 2 * edge)
            return f"{edge + step / last * (width - 2 * edge):.1f},{y:.1f}"

        marks = "".join('<circle cx="{}" cy="{}" r="2.5" fill="#c2410c"/>'.format(*at(*dot).split(",")) for dot in dots)
        line = " ".join(at(*point) for point in train)
        panels.append(
            f'<g transform="translate({i % 3 * width} {i // 3 * height})"><text x="{edge}" y="20">{log.stem}, '
            f'{last} steps</text><polyline points="{line}" fill="none" stroke="#1d4ed8"/>{marks}'
            f'<text x="{edge}" y="{height - 12}" fill="#666">loss {high:.3g} to {low:.3g}</text></g>'
        )
    rows = -(-len(panels) // 3)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{3 * width}" height="{rows * height}"'
    path.write_text(f'{head} font-family="sans-serif" font-size="12">{"".join(panels)}</svg>\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("leanrecon/models"))
    parser.add_argument("--work", type=Path, default=Path(".demo-models"), help="where held-out scenes are kept")
    parser.add_argument("--out", type=Path, help="where figures and pictures go; by default beside the models")
    args = parser.parse_args()
    scenes, judge = held_out(args.work / "data"), Judge(args.models)
    found: dict[str, Any] = {"clip": clip_figures(judge, scenes)}
    print(json.dumps(found["clip"]), flush=True)
    found["autoencoder"] = autoencoder_figures(args.models, scenes)
    found["vdvae"], back = vdvae_figures(args.models, scenes)
    print(json.dumps({key: found[key] for key in ("autoencoder", "vdvae")}), flush=True)
    found["diffusion"], shown = diffusion_figures(args.models, judge, scenes)
    print(json.dumps(found["diffusion"]), flush=True)
    out = args.out or args.models
    grid([scenes.images[different(scenes.captions)[:GRID]], *shown.values()], out / "samples.png")
    grid([scenes.images[:GRID], back], out / "vdvae.png")
    curves(args.models / "logs", out / "curves.svg")
    (out / "figures.json").write_text(json.dumps(found, indent=1) + "\n")
    if out == args.models:
        write_manifest(out)


if __name__ == "__main__":
    main()
