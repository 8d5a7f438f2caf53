"""Areas end to end: every area is decoded from its own voxels alone, and reported beside all voxels."""

import json

import numpy as np
import pytest
from sklearn.linear_model import Ridge

import leanrecon
from leanrecon.errors import InputError, SettingsError
from leanrecon.places.files import write_whole
from leanrecon.study.layout import Study
from leanrecon.study.voxels import area_voxels

pytestmark = pytest.mark.slow

TABLES = {
    "memory": "4GB",
    "dataset": {"kind": "simulated", "n_train": 60, "n_test": 12, "size": 16, "voxels": 120},
    "features": {"pixels": {"size": 8}},
    "regression": {"alpha": 30.0},
    "evaluate": {"permutations": 1, "resamples": 100},
    "areas": {"early": ["V1", "V2"], "ventral": ["ventral"]},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return leanrecon.run(TABLES, study=tmp_path_factory.mktemp("areas") / "study")


def voxels_of(study, parts):
    with np.load(study.path / "betas" / "voxels.npz", allow_pickle=False) as voxels:
        return np.flatnonzero(np.isin(voxels["areas"], parts))


@pytest.mark.parametrize("area", list(TABLES["areas"]))
def test_an_area_is_predicted_from_its_own_voxels(study, area):
    columns = voxels_of(study, TABLES["areas"][area])
    assert 0 < len(columns) < 120
    x, test = study.betas("train")[:, columns].astype(float), study.betas("test")[:, columns].astype(float)
    mean, spread = x.mean(axis=0), x.std(axis=0, ddof=1)
    y = study.features("pixels", "train").astype(float)
    expected = Ridge(30.0).fit((x - mean) / spread, y).predict((test - mean) / spread)
    np.testing.assert_allclose(study.of(area).predictions("pixels"), expected, atol=1e-5 * y.std())


def test_figures_by_area_stand_in_metrics_and_report(study):
    areas = study.figures["areas"]
    assert list(areas) == ["early", "ventral"]
    for area, figures in areas.items():
        assert figures["voxels"] == len(voxels_of(study, TABLES["areas"][area]))
        assert set(figures["stage1"]["pixcorr"]) >= {"value", "low", "high", "chance"}
        images = np.stack([np.asarray(image) for image in study.of(area).images("stage1")])
        seen = study.stimuli("test")
        r = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(images, seen, strict=True)]
        assert figures["stage1"]["pixcorr"]["value"] == pytest.approx(np.mean(r), abs=1e-6)
    report = study.report.read_text()
    assert "early" in report
    assert "By area" in report


def test_areas_have_no_baselines_of_their_own(study):
    assert study.variants == ["early", "oracle", "shuffled00", "ventral"]


def test_the_whole_brain_does_not_change_with_areas(study, tmp_path):
    without = {key: value for key, value in TABLES.items() if key != "areas"}
    other = leanrecon.run(without, study=tmp_path / "study")
    np.testing.assert_array_equal(other.predictions("pixels"), study.predictions("pixels"))
    assert other.figures["final"] == study.figures["final"]
    assert json.dumps(other.figures["baselines"]) == json.dumps(study.figures["baselines"])


def test_areas_in_folds(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "betas.npy", rng.standard_normal((24, 9)).astype(np.float32))
    np.save(tmp_path / "stimuli.npy", rng.integers(0, 256, (24, 12, 12, 1), np.uint8))
    tables = TABLES | {
        "dataset": {
            "kind": "arrays",
            "betas": str(tmp_path / "betas.npy"),
            "stimuli": str(tmp_path / "stimuli.npy"),
            "folds": 3,
        }
    }
    with pytest.raises(InputError, match="does not say which area"):
        leanrecon.run(tables, study=tmp_path / "study")
    path = tmp_path / "study" / "betas" / "voxels.npz"
    areas = np.array(["V1"] * 4 + ["ventral"] * 3 + [""] * 2)
    write_whole(path, lambda file: np.savez(file, index=np.arange(9), areas=areas))
    tables["areas"] = {"V1": ["V1"]}
    done = leanrecon.run(tables, study=tmp_path / "study")
    assert {"fold00", "fold00-V1", "fold02-V1", "fold01-shuffled00", "fold01-oracle"} <= set(done.variants)
    assert done.figures["areas"]["V1"]["voxels"] == 4
    assert done.figures["areas"]["V1"]["final"]["pixcorr"]["value"] is not None


@pytest.mark.parametrize(
    ("areas", "words"),
    [
        ({"early": ["V9"]}, ["'V9'", "V1, V2"]),
        ({"early": ["v1"]}, ["'v1'", "V1"]),
    ],
)
def test_unknown_areas_are_refused_with_those_that_are_there(study, areas, words):
    with pytest.raises(InputError) as caught:
        area_voxels(Study(study.path), areas)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "areas", [{"a/b": ["V1"]}, {"early": []}, {"early": "V1"}, {"early": [1]}, {"oracle": ["V1"]}, {"fold00": ["V1"]}]
)
def test_areas_that_cant_be_folders_or_hold_nothing_are_refused(areas, tmp_path):
    with pytest.raises(SettingsError, match="areas"):
        leanrecon.run(TABLES | {"areas": areas}, study=tmp_path / "study")
