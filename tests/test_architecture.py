"""The rules of the house that no linter knows: imports run one way, heavy libraries wait, files stay short."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import leanrecon
from leanrecon import kinds

ROOT = Path(leanrecon.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

NAMES = {".".join(["leanrecon", *path.relative_to(ROOT).with_suffix("").parts]) for path in MODULES}

GROUND = ("errors", "arguments", "memory", "progress", "images", "validation", "devices", "context", "kinds")
FLOORS = dict.fromkeys(GROUND, 0) | {
    "places": 1, "stores": 2, "net": 2, "weights": 3, "study": 4,
    "alignment": 4, "datasets": 5, "calibration": 5, "decoders": 5, "features": 5, "regression": 5, "refinement": 5, "evaluation": 5,
    "stages": 6, "execution": 7, "app": 8, "api": 9, "__init__": 10, "__main__": 10,
}  # fmt: skip
"""The floor of every room: a room imports only rooms below it."""

STAGE_PACKAGES = {name for name, floor in FLOORS.items() if floor == FLOORS["datasets"]}
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
    "distributed",
    "jinja2",
    "boto3",
    "obstore",
    "nibabel",
    "IPython",
}
MAX_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_TOP_MODULES = 12

LONG_FUNCTIONS = {
    "leanrecon.regression.mlp.training.train": "one visible training loop, to be read from top to bottom",
    "leanrecon.regression.mlp.mlp.StreamingMLP.__init__": "scikit-learn wants every parameter named",
}
"""Functions that may be longer, each with its reason."""


def room(module: str) -> str:
    """The room that a module is in: its package, or itself on the ground floor."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def name_of(path: Path) -> str:
    return ".".join(["leanrecon", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


def imports(tree: ast.AST, *, everywhere: bool) -> set[str]:
    """The modules that are imported: anywhere, or as soon as the module itself is."""
    modules = set()
    for node in ast.walk(tree) if everywhere else at_once(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written out in full"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = names & NAMES
            modules |= submodules  # from leanrecon import kinds
            if names - submodules:
                modules.add(node.module or "")
    return modules


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
    own = room(name_of(path))
    assert own in FLOORS, f"{own} has no floor yet: give it one in FLOORS"
    for module in imports(ast.parse(path.read_text()), everywhere=True):
        if module.partition(".")[0] != "leanrecon" or module == "leanrecon":
            continue
        other = room(module)
        if other not in FLOORS:
            continue  # a name of the package itself, as __version__
        assert other not in STAGE_PACKAGES or own not in STAGE_PACKAGES or other == own, (
            f"{own} imports {module}: stage packages hand each other stores, not code"
        )
        lower = FLOORS[other] < FLOORS[own] or (FLOORS[other] == FLOORS[own] == 0) or other == own
        assert lower, f"{own} imports {module}, which stands above it"


def test_modules_import_each_other_in_no_circle():
    graph = {name_of(path): imports(ast.parse(path.read_text()), everywhere=False) for path in MODULES}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join([*way[way.index(module) :], module])
        if module in done or module not in graph:
            return
        for other in graph[module]:
            visit(other, (*way, module))
        done.add(module)

    for module in graph:
        visit(module, ())


FOR_USERS = "scikit.py"
"""Modules of the estimators that users import, which inherit from scikit-learn's; studies never load them."""


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_libraries_are_imported_where_they_are_used(path):
    loaded = {module.partition(".")[0] for module in imports(ast.parse(path.read_text()), everywhere=False)}
    allowed = {"sklearn"} if path.name == FOR_USERS else set()  # a base class has to be there first
    assert not loaded & HEAVY - allowed


def test_no_module_imports_the_classes_for_users():
    for path in MODULES:
        found = [
            module for module in imports(ast.parse(path.read_text()), everywhere=True) if "scikit" in module.split(".")
        ]
        assert not found or path.name == "__init__.py", path


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    for name, node in functions(ast.parse(text), name_of(path)):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        assert lines <= MAX_FUNCTION_LINES or name in LONG_FUNCTIONS, f"{name} has {lines} lines"


def functions(tree: ast.AST, prefix: str):
    """All functions with their dotted names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}.{node.name}"
            if not isinstance(node, ast.ClassDef):
                yield name, node
            yield from functions(node, name)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_say_what_they_hold(path):
    text = path.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text))
    assert path.stem not in ("utils", "helpers", "common", "base", "misc")


def test_few_modules_stand_above_the_rooms():
    assert len([path for path in MODULES if path.parent == ROOT]) <= MAX_TOP_MODULES


def test_only_kinds_chooses_by_kind():
    """No chain over kinds: neither their settings nor their names are compared anywhere but in kinds.py."""
    every = {name for group in kinds.BUILT_IN.values() for name in group}
    names = "|".join(sorted(every - {"none"}))
    chains = re.compile(
        rf"isinstance\([^()]*(?:\([^()]*\)[^()]*)*Settings\b|\bkind\"?\]?\s*[=!]=\s*[\"'](?:{names})[\"']"
        rf"|\bkind\"?\]?\s+(?:not )?in\s*[({{\[][\"'](?:{names})[\"']|\.kind\s*[=!]=\s*[\"']none[\"']"
    )
    places = {
        f"{name_of(path)}: {match[0]}"
        for path in MODULES
        for match in chains.finditer(path.read_text())
        if name_of(path) != "leanrecon.kinds"
    }
    assert not places


def test_only_stores_name_chunk_keys_and_codecs():
    named = {
        name_of(path)
        for path in MODULES
        if any(word in path.read_text() for word in ("Crc32cCodec", "zarr.create_array", "google_crc32c"))
    }
    assert named
    assert all(name.startswith("leanrecon.stores.") for name in named)


ONLY_WRITE = {
    "leanrecon/datasets/nsd/simulate.py": "writes a small NSD in its authors' formats",
    "leanrecon/datasets/layouts/bdpy_simulate.py": "writes small BData files as bdpy does",
    "scripts/bench_layouts.py": "writes the files that it measures the reading of",
    "scripts/bench_nsd_fetch.py": "writes the files that it measures the fetching of",
    "scripts/bench_slow_links.py": "writes the files that it measures the fetching of",
}
"""Modules outside of datasets/files that load h5py or SciPy's MATLAB functions, each with its reason."""

SCRIPTS = sorted(ROOT.parent.glob("scripts/**/*.py"))


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=lambda path: path.relative_to(ROOT.parent).as_posix())
def test_only_the_checked_readers_open_hdf5_and_matlab_files(path):
    """These libraries trust what a file says of itself: they crash, hang or make numbers up where it is damaged."""
    name = path.relative_to(ROOT.parent).as_posix()
    if name.startswith("leanrecon/datasets/files/"):
        return
    tree = ast.parse(path.read_text())
    loaded = {
        module for module in imports(tree, everywhere=True) if module.split(".")[0] == "h5py" or module == "scipy.io"
    }
    assert bool(loaded) == (name in ONLY_WRITE), f"{name}: open files by leanrecon.datasets.files.open"
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and loaded):
        called = ast.unparse(call.func)
        assert called.split(".")[-1] not in ("loadmat", "whosmat")
        if called == "h5py.File":
            assert [ast.unparse(mode) for mode in call.args[1:2]] == ["'w'"], f"{name} reads HDF5 files"


PLANNERS = """
import importlib, sys
from leanrecon import kinds
for group in kinds.GROUPS:
    for name in kinds.BUILT_IN[group]:
        kinds.get(group, name)
for module in sys.argv[1:]:
    importlib.import_module(module)
print(*sorted({"zarr", "scipy", "torch", "sklearn", "h5py", "PIL"} & set(sys.modules)))
"""


def test_kinds_and_planners_load_neither_zarr_nor_scipy_nor_torch():
    planners = [name_of(path) for path in MODULES if path.stem == "plan" and room(name_of(path)) != "app"]
    assert len(planners) >= 5
    command = [sys.executable, "-c", PLANNERS, *planners, "leanrecon.stores.layout", "leanrecon.study.settings"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


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
    for command in ("run", "plan", "verify", "export", "recipes", "kinds"):
        assert command in shown.stdout


TESTS = sorted(Path(__file__).parent.rglob("test_*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_tests_that_measure_memory_in_their_process_run_alone(path):
    """What earlier tests left in the heap would count as memory that the test takes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if any(isinstance(node, ast.Assign) and names(node) >= {"pytestmark", "alone"} for node in tree.body):
        return
    defined = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    measuring = {function.name for function in defined if measures(function)}
    tests = [function for function in defined if function.name.startswith("test_")]
    assert [
        test.name
        for test in tests
        if (test.name in measuring or names(test) & measuring)
        and not any("alone" in names(mark) for mark in test.decorator_list)
    ] == []


def measures(function: ast.FunctionDef) -> bool:
    """Whether a function holds a block in which memory is measured."""
    blocks = [node for node in ast.walk(function) if isinstance(node, ast.With)]
    return any("PeakMemory" in names(item) for block in blocks for item in block.items)


def names(node: ast.AST) -> set[str]:
    """All names and attributes in a part of a file."""
    parts = list(ast.walk(node))
    return {part.id for part in parts if isinstance(part, ast.Name)} | {
        part.attr for part in parts if isinstance(part, ast.Attribute)
    }
