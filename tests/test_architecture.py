"""The house rules that no linter knows: imports run one way, heavy libraries wait, files stay short."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import leanrecon

ROOT = Path(leanrecon.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

FLOORS = {
    "errors": 0, "memory": 0, "progress": 0, "images": 0, "validation": 0, "devices": 0, "context": 0, "kinds": 0, "__init__": 0,
    "places": 1, "stores": 2, "net": 2, "weights": 3, "study": 4,
    "datasets": 5, "alignment": 5, "decoders": 5, "features": 5, "regression": 5, "refinement": 5, "evaluation": 5,
    "stages": 6, "app": 7, "__main__": 8,
}  # fmt: skip
STAGES = {name for name, floor in FLOORS.items() if floor == FLOORS["datasets"]}
HEAVY = {
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "accelerate",
    "sklearn",
    "PIL",
    "h5py",
    "dask",
    "jinja2",
    "boto3",
    "nibabel",
    "IPython",
}
MAX_LINES = 430


def part(module: str) -> str:
    """The part of the house that a module is in: its package, or itself on the ground floor."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def name_of(path: Path) -> str:
    return ".".join(["leanrecon", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


def imports(tree: ast.AST, *, everywhere: bool) -> set[str]:
    """The modules that are imported: anywhere, or as soon as the module itself is."""
    found = set()
    for node in ast.walk(tree) if everywhere else at_once(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written out in full"
            found.add(node.module or "")
            if node.module == "leanrecon":  # from leanrecon import features
                found |= {f"leanrecon.{alias.name}" for alias in node.names}
    return found


def at_once(tree: ast.AST):
    """The nodes that run when a module is imported: none within functions or ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from at_once(node)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_one_way(path):
    own = part(name_of(path))
    assert own in FLOORS, f"{own} has no place in the house yet: give it one in FLOORS"
    for module in imports(ast.parse(path.read_text()), everywhere=True):
        if module.partition(".")[0] != "leanrecon" or module == "leanrecon":
            continue
        other = part(module)
        if other not in FLOORS:
            continue  # a name of the package itself, as __version__
        assert other not in STAGES or own not in STAGES or other == own, (
            f"{own} imports {module}: the pipeline hands over"
        )
        lower = FLOORS[other] < FLOORS[own] or (FLOORS[other] == FLOORS[own] == 0) or other == own
        assert lower, f"{own} imports {module}, which stands above it"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_libraries_are_imported_where_they_are_used(path):
    loaded = {module.partition(".")[0] for module in imports(ast.parse(path.read_text()), everywhere=False)}
    assert not loaded & HEAVY


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_say_what_they_hold(path):
    text = path.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text))
    assert path.stem not in ("utils", "helpers", "common", "base", "misc")


def test_only_stores_name_chunk_keys_and_codecs():
    named = {
        name_of(path)
        for path in MODULES
        if any(word in path.read_text() for word in ("Crc32cCodec", "zarr.create_array", "google_crc32c"))
    }
    assert named == {"leanrecon.stores.metadata", "leanrecon.stores.store"}


PATHS = {"os", "pathlib", "shutil", "tempfile", "glob"}
EDGES = {"leanrecon.stores.export", "leanrecon.stores.matrix"}
"""Modules that write files for other programs, or take the paths of users."""


@pytest.mark.parametrize(
    "path",
    [p for p in MODULES if p.parent.name in ("stores", "study") and p.stem not in ("settings", "needs", "variants")],
    ids=name_of,
)
def test_stores_and_records_know_no_paths(path):
    """They go through places, so that a study may lie anywhere."""
    if name_of(path) not in EDGES:
        assert not imports(ast.parse(path.read_text()), everywhere=True) & PATHS


HELP = """
import sys
sys.argv = ["leanrecon", "--help"]
from leanrecon.app.cli import main
try:
    main()
except SystemExit as exit_:
    assert exit_.code == 0
print(*sys.modules, file=sys.stderr)
"""


def test_help_answers_at_once_and_loads_nothing_heavy():
    seconds = []
    for _ in range(3):
        before = os.times()
        shown = subprocess.run([sys.executable, "-c", HELP], check=True, capture_output=True, text=True)
        after = os.times()  # of processors, which other programs do not lengthen
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert {"numpy", "zarr", "scipy", "pydantic", *HEAVY}.isdisjoint(shown.stderr.split())
    assert min(seconds) < 1
    for command in ("run", "plan", "verify", "export", "recipes"):
        assert command in shown.stdout
