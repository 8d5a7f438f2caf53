"""Train the demo's small models from scratch, one after the other; a killed training continues.

    python scripts/train_demo_models.py                    # on a CPU in hours, on a GPU in minutes
    python scripts/train_demo_models.py --only vdvae       # one of them; several may run side by side

Each has a folder under --work, with a checkpoint and log.jsonl. The weights go to leanrecon/models.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from demo_models.autoencoder import LearnAutoencoder
from demo_models.clip import LearnCLIP
from demo_models.data import Scenes, held_out, training
from demo_models.diffusion import Described, LearnDiffusion
from demo_models.lcm import LearnLCM
from demo_models.tokens import Tokens
from demo_models.training import Schedule, Task, train
from demo_models.vdvae import LearnVDVAE

from leanrecon.weights.packaged import write_manifest

SCENES = 60_000
DESCRIBED = 30_000
"""Scenes whose latents and text states are kept for the diffusion model."""


def clip(work: Path, models: Path, device: str) -> Task:
    schedule = Schedule(steps=1100, batch=128, rate=1e-3, decay=0.05)
    return LearnCLIP(*_scenes(work), Tokens(work / "tokenizer"), schedule, device)


def autoencoder(work: Path, models: Path, device: str) -> Task:
    return LearnAutoencoder(*_scenes(work), Schedule(steps=5600, batch=4, rate=1e-3), device)


def vdvae(work: Path, models: Path, device: str) -> Task:
    return LearnVDVAE(*_scenes(work), Schedule(steps=3400, batch=4, rate=1e-3), device)


def diffusion(work: Path, models: Path, device: str) -> Task:
    described = _described(work, models, device)
    return LearnDiffusion(*described, models, Schedule(steps=6000, batch=8, rate=5e-4), device)


def lcm(work: Path, models: Path, device: str) -> Task:
    return LearnLCM(
        *_described(work, models, device), models, Schedule(steps=2000, batch=8, rate=3e-4, average=0.97), device
    )


MODELS: dict[str, Callable[[Path, Path, str], Task]] = {
    "clip": clip,
    "autoencoder": autoencoder,
    "vdvae": vdvae,
    "diffusion": diffusion,
    "lcm": lcm,
}
FOLDERS = {"autoencoder": "diffusion/vae", "lcm": "lcm-lora"}
"""Where weights go, where it is not named as the model."""


def _scenes(work: Path) -> tuple[Scenes, Scenes]:
    return training(work / "data", SCENES), held_out(work / "data")


def _described(work: Path, models: Path, device: str) -> tuple[Described, Described]:
    scenes, unseen = _scenes(work)
    data = work / "data"
    train = Described(data, "training", scenes.images[:DESCRIBED], scenes.captions[:DESCRIBED], models, device)
    return train, Described(data, "held-out", unseen.images, unseen.captions, models, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MODELS, action="append", help="train this model; may be given again")
    parser.add_argument("--work", type=Path, default=Path(".demo-models"), help="where checkpoints and logs go")
    parser.add_argument("--out", type=Path, default=Path("leanrecon/models"), help="where weights go")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.only or MODELS:
        task = MODELS[name](args.work, args.out, args.device)
        weights = train(task, args.work / name, device=args.device)
        task.export(args.out / FOLDERS.get(name, name), weights)
        logs = args.out / "logs"
        logs.mkdir(exist_ok=True)
        shutil.copy(args.work / name / "log.jsonl", logs / f"{name}.jsonl")
        write_manifest(args.out)


if __name__ == "__main__":
    main()
