import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from support.diffusion_models import SIZE, TOKENS, WIDTH, pictures_of, smooth, tiny_vae, write_base, write_small_base
from support.versatile_models import VISION, write_versatile

from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.stores.matrix import ArrayMatrix
from leanrecon.stores.pictures import Pictures

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
    """A generator with small settings; keyword arguments replace them."""

    def generator(*, seed=7, device="cpu", scratch=tmp_path / "scratch", unconditional=None, **table):
        table = {"kind": "lcm", "base": str(base), "text": "clip", "size": SIZE, "precision": "float32"} | table
        settings = kinds.settings_of("generators", table, "refine.", default="none")
        kind = kinds.kind_of("generators", settings)
        return kind(settings, seed=seed, device=device, scratch=scratch, unconditional=unconditional)

    return generator


@pytest.fixture
def drawn(first, text, tmp_path):
    """The final images of a generator, uint8 [rows, size, size, 3]."""
    count = iter(range(1000))

    def images(generator, *, text=text, first=first, memory="50GB", **others):
        out = Pictures.create(tmp_path / f"final{next(count)}", first.rows, generator.shape, made_of={"a": 1})
        generator.draw(first, {"text": text} | others, out, Context.of(memory))
        return np.stack([out.read(row) for row in range(out.rows)])

    return images
