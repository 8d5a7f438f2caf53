"""A group from its members to its report: figures by subject and of means over subjects, and studies that are compared."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import leanrecon
from leanrecon.evaluation.compare import compare_studies
from leanrecon.evaluation.compare_tables import write_table

pytestmark = pytest.mark.slow

SMALL = {"evaluate": {"permutations": 0, "resamples": 100}, "features": {"pca": {"components": 8, "size": 16}}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("groups")
    for subject in (0, 1, 2):
        dataset = {"kind": "simulated", "subject": subject, "n_train": 60, "n_test": 9, "size": 16, "voxels": 80}
        until = "dataset" if subject == 2 else None
        leanrecon.run({"dataset": dataset} | SMALL, study=root / f"s{subject}", until=until)
    dataset = {"kind": "group", "members": [str(root / "s0"), str(root / "s1")], "average": True}
    leanrecon.run({"dataset": dataset | {"alignment": {"kind": "pca", "k": 20}}} | SMALL, study=root / "group")
    return root


def test_simulated_subjects_see_the_same_scenes_with_other_brains(root: Path) -> None:
    one, two = (leanrecon.open(root / name) for name in ("s0", "s1"))
    ids = [json.loads((root / name / "stimuli" / "ids.json").read_text()) for name in ("s0", "s1")]
    assert ids[0] == ids[1]
    a, b = np.asarray(one.betas("train")[:]), np.asarray(two.betas("train")[:])
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.5


def test_figures_come_by_subject_and_for_their_mean(root: Path) -> None:
    metrics = json.loads((root / "group" / "evaluation" / "metrics.json").read_text())
    with (root / "group" / "evaluation" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["subject"] for row in rows] == ["s0"] * 9 + ["s1"] * 9 + ["average"] * 9
    scores = np.array([float(row["final.pixcorr"]) for row in rows])
    assert list(metrics["subjects"]) == ["s0", "s1", "average"]
    for k, of in enumerate(metrics["subjects"].values()):
        assert of["final"]["pixcorr"]["value"] == pytest.approx(scores[9 * k : 9 * k + 9].mean())
        assert of["n_test"] == 9
    assert metrics["n_test"] == 18
    assert metrics["final"]["pixcorr"]["value"] == pytest.approx(scores[:18].mean())
    report = (root / "group" / "report.html").read_text()
    assert "By subject" in report
    assert '<th scope="row">average</th><td>9</td>' in report


def test_a_new_subject_runs_to_its_report(root: Path) -> None:
    dataset = {"kind": "joined", "joins": str(root / "group"), "member": str(root / "s2"), "rows": 0.5}
    results = leanrecon.run({"dataset": dataset} | SMALL, study=root / "new")
    assert len(results.scores) == 9
    assert "simulated" in (root / "new" / "report.html").read_text()


def test_studies_are_compared_with_their_pictures(root: Path, tmp_path: Path) -> None:
    found = compare_studies([root / "s0", root / "s1"], against="brain-it")
    assert len(found.common) == 9
    write_table(found, tmp_path / "table.html")
    page = (tmp_path / "table.html").read_text()
    assert page.count("<img") == 3 * 9
    assert "mean of 2 studies" in page
    assert "Brain-IT" in page
