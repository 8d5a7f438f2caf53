"""Without the network, NSD is planned from what its authors publish, or refused with what is not known."""

from typing import Any

import pytest

from leanrecon.datasets.nsd.dataset import NSD, NSDSettings
from leanrecon.errors import LeanreconWarning, NetworkError, SettingsError
from leanrecon.stages.costs_of_stages import dataset_cost

MB = 10**6


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any) -> Any:
        raise NetworkError("s3://natural-scenes-dataset could not be read", todo="check the connection")

    monkeypatch.setattr("leanrecon.datasets.nsd.files.open_source", unreachable)


def plan(**settings: Any) -> Any:
    return NSD(NSDSettings(**settings)).plan(base_dir=None, chunk=32 * MB, free=4000 * MB)


def test_subject_1_is_planned_at_its_largest() -> None:
    with pytest.warns(LeanreconWarning, match="can't be reached: this plan uses the published sizes of NSD"):
        found = plan(subject=1, sessions=37)
    assert found.voxels == 15724
    assert 8859 <= found.n_train <= 9000  # the numbers of 37 sessions in Ozcelik & VanRullen (2023)
    assert 982 <= found.n_test <= 1000
    assert found.max_repeats == 3
    images = (found.n_train + found.n_test) * 425 * 425 * 3
    betas = 37 * 750 * 15724 * 2
    assert found.disk == pytest.approx(images + betas + 10_000 * 15724 * 4, rel=0.05)
    assert found.download == pytest.approx(images + betas * 1.25, rel=0.02)
    assert 100 * MB < found.work < 1000 * MB


def test_workers_share_sessions_and_images() -> None:
    with pytest.warns(LeanreconWarning):
        found = plan(subject=1, sessions=37)
    alone, shared = dataset_cost(found, 32 * MB, 0)
    assert found.shared_download == 1
    images, betas = (found.n_train + found.n_test) * 425 * 425 * 3, 37 * 750 * 15724 * 2
    assert shared.written == pytest.approx(images + betas, rel=0.02)  # the averages are the driver's
    assert alone.written == pytest.approx((found.n_train + found.n_test) * 15724 * 4, rel=0.05)


@pytest.mark.parametrize(("subject", "sessions"), [(1, 1), (3, [1, 5]), (4, None), (8, 30)])
def test_every_subject_and_choice_of_sessions_is_planned(subject: int, sessions: Any) -> None:
    with pytest.warns(LeanreconWarning):
        found = plan(subject=subject, sessions=sessions, repeats="single")
    assert found.n_train > 0
    assert found.n_test > 0


@pytest.mark.parametrize("settings", [{"roi": "V1"}, {"root": "s3://mine"}, {"betas_format": "nii.gz"}])
def test_what_is_not_published_is_said(settings: dict[str, Any]) -> None:
    with pytest.raises(
        NetworkError, match=r"could not be read. Expected the headers and masks .* Check the connection"
    ):
        plan(**settings)


def test_sessions_that_the_subject_lacks_are_refused() -> None:
    with pytest.raises(SettingsError, match="subject 4 has 30"):
        plan(subject=4, sessions=31)
