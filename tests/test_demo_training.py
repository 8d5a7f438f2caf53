"""How the demo's models are trained: a training that was killed goes on as if it had not been."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from demo_models.data import batches  # noqa: E402
from demo_models.lcm import LearnLCM  # noqa: E402
from demo_models.training import Schedule, Task, train  # noqa: E402
from demo_models.vdvae import negative_log_likelihood  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.networks]


class Line(Task):
    """Learns the slope of a line."""

    name = "line"

    def __init__(self, steps: int, *, killed_at: int | None = None) -> None:
        self.schedule = Schedule(steps=steps, batch=4, rate=0.1, warmup=2)
        self.weights = {"slope": torch.zeros(1, 1, requires_grad=True), "height": torch.zeros(1, requires_grad=True)}
        self.killed_at, self.taken = killed_at, 0

    @property
    def rows(self) -> int:
        return 40

    def loss(self, rows, rng):
        if self.taken == self.killed_at:
            raise KeyboardInterrupt
        self.taken += 1
        x = torch.from_numpy(rows.astype(np.float32) / 40 + rng.normal(0, 0.01, 4).astype(np.float32))
        return (x * self.weights["slope"][0] + self.weights["height"] - 3 * x - 1).square().mean(), {}

    def measure(self, weights):
        return {"slope": float(weights["slope"])}


def test_a_killed_training_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("demo_models.training.LOG_STEPS", 20)
    whole = train(Line(60), tmp_path / "whole", device="cpu")
    monkeypatch.setattr("demo_models.training.SAVE_SECONDS", -1)  # after every step
    for at in (13, 20):
        with pytest.raises(KeyboardInterrupt):
            train(Line(60, killed_at=at), tmp_path / "killed", device="cpu")
    rest = Line(60)
    resumed = train(rest, tmp_path / "killed", device="cpu")
    assert rest.taken == 60 - 33
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight, rtol=1e-6, atol=1e-7)
    steps = [line.split(",")[0] for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert steps == ['{"step": 20', '{"step": 40', '{"step": 60']


def test_each_row_comes_once_an_epoch_wherever_one_begins() -> None:
    told = batches(23, 5, 0, seed=1)
    rows = [next(told) for _ in range(12)]
    assert len(np.unique(np.concatenate(rows[:4]))) == 20
    assert not np.array_equal(rows[0], rows[4])
    later = batches(23, 5, 6, seed=1)
    np.testing.assert_array_equal(next(later), rows[6])


def test_the_likelihood_of_pixels_is_a_distribution() -> None:
    """The probabilities of all 256 values of red add up to 1, whatever the network says."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(1, 20, 1, 1, generator=generator)
    numbers[:, 2 + 2 * 2 :: 6] = -2.5  # log-scales wide enough that no value is rounded to nothing
    flat = torch.full((1, 20, 1, 1), -30.0)
    flat[:, :20] = numbers
    total = 0.0
    for red in range(256):
        image = np.zeros((1, 1, 1, 3), np.uint8)
        image[..., 0] = red
        alone = _without_other_colours(flat)
        total += float(torch.exp(-negative_log_likelihood(image, alone)))
    assert total == pytest.approx(1, abs=2e-3)


def _without_other_colours(numbers):
    """Green and blue certain at 0, so that the likelihood is that of red."""
    m = 2
    numbers = numbers.clone()
    colours = numbers[:, m:].reshape(1, 3, 3, m, 1, 1)
    colours[:, 1:, 0] = -60.0
    colours[:, 1:, 1] = 0.0
    colours[:, :, 2] = 0.0
    return torch.cat((numbers[:, :m], colours.reshape(1, -1, 1, 1)), 1)


def test_clean_latents_at_the_lowest_level_are_the_noisy_ones() -> None:
    """The boundary condition of a consistency function, and its weights are those of diffusers' LCMScheduler."""
    from diffusers import LCMScheduler

    task = object.__new__(LearnLCM)
    task.signal = torch.linspace(0.999, 0.005, 1000)
    task.model = lambda x, t, states: type("Output", (), {"sample": torch.ones_like(x)})()
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(task._clean(x, torch.tensor([0, 0]), None), x)
    scheduler = LCMScheduler(timestep_scaling=10.0)
    for t in (19, 499):
        kept, taken = scheduler.get_scalings_for_boundary_condition_discrete(t)
        a = task.signal[t]
        expected = kept * x + taken * (a.sqrt() * x - (1 - a).sqrt())
        torch.testing.assert_close(task._clean(x, torch.tensor([t, t]), None), expected)
