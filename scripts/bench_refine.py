"""Benchmark the refinement at the size of Stable Diffusion 1.5 with random weights: plain diffusers beside ours.

    python scripts/bench_refine.py --data FOLDER       writes 3.5 GB of float32 weights there, once
    python scripts/bench_refine.py --data FOLDER --quick     the four that matter most

Image to image at 512 × 512, four evaluations of the UNet by LCM, one image a process after one that is not counted
(--warm 0 counts the first), weights loaded beforehand. Every line is a process of its own: seconds an image, processor seconds of all threads
(which other programs disturb less), the peak of anonymous (RssAnon) and of resident memory (VmHWM, with mapped files
and all libraries), what was planned, and how far the image lies from ours in float32 with the same autoencoder, in
levels of 255: mean and largest. Preparing the file that bfloat16 is read from is a line of its own.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZE, STEPS, STRENGTH, WIDTH, TOKENS = 512, 4, 0.75, 768, 77

KEY = [  # float32 first, which bfloat16 is compared with
    ("float32", "none", "full"),
    ("float32", "none", "tiny"),
    ("bfloat16", "stream", "tiny"),
    ("bfloat16", "stream", "full"),
]
OTHERS = [("float32", "stream", vae) for vae in ("full", "tiny")] + [
    ("bfloat16", offload, vae) for vae in ("tiny", "full") for offload in ("none", "model", "sequential", "disk")
]


def write_models(folder):
    """Models of the published sizes with random weights, as diffusers saves them; what is there already is kept."""
    if (folder / "done").exists():
        return
    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny, PNDMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    base = folder / "sd15"
    UNet2DConditionModel(sample_size=64, cross_attention_dim=WIDTH, attention_head_dim=8).save_pretrained(
        base / "unet", max_shard_size="10GB"
    )
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=SIZE,
    ).save_pretrained(base / "vae")
    AutoencoderTiny().save_pretrained(folder / "taesd")
    PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(base / "scheduler")
    (folder / "done").touch()


def inputs(n):
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 8, 8, 3), np.uint8).repeat(SIZE // 8, 1).repeat(SIZE // 8, 2)
    return images, rng.standard_normal((n, TOKENS * WIDTH), dtype=np.float32)


def plain(arguments):
    """diffusers as its documentation says, in float32, with the same noise and levels as ours."""
    import numpy as np
    import torch
    from diffusers import AutoencoderKL, LCMScheduler, StableDiffusionImg2ImgPipeline, UNet2DConditionModel
    from PIL import Image

    from leanrecon.refinement.diffusion.sampling import generators

    base = arguments.data / "sd15"
    config = json.loads((base / "scheduler" / "scheduler_config.json").read_text())
    if arguments.vae == "tiny":
        from diffusers import AutoencoderTiny

        vae = AutoencoderTiny.from_pretrained(arguments.data / "taesd")
    else:
        vae = AutoencoderKL.from_pretrained(base / "vae")
    pipe = StableDiffusionImg2ImgPipeline(
        unet=UNet2DConditionModel.from_pretrained(base / "unet"),
        vae=vae,
        scheduler=LCMScheduler.from_config(config),
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler.set_timesteps(STEPS, strength=STRENGTH)
    levels = pipe.scheduler.timesteps.tolist()
    images, text = inputs(arguments.warm + 1)
    for row, image in enumerate(images):
        started, used = time.perf_counter(), time.process_time()
        found = pipe(
            image=Image.fromarray(image),
            prompt_embeds=torch.from_numpy(text[row].reshape(1, TOKENS, WIDTH)),
            generator=generators(0, [row]),
            timesteps=levels,
            strength=1.0,
            guidance_scale=1.0,
        ).images[0]
        seconds, cpu = time.perf_counter() - started, time.process_time() - used
    np.save(arguments.image, np.asarray(found))
    return {"seconds": seconds, "cpu": cpu}


def generator_of(arguments):
    from leanrecon.refinement.diffusion.settings import LCMSettings
    from leanrecon.refinement.diffusion.stable import LCM

    settings = LCMSettings(
        base=str(arguments.data / "sd15"),
        text="clip",
        steps=STEPS,
        strength=STRENGTH,
        size=SIZE,
        precision=arguments.precision,
        offload=arguments.offload,
        tiny_autoencoder=str(arguments.data / "taesd") if arguments.vae == "tiny" else "",
    )
    return LCM(settings, seed=0, device="cpu", scratch=arguments.data / "scratch")


def ours(arguments):
    import numpy as np

    from leanrecon.context import Context
    from leanrecon.progress import Progress
    from leanrecon.stores.matrix import ArrayMatrix
    from leanrecon.stores.pictures import Pictures

    n = arguments.warm + 1
    images, text = inputs(n)
    ticks = []

    class Clock(Progress):
        def task(self, *_, **__):
            ticks.append((time.perf_counter(), time.process_time()))  # weights are loaded
            return contextlib.nullcontext(lambda n: ticks.append((time.perf_counter(), time.process_time())))

    with tempfile.TemporaryDirectory() as folder:
        first = Pictures.create(Path(folder) / "first", n, (SIZE, SIZE, 3), made_of={})
        for row, image in enumerate(images):
            first.write(row, image)
        first.finish()
        out = Pictures.create(Path(folder) / "final", n, (SIZE, SIZE, 3), made_of={})
        context = Context.of("20GB", progress=Clock())
        generator_of(arguments).draw(first, {"text": ArrayMatrix(text)}, out, context)
        np.save(arguments.image, out.read(n - 1))
    (a, b), (c, d) = ticks[-2:]
    return {"seconds": c - a, "cpu": d - b, "planned": context.peaks.projected[0]}


def prepare(arguments):
    """Write the weights in bfloat16, as the first run does."""
    started = time.perf_counter()
    generator = generator_of(arguments)
    for source in generator.model.sources(arguments.precision):
        from leanrecon.stores.fingerprint import fingerprint

        content = fingerprint({"part": source.part.content, "lora": None})
        source.on_disk(generator.scratch, content)
    return {"seconds": time.perf_counter() - started, "cpu": time.process_time()}


def worker(arguments):
    from leanrecon.memory import PeakMemory

    with PeakMemory() as memory:
        found = {"plain": plain, "ours": ours, "prepare": prepare, "models": models}[arguments.worker](arguments)
    print(json.dumps(found | {"anon": memory.peak, "resident": memory.resident or 0}))


def models(arguments):
    write_models(arguments.data)
    return {}


def measured(work, arguments, image, precision="float32", offload="none", vae="full"):
    command = [sys.executable, __file__, "--worker", work, "--data", str(arguments.data), "--image", str(image)]
    command += ["--precision", precision, "--offload", offload, "--vae", vae, "--warm", str(arguments.warm)]
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def line(name, found, base, difference=""):
    megabytes = [
        f"{found.get(key, 0) / 1e6:9.0f}" if found.get(key) else " " * 9 for key in ("anon", "resident", "planned")
    ]
    speed = f"{base['seconds'] / found['seconds']:7.2f}{base['cpu'] / found['cpu']:7.2f}" if base else " " * 14
    print(f"{name:38}{found['seconds']:9.1f}{found['cpu']:9.1f}{speed}{''.join(megabytes)}  {difference}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder for the models (3.5 GB, and 1.9 GB of bfloat16)"
    )
    parser.add_argument("--warm", type=int, default=1, help="images before the one that is counted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="of ours, the lines whose names hold this, as 'bfloat16, disk'")
    for name in ("worker", "image", "precision", "offload", "vae"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    import numpy as np

    arguments.data.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.npy"
        measured("models", arguments, image)
        print(
            f"{'':38}{'seconds':>9}{'cpu s':>9}{'speed':>7}{'by cpu':>7}{'anon MB':>9}{'resident':>9}{'planned':>9}  from float32"
        )
        base = measured("plain", arguments, image)
        line("diffusers float32, full autoencoder", base, base)
        exact = {"plain": np.load(image).astype(int)}
        line("cast to bfloat16, once", measured("prepare", arguments, image, "bfloat16", "stream", "full"), None)
        for precision, offload, vae in KEY if arguments.quick else KEY + OTHERS:
            name = f"{precision}, {offload}, {vae} autoencoder"
            if arguments.only not in name:
                continue
            found = measured("ours", arguments, image, precision, offload, vae)
            drawn = np.load(image).astype(int)
            if precision == "float32":
                exact.setdefault(vae, drawn)
            text = ""
            if vae in exact:
                apart = np.abs(drawn - exact[vae])
                text = f"{apart.mean():.3f} {apart.max()}"
            if name == "float32, none, full autoencoder":
                text += f"; from diffusers {np.abs(drawn - exact['plain']).max()}"
            line(name, found, base, text)


if __name__ == "__main__":
    main()
