"""Benchmark the judges of Brain-Diffuser's table at their published sizes, with random weights.

    python scripts/bench_judges.py --data FOLDER                     writes 1.7 GB of weights there, once
    python scripts/bench_judges.py --data FOLDER --images 98 --judges alexnet2 efficientnet

Embeds the stimuli and the reconstructions of some test rows, 425 pixels a side, by every judge, one after another in one
process, and computes their figures. The first judge's seconds hold the imports of PyTorch and torchvision. Prints seconds (and those of all processors, which other programs disturb less) a
judge, then the planned and the highest measured anonymous memory (RssAnon) of the whole. Needs the extras models and
judges; CLIP ViT-L/14 alone takes most of the time.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

SIDE = 425
BD2023 = ("alexnet2", "alexnet5", "inception", "efficientnet", "swav", "clip")


def write_weights(folder: Path) -> None:
    """Files of random weights in the formats of the published ones; what is there already is kept."""
    import torch
    from torchvision.models import get_model

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    for model in ("alexnet", "inception_v3", "efficientnet_b1"):
        if not (path := folder / f"{model}.pth").exists():
            options = {"init_weights": False} if model == "inception_v3" else {}
            built = get_model(model, weights=None, **options)
            for module in built.modules():
                if isinstance(
                    module, torch.nn.Conv2d
                ):  # else numbers fade to denormal ones, which processors add slowly
                    torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            torch.save(built.state_dict(), path)
    if not (path := folder / "swav.pth.tar").exists():
        weights = get_model("resnet50", weights=None).state_dict()
        torch.save({f"module.{name}": v for name, v in weights.items() if not name.startswith("fc.")}, path)
    if not (folder / "clip" / "model.safetensors").exists():
        from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

        large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        config = CLIPVisionConfig(**large, patch_size=14, image_size=224, projection_dim=768)
        CLIPVisionModelWithProjection(config).save_pretrained(folder / "clip")
        CLIPImageProcessorPil().save_pretrained(folder / "clip")


class Photographs:
    """Smooth images of a seed and their number, drawn when they are read."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.content = f"drawn {seed}"

    def read(self, row: int):
        import numpy as np
        from PIL import Image

        coarse = np.random.default_rng([self.seed, row]).integers(0, 256, (24, 24, 3), np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))

    def numbers(self, m: int):
        import numpy as np

        return np.arange(m)


def judges_of(folder: Path, names: list[str], device: str):
    """Judges of the preset with the random weights."""
    from leanrecon.stages.evaluate import make_judges
    from leanrecon.study.settings import check_settings

    files = {"alexnet2": "alexnet.pth", "alexnet5": "alexnet.pth", "inception": "inception_v3.pth"}
    files |= {"efficientnet": "efficientnet_b1.pth", "swav": "swav.pth.tar"}
    tables = {"clip": {"model": str(folder / "clip")}}
    tables |= {name: {"weights": str(folder / file)} for name, file in files.items()}
    for name in ("alexnet2", "alexnet5", "inception", "efficientnet"):
        tables[name] |= {"kind": "torchvision", **_of_preset(name), "version": None}
    evaluate = {"preset": "bd2023", "judges": names}
    found = check_settings(
        {
            "dataset": {"kind": "simulated"},
            "device": device,
            "evaluate": evaluate,
            "judges": {n: tables[n] for n in names},
        }
    )
    return found.evaluate, make_judges(found)


def _of_preset(name: str):
    from leanrecon.study.protocols import PROTOCOLS

    return {
        key: value for key, value in PROTOCOLS["bd2023"].judges[name].items() if key in ("model", "layer", "measure")
    }


def run(folder: Path, names: list[str], m: int, device: str) -> None:
    from leanrecon.context import Context
    from leanrecon.evaluation.judges.embeddings import STIMULI, embed, judge_scores
    from leanrecon.evaluation.plan import EvaluateShapes, plan_evaluate
    from leanrecon.memory import MemoryBudget, PeakMemory, format_bytes

    settings, judges = judges_of(folder, names, device)
    reserved = MemoryBudget.of(None).reserved
    shapes = EvaluateShapes((SIDE, SIDE, 3), m, 8859, {}, chunk=16_000_000, pictures=[(SIDE, SIDE, 3)])
    planned = reserved + plan_evaluate(shapes, settings, judges)
    sources = {STIMULI: Photographs(0), "final": Photographs(1)}
    print(f"{m} test images, 2 images each, {os.environ.get('OMP_NUM_THREADS', 'all')} threads, load {os.getloadavg()}")
    with tempfile.TemporaryDirectory() as work, PeakMemory() as memory:
        for judge in judges:
            start, used = time.perf_counter(), time.process_time()
            found = embed(judge, sources, m, (SIDE, SIDE, 3), Path(work) / judge.name, Context.of())
            scores = judge_scores(judge, found, [str(k) for k in range(m)])["final"]
            seconds, processor = time.perf_counter() - start, time.process_time() - used
            figures = ", ".join(f"{name} {values.mean():.3f}" for name, values in scores.rows.items())
            print(
                f"{judge.name:13} {judge.dims:7} numbers  {seconds:7.1f} s  {processor:7.1f} processor seconds  "
                f"{1000 * processor / (2 * m):6.1f} ms an image  {figures}",
                flush=True,
            )
    print(
        f"planned {format_bytes(planned)}, measured {format_bytes(memory.peak)} ({format_bytes(reserved)} held before)"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="where the random weights are, or are written")
    options.add_argument("--images", type=int, default=982, help="test images")
    options.add_argument("--judges", nargs="+", choices=BD2023, default=list(BD2023))
    options.add_argument("--device", default="cpu")
    options.add_argument("--write", action="store_true", help="write the weights, and end")
    given = options.parse_args()
    if given.write:
        return write_weights(given.data)
    import subprocess  # so that what initialises weights is in no measurement

    command = [sys.executable, __file__, "--data", str(given.data), "--write"]
    subprocess.run(command, check=True)
    run(given.data, given.judges, given.images, given.device)


if __name__ == "__main__":
    main()
