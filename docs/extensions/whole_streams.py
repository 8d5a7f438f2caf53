"""A Sphinx extension that shows what a command printed as it was printed.

IPython's ``%%bash`` passes on 100 bytes at a time, and MyST-NB 1.4 ends each such piece with a line break of its own.
"""

from typing import Any


def setup(app: Any) -> dict[str, Any]:
    import myst_nb.core.render

    myst_nb.core.render.coalesce_streams = joined
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def joined(outputs: list[Any]) -> list[Any]:
    """Outputs of a cell, with all pieces of one stream in the first of them."""
    kept: list[Any] = []
    streams: dict[str, Any] = {}
    for output in outputs:
        first = streams.setdefault(output["name"], output) if output["output_type"] == "stream" else output
        if first is output:
            kept.append(output)
        else:
            first["text"] += output["text"]
    return kept
