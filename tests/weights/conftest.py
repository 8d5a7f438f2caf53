import pytest
from support.hub_server import serving

from leanrecon.net import download, retry
from leanrecon.progress import Progress


@pytest.fixture
def server(monkeypatch):
    """Files and models on loopback, retried at once."""
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(download, "TIMEOUT", 5.0)
    with serving() as started:
        yield started


class Said(Progress):
    """Keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    @property
    def text(self):
        return "\n".join(self.lines)


@pytest.fixture
def said():
    return Said()
