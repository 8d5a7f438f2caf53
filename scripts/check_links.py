"""Check that every link within a built site leads to a file and a place in it: python scripts/check_links.py build/docs

Links to other sites are not followed. Prints what leads nowhere, and ends with 1 if there is anything.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, and the names of the places in it."""

    def __init__(self, path):
        super().__init__()
        self.links, self.places = [], {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        for key, value in attrs:
            if key in ("href", "src") and value:
                self.links.append(value)
            elif key == "id" or (key == "name" and tag == "a"):
                self.places.add(value)


def broken(site):
    """Pairs of a page and a link of it that leads nowhere."""
    paths = [path for path in sorted(site.rglob("*.html")) if path.relative_to(site).parts[0] != "_static"]  # templates
    pages = {path.resolve(): Page(path) for path in paths}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            there = target in pages and unquote(parts.fragment) in pages[target].places
            if not there and (target in pages or not target.is_file()):
                yield path.relative_to(site.resolve()), link


def main():
    site = Path(sys.argv[1])
    if not any(site.rglob("*.html")):
        raise SystemExit(f"{site} holds no pages")
    found = list(broken(site))
    for page, link in found:
        print(f"{page}: {link} leads nowhere")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
