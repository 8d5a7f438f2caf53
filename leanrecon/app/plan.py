"""The plan of a study as a table in the terminal."""

from collections.abc import Sequence

from leanrecon.errors import plain
from leanrecon.memory import SPARE, MemoryBudget, format_bytes
from leanrecon.stages.stage import PlannedStage
from leanrecon.study.costs import total
from leanrecon.weights.needs import FETCH, Need, describe, is_published


def show(stages: Sequence[PlannedStage], memory: str | None, missing: Sequence[Need] = ()) -> bool:
    """Print the planned stages with what is allowed, and the weights that are missing; returns whether all fit."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    allowed = MemoryBudget.of(memory).allowed
    table = Table(title=f"plan, {format_bytes(allowed)} of memory allowed", title_justify="left")
    for heading in ("stage", "how", "memory", "disk", "download"):
        table.add_column(heading, justify="left" if heading in ("stage", "how") else "right")
    for stage in stages:
        over = "" if stage.memory <= allowed else " [red]too much[/red]"
        disk = format_bytes(stage.disk) + (f" + {format_bytes(stage.scratch)} for a while" if stage.scratch else "")
        download = format_bytes(stage.download)
        table.add_row(
            escape(plain(stage.stage)), escape(plain(stage.summary)), format_bytes(stage.memory) + over, disk, download
        )
    console = Console()
    console.print(table)
    largest = max(stages, key=lambda stage: stage.memory)
    fetched, requests = (sum(getattr(stage, name) for stage in stages) for name in ("download", "requests"))
    download = f", {format_bytes(fetched)} to download" if fetched else ""
    download += f" in {requests:,} requests" if requests else ""
    console.print(
        f"peak memory {format_bytes(largest.memory)} ({largest.stage}), disk {format_bytes(disk_nbytes(stages))}{download}",
        highlight=False,
        markup=False,
    )
    read = total(stage.cost for stage in stages)
    if read.asked:
        console.print(
            f"inputs in buckets: about {read.asked:,} requests, {format_bytes(read.received)} received",
            highlight=False,
            markup=False,
        )
    if largest.memory > allowed:
        enough = -(-(largest.memory + SPARE) // 1_000_000)
        console.print(f'the budget is too small; "{enough}MB" is enough', highlight=False)
    if missing:
        how = f"; {FETCH}" if any(map(is_published, missing)) else ""
        console.print(plain(describe(missing)) + how, highlight=False, markup=False)
    return largest.memory <= allowed


def disk_nbytes(stages: Sequence[PlannedStage]) -> int:
    """Bytes on disk that the stages need at most."""
    return sum(stage.disk for stage in stages) + max(stage.scratch for stage in stages)
