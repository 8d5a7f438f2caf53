"""What this process holds, for tests that give a budget beyond it."""

import gc

from leanrecon.memory import give_back, process_memory


def held() -> int:
    """Bytes that this process holds and will hold: a stage gives back what earlier tests freed."""
    gc.collect()
    give_back()
    return process_memory()
