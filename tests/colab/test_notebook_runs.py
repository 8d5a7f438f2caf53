"""The notebooks run from top to bottom in a clean kernel, offline or against a server on loopback, killed and continued."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("hatchling")

ROOT = Path(__file__).parents[2]
COLAB = ROOT / "colab"

from run_notebook import build_wheel, fresh_environment  # noqa: E402

from leanrecon.weights import packaged  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.notebooks,
    pytest.mark.skipif(sys.platform != "linux", reason="the script that runs notebooks needs Linux"),
]


def run_notebook(name: str, folder: Path, *arguments: str, **values: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "scripts" / "run_notebook.py"), str(COLAB / name), "--folder", str(folder)]
    command += [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    one = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": one}
    return subprocess.Popen([*command, *arguments], **how)


def finished(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said
    return said


def outputs(folder: Path) -> list[str]:
    """What every code cell of the executed notebook shows, as one text each."""
    notebook = nbformat.read(folder / "executed.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells), "every cell has run"
    return [
        "\n".join(out.get("text") or "\n".join(str(v) for v in out.get("data", {}).values()) for out in cell.outputs)
        for cell in cells
    ]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_recipes_templates_and_models(wheel: Path) -> None:
    package = ROOT / "leanrecon"
    beside = [path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    expected = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in beside}
    assert "leanrecon/recipes/demo.toml" in expected
    with zipfile.ZipFile(wheel) as file:
        found = {info.filename: info.file_size for info in file.infolist()}
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.parametrize("what", [pytest.param("demo-fast", marks=pytest.mark.long), "demo"])
def test_the_demo_runs_offline_within_limits(what: str, wheel: Path, tmp_path: Path) -> None:
    if what == "demo" and not (packaged.FOLDER / packaged.MANIFEST).is_file():
        pytest.skip(f"{packaged.FOLDER} has no {packaged.MANIFEST}: run scripts/train_demo_models.py")
    less = "--set dataset.n_train=120 --set dataset.n_test=24 --set evaluate.permutations=2"
    values = {"LEANRECON_SOURCE": wheel, "WHAT": what, "MORE": less}
    said = finished(run_notebook("leanrecon.ipynb", tmp_path, "--offline", **values))
    assert "limit: 12GB of address space for every process" in said
    assert re.search(r"memory cgroup: (12GB for all together|this machine allows none)", said)
    peak = float(re.search(r"peak memory: ([\d.]+) GB together", said)[1])
    assert 0.05 < peak < 3
    shown = outputs(tmp_path)
    assert "these settings need no weights" in shown[3] or "all weights are here" in shown[3]
    assert "plan, 4 GB of memory allowed" in shown[4]
    assert "peak memory" in shown[4]
    for stage in shown[5:]:
        assert "Error" not in stage
    assert sum("at most of 4 GB" in cell for cell in shown) >= 6, "a meter below every command"
    assert "shown twice" in shown[6]
    assert "Simulated subject: no one was measured." in shown[-1]
    assert shown[-1].count("<img src='data:image/") == (2 if what == "demo-fast" else 3) * (5 + 3 + 3)
    assert (tmp_path / what / "report.html").exists()


def test_your_data_runs_as_it_is(wheel: Path, tmp_path: Path) -> None:
    finished(run_notebook("your_data.ipynb", tmp_path, "--offline", LEANRECON_SOURCE=wheel))
    shown = outputs(tmp_path)
    assert (tmp_path / "mine" / "report.html").exists()
    assert "regression pca" in shown[4]
    assert "MB of memory" in shown[4]
    metrics = json.loads((tmp_path / "mine" / "evaluation" / "metrics.json").read_text())
    assert metrics["n_test"] == 60
    assert metrics["final"]["two_way_pixels"]["low"] > 0.8, "the example is one that works"
    assert np.load(tmp_path / "mine" / "predictions.npy").shape == (60, 32)
    assert "The decoding worked" in shown[-3]
    assert "'chance': 0.5" in shown[-2]
    assert "(60, 32) (32, 32)" in shown[-1]


def test_your_data_takes_files_of_ones_own(wheel: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (50, 8, 8, 3), np.uint8)
    np.save(tmp_path / "seen.npy", images)
    np.savez(tmp_path / "brain.npz", betas=images.reshape(50, -1)[:, :40].astype(np.float32))
    less = "--set features.pca.components=8 --set evaluate.permutations=1 --set evaluate.resamples=100"
    values = {"BETAS": "brain.npz:betas", "STIMULI": "seen.npy", "TEST_FRACTION": 0.5, "NAME": "own", "MORE": less}
    finished(run_notebook("your_data.ipynb", tmp_path, "--offline", LEANRECON_SOURCE=wheel, **values))
    assert json.loads((tmp_path / "own" / "evaluation" / "metrics.json").read_text())["n_test"] == 25


def test_local_decoders_run_to_their_scores(wheel: Path, tmp_path: Path) -> None:
    values = {"LEANRECON_SOURCE": wheel, "MORE": "--set evaluate.permutations=1"}
    finished(run_notebook("local_decoders.ipynb", tmp_path, "--offline", **values))
    shown = outputs(tmp_path)
    scores = {
        row[0].strip(): row[1:] for row in re.findall(r"^(.{20}) correlation +(\S+) +two-way (\S+)$", shown[-2], re.M)
    }
    assert (tmp_path / "patterns" / "report.html").exists()
    correlation, two_way = map(float, scores["first images"])
    assert correlation > float(scores["mean_train_image"][0]) + 0.1
    assert two_way > 0.7 > float(scores["shuffled_betas"][1])
    assert "PIL.Image" in shown[-1]


def test_nifti_betas_run_to_a_report_and_to_a_map(wheel: Path, tmp_path: Path) -> None:
    import nibabel

    values = {"LEANRECON_SOURCE": wheel, "MORE": "--set evaluate.permutations=1"}
    finished(run_notebook("nifti.ipynb", tmp_path, "--offline", **values))
    shown = outputs(tmp_path)
    assert 'kind = "nifti"' in shown[3]
    metrics = json.loads((tmp_path / "mine" / "evaluation" / "metrics.json").read_text())
    assert metrics["n_test"] == 30
    assert metrics["final"]["two_way_pixels"]["low"] > 0.8, "the example is one that works"
    map_ = nibabel.load(tmp_path / "mine-maps" / "accuracy.nii.gz").get_fdata()
    mask = nibabel.load(tmp_path / "example" / "mask.nii.gz").get_fdata() > 0
    assert np.isfinite(map_[mask]).all()
    assert np.median(map_[mask]) > 0.3
    assert not np.nan_to_num(map_[~mask]).any()
    assert "(30, 32) (32, 32)" in shown[-1]


# The environment, and what pip may not change


def test_the_environment_is_one_without_leanrecon_that_can_not_harm_this_one(wheel: Path, tmp_path: Path) -> None:
    python = fresh_environment(tmp_path / "environment")
    own = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PIP_CONSTRAINT")}

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([python, *arguments], capture_output=True, text=True, env=own, cwd=tmp_path)

    assert "No module named" in run("-c", "import leanrecon").stderr
    assert run("-c", "import numpy; print(numpy.__version__)").stdout.strip() == np.__version__
    assert run("-m", "pip", "install", "--no-index", str(wheel)).returncode == 0
    place = run("-c", "import leanrecon; print(leanrecon.__file__)").stdout.strip()
    assert Path(place).is_relative_to(tmp_path / "environment")
    refused = run("-m", "pip", "uninstall", "--yes", "iniconfig")
    assert "outside environment" in refused.stdout + refused.stderr
    assert run("-c", "import iniconfig").returncode == 0


def fake_wheel(folder: Path, name: str, version: str, *requires: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nProvides-Extra: all\n"
    metadata += "".join(f"Requires-Dist: {one}\n" for one in requires)
    with zipfile.ZipFile(path, "w") as file:
        info = f"{name}-{version}.dist-info"
        file.writestr(f"{info}/METADATA", metadata)
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


@pytest.mark.parametrize("name", sorted(path.name for path in COLAB.glob("*.ipynb")))
def test_the_numpy_that_is_installed_stays(name: str, tmp_path: Path) -> None:
    """A leanrecon that asks for another NumPy is refused, though pip by itself would bring it."""
    python = fresh_environment(tmp_path / "environment")
    fake_wheel(tmp_path / "index", "numpy", "999.0")
    source = fake_wheel(tmp_path / "index", "leanrecon", "99.0", "numpy>=999")
    (cell,) = [cell.source for cell in nbformat.read(COLAB / name, 4).cells if "LEANRECON_SOURCE = " in cell.source]
    install = re.sub(r'LEANRECON_SOURCE = "[^"]+"', f"LEANRECON_SOURCE = {str(source)!r}", cell.partition("\n%")[0])
    own = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PIP_CONSTRAINT")}
    own |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "index"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def numpy() -> str:
        show = "from importlib.metadata import version; print(version('numpy'))"
        return subprocess.run([python, "-c", show], check=True, capture_output=True, text=True, env=own).stdout.strip()

    done = subprocess.run([python, "-c", install], capture_output=True, text=True, env=own, cwd=tmp_path)
    assert done.returncode != 0
    assert "conflict" in done.stdout + done.stderr
    assert numpy() == np.__version__
    free = [python, "-m", "pip", "install", "--quiet", str(source)]
    subprocess.run(free, check=True, capture_output=True, env=own)
    assert numpy() == "999.0"


# The Natural Scenes Dataset


NSD = """
[dataset]
kind = "nsd"
endpoint_url = "{url}"
captions = "{captions}"
image_size = 16
[features.vdvae]
checkpoint = "vdvae.pth"
n_latents = 5
[features.vdvae.config]
{sizes}
[features.clip]
kind = "clip-text"
model = "base"
form = "sd15"
[regression]
alpha = 100.0
[refine]
kind = "lcm"
base = "base"
text = "clip"
size = 64
steps = 2
precision = "float32"
[evaluate]
permutations = 1
resamples = 100
"""


@pytest.fixture(scope="module")
def nsd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, object]]:
    """A folder with tiny models in the real formats and the settings that name them, and the small NSD's server."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    pytest.importorskip("nibabel")
    from support import published_models
    from support.diffusion_models import write_base
    from support.nsd_server import proxied, serving
    from support.vdvae_models import SMALL, random_weights

    from leanrecon.datasets.nsd.simulate import simulate_nsd

    data, models = tmp_path_factory.mktemp("nsd"), tmp_path_factory.mktemp("models")
    simulate_nsd(data, sessions=1, scale=0.12, formats=("hdf5",))
    torch.save(random_weights(), models / "vdvae.pth")
    write_base(models / "base", width=published_models.WIDTH)
    published_models.write_text_encoder(models / "base", projection=False)
    sizes = "\n".join(f"{key} = {json.dumps(value)}" for key, value in SMALL.as_table().items())
    with serving(data) as url, proxied(url) as proxy:
        captions = data / "COCO_73k_annots_curated.npy"
        (models / "tiny.toml").write_text(NSD.format(url=proxy.url, captions=captions, sizes=sizes))
        yield models, proxy


def stamps(root: Path) -> dict[str, int]:
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}


@pytest.mark.long
def test_nsd_runs_killed_in_the_middle_and_all_cells_again(nsd, wheel: Path, tmp_path: Path) -> None:
    models, proxy = nsd
    work, drive = tmp_path / "work", tmp_path / "drive"
    values = {
        "LEANRECON_SOURCE": wheel, "WHAT": "nsd", "ACCEPT_TERMS": True, "SESSIONS": 1, "RECIPE": models / "tiny.toml",
        "MEMORY": "3GB", "DRIVE_FOLDER": drive,
    }  # fmt: skip
    study = work / "subj01-nsdgeneral-1-tiny"
    process = run_notebook("leanrecon.ipynb", work, **values)
    first = study / "features" / "vdvae" / "train.zarr" / "zarr.json"
    while not first.exists() and process.poll() is None:
        time.sleep(0.01)
    kernel = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "ipykernel" in " ".join(child.cmdline())
    ]
    kernel[0].send_signal(signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Kernel died" in said
    fetched = stamps(study / "betas") | stamps(study / "stimuli")
    assert stamps(drive).keys() >= {f"{study.name}/betas/rows.json", f"{study.name}/stimuli/train.zarr/zarr.json"}
    assert not (study / "predictions").exists()
    moved = proxy.nbytes("betas_session")

    finished(run_notebook("leanrecon.ipynb", work, **values))
    assert stamps(study / "betas") | stamps(study / "stimuli") == fetched, "what was fetched is not fetched again"
    assert proxy.nbytes("betas_session") - moved < moved / 2, "the plan looks at heads of files only"
    shown = outputs(work)
    assert "all weights are here" in shown[3]
    assert "to download" in shown[4]
    assert "Betas and images belong together" in shown[6]
    assert "Simulated subject" not in shown[-1]  # nothing on the server says so
    assert shown[-1].count("<img src='data:image/") == 3 * (5 + 3 + 3), "seen, first and final images"
    assert (study / "report.html").exists()

    def lasting(root: Path) -> dict[str, bytes]:
        files = [path for path in root.rglob("*") if path.is_file() and "weights" not in path.relative_to(root).parts]
        return {str(path.relative_to(root)): path.read_bytes() for path in files}

    before = lasting(study)
    shutil.rmtree(study)
    requests = proxy.requests()
    command = [sys.executable, "-m", "leanrecon", "run", str(models / "tiny.toml"), "--study", study.name]
    command += ["--mirror", str(drive / study.name), "--memory", "3GB", "--set", "dataset.accept_terms=true"]
    command += ["--set", "dataset.subject=1", "--set", "dataset.roi=nsdgeneral", "--set", "dataset.sessions=1"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert lasting(study) == before, "another machine has the whole study back"
    assert proxy.requests() == requests, "without asking the network"


def test_terms_that_are_not_accepted_stop_the_notebook(nsd, wheel: Path, tmp_path: Path) -> None:
    models, _ = nsd
    values = {"LEANRECON_SOURCE": wheel, "WHAT": "nsd", "SESSIONS": 1, "RECIPE": models / "tiny.toml"}
    process = run_notebook("leanrecon.ipynb", tmp_path, **values)
    process.communicate(timeout=300)
    assert process.returncode != 0
    notebook = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
    ran = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.execution_count]
    assert ran[-1].source == "%leanrecon run {RUN} --until dataset"
    told = "".join(out.get("text", "") for out in ran[-1].outputs)
    assert "terms of use of the Natural Scenes Dataset are not accepted" in told
    assert "https://naturalscenesdataset.org" in told
