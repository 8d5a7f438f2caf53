"""What the commands ``check`` and ``compare`` print and write."""

from collections.abc import Sequence
from pathlib import Path

from leanrecon.app.terminal import say


def check(study: Path, labels: Path | None, pairs: int, memory: str | None, json: Path | None) -> None:
    """Check the data of a study, and print what was found."""
    from leanrecon.context import Context
    from leanrecon.places.files import write_json
    from leanrecon.stages.check import check_study, keep_check
    from leanrecon.study.layout import Study

    of = Study(study)
    found = check_study(of, Context.of(memory), labels=labels, pairs=pairs)
    keep_check(of, found)
    for line in found.lines():
        say(line)
    if json is not None:
        write_json(json, found.record(), indent=1)


def compare(studies: Sequence[Path], against: str | None, out: Path | None) -> None:
    """Compare studies, print the table, and write it where that is asked for."""
    from leanrecon.evaluation.compare import compare_studies
    from leanrecon.evaluation.compare_tables import text_of, write_table

    found = compare_studies(studies, against=against)
    for line in text_of(found):
        say(line)
    if out is not None:
        write_table(found, out)
        say(f"wrote {out}")
