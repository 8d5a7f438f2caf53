"""The training: continues to the same bytes, keeps what held-out rows ask for, and says what went wrong."""

import json
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from support.memory import held

from leanrecon.context import Context
from leanrecon.decoders.decoder import DecoderShapes
from leanrecon.decoders.gan.gan import GAN
from leanrecon.decoders.gan.learning import held_out_rows, troubles
from leanrecon.decoders.gan.settings import GANSettings
from leanrecon.decoders.gan.training import learning_rate
from leanrecon.errors import BudgetError, InputError, SettingsError, StoreError
from leanrecon.kinds import settings_of
from leanrecon.memory import PeakMemory, process_memory
from leanrecon.stores.pictures import Pictures
from leanrecon.weights.checkpoint import Folder, History

SMALL = {
    "size": 32, "width": 8, "hidden": 16, "discriminator_width": 8, "batch_size": 12, "epochs": 3,
    "learning_rate": 2e-3, "checkpoint_minutes": 0.0,
}  # fmt: skip


def make(**changes):
    return GAN(GANSettings(**SMALL | changes))


def context(seed=0):
    return Context.of("3GB", seed=seed, label="decode")


def images_of(decoder, data, folder, betas=None):
    betas = data.betas if betas is None else betas
    shape = decoder.image_shape(data.images.shape[1:])
    out = Pictures.create(folder, betas.shape[0], shape, made_of={})
    decoder.decode(betas, out, context())
    return np.stack([out.read(row) for row in range(betas.shape[0])])


class StoppedError(Exception):
    pass


def stops_after(monkeypatch, counts):
    """Let a run stop at one of its writes, as a kill would, each time after so many more."""
    write, left = Folder.write, [next(counts)]

    def stops(self, *given, **options):
        left[0] -= 1
        if left[0] < 0:
            left[0] = next(counts)
            raise StoppedError
        write(self, *given, **options)

    monkeypatch.setattr(Folder, "write", stops)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"average": 0.9, "noise": 0.2, "dropout": 0.3, "jitter": 4, "crop": 28}])
def test_a_killed_training_ends_with_the_same_bytes(changes, data_of, tmp_path, monkeypatch):
    data, decoder = data_of(images=60, voxels=70), make(**changes)
    record = decoder.train(data, tmp_path / "whole", context())
    (kept,) = (tmp_path / "whole").iterdir()
    stops_after(monkeypatch, iter([0, 1, 2, 3, 4, 3, 5, 2, 4, 6, 99, 99]))
    runs = 0
    while True:
        runs += 1
        again = make(**changes)
        try:
            assert again.train(data, tmp_path / "killed", context()) == record
            break
        except StoppedError:
            continue
    assert runs > 4
    assert [path.name for path in (tmp_path / "killed").iterdir()] == [kept.name]
    assert (tmp_path / "killed" / kept.name).read_bytes() == kept.read_bytes()
    monkeypatch.undo()
    other = make(**changes)
    other.train(data, tmp_path / "other", context(seed=1))
    assert (tmp_path / "other" / kept.name).read_bytes() != kept.read_bytes()


@pytest.mark.slow
def test_the_record_tells_curves_of_all_losses(data_of, tmp_path):
    record = make(epochs=2).train(data_of(images=60), tmp_path, context())
    curve = record["curve"]
    assert len(curve["train"]) == len(curve["validation"]) == 3
    assert curve["train"][0] is None
    for name in ("image", "adversarial", "real", "generated"):
        assert len(curve["losses"][name]) == 2
        assert min(curve["losses"][name]) > 0
    assert curve["losses"]["feature"] == [0, 0]
    assert len(curve["losses"]["spread"]) == 3
    assert curve["train"][1] == pytest.approx(curve["losses"]["image"][0] + curve["losses"]["adversarial"][0])
    assert record["best_epoch"] == int(np.argmin(curve["validation"]))
    assert json.loads(json.dumps(record)) == record


@pytest.mark.slow
@pytest.mark.parametrize(("reduction", "channels"), [("exact", 3), ("exact", 1), ("pca", 3), ("none", 3)])
def test_it_learns_to_see_by_any_inputs(reduction, channels, data_of, tmp_path):
    data = data_of(images=100, voxels=120, channels=channels)
    decoder = make(adversarial_weight=0.0, reduction=reduction, epochs=25, learning_rate=4e-3, explained=0.9)
    decoder.train(data, tmp_path / "network", context())
    found = images_of(decoder, data, tmp_path / "images").astype(float)
    assert found.shape == (100, 32, 32, channels)
    true = data.images[0:100].repeat(2, axis=1).repeat(2, axis=2).astype(float)
    of_train = np.setdiff1d(np.arange(100), held_out_rows(data.groups, 0.1, 0))
    r = [np.corrcoef(found[row].ravel(), true[row].ravel())[0, 1] for row in of_train]
    others = [np.corrcoef(found[row].ravel(), true[row - 1].ravel())[0, 1] for row in of_train]
    assert np.mean(r) > np.mean(others) + 0.15


@pytest.mark.slow
def test_noise_in_place_of_betas_tells_nothing(data_of, tmp_path):
    data = data_of()
    decoder = make(inputs="noise")
    decoder.train(data, tmp_path / "network", context())
    other = data_of(images=40, voxels=30)
    other.betas.array[:] = other.betas.array[::-1]
    one = images_of(decoder, data, tmp_path / "one")
    assert (one == images_of(decoder, other, tmp_path / "two")).all()
    assert next(iter(GAN.notes(decoder.settings))).startswith("Images were generated from random numbers")


@pytest.mark.slow
def test_an_image_follows_from_its_own_betas_alone(data_of, tmp_path):
    data, decoder = data_of(), make(epochs=1)
    decoder.train(data, tmp_path / "network", context())
    all_of_them = images_of(decoder, data, tmp_path / "all")
    from leanrecon.stores.matrix import RowSubset

    some = images_of(decoder, data, tmp_path / "some", RowSubset(data.betas, [3, 30]))
    np.testing.assert_array_equal(some, all_of_them[[3, 30]])


@pytest.mark.slow
def test_losses_that_are_not_finite_name_the_step_and_keep_the_checkpoint(data_of, tmp_path, monkeypatch):
    import torch

    from leanrecon.decoders.gan import training

    data, decoder = data_of(images=60), make(epochs=3)
    steps, count = training.one_step, [0]

    def breaks(networks, *given):
        count[0] += 1
        if count[0] == 7:
            next(networks.learning.parameters()).data.fill_(torch.nan)
        return steps(networks, *given)

    monkeypatch.setattr(training, "one_step", breaks)
    with pytest.raises(InputError, match=r"a loss became NaN or infinite in epoch 2, step 3 \(image nan"):
        decoder.train(data, tmp_path, context())
    kept = Folder(tmp_path, {**decoder.made_of(), "data": data.content, "seed": 0}).find("checkpoint")
    assert all(np.isfinite(kept.read(name)).all() for name in kept.names)
    assert kept.record["place"]["step"] == 2


@pytest.mark.slow
def test_fewer_rows_than_a_batch_and_other_settings_are_refused(data_of, tmp_path):
    data = data_of()
    with pytest.raises(
        InputError, match=r"36 train rows to learn from, fewer than a batch of 64\. Set decode\.batch_size to 36"
    ):
        make(batch_size=64).train(data, tmp_path, context())
    make(epochs=1).train(data, tmp_path, context())
    with pytest.raises(StoreError, match=r"learning_rate"):
        make(epochs=1, learning_rate=1e-3).train(data, tmp_path, context())


@pytest.mark.slow
def test_a_budget_that_is_too_small_is_refused_before_anything_is_done(data_of, tmp_path):
    decoder = make(hidden=2048)
    with pytest.raises(BudgetError, match="decode needs at least"):
        decoder.train(data_of(), tmp_path / "network", Context.of(held() + 50_000_000, label="decode"))
    assert not (tmp_path / "network").exists()


@pytest.mark.slow
def test_test_betas_that_are_not_finite_are_refused(data_of, tmp_path):
    data, decoder = data_of(), make(epochs=1)
    decoder.train(data, tmp_path / "network", context())
    data.betas.array[4, 2] = np.nan
    with pytest.raises(InputError, match="betas of test row 4 are NaN"):
        images_of(decoder, data, tmp_path / "images")


@pytest.mark.slow
def test_an_area_of_one_voxel_gives_images_and_one_that_never_varies_is_refused(data_of, tmp_path):
    data, decoder = data_of(voxels=1), make(epochs=1)
    assert decoder.train(data, tmp_path / "one", context())["inputs"] == 1
    assert images_of(decoder, data, tmp_path / "images").shape == (40, 32, 32, 3)
    data.betas.array[:] = 2
    with pytest.raises(InputError, match="none of 1 voxels varies over the train rows"):
        make(epochs=1).train(data, tmp_path / "still", context())


def test_rows_of_a_group_are_held_out_together():
    groups = [f"image {k % 50}" for k in range(200)]
    held = held_out_rows(groups, 0.1, 0)
    assert 20 <= len(held) <= 24
    names = {groups[row] for row in held}
    assert sum(name in names for name in groups) == len(held)
    assert held_out_rows(groups, 0.1, 1).tolist() != held.tolist()
    assert len(held_out_rows(groups, 0.0, 0)) == 0
    assert len(held_out_rows(["one"] * 9, 0.5, 0)) == 0  # nothing to learn from otherwise


def test_the_learning_rate_is_halved_or_falls_along_a_cosine():
    published = GANSettings()
    found = [learning_rate(published, step, 10**6) for step in (0, 299_999, 300_000, 500_000, 700_000, 1_200_000)]
    assert found == [2e-4, 2e-4, 1e-4, 5e-5, 2.5e-5, 6.25e-6]
    cosine = GANSettings(schedule="cosine", learning_rate=1e-3)
    assert [learning_rate(cosine, step, 100) for step in (0, 50, 100)] == pytest.approx([1e-3, 5e-4, 0], abs=1e-12)


def told(spread=0.5, real=0.5, generated=0.5):
    curves = {"spread": [0.2, spread], "real": [real], "generated": [generated]}
    return list(troubles(History([None, 1.0], [1.0, 0.5], 1), {"curves": curves}, noise=False))


def test_collapse_is_told():
    assert told() == []
    assert "the generator has collapsed" in told(spread=0.001)[0]
    assert "told all images apart" in told(real=0.001, generated=0.002)[0]
    assert "told no images apart" in told(real=np.log(2), generated=np.log(2))[0]


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"size": 48}, "decode.size = 48"),
        ({"crop": 96}, "crop = 96 is larger than size = 64"),
        ({"comparator": "alexnett"}, "decode.comparator"),
        ({"comparator": {"kind": "pixels"}}, "pixels can't compare"),
        ({"comparator": {"kind": "nothing"}}, "not the kind of a feature space or of a judge"),
        ({"image_weight": 0.0, "adversarial_weight": 0.0}, "no loss is left"),
        ({"learning_rate": 0.0}, "decode.learning_rate"),
        ({"epoch": 3}, "did you mean epochs"),
    ],
)
def test_wrong_settings_are_told(table, problem):
    with pytest.raises(SettingsError, match=problem):
        settings_of("decoders", {"kind": "gan", **table}, "decode.", default="gan")


def test_settings_are_written_as_they_were_read():
    found = settings_of("decoders", {"kind": "gan", "comparator": "alexnet"}, "decode.", default="gan")
    table = found.model_dump(exclude_none=True)
    assert table["comparator"]["layer"] == "features.12"
    assert settings_of("decoders", table, "decode.", default="gan") == found
    (need,) = GAN.needs(found)
    assert (need.setting, need.name) == ("decode.comparator.weights", "alexnet-owt-7be5be79.pth")


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"recompute": True}, {"reduction": "none", "at_once": 8}, {"reduction": "pca"}]
)
def test_training_takes_no_more_than_was_planned(changes, data_of, tmp_path):
    import torch

    torch.nn.functional.conv2d(torch.zeros(1, 3, 9, 9), torch.zeros(2, 3, 3, 3))
    data = data_of(images=300, voxels=1500, side=64, chunk=1_000_000)
    decoder = make(**{"size": 64, "width": 64, "hidden": 1024, "batch_size": 32, "epochs": 1} | changes)
    planned = decoder.plan(DecoderShapes(300, 1500, 0, 300, (64, 64, 3)), 10**10)
    before = process_memory()
    with PeakMemory() as peak:
        decoder.train(data, tmp_path, context())
    taken = peak.peak - before
    print(changes, f"{taken / 1e6:.0f} of {planned.work / 1e6:.0f} MB")
    assert taken <= planned.work
    assert sum(path.stat().st_size for path in Path(tmp_path).glob("*.safetensors")) <= planned.disk + 100_000


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"dropout": 0.3, "noise": 0.2}, {"at_once": 5, "average": 0.9}])
def test_activations_computed_again_give_the_same_bytes(changes, data_of, tmp_path, monkeypatch):
    from torch.utils import checkpoint

    data, spy = data_of(images=60), Mock(wraps=checkpoint.checkpoint)
    monkeypatch.setattr(checkpoint, "checkpoint", spy)
    make(epochs=2, **changes).train(data, tmp_path / "kept", context())
    assert not spy.called
    make(recompute=True, epochs=2, **changes).train(data, tmp_path / "again", context())
    assert spy.called
    (kept,) = (tmp_path / "kept").iterdir()
    assert (tmp_path / "again" / kept.name).read_bytes() == kept.read_bytes()
    make(recompute=True, epochs=2, **changes).train(data, tmp_path / "kept", context())  # the same network: it is there


def test_the_plan_counts_activations_that_are_computed_again():
    shapes = DecoderShapes(6000, 9919, 0, 1200, (248, 248, 3))
    table = {"size": 256, "crop": 227, "jitter": 21, "losses": "published", "reduction": "none"}
    kept, again = (GAN(GANSettings(**table, recompute=recompute)).plan(shapes, 10**10) for recompute in (False, True))
    # twice 32 · 56² + 64 · 52² + 128 · 25² + 256 · (23² + 11²) numbers of the discriminator, twice, for 64 images
    assert kept.work - again.work == 64 * 4 * 2 * 2 * (100352 + 173056 + 80000 + 135424 + 30976)
