"""The table of a comparison as text, CSV, Markdown and HTML."""

import csv
import html
import io
from collections.abc import Iterator
from pathlib import Path

from leanrecon.errors import SettingsError
from leanrecon.evaluation.compare import Comparison, Figure, Line

MOST_PICTURES = 12
"""Common test images that the page shows side by side."""


def shown(figure: Figure | None, *, signed: bool = False) -> str:
    """A figure and its interval in plain characters."""
    if figure is None:
        return ""
    value, low, high = figure
    sign = "+" if signed else ""
    text = f"{value:{sign}.3f}"
    return text if low is None or high is None else f"{text} ({low:{sign}.3f}, {high:{sign}.3f})"


def cells(metrics: list[str], lines: list[Line]) -> Iterator[list[str]]:
    """The table of one protocol with its head, as texts."""
    yield ["", "test images", *metrics, "protocol"]
    for line in lines:
        yield [line.name, "" if line.images is None else str(line.images), *_figures(line, metrics), line.protocol]


def _figures(line: Line, metrics: list[str]) -> list[str]:
    return [shown(line.figures.get(metric), signed=line.kind == "difference") for metric in metrics]


def text_of(found: Comparison) -> list[str]:
    """Lines for a terminal: a metric a row, since names of systems are long and screens are narrow."""
    said = []
    for heading, metrics, lines in found.sections():
        said.append(f"# protocol: {heading}")
        for line in lines:
            images = "" if line.images is None else f", {line.images} test images"
            said.append(f"{line.name} ({line.protocol.partition(':')[0]}{images})")
            for metric in metrics:
                if metric in line.figures:
                    said.append(f"  {metric:28} {shown(line.figures[metric], signed=line.kind == 'difference')}")
            if line.source:
                said.append(f"  source: {line.source}")
    return [*said, *found.notes]


def csv_of(found: Comparison) -> str:
    """One line a figure: name, kind, protocol, images, metric, value, low, high, source."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["name", "kind", "protocol", "images", "metric", "value", "low", "high", "source"])
    for line in found.lines:
        for metric, (value, low, high) in line.figures.items():
            writer.writerow([line.name, line.kind, line.protocol, line.images, metric, value, low, high, line.source])
    return file.getvalue()


def markdown_of(found: Comparison) -> str:
    """A Markdown table a protocol, and notes."""
    said = []
    for heading, metrics, lines in found.sections():
        rows = [[cell.replace("|", "\\|") for cell in row] for row in cells(metrics, lines)]
        head, *body = ["| " + " | ".join(row) + " |" for row in rows]
        said += [f"## {heading}\n", head, "|" + "---|" * len(rows[0]), *body, ""]
    notes = [f"{note}\n" for note in found.notes]
    sources = [f"{line.name}: {line.source}\n" for line in found.lines if line.source]
    return "\n".join([*said, *notes, *sources])


def html_of(found: Comparison) -> str:
    """A page of its own: a table a protocol, and images of common test rows side by side."""
    tables = "".join(
        f"<h2>{html.escape(heading)}</h2>{_table(list(cells(metrics, lines)))}"
        for heading, metrics, lines in found.sections()
    )
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in found.notes)
    notes += "".join(f"<p>{html.escape(f'{line.name}: {line.source}')}</p>" for line in found.lines if line.source)
    style = (
        "body{font:15px system-ui,sans-serif;margin:2rem}table{border-collapse:collapse}"
        "td,th{border-bottom:1px solid #ccc;padding:.3rem .6rem;text-align:left}img{width:96px;image-rendering:auto}"
    )
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Comparison</title><style>{style}</style>"
        f"<h1>Comparison</h1>{tables}{notes}"
        f"{_pictures(found)}</html>\n"
    )


def _table(rows: list[list[str]]) -> str:
    """A table with its head, in HTML."""
    top = "".join(f"<th scope='col'>{html.escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        f"<tr><th scope='row'>{html.escape(row[0])}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows[1:]
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _pictures(found: Comparison) -> str:
    """The images seen and reconstructed of the first common test images, a row an image, a column a study."""
    from leanrecon.evaluation.report.thumbnails import thumbnail
    from leanrecon.stores.images import ImageReader
    from leanrecon.stores.pictures import Pictures
    from leanrecon.stores.store import Store
    from leanrecon.study.layout import Study
    from leanrecon.study.rows import Rows

    studies = [Study(folder) for folder in found.folders]
    rows = [Rows.read(study) for study in studies]
    names = found.common[:MOST_PICTURES] if all("test" in of for of in rows) else []
    if not names:
        return ""
    finals = [Pictures.open(study.reconstructions("final")) for study in studies]
    head = "".join(f"<th scope='col'>{html.escape(folder.name)}</th>" for folder in found.folders)
    body = []
    reader = ImageReader(Store.open(studies[0].stimuli("test")))
    for name in names:
        seen = next(images[0].copy() for _, images in reader.runs([rows[0].ids["test"].index(name)]))
        pictures = [seen]
        for of, final in zip(rows, finals, strict=True):
            pictures.append(final.read(of.stimulus_ids("test").index(name)))
        images = "".join(f"<td><img alt='' src='{thumbnail(picture, len(names)).uri}'></td>" for picture in pictures)
        body.append(f"<tr>{images}</tr>")
    table = f"<table><thead><tr><th scope='col'>seen</th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f"<h2>Common test images</h2>{table}"


def write_table(found: Comparison, out: Path) -> None:
    """Write the table in the format of the file's ending. Raises SettingsError for another one."""
    from leanrecon.places.files import write_text

    writers = {".csv": csv_of, ".md": markdown_of, ".html": html_of}
    if out.suffix not in writers:
        raise SettingsError(f"{out} has no ending of a table", expected=f"one of {', '.join(writers)}")
    write_text(out, writers[out.suffix](found))
