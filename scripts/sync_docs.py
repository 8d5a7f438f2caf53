"""Copy the files that a page shows into its code blocks: python scripts/sync_docs.py docs/add-a-kind.md

A line ``<!-- file: PATH -->`` above a code block names the file, relative to the root of the repository.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

_BLOCK = re.compile(r"(<!-- file: (?P<path>\S+) -->\n```(?P<language>\w+)\n)(?P<code>.*?)(\n?```\n)", re.DOTALL)


def synced(text: str) -> str:
    """The page with every named code block as its file is now."""
    return _BLOCK.sub(
        lambda found: f"{found[1]}{(ROOT / found['path']).read_text(encoding='utf-8').rstrip()}\n```\n", text
    )


def shown(text: str) -> list[str]:
    """The files that a page shows."""
    return [found["path"] for found in _BLOCK.finditer(text)]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        page = Path(name)
        page.write_text(synced(page.read_text(encoding="utf-8")), encoding="utf-8")
