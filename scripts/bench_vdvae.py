"""Benchmark VDVAE at full size with random weights: speed and memory of encoding and decoding, and a whole study.

    python scripts/bench_vdvae.py                 31 latents beside all 75, and decoding; 1 and 2 threads, batches 1 and 4
    python scripts/bench_vdvae.py --memory        a study end to end in 1 and in 2 GB: planned against measured

Seconds are medians of rounds, each of which encodes the same images to 31 latents, to all 75, and decodes the 31 again,
one after the other in one process, so that other programs disturb all three alike. The ratio of 75 to 31 is the median
of the rounds' ratios, with the smallest and the largest; CPU is the same of the process's CPU time, which shows less of
what else the machine does. A batch is what goes through the network at once (leanrecon takes 1 on a CPU). Memory is the peak of a process of its own for each direction, with the weights of this direction alone, as
in a run: anonymous (RssAnon) and resident (VmHWM), PyTorch included.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise, product
from pathlib import Path

STUDY = """
seed = 1
[dataset]
betas_train = "betas_train.npy"
betas_test = "betas_test.npy"
stimuli_train = "stimuli_train.npy"
stimuli_test = "stimuli_test.npy"
[features.vdvae]
checkpoint = "{checkpoint}"
[regression]
alpha = 50000.0
[stage1]
size = 512
[evaluate]
permutations = 1
"""


def write_weights(path):
    """A random checkpoint of imagenet64 whose states stay at a scale of about 1; what is there already is kept."""
    if path.exists():
        return
    import numpy as np
    from safetensors.numpy import save_file

    from leanrecon.features.vdvae import VDVAEConfig
    from leanrecon.features.vdvae.config import weight_shapes

    rng, weights = np.random.default_rng(0), {}
    for name, shape in weight_shapes(VDVAEConfig.imagenet64()).items():
        scale = 1 / math.sqrt(math.prod(shape[1:])) if name.endswith("weight") else 0.1
        if "_blocks." in name and ("c4" in name or "z_proj" in name):
            scale /= math.sqrt(75)  # what blocks add up, as published where training begins
        weights[name] = rng.standard_normal(shape, np.float32) * np.float32(scale)
    save_file(weights, path.with_suffix(".partial"), metadata={"format": "pt"})
    path.with_suffix(".partial").rename(path)


def photographs(n):
    import numpy as np

    return np.random.default_rng(1).integers(0, 256, (n, 64, 64, 3), np.uint8)


def now(device):
    """Wall and CPU time, once the device has done all that it was given."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def loaded(arguments, only=None):
    import torch

    from leanrecon.features.vdvae import VDVAE, network

    torch.set_num_threads(arguments.threads)
    network.AT_ONCE_ON_GPU = arguments.batch
    network.at_once_on_cpu = lambda config: arguments.batch
    return VDVAE.from_checkpoint(arguments.weights, device=arguments.device, precision=arguments.precision, only=only)


def time_all(arguments):
    """Wall and CPU seconds of each round for 31 latents, for 75, and for decoding the 31."""
    model, images, rounds = loaded(arguments), photographs(arguments.batch), []
    flat = model.encode(images, 31)  # and the first use of most kernels is over
    for _ in range(arguments.rounds):
        times = [now(arguments.device)]
        for work in (
            lambda: model.encode(images, 31, latents="sample"),
            lambda: model.encode(images, 75, latents="sample"),
            lambda: model.decode(flat),
        ):
            work()
            times.append(now(arguments.device))
        rounds.append([[(b - a) / arguments.batch for a, b in zip(*pair, strict=True)] for pair in pairwise(times)])
    return {"rounds": rounds}


def peak_of(arguments):
    """The memory that one direction takes in a process that does nothing else."""
    from leanrecon.features.vdvae import VDVAEConfig
    from leanrecon.features.vdvae.config import decoding_weights, encoding_weights
    from leanrecon.memory import PeakMemory

    config = VDVAEConfig.imagenet64()
    with PeakMemory() as memory:
        if arguments.worker == "encode":
            model = loaded(arguments, encoding_weights(config, 31))
            model.encode(photographs(2 * arguments.batch), 31, latents="sample")
        else:
            import numpy as np

            model = loaded(arguments, decoding_weights(config))
            model.decode(np.zeros((2 * arguments.batch, config.dims(31)), np.float32))
    found = {"anon": memory.peak, "resident": memory.resident or 0}
    if arguments.device == "cuda":
        import torch

        found["gpu"] = torch.cuda.max_memory_allocated()
    return found


def measured(work, arguments, device, threads, precision, batch):
    command = [sys.executable, __file__, "--worker", work, "--weights", str(arguments.weights)]
    command += ["--device", device, "--threads", str(threads), "--precision", precision]
    command += ["--batch", str(batch), "--rounds", str(arguments.rounds)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def machine():
    """Whether there is CUDA, and whether the CPU multiplies in bfloat16; asked in a process of its own."""
    code = (
        "import torch; print(torch.cuda.is_available(), "
        "torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return [word == "True" for word in done.stdout.split()]


def compare(arguments):
    cuda, fast_bfloat16 = machine()
    cases = [("cpu", *case) for case in product(arguments.on_threads, arguments.precisions, arguments.batches)]
    if cuda:
        cases += [("cuda", 1, *case) for case in product(("float32", "bfloat16", "float16"), (1, 4, 32))]
    else:
        print("no CUDA here")
    print(f"bfloat16 instructions: {'yes' if fast_bfloat16 else 'no'}; median of {arguments.rounds} rounds")
    print("seconds an image, images a second, and MB (anonymous / resident) of a process that only encodes or decodes")
    print(
        f"{'':5}{'threads':>8} {'precision':10}{'batch':>6}{'31':>8}{'75':>8}{'ratio':>7}{'':14}{'CPU':>6}"
        f"{'decode':>8}{'enc/s':>7}{'dec/s':>7}{'encode MB':>13}{'decode MB':>13}{'GPU MB':>8}"
    )
    for device, threads, precision, batch in cases:
        where = (device, threads, precision, batch)
        rounds = measured("time", arguments, *where)["rounds"]
        few, every, back = (statistics.median(wall for wall, _ in column) for column in zip(*rounds, strict=True))
        ratios, on_cpu = (sorted(second[k] / first[k] for first, second, _ in rounds) for k in (0, 1))
        peaks = [measured(work, arguments, *where) for work in ("encode", "decode")]
        sizes = "".join(f"{p['anon'] / 1e6:,.0f} / {p['resident'] / 1e6:,.0f}".rjust(13) for p in peaks)
        gpu = f"{max(p['gpu'] for p in peaks) / 1e6:8,.0f}" if device == "cuda" else ""
        print(
            f"{device:5}{threads:8} {precision:10}{batch:6}{few:8.3f}{every:8.3f}{statistics.median(ratios):7.2f}"
            f" ({ratios[0]:.2f} - {ratios[-1]:.2f}){statistics.median(on_cpu):6.2f}{back:8.3f}{1 / few:7.2f}{1 / back:7.2f}{sizes}{gpu}",
            flush=True,
        )


def study_in(arguments, folder):
    """A study of 12 photographs through the command line, in each budget; prints what its stages held."""
    import numpy as np

    rng = np.random.default_rng(2)
    for split, n in (("train", 9), ("test", 3)):
        np.save(folder / f"stimuli_{split}.npy", rng.integers(0, 256, (n, 100, 100, 3), np.uint8))
        np.save(folder / f"betas_{split}.npy", rng.standard_normal((n, 50), np.float32))
    (folder / "study.toml").write_text(STUDY.format(checkpoint=arguments.weights.absolute().as_posix()))
    sound = True
    for budget in arguments.budgets:
        study = folder / f"study-{budget}"
        command = [sys.executable, "-m", "leanrecon", "run", str(folder / "study.toml"), "--study", str(study)]
        started = time.perf_counter()
        subprocess.run([*command, "--memory", budget, "--set", "device=cpu"], check=True, stderr=subprocess.DEVNULL)
        print(f"{budget}: {time.perf_counter() - started:.0f} s for 9 train and 3 test images")
        for stage, record in json.loads((study / "run.json").read_text())["stages"].items():
            planned, peak, resident = (record[f"{key}_bytes"] for key in ("planned", "peak", "peak_resident"))
            # Below 300 MB what Python itself holds outweighs what is planned.
            kept = peak <= planned <= record["budget_bytes"] and (planned <= 300e6 or peak >= 0.6 * planned)
            sound = sound and kept
            print(
                f"  {stage:18} planned {planned / 1e6:6,.0f} MB, measured {peak / 1e6:6,.0f} MB "
                f"({peak / planned:.0%}; resident so far {resident / 1e6:,.0f} MB){'' if kept else '  NOT AS PLANNED'}",
                flush=True,
            )
    return sound


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="where to keep the random weights (500 MB, .safetensors)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--on-threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--memory", action="store_true", help="run a study end to end instead")
    parser.add_argument("--budgets", nargs="+", default=["1GB", "2GB"])
    for name, kind in (("worker", str), ("device", str), ("threads", int), ("precision", str), ("batch", int)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(time_all(arguments) if arguments.worker == "time" else peak_of(arguments)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        arguments.weights = arguments.weights or Path(temporary) / "random.safetensors"
        write_weights(arguments.weights)
        if not arguments.memory:
            compare(arguments)
        elif not study_in(arguments, Path(temporary)):
            sys.exit(1)


if __name__ == "__main__":
    main()
