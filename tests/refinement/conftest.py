import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from support.diffusion_models import SIZE, TOKENS, WIDTH, pictures_of, smooth, tiny_vae, write_base, write_small_base
from support.versatile_models import VISION, write_versatile

from leanrecon.memory import MemoryBudget
from leanrecon.refinement.diffusion.refiner import Refiner
from leanrecon.refinement.diffusion.settings import RefineSettings
from leanrecon.stores.matrix import ArrayMatrix
from leanrecon.stores.pictures import Pictures
from leanrecon.validation import validate

ROWS = 5


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def small_base(tmp_path_factory):
    return write_small_base(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="session")
def taesd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "taesd"
    tiny_vae().save_pretrained(folder)
    return folder


@pytest.fixture
def first(tmp_path):
    return pictures_of(tmp_path / "stage1", smooth(ROWS))


@pytest.fixture
def text():
    rng = np.random.default_rng(3)
    return ArrayMatrix(rng.standard_normal((ROWS, TOKENS * WIDTH), dtype=np.float32))


@pytest.fixture(scope="session")
def versatile(tmp_path_factory):
    pytest.importorskip("transformers")
    return write_versatile(tmp_path_factory.mktemp("models") / "versatile")


@pytest.fixture
def vision():
    rng = np.random.default_rng(4)
    return ArrayMatrix(rng.standard_normal((ROWS, VISION * WIDTH), dtype=np.float32))


@pytest.fixture
def make(base, tmp_path):
    """A refiner with small settings; what is given replaces them."""

    def refiner(*, seed=7, device="cpu", scratch=tmp_path / "scratch", unconditional=None, **table):
        table = {"kind": "lcm", "base": str(base), "text": "clip", "size": SIZE, "precision": "float32"} | table
        settings = validate(RefineSettings, table, "refine.")
        return Refiner(settings, seed=seed, device=device, scratch=scratch, unconditional=unconditional)

    return refiner


@pytest.fixture
def drawn(first, text, tmp_path):
    """The final images of a refiner, uint8 [rows, size, size, 3]."""
    count = iter(range(1000))

    def images(refiner, *, text=text, first=first, memory="50GB", **others):
        size = refiner.settings.size
        out = Pictures.create(tmp_path / f"final{next(count)}", first.rows, (size, size, 3), made_of={"a": 1})
        predicted = {"text": text} | others
        refiner.refine(first, predicted, out, budget=MemoryBudget.of(memory))
        return np.stack([out.read(row) for row in range(out.rows)])

    return images
