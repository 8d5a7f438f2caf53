"""Several test sets in one study: each is measured as if the study had tested it alone."""

from collections.abc import Mapping
from dataclasses import replace

from leanrecon.evaluation.evaluate import Evaluation
from leanrecon.evaluation.fold import Area, Fold, Predictions, RandomPairing, ShownImages
from leanrecon.evaluation.some_pictures import SomePictures
from leanrecon.images import Array
from leanrecon.places import LocationLike
from leanrecon.stores.gather import gathered
from leanrecon.stores.pictures import Pictures


def of_test_set(fold: Fold, name: str, index: Array, *, n_trained: int, embeddings: LocationLike | None) -> Fold:
    """The test rows of one test set as a fold of their own, with a folder of embeddings of its own.

    ``index`` holds these rows of the fold, ascending; ``n_trained`` of them show an image that was trained on.
    """

    def cut(pictures: Pictures) -> Pictures:
        return SomePictures(pictures, index)

    def cut_final(pictures: Pictures | None) -> Pictures | None:
        return None if pictures is None else cut(pictures)

    def cut_spaces(spaces: Mapping[str, Predictions]) -> dict[str, Predictions]:
        return {
            name: Predictions(gathered(of.predicted, index), gathered(of.true, index)) for name, of in spaces.items()
        }

    def cut_pairing(of: RandomPairing) -> RandomPairing:
        return RandomPairing(cut(of.stage1), None if of.predicted is None else gathered(of.predicted, index))

    return replace(
        fold,
        rows=fold.rows[index],
        names=[fold.names[row] for row in index],
        test=ShownImages(fold.test.store, fold.test.index[index]),
        stage1=cut(fold.stage1),
        final=cut_final(fold.final),
        spaces=cut_spaces(fold.spaces),
        refined={name: cut(pictures) for name, pictures in fold.refined.items()},
        pairings=[cut_pairing(of) for of in fold.pairings],
        upper_bounds={name: cut(pictures) for name, pictures in fold.upper_bounds.items()},
        areas={
            name: Area(of.voxels, cut(of.stage1), cut_final(of.final), cut_spaces(of.spaces))
            for name, of in fold.areas.items()
        },
        subjects=[fold.subjects[row] for row in index] if fold.subjects else (),
        n_trained=n_trained,
        label=f"{name}: ",
        embeddings=embeddings,
        test_set=name,
    )


def joined(evaluations: Mapping[str, Evaluation]) -> Evaluation:
    """The evaluations of several test sets as one, whose figures are those of the first.

    Its metrics have those of every set under ``tests``.
    """
    first = next(iter(evaluations.values()))
    about = {"test_set": next(iter(evaluations)), "tests": {name: of.metrics for name, of in evaluations.items()}}
    scored = [fold for of in evaluations.values() for fold in of.scored]
    return Evaluation(first.metrics | about, scored, first.latent_r2, [])
