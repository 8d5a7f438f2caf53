"""leanrecon from Python: ``leanrecon.run`` runs a study, ``leanrecon.open`` reads one."""

import csv
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from leanrecon.arguments import check_flag, check_name, check_path, check_progress, checked_texts
from leanrecon.errors import InputError, SettingsError, StoreError, shown

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image as PillowImage

    from leanrecon.places import LocationLike
    from leanrecon.progress import Progress
    from leanrecon.study.layout import Study
    from leanrecon.study.settings import Settings

Split = Literal["train", "test"]


def run(
    recipe: "str | Path | Mapping[str, Any]",
    *,
    study: "LocationLike",
    until: str | None = None,
    set: Iterable[str] = (),
    memory: str | None = None,
    overwrite: bool = False,
    mirror: "LocationLike | None" = None,
    progress: "Progress | None" = None,
    cluster: Any = None,
) -> "StudyResults":
    """Run a study, or continue one that was stopped anywhere, and return its results.

    Parameters
    ----------
    recipe : str, path or mapping
        A recipe's name, a settings file (TOML), or the tables of one as a dict.
    study : path
        The folder of the study, or its URL in a bucket, as in ``"s3://bucket/study"``.
    until : str, optional
        The last stage to run; by default all.
    set : iterable of str
        Settings to override, as in ``["regression.alpha=1000"]``.
    memory : str, optional
        What the process may hold, as in ``"4GB"``; by default 80 % of the free memory.
    overwrite : bool
        Replace what other settings made.
    mirror : path, optional
        A second folder, or the URL of one in a bucket, that keeps what is finished.
    progress : leanrecon.progress.Progress, optional
        How progress is shown; by default plain lines on stderr.
    cluster : str or dask.distributed.Client, optional
        Workers that share the stages: ``"local:2"``, ``"tcp://HOST:8786"``, the path of a scheduler's JSON file, or a
        client. A script that asks for ``"local:N"`` needs ``if __name__ == "__main__":``, as workers import it.

    Raises
    ------
    LeanreconError
        For everything that a user can mend: settings, data, budget, stores.
    """
    from leanrecon.execution.cluster import Cluster
    from leanrecon.progress import PlainProgress
    from leanrecon.stages.pipeline import Pipeline
    from leanrecon.study.layout import Study

    check_flag("overwrite", overwrite)
    check_progress(progress)
    settings, base_dir = _settings(recipe, set, memory)
    pipeline = Pipeline(
        settings,
        Study(study),
        base_dir=base_dir,
        overwrite=overwrite,
        progress=progress or PlainProgress(),
        mirror=mirror,
        cluster=None if cluster is None else Cluster(cluster),
    )
    pipeline.run(until)
    return open(study)


def plan(
    recipe: "str | Path | Mapping[str, Any]",
    *,
    until: str | None = None,
    set: Iterable[str] = (),
    memory: str | None = None,
    study: "LocationLike" = ".",
) -> list[Any]:
    """The plan of a study: a list of ``PlannedStage`` with bytes of memory, disk and download; nothing is done.

    ``study`` is where it is to lie: requests to a bucket take memory too.
    """
    from leanrecon.stages.pipeline import plan_study

    settings, base_dir = _settings(recipe, set, memory)
    return plan_study(settings, base_dir=base_dir, until=until, study=study)


def open(study: "LocationLike") -> "StudyResults":
    """The results of a study's folder; raises StoreError where leanrecon wrote none."""
    from leanrecon.study.layout import Study
    from leanrecon.study.record import is_study

    place = Study(study)
    if not is_study(place.root):
        raise StoreError(
            f"{study} is not the folder of a study", todo="give the folder that `leanrecon run` or leanrecon.run wrote"
        )
    return StudyResults(place)


def _settings(
    recipe: "str | Path | Mapping[str, Any]", overrides: Iterable[str], memory: str | None
) -> "tuple[Settings, Path]":
    from leanrecon.study.recipes import read_settings, read_tables

    overrides = checked_texts("set", overrides, '["regression.alpha=1000"]')
    if not isinstance(recipe, str | os.PathLike | Mapping):
        raise SettingsError(
            f"{shown(recipe)} is not a recipe",
            expected="the name of a recipe, the path of a settings file, or a dict of settings",
        )
    if isinstance(recipe, Mapping):
        return read_tables(recipe, Path.cwd(), overrides, memory=memory)
    return read_settings(recipe, overrides, memory=memory)


@dataclass(frozen=True)
class StudyResults:
    """What a study holds, as NumPy arrays, Pillow images and plain dicts. Arrays are read when they are asked for.

    ``variant`` names a part of the study, such as ``"fold00"`` or an area; empty: the study itself.
    """

    study: "Study"
    variant: str = ""

    def of(self, variant: str) -> "StudyResults":
        """The results of a variant, such as ``"fold00"`` or ``"V1"``; raises InputError with those that are there."""
        if variant not in self.variants:
            known = ", ".join(self.variants) or "none"
            raise InputError(f"{shown(variant)} is not a variant of {self.study.root}", expected=f"one of: {known}")
        return StudyResults(self.study, variant)

    @property
    def path(self) -> Path:
        """The folder of the study."""
        return self.study.root.local_path()

    @property
    def variants(self) -> list[str]:
        """The names of the study's variants: folds, areas, the baselines beside each, and further test sets a judge saw."""
        return [variant.root.name for variant in self.study.variants()]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as they were run, with all defaults."""
        import tomllib

        from leanrecon.places.files import unreadable

        try:
            return tomllib.loads(self.study.settings.read_text())
        except (ValueError, RecursionError) as error:
            raise unreadable(self.study.settings, error) from None

    @property
    def report(self) -> Path:
        """The report, an HTML file."""
        return self.path / "report.html"

    @property
    def figures(self) -> dict[str, Any]:
        """metrics.json: figures of stage1, final and every baseline, each {"value", "low", "high", "chance"}."""
        from leanrecon.places.files import read_record

        found = read_record(self._place.metrics)
        if found is None:
            raise StoreError(f"there is no {self._place.metrics}", todo="run the study to its end first")
        return found

    @property
    def scores(self) -> list[dict[str, Any]]:
        """The scores of every test row."""
        if not self.study.scores.is_file():
            raise StoreError(f"there is no {self.study.scores}", todo="run the study to its end first")
        from leanrecon.places import seals
        from leanrecon.places.files import unreadable

        data = self.study.scores.read_bytes()
        seals.check(self.study.scores, data)
        try:
            return [dict(row) for row in csv.DictReader(io.StringIO(data.decode(), newline=""))]
        except (ValueError, csv.Error) as error:
            raise unreadable(self.study.scores, error) from None

    def betas(self, split: Split = "train") -> "np.ndarray[Any, Any]":
        """Betas, float32 [rows, voxels]."""
        return _array(self.study.betas(_split(split)))

    def stimuli(self, split: Split = "train") -> "np.ndarray[Any, Any]":
        """Stimuli, uint8 [images, height, width, channels], each image once."""
        return _array(self.study.stimuli(_split(split)))

    def stimulus(self, split: Split = "train") -> "np.ndarray[Any, Any]":
        """The image that each row of betas shows, as its number in ``stimuli``, int [rows]."""
        from leanrecon.study.rows import Rows

        rows = Rows.read(self.study)
        if _split(split) not in rows:
            raise InputError(
                f"{self.study.root} has no {split} split", todo='ask for "train", of which folds are parts'
            )
        index: np.ndarray[Any, Any] = rows[split].stimulus
        return index

    def features(self, space: str, split: Split = "train") -> "np.ndarray[Any, Any]":
        """True features of the images, float32 [images, dims]."""
        check_name("space", space)
        return _array(self._place.features(space, _split(split)))

    def predictions(self, space: str) -> "np.ndarray[Any, Any]":
        """Predicted features of the test rows, float32 [rows, dims]."""
        check_name("space", space)
        return _array(self._place.predictions(space))

    def images(self, stage: Literal["stage1", "final"] = "final") -> "list[PillowImage]":
        """Reconstructions of the test rows, as Pillow images in RGB or grey. Raises SettingsError for another stage."""
        if stage not in ("stage1", "final"):
            raise SettingsError(f"stage = {shown(stage)}", expected='"stage1" (first images) or "final"')
        from PIL import Image

        from leanrecon.stores.pictures import Pictures

        pictures = Pictures.open(self._place.reconstructions(stage))
        arrays = (pictures.read(row) for row in range(pictures.rows))
        return [Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image) for image in arrays]

    def maps(self, *names: str, memory: str | None = None) -> "dict[str, np.ndarray[Any, Any]]":
        """Maps by name, one number a voxel; by default all that are known (see docs/export.md).

        Statistics are float32 [voxels], NaN where nothing is known; areas (``area/V1``) and ``left-out`` are bool.
        """
        from leanrecon.stages.maps import make_maps

        _check_maps(names)
        return {made.name: made.values for made in make_maps(self._run(memory), names, self.variant)}

    def export_maps(
        self, folder: str | Path, *names: str, memory: str | None = None, overwrite: bool = False
    ) -> list[Path]:
        """Write maps in the space of the data, NIfTI volumes or vectors of hemispheres, and return their paths."""
        from leanrecon.stages.export import export_maps

        check_path("folder", folder)
        check_flag("overwrite", overwrite)
        _check_maps(names)
        written = export_maps(self._run(memory), Path(folder), names, self.variant, overwrite=overwrite)
        return [Path(folder) / name for name in written]

    def _run(self, memory: str | None) -> Any:
        from leanrecon.stages.stage import Run
        from leanrecon.study.recipes import read_settings

        settings, base_dir = read_settings(self.study.settings, memory=memory)
        return Run(settings, self.study, base_dir=base_dir)

    @property
    def _place(self) -> "Study":
        return self.study.variant(self.variant) if self.variant else self.study

    def _repr_html_(self) -> str:
        """The verdict and sample images, in a notebook."""
        from leanrecon.app.notebook import gallery

        return gallery(self.study.root).page


def _split(split: Any) -> Split:
    """The name of a split; raises SettingsError for others."""
    if split not in ("train", "test"):
        raise SettingsError(f"split = {shown(split)}", expected='"train" or "test"')
    return "train" if split == "train" else "test"


def _check_maps(names: Iterable[Any]) -> None:
    if other := [name for name in names if not isinstance(name, str)]:
        raise InputError(
            f"{shown(other[0])} is not the name of a map", expected='the names of maps as text, such as "ncsnr"'
        )


def _array(path: Any) -> "np.ndarray[Any, Any]":
    from leanrecon.stores.store import Store

    store = Store.open(path)
    return store[0 : store.rows]
