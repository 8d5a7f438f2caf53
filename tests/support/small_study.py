"""A small finished study, written by hand through leanrecon's stores: for tests of layout, mirror and verification."""

from typing import Any

import numpy as np

from leanrecon.places import Location, seals
from leanrecon.places.files import write_json, write_text, write_whole
from leanrecon.progress import Progress
from leanrecon.stores import Store
from leanrecon.stores.pictures import Pictures
from leanrecon.study.layout import FORMAT, Study
from leanrecon.study.networks import seal
from leanrecon.study.record import HEADER
from leanrecon.study.verify import find_damage

RNG = np.random.default_rng(7)
IMAGES = RNG.integers(0, 256, (6, 4, 5, 3), np.uint8)


def write_store(path: Location, rows: np.ndarray, alpha: float = 1.0) -> Store:
    store = Store.create(path, rows.shape, rows.dtype, made_of={"alpha": alpha}, chunk=200)
    for i in store.missing_row_groups():
        group = store.group_rows(i)
        store.write_rows(i, rows[group.start : group.stop])
    store.finish()
    return store


def write_pictures(path: Location, alpha: float = 1.0) -> Pictures:
    pictures = Pictures.create(path, len(IMAGES), IMAGES.shape[1:], made_of={"alpha": alpha})
    for row in pictures.missing():
        pictures.write(row, IMAGES[row])
    pictures.finish()
    return pictures


def write_network(folder: Location) -> None:
    (folder / "network.safetensors").write_bytes(bytes(range(200)))
    (folder / "ridge.safetensors").write_bytes(b"ridge")
    seal(folder)


def write_study(root: Location) -> Study:
    """A study with a network and one variant, every kind of file in it."""
    study = Study(root)
    write_text(study.settings, HEADER + '[dataset]\nkind = "simulated"\n')
    seals.adopt(root, [study.settings])
    betas = RNG.standard_normal((6, 10)).astype(np.float32)
    for split in ("train", "test"):
        write_store(study.betas(split), betas)
        write_store(study.stimuli(split), IMAGES)
        write_json(study.captions(split), [["a caption"]] * 6)
    write_json(study.rows, {"format": FORMAT, "train": {"stimulus": [0]}, "test": {"stimulus": [0]}})
    write_json(study.stimulus_ids, {"train": ["a"], "test": ["b"]})
    write_whole(study.voxels, lambda file: np.savez(file, index=np.arange(10)))
    for of in (study, study.variant("fold00-V1")):
        write_store(of.features("pca", "train"), betas)
        write_whole(of.fitted("pca"), lambda file: np.savez(file, components=betas))
        write_store(of.predictions("pca"), betas)
        write_store(of.predictions("pca", "train"), betas)
        write_network(of.network("pca"))
        write_pictures(of.reconstructions("stage1"))
        final = Pictures.create(of.reconstructions("final"), 6, IMAGES.shape[1:], made_of={"refine": "none"})
        final.link(Pictures.open(of.reconstructions("stage1")))
        final.finish()
        write_store(of.embeddings / "clip" / "stage1.zarr", betas)
        write_json(of.metrics, {"format": 2})
    write_text(study.scores, "row,pixcorr\n0,0.5\n")
    write_whole(study.latent_r2("pca"), lambda file: np.save(file, betas[0]))
    write_text(study.report, "<html></html>")
    write_json(study.record, {"stages": {}, "format": FORMAT})
    return study


def contents(root: Location) -> dict[str, bytes]:
    return {file.relative_to(root): file.read_bytes() for file in root.files()}


class Said(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def damage_of(where: Any) -> dict[str, list[str]]:
    """What verify finds wrong, by path."""
    return {str(one.path): [what for _, what in parts] for one, parts in find_damage(where).items()}
