"""The stages of a study in their order, each planned, measured and resumable, from stores to stores."""

import contextlib
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from leanrecon import datasets, features
from leanrecon.context import Context
from leanrecon.errors import InputError, SettingsError, StoreError
from leanrecon.evaluation.judges.clip import make_judge
from leanrecon.features.extract import extract
from leanrecon.features.extract_captions import CaptionSpace, extract_captions, read_captions
from leanrecon.features.space import DecodingSpace, FeatureSpace, GuidingSpace
from leanrecon.features.stage1 import decoding_space, draw, picture_shape
from leanrecon.features.unconditional import keep_unconditional
from leanrecon.memory import MemoryBudget
from leanrecon.places import Location
from leanrecon.places.files import write_text
from leanrecon.progress import Progress
from leanrecon.refinement.diffusion.refiner import generator_of
from leanrecon.regression.settings import RidgeSettings
from leanrecon.stages.evaluate import assess
from leanrecon.stages.refine import draw_final, make_refiner, predicted
from leanrecon.stages.regression import Fits, Given, predict_with_network, predict_with_ridge
from leanrecon.stores import Store
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.images import image_shape
from leanrecon.stores.pictures import Pictures
from leanrecon.study.layout import Study
from leanrecon.study.lock import only_run
from leanrecon.study.mirror import Mirror
from leanrecon.study.needs import require_weights
from leanrecon.study.record import HEADER, is_study, recorded, sweep
from leanrecon.study.settings import Settings, check_settings
from leanrecon.study.variants import Variant, variants

NO_IMAGES = "there are no images to take features from"
STAGES = ("dataset", "features", "regression", "stage1", "refine", "evaluate")

COPYING = 8_000_000
"""Bytes that copying images takes."""


class Pipeline:
    """Runs the stages of one study; what is complete already is not done again, nor what its mirror has."""

    def __init__(
        self,
        settings: Settings,
        study: Study,
        *,
        base_dir: Path | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
        mirror: Path | None = None,
    ) -> None:
        self.settings = settings
        self.study = study
        self.base_dir = base_dir
        self.overwrite = overwrite
        self.progress = progress or Progress()
        self.mirror = Mirror(study.root, mirror, overwrite=overwrite, progress=progress) if mirror else None
        self.spaces: dict[str, FeatureSpace] = {
            name: features.make(name, table, seed=settings.general.seed, device=settings.general.device)
            for name, table in settings.features.items()
        }

    def run(self, until: str = STAGES[-1]) -> None:
        """Run the stages up to and including ``until``."""
        if self.study.settings.exists() and not is_study(self.study.root):
            raise StoreError(
                f"{self.study.settings} was not written by leanrecon, which would replace it",
                todo="choose a folder of its own for the study with --study",
            )
        if until != "dataset" and not self.settings.dataset.has_images:
            raise InputError(NO_IMAGES, todo="set dataset.stimuli_train and dataset.stimuli_test, or dataset.stimuli")
        require_weights(self.settings, until)
        if until not in STAGES[:4] and self.settings.refine.kind != "none":
            generator_of(self.settings.refine).check_size()
        if until not in STAGES[:3]:
            _ = self.first  # images can be decoded, or nothing is begun
        if until == STAGES[-1]:
            make_judge(self.settings)  # as for the network that judges them
        with only_run(self.study.root):
            sweep(self.study)
            if self.mirror is not None:
                self.mirror.restore()
            if not self.study.settings.exists():
                self._write_settings(STAGES[-1])
            for stage in STAGES[: STAGES.index(until) + 1]:
                getattr(self, f"_{stage}")()
                self._write_settings(stage)  # once this stage has accepted them
            if self.mirror is not None:
                self.mirror.keep()

    @property
    def first(self) -> DecodingSpace:
        """The feature space that first images are decoded from."""
        return decoding_space(list(self.spaces.values()), self.settings.stage1.space)

    # The stages

    def _dataset(self) -> None:
        with self._recorded("dataset", self.study, [self.study.betas("train")]) as (record, budget):
            datasets.ingest_dataset(
                self.settings.dataset,
                self.study,
                base_dir=self.base_dir,
                chunk=self.settings.stores.chunk,
                budget=budget,
                seed=self.settings.general.seed,
                overwrite=self.overwrite,
                progress=self.progress,
            )
            record["settings"] = self.settings.dataset.model_dump(exclude_none=True)

    def _features(self) -> None:
        for name, space in self.spaces.items():
            # What learns nothing describes an image alike in every fold.
            for variant in self._variants() if space.learns else self._variants()[:1]:
                where = variant.of(space)
                splits = ("train",) if variant.is_fold else ("train", "test")
                made = [where.features(name, split) for split in splits]
                nothing = where.unconditional(name)
                with self._recorded(f"features {name}", where, [*made, nothing]) as (record, budget):
                    images = Store.open(self.study.stimuli("train"))
                    how: dict[str, Any] = {"budget": budget, "overwrite": self.overwrite, "progress": self.progress}
                    space.fit(images, where.fitted(name), rows=variant.train, **how)
                    for split, path in zip(splits, made, strict=True):
                        images = Store.open(self.study.stimuli(split))
                        if isinstance(space, CaptionSpace):
                            captions = read_captions(self.study.captions(split), images.rows)
                            extract_captions(space, captions, path, chunk=self.settings.stores.chunk, **how)
                        else:
                            extract(space, images, path, chunk=self.settings.stores.chunk, **how)
                    if name in self.settings.refine.unconditional().values() and isinstance(space, GuidingSpace):
                        keep_unconditional(space, image_shape(images), nothing, budget=budget, overwrite=self.overwrite)
                    record["settings"] = self.settings.features[name].model_dump(exclude_none=True)
            space.release()

    def _regression(self) -> None:
        for variant in self._variants():
            fits: Fits = {}
            for name, space in self.spaces.items():
                studies = [variant.study, *self._shuffled(variant, name)]
                made = [study.predictions(name) for study in studies]
                networks = [study.network(name) for study in studies]
                with self._recorded(f"regression {name}", variant.study, made, networks) as (record, budget):
                    record |= self._predict(variant, name, space, fits, studies, budget)

    def _predict(
        self,
        variant: Variant,
        name: str,
        space: FeatureSpace,
        fits: Fits,
        studies: list[Study],
        budget: MemoryBudget,
    ) -> dict[str, Any]:
        """Predict the features of the test rows, and again from betas and stimuli paired at random."""
        settings, general = self.settings.regression[name], self.settings.general
        train, test = Store.open(self.study.betas("train")), Store.open(self.study.betas(variant.test_split))
        targets = Store.open(variant.of(space).features(name, "train"))
        made_of = {
            "betas": train.content,
            "test betas": test.content,
            "features": targets.content,
            "regression": settings.model_dump(exclude_none=True, exclude={"checkpoint_minutes"}),
            "seed": general.seed,
            "rows": fingerprint({"train": variant.train, "test": variant.test}) if variant.is_fold else "split",
        }
        given = Given(variant.train_rows(train), variant.train_rows(targets), variant.test_rows(test))
        stores = [
            Store.create(
                study.predictions(name),
                (given.test.shape[0], targets.columns),
                np.float32,
                made_of=made_of | ({"shuffled": k - 1} if k else {}),
                chunk=self.settings.stores.chunk,
                overwrite=self.overwrite,
            )
            for k, study in enumerate(studies)
        ]
        if all(store.complete for store in stores):
            return {}
        label = f"{variant.prefix}regression {name}"
        how: dict[str, Any] = {"budget": budget, "scratch": self.study.root, "progress": self.progress, "label": label}
        if isinstance(settings, RidgeSettings):
            return predict_with_ridge(settings, general, given, stores, fits, **how)
        fits.clear()  # a ridge's factor, and whose network's memory it would share
        folders = [study.network(name) for study in studies]
        groups = variant.learned()
        return predict_with_network(
            settings, general, given, stores, folders, groups=groups, overwrite=self.overwrite, **how
        )

    def _stage1(self) -> None:
        space, wanted = self.first, self.settings.stage1.size
        images = image_shape(Store.open(self.study.stimuli("train")))
        for variant in self._variants():
            space.load(variant.of(space).fitted(space.name))
            studies = [variant.study, *self._shuffled(variant, space.name)]
            made = [study.reconstructions("stage1") for study in studies]
            with self._recorded("stage1", variant.study, made) as (record, budget):
                for k, (study, path) in enumerate(zip(studies, made, strict=True)):
                    # Baselines are enlarged when they are looked at.
                    shape = picture_shape(space, "decoded" if k else wanted, images)
                    predictions = Store.open(study.predictions(space.name))
                    made_of = {"space": space.made_of() | space.decode_made_of(), "predictions": predictions.content}
                    pictures = Pictures.create(path, predictions.rows, shape, made_of=made_of, overwrite=self.overwrite)
                    label = f"{variant.prefix}stage 1" + (f", shuffled betas {k}" if k else "")
                    draw(space, predictions, pictures, images, budget=budget, progress=self.progress, label=label)
                record["settings"] = {"space": space.name, "size": wanted}
        space.release()

    def _refine(self) -> None:
        settings = self.settings.refine
        for variant in self._variants():
            studies = {"": variant.study} | variant.refined(settings.baselines)
            made = {name: study.reconstructions("final") for name, study in studies.items()}
            with self._recorded("refine", variant.study, list(made.values())) as (record, budget):
                first = Pictures.open(variant.study.reconstructions("stage1"))
                record["settings"] = settings.table()
                if settings.kind == "none":
                    self._keep(first, made[""], budget)
                    continue
                refiner, given = make_refiner(self.settings, self.study), predicted(variant, self.settings)
                for name, path in made.items():
                    draw_final(
                        refiner,
                        given,
                        first,
                        path,
                        baseline=name,
                        overwrite=self.overwrite,
                        budget=budget,
                        progress=self.progress,
                        label=f"{variant.prefix}refine" + (f", {name}" if name else ""),
                    )
                record |= refiner.record()

    def _keep(self, first: Pictures, path: Location, budget: MemoryBudget) -> None:
        """Without refinement the final images are the first ones."""
        budget.require("refine", COPYING)
        made_of = {"stage1": first.content, "refine": self.settings.refine.table()}
        copied = Pictures.create(path, first.rows, first.shape, made_of=made_of, overwrite=self.overwrite)
        copied.copy(first)
        copied.finish()

    def _evaluate(self) -> None:
        assess(self._located, self.study, self.spaces, self.first, overwrite=self.overwrite, progress=self.progress)

    # What there is to run

    def _variants(self) -> list[Variant]:
        return variants(self.study, self.settings.dataset.folds)

    def _shuffled(self, variant: Variant, name: str) -> list[Study]:
        """The baselines of betas and stimuli paired at random, for the space that images are decoded from."""
        try:
            first = self.first.name
        except SettingsError:  # none has a decoder, and nothing beyond the predictions is asked for
            return []
        return variant.shuffled(self.settings.evaluate.permutations) if name == first else []

    @contextlib.contextmanager
    def _recorded(
        self, stage: str, study: Study, made: list[Location], networks: Sequence[Location] = ()
    ) -> Iterator[tuple[dict[str, Any], MemoryBudget]]:
        context = Context.of(self.settings.general.memory)
        follow = self.mirror.following() if self.mirror is not None and networks else contextlib.nullcontext()
        with recorded(stage, study, context, made, networks) as record, follow:
            yield record, context.budget
        if self.mirror is not None:
            self.mirror.keep_or_warn()

    @property
    def _located(self) -> Settings:
        """The settings with the dataset's files found, so that any folder can continue and repair the study."""
        return replace(self.settings, dataset=self.settings.dataset.located(self.base_dir))

    def _write_settings(self, stage: str) -> None:
        """Write study.toml: what the stages up to this one accepted, and what later ones were run with before."""
        tables = self._located.tables()
        if stage != STAGES[-1] and not self.overwrite and self.study.settings.exists():
            accepted = ("dataset", "stores", *STAGES[: STAGES.index(stage) + 1])
            with contextlib.suppress(SettingsError, tomllib.TOMLDecodeError):  # else all of them are new
                then = tomllib.loads(self.study.settings.read_text(encoding="utf-8"))
                kept = then | {name: tables[name] for name in accepted}
                check_settings(kept)
                tables = kept
        write_text(self.study.settings, HEADER + tomli_w.dumps(tables))
