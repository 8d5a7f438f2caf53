"""The time, bytes and requests of a plan, from the rates of a machine: for one process or many workers."""

import re
from collections.abc import Sequence

from leanrecon.app.rates import Rates, rates_of
from leanrecon.errors import SettingsError, plain, shown
from leanrecon.memory import format_bytes
from leanrecon.places import Location
from leanrecon.progress import format_seconds
from leanrecon.stages.stage import PlannedStage
from leanrecon.study.costs import Cost, total

_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def parse_bandwidth(text: str) -> float:
    """Bytes a second of a rate such as ``"1Gbit"``, ``"100Mbit/s"`` or ``"125MB/s"``; raises SettingsError."""
    match = re.fullmatch(r"\s*([0-9]{1,12}\.?[0-9]{0,9})\s*([kmgt]?)(bit|b)(?:/s)?\s*", text, re.IGNORECASE | re.ASCII)
    rate = float(match[1]) * _PREFIXES[match[2].lower()] / (8 if match[3].lower() == "bit" else 1) if match else 0.0
    if rate <= 0:
        raise SettingsError(
            f"{shown(text)} is not a bandwidth", expected='a rate per second, such as "1Gbit" or "125MB"'
        )
    return rate


def seconds(cost: Cost, rates: Rates) -> float:
    """Seconds that one process takes for it, one thing after the other."""
    moved = cost.read / rates.store_read + cost.written / rates.store_write
    return cost.operations / rates.gemm + moved + (cost.puts + cost.gets) * rates.latency


def seconds_of(stage: PlannedStage, rates: Rates, workers: int, bandwidth: float | None) -> float:
    """Seconds of a stage whose shared part workers do side by side, each as fast as this process.

    No less than its bytes take through the ``bandwidth`` (bytes a second) that all machines have to the study together.
    """
    alone, shared = seconds(stage.cost, rates), seconds(stage.shared, rates) / workers
    nbytes = sum(cost.read + cost.written for cost in (stage.cost, stage.shared))
    return max(alone + shared, nbytes / bandwidth if bandwidth else 0.0)


def show_work(stages: Sequence[PlannedStage], study: Location, workers: int, bandwidth: float | None) -> None:
    """Print time, bytes and, in a bucket, requests of every stage, and what rates they are from."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    rates, away = rates_of(study), study.place.local_path(study.key) is None
    who = f"{workers} workers" if workers > 1 else "one process"
    table = Table(title=f"work, {who}" + (f", {format_bytes(bandwidth)}/s" if bandwidth else ""), title_justify="left")
    for heading in ("stage", "time", "read", "written", *(("puts", "gets") if away else ())):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    sums, time = Cost(), 0.0
    for stage in stages:
        cost = stage.cost + stage.shared
        took = seconds_of(stage, rates, workers, bandwidth)
        table.add_row(escape(plain(stage.stage)), *_cells(took, cost, away))
        sums, time = total((sums, cost)), time + took
    table.add_section()
    table.add_row("all", *_cells(time, sums, away))
    console = Console(highlight=False)
    console.print(table)
    for stage in stages:
        if stage.download:
            console.print(plain(_fetched(stage, workers)), markup=False)
    console.print(told(rates, study), markup=False)
    if sums.uncounted:
        console.print(
            f"+: without the networks of {plain(', '.join(sums.uncounted))}, which are not counted", markup=False
        )


def _fetched(stage: PlannedStage, workers: int) -> str:
    """What a stage downloads, beside the times, and what of it each worker does."""

    def moved(times: float) -> str:
        requests = f" in {stage.requests * times:,.0f} requests" if stage.requests else ""
        return f"{format_bytes(stage.download * times)}{requests}"

    said = f"{stage.stage} downloads {moved(1)}, whose time depends on the link and is not counted"
    if workers > 1 and stage.shared_download:
        said += f"; each worker {moved(stage.shared_download / workers)}"
    return said


def told(rates: Rates, study: Location) -> str:
    """Where times come from, in a sentence or two."""
    figures = (
        f"{rates.gemm / 1e9:.3g} GFLOP/s in float32, chunks read at {format_bytes(rates.store_read)}/s and written at "
        f"{format_bytes(rates.store_write)}/s" + (f", {rates.latency * 1000:.3g} ms a request" if rates.latency else "")
    )
    if rates.measured:
        return f"times from doctor --bench of {plain(rates.measured)}: {figures}"
    return f"times from stated default rates: {figures}. `leanrecon doctor --bench --study {study}` measures them"


def _cells(took: float, cost: Cost, away: bool) -> list[str]:
    time = format_seconds(took) + (" +" if cost.uncounted else "")
    requests = [f"{cost.puts:,}", f"{cost.gets:,}"] if away else []
    return [time, format_bytes(cost.read), format_bytes(cost.written), *requests]
