"""The stage decode: first images from betas in one step, by an end-to-end decoder."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.decoders.decoder import DecoderData, DecoderShapes
from leanrecon.places import Location
from leanrecon.stages.joined import join_pictures
from leanrecon.stages.stage import PlannedStage, Planning, Run
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.images import image_shape
from leanrecon.stores.matrix import Matrix, as_matrix
from leanrecon.stores.pictures import Pictures
from leanrecon.stores.store import Store
from leanrecon.study.network_copies import brought
from leanrecon.study.variants import Variant, variants

NETWORK = "decoder"
"""The folder of a trained decoder, below ``networks``."""


class DecodeStage:
    """Trains the decoder of every variant, and of random pairings, and draws their first images."""

    name = "decode"

    def check(self, run: Run) -> None:
        """Nothing to check: settings were checked when they were read."""

    # Planning

    def plan(self, planning: Planning) -> Iterator[PlannedStage]:
        settings, (n, m), shape = planning.settings, planning.split, planning.image_shape
        decoder = kinds.kind_of("decoders", settings.decode)(settings.decode)
        images, space = min(n, planning.images[0]), settings.decoded_space
        inputs = planning.data.voxels if space is None else planning.spaces[space].dims(shape)
        plan = decoder.plan(DecoderShapes(n, inputs, m, images, shape), planning.budget.free)
        times = planning.variants + planning.folds * settings.evaluate.permutations
        drawn = int(np.prod(decoder.image_shape(shape)))
        summary = plan.summary + (f", {times} fits" if times > 1 else "")
        memory = planning.budget.reserved + plan.work
        yield PlannedStage(self.name, summary, memory, times * (m * drawn + plan.disk), plan.scratch)

    # Running

    def run(self, run: Run) -> None:
        settings = run.settings.decode
        assert settings is not None, "a study without [decode] has no such stage"
        predicted = variants(run.study, run.settings)
        for variant in predicted:
            pairings = 0 if variant.area else run.settings.evaluate.permutations
            every = [variant, *variant.shuffled(pairings)]
            folders = [one.study.reconstructions("stage1") for one in every]
            networks = [one.study.network(NETWORK) for one in every]
            label = f"{variant.label}decode"
            with run.recorded(self.name, variant.study, folders, label, networks) as (record, context):
                for one, folder in zip(every, folders, strict=True):
                    pairing = "" if one.pairing is None else f", shuffled betas {one.pairing + 1}"
                    training = self._decode(run, one, folder, context.named(f"{context.label}{pairing}"))
                    if one is variant:
                        record |= training | {"settings": settings.model_dump(exclude_none=True)}
        join_pictures(run, predicted, "stage1", self.name)

    def _decode(self, run: Run, variant: Variant, folder: Location, context: Context) -> dict[str, Any]:
        settings = run.settings.decode
        decoder = kinds.kind_of("decoders", settings)(settings)
        images = Store.open(run.study.stimuli("train"))
        made_of = self._made_of(run, variant, decoder, images)
        train, test = self._inputs(run, variant)
        shape = decoder.image_shape(image_shape(images))
        pictures = Pictures.create(folder, test.shape[0], shape, made_of=made_of, overwrite=context.overwrite)
        if pictures.complete:
            return {}
        shown = variant.images_of_train_rows[self._order(variant, context.seed)]
        content = fingerprint(made_of | {"decoder": None, "test betas": None})
        data = DecoderData(train, images, shown, variant.groups, content)
        record: dict[str, Any] = decoder.train(data, brought(variant.study.network(NETWORK)), context)
        decoder.decode(test, pictures, context)
        return record

    @staticmethod
    def _inputs(run: Run, variant: Variant) -> tuple[Matrix, Matrix]:
        """Train and test rows of the decoder's inputs: betas, or predictions (out-of-fold for train rows)."""
        space = run.settings.decoded_space
        if space is None:
            return variant.train_betas(), variant.test_betas()
        study = replace(variant, pairing=None).study
        train, test = (as_matrix(Store.open(study.predictions(space, split))) for split in ("train", "test"))
        return train, test

    @staticmethod
    def _order(variant: Variant, seed: int) -> Any:
        """The train row whose image is paired with each train row of betas, int [n]."""
        n = len(variant.train_rows)
        if variant.pairing is None:
            return np.arange(n)
        return np.random.default_rng([seed, variant.pairing]).permutation(n)

    @staticmethod
    def _made_of(run: Run, variant: Variant, decoder: Any, images: Store) -> dict[str, Any]:
        """All that decides the images of one variant."""
        betas = {split: Store.open(run.study.betas(split)).content for split in ("train", variant.test_split)}
        space, study = run.settings.decoded_space, replace(variant, pairing=None).study
        predicted: dict[str, Any] = {}
        if space is not None:
            stores = [Store.open(study.predictions(space, split)) for split in ("train", "test")]
            predicted = {"predictions": [store.content for store in stores]}
        return predicted | {
            "betas": betas["train"],
            "test betas": betas[variant.test_split],
            "stimuli": images.content,
            "decoder": decoder.made_of(),
            "seed": run.settings.general.seed,
            "rows": fingerprint({"train": variant.train, "test": variant.test, "voxels": variant.voxels}),
            "images of rows": fingerprint({"index": variant.images_of_train_rows.tolist()}),
            "shuffled": variant.pairing,
        }
