"""How the driver deals with what comes back from workers: receipts, deaths, refusals and errors."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from leanrecon.errors import BudgetError, InputError, LeanreconError, NetworkError
from leanrecon.execution import workers as module
from leanrecon.execution.tasks import Done, Task
from leanrecon.execution.workers import DEATHS, Workers
from leanrecon.progress import Progress

pytest.importorskip("distributed", reason="dask.distributed is not installed (extra cluster)")

TASK = Task("study", {}, None, "", {}, (), {})


class Future:
    def __init__(self, status: str, result: Any) -> None:
        self.status, self._result = status, result

    def result(self) -> Any:
        return self._result

    def exception(self) -> Any:
        return self._result

    def add_done_callback(self, call: Callable[[Any], None]) -> None:
        if self.status != "pending":
            call(self)


class Client:
    """A client whose scheduler does every task at once, by a function of the task and of the worker's address."""

    status = "running"

    def __init__(self, work: Callable[[Task, str], Any], addresses: tuple[str, ...] = ("tcp://a", "tcp://b")) -> None:
        self.work, self.addresses = work, addresses
        self.keys: list[str] = []
        self.cancelled: list[Future] = []

    def nthreads(self) -> dict[str, int]:
        return dict.fromkeys(self.addresses, 1)

    def submit(self, do: Any, task: Task, *, key: str, pure: bool, retries: int, workers: Any) -> Future:
        assert not pure
        self.keys.append(key)
        done = self.work(task, (workers or self.addresses or ("",))[0])
        if done is None:
            return Future("pending", None)
        return Future("error" if isinstance(done, Exception) else "finished", done)

    def cancel(self, futures: list[Future], force: bool) -> None:
        self.cancelled += futures


class Said(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def share(client: Client, tasks: int = 3) -> tuple[list[Any], Said]:
    said, arrived = Said(), []
    piece = Workers(client, TASK, said, 10**9).piece("features", {"variant": "", "space": "vdvae", "split": "train"})
    piece.share([[k] for k in range(tasks)], {"batch": 4}, lambda *came: arrived.append(came))
    return arrived, said


class Forgotten(Future):
    """A task whose worker died with its result: the scheduler has it done again."""

    def __init__(self, result: Any) -> None:
        super().__init__("lost", result)

    def add_done_callback(self, call: Callable[[Any], None]) -> None:
        call(self)
        if self.status == "lost":  # the first callback came before the worker died
            self.status = "finished" if self._result.returned == "again" else "lost"
            self._result = Done(self._result.worker, "again")


def test_a_result_that_died_with_its_worker_is_waited_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(lambda task, worker: Done(worker, task.numbers))
    submit = client.submit
    monkeypatch.setattr(client, "submit", lambda *given, **named: Forgotten(submit(*given, **named).result()))
    arrived, _ = share(client)
    assert sorted(numbers for numbers, *_ in arrived) == [(0,), (1,), (2,)]
    assert [returned for _, returned, _ in arrived] == ["again"] * 3
    assert len(client.keys) == 3, "no task went out twice"


def killed() -> Exception:
    from distributed import KilledWorker

    error = KilledWorker("key", None, 3)
    return error


def test_tasks_have_names_and_their_receipts_arrive_with_their_numbers() -> None:
    def work(task: Task, worker: str) -> Done:
        assert (task.stage, task.named["space"], task.named["batch"]) == ("features", "vdvae", 4)
        return Done(worker, [task.numbers[0] * 10], said=(f"said of {task.numbers[0]}",), peak=5)

    client = Client(work)
    arrived, said = share(client)
    assert arrived == [((0,), [0], "tcp://a"), ((1,), [10], "tcp://a"), ((2,), [20], "tcp://a")]
    assert [key.rpartition("-")[0] for key in client.keys] == [
        f"leanrecon-features-vdvae-train-{k:06d}" for k in range(3)
    ]
    assert said.lines == ["said of 0", "said of 1", "said of 2"]
    assert client.cancelled == []


def test_a_task_whose_workers_died_goes_out_again_under_a_new_name_until_too_many_died() -> None:
    deaths = iter([killed(), killed()])
    client = Client(lambda task, worker: next(deaths, Done(worker, "receipt")))
    arrived, _ = share(client, 1)
    assert arrived == [((0,), "receipt", "tcp://a")]
    assert len(set(client.keys)) == 3
    always = Client(lambda task, worker: killed())
    with pytest.raises(LeanreconError, match=r"\d+ workers died while they worked on the same task of features"):
        share(always, 1)
    assert len(always.keys) <= DEATHS


def test_a_worker_that_is_too_small_gets_none_of_these_tasks() -> None:
    def work(task: Task, worker: str) -> Done:
        return (
            Done(worker, error=BudgetError("features needs at least 2 GB on a worker"))
            if worker == "tcp://a"
            else Done(worker, "receipt")
        )

    client = Client(work)
    arrived, said = share(client)
    assert {worker for _, _, worker in arrived} == {"tcp://b"}
    assert len(arrived) == 3
    assert said.lines == [
        "the worker tcp://a gets no more tasks of this kind: features needs at least 2 GB on a worker"
    ]
    with pytest.raises(BudgetError, match="at least 2 GB"):
        share(Client(work, ("tcp://a",)))


def test_a_worker_that_was_started_again_gets_the_tasks_of_its_old_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.01)

    def work(task: Task, worker: str) -> Done | None:
        if worker == "tcp://a":
            return Done(worker, error=BudgetError("too big"))
        if worker == "tcp://b":
            client.addresses = ("tcp://a", "tcp://c")  # it dies, and nothing is heard of its task
            return None
        return Done(worker, "receipt")

    client = Client(work)
    arrived, _ = share(client, 1)
    assert arrived == [((0,), "receipt", "tcp://c")]


def test_a_large_worker_that_is_away_is_waited_for_before_a_small_one_ends_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.01)

    def work(task: Task, worker: str) -> Done | None:
        if worker == "tcp://a":
            client.addresses = ("tcp://a",)  # the other one died meanwhile
            return Done(worker, error=BudgetError("too big"))
        return Done(worker, "receipt")

    client = Client(work)
    say = Said.say

    def heard(self: Said, text: str) -> None:
        say(self, text)
        if "enough memory" in text:
            client.addresses = ("tcp://a", "tcp://c")

    monkeypatch.setattr(Said, "say", heard)
    arrived, said = share(client, 2)
    assert [worker for *_, worker in arrived] == ["tcp://c"] * 2
    assert "no worker with enough memory is left: waiting for one" in said.lines
    client = Client(work)
    monkeypatch.setattr(Said, "say", say)
    monkeypatch.setattr(module, "WAIT_FOR_WORKERS", 0.05)
    with pytest.raises(BudgetError, match="too big"):
        share(client, 1)


@pytest.mark.parametrize("error", [InputError("row 3 is NaN"), ValueError("a defect")])
def test_an_error_ends_the_stage_and_cancels_what_is_left(error: Exception) -> None:
    def work(task: Task, worker: str) -> Any:
        if task.numbers != (1,):
            return Done(worker, "receipt") if task.numbers == (0,) else None
        return Done(worker, error=error) if isinstance(error, LeanreconError) else error

    client = Client(work)
    expected = type(error) if isinstance(error, LeanreconError) else LeanreconError
    with pytest.raises(expected, match=str(error).rstrip(".")):
        share(client)
    assert len(client.cancelled) == 1


def test_a_run_without_workers_or_scheduler_ends_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.01)
    monkeypatch.setattr(module, "WAIT_FOR_WORKERS", 0.05)
    with pytest.raises(NetworkError, match="there was no worker for"):
        share(Client(lambda task, worker: None, ()))
    gone = Client(lambda task, worker: None)
    gone.status = "closed"
    with pytest.raises(NetworkError, match="lost the scheduler of the cluster"):
        share(gone)


def test_pieces_are_told_apart_by_all_that_they_are_of() -> None:
    one = replace(TASK, stage="features", named={"space": "vdvae", "split": "train"})
    assert one.piece == replace(one, numbers=(4,), named={"split": "train", "space": "vdvae"}).piece
    others = [
        replace(one, named={"space": "vdvae", "split": "test"}),
        replace(one, study="other"),
        replace(one, stage="stage1"),
    ]
    assert len({one.piece, *(other.piece for other in others)}) == 4
