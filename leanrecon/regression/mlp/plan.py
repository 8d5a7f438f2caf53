"""The memory plan of a network, phase by phase: arithmetic on shapes."""

from dataclasses import dataclass, replace

from leanrecon.regression.mlp.network import n_weights
from leanrecon.regression.mlp.settings import VALIDATION_ROWS, MLPSettings
from leanrecon.regression.ridge.limits import MOMENTS, TEST_ROWS, WORKSPACE
from leanrecon.regression.ridge.plan import FitPlan, Shapes, plan_fit
from leanrecon.regression.ridge.triangle import panel_nbytes, pass_groups, triangle_nbytes
from leanrecon.stores.layout import PANEL

FLOAT = 4

ADAMW = 16
"""Bytes a weight while it is trained: itself, its gradient and two moments, float32."""

TORCH_NBYTES = 265_000_000
"""Importing PyTorch (CPU) and accelerate (138 MB measured), and the kernels, threads and heap's gaps of training: up to
110 MB more on two cores."""

STEPPING = 100_000_000
"""Of that, what training takes in a process that has imported them."""

LAPACK_NBYTES = 32_000_000
"""What a decomposition of order 8859 took beyond its matrices."""

LAYERS = 6
"""Arrays of [batch, hidden] that a block keeps for its gradient."""


@dataclass(frozen=True)
class NetworkShapes:
    """Shapes of the data and of the network, known before anything is read."""

    n: int
    """Train rows of betas."""
    p: int
    """Voxels."""
    m: int
    """Test rows of betas."""
    t: int
    """Targets: numbers of a feature row."""
    settings: MLPSettings
    s: int | None = None
    """Train images, which are rows of the targets; None: as many as train rows."""
    largest: int = 1
    """The most train rows that show one image."""
    block: int = 4096
    """Targets of a tile."""
    x_tile: int = 0
    """Bytes of a tile of the betas."""
    y_tile: int = 0
    """Bytes of a tile of the targets."""
    scratch: int = 0
    """Bytes that reading betas takes besides."""
    y_scratch: int = 0
    """Bytes that reading targets takes besides."""
    y_itemsize: int = 4
    """Bytes of a number of the predictions."""
    device: str = "cpu"

    @property
    def images(self) -> int:
        return self.n if self.s is None else self.s

    @property
    def repeats(self) -> bool:
        """Whether images are shown several times."""
        return self.images != self.n or self.largest > 1

    @property
    def full(self) -> bool:
        """Whether the head predicts every target."""
        return self.settings.head == "full"

    @property
    def skip(self) -> bool:
        """Whether the network is added to a ridge."""
        return self.settings.skip == "ridge"

    @property
    def from_ridge(self) -> bool:
        """Whether the ridge's predictions are the network's inputs."""
        return self.settings.inputs == "ridge"

    @property
    def outputs(self) -> int:
        return self.t if self.full else max(min(self.settings.components, self.t, self.images - 1), 1)

    @property
    def inputs(self) -> int:
        return self.outputs if self.from_ridge else self.p

    @property
    def weights(self) -> int:
        return n_weights(self.inputs, self.outputs, self.settings.hidden, self.settings.blocks)

    @property
    def held_rows(self) -> int:
        """Validation rows."""
        return min(round(self.settings.validation * self.n), VALIDATION_ROWS)

    @property
    def steps(self) -> int:
        """Steps of the training, if it is not stopped early."""
        return (self.n - self.held_rows) // self.settings.batch_size * self.settings.epochs

    @property
    def coordinates(self) -> int:
        """Bytes of the targets' coordinates, and of the ridge's predictions of them."""
        if self.full:
            return 8 * 2 * self.t
        return (self.images + self.skip * self.n) * self.outputs * FLOAT

    @property
    def kept_nbytes(self) -> int:
        """Bytes on disk that stay: the weights and the coordinates."""
        return self.weights * FLOAT + self.coordinates

    @property
    def targets(self) -> Shapes:
        """Shapes for the Gram matrix of the targets."""
        return Shapes(
            self.images, self.t, 0, self.outputs, self.block, self.y_tile, self.y_tile, self.y_scratch, self.y_scratch
        )

    @property
    def ridge(self) -> Shapes:
        """Shapes for the ridge beside the network."""
        return Shapes(
            self.n, self.p, 0, self.t, self.block, self.x_tile, self.y_tile, self.scratch, self.y_scratch,
            y_itemsize=self.y_itemsize, s=self.images if self.repeats else None, largest=self.largest,
        )  # fmt: skip


@dataclass(frozen=True)
class NetworkPlan:
    """Bytes of work of each phase; the Gram matrix of the targets lies in memory or on disk."""

    phases: dict[str, int]
    in_memory: bool = True
    pass_nbytes: int = 0
    scratch: int = 0
    """Bytes of disk that are needed for a while: checkpoints and matrices."""

    @property
    def work(self) -> int:
        return max(self.phases.values())

    @property
    def largest(self) -> str:
        return max(self.phases, key=lambda name: self.phases[name])


def plan_network(shapes: NetworkShapes, free: int, *, torch_held: bool = False) -> NetworkPlan:
    """The phases of coding the targets, fitting the ridge, training and predicting.

    The budget decides only whether matrices lie in memory or on disk. ``torch_held``: PyTorch is imported already.
    """
    library = STEPPING if torch_held else TORCH_NBYTES
    imported = 0 if torch_held else TORCH_NBYTES
    phases: dict[str, int] = {}
    in_memory, pass_nbytes, triangle = True, 0, 0
    if not shapes.full:
        phases, in_memory, pass_nbytes, triangle = _coding(shapes, free)
    else:
        phases["moments"] = WORKSPACE + 2 * shapes.y_tile + MOMENTS * shapes.t * 8 + shapes.y_scratch
    phases["moments of betas"] = (
        WORKSPACE + 2 * shapes.x_tile + MOMENTS * shapes.p * 8 + shapes.scratch + shapes.coordinates
    )
    if shapes.skip:
        beside = shapes.coordinates + beside_ridge(shapes.n, TEST_ROWS)
        ridge = ridge_plan(shapes, free - beside)
        phases |= {f"ridge: {name}": work + beside for name, work in ridge.phases.items()}
        triangle = max(triangle, ridge.scratch)
    phases["training"] = library + shapes.coordinates + _training(shapes)
    held = imported + shapes.coordinates
    phases["predictions"] = held + _predicting(shapes, free - held)
    adam = 3 * shapes.weights * FLOAT * 2  # while a checkpoint is replaced, both are there
    return NetworkPlan(phases, in_memory, pass_nbytes, adam + (0 if in_memory else triangle))


def ridge_plan(shapes: NetworkShapes, free: int) -> FitPlan:
    """The plan of the ridge beside the network; its factor is kept for predictions of train rows from other images."""
    ridge = replace(
        shapes.ridge, m=TEST_ROWS, scratch=shapes.scratch + shapes.x_tile, y_scratch=shapes.y_scratch + shapes.y_tile
    )
    return plan_fit(ridge, free, loo=shapes.settings.alpha == "loo")


def _coding(shapes: NetworkShapes, free: int) -> tuple[dict[str, int], bool, int, int]:
    """Phases of the targets' coordinates: moments, Gram matrix, eigenvectors, coordinates."""
    own, k = shapes.targets, shapes.outputs
    order, e = own.order, own.itemsize
    square, triangle = order * order * e, triangle_nbytes(order, e)
    panel = panel_nbytes(order, e)
    taken = 2 * shapes.images * k * max(e, FLOAT) + (0 if own.dual else own.slabs + 512 * k * e)

    def phases(held: int, on_disk: bool) -> dict[str, int]:
        kept = 0 if on_disk else held
        found = {
            "moments": 2 * shapes.y_tile + MOMENTS * shapes.t * 8 + shapes.y_scratch,
            "Gram matrix of the targets": held + own.slabs,
            "eigenvectors of the targets": kept + 3 * square + (panel if on_disk else 0) + LAPACK_NBYTES,
            "coordinates of the targets": kept + square + taken,
        }
        return {name: WORKSPACE + 8 * shapes.t * 4 + work for name, work in found.items()}

    in_memory = phases(triangle, False)
    if max(in_memory.values()) <= free:
        return in_memory, True, triangle, 0
    beside = phases(0, True)["Gram matrix of the targets"]
    groups = pass_groups(order, e, max(free - beside, 0))
    pass_nbytes = max(sum(panel_nbytes(order, e, j) for j in group) for group in groups)
    on_disk = phases(pass_nbytes, True)
    if max(on_disk.values()) < max(in_memory.values()):
        return on_disk, False, pass_nbytes, triangle
    return in_memory, True, triangle, 0


def _training(shapes: NetworkShapes) -> int:
    """Weights, gradients, moments; two windows and a batch; validation rows; activations."""
    columns = shapes.inputs + shapes.outputs * (2 if shapes.skip else 1)
    window = min(max(shapes.settings.window // PANEL, 1) * PANEL, -(-shapes.n // PANEL) * PANEL)
    reading = 2 * window * columns * FLOAT + shapes.scratch + PANEL * shapes.inputs * FLOAT
    if shapes.full and shapes.repeats:  # a tile of targets, to gather rows from
        reading += PANEL * min(shapes.block, shapes.t) * FLOAT + shapes.y_tile + shapes.y_scratch
    batch = shapes.settings.batch_size * columns * FLOAT
    if not shapes.full:  # targets in another order, offsets and inputs on the network's scale
        batch += (1 + shapes.skip + shapes.from_ridge) * shapes.n * shapes.outputs * FLOAT
    validation = shapes.held_rows * columns * FLOAT
    taking = PANEL * max(shapes.inputs, shapes.outputs) * FLOAT
    if shapes.device != "cpu":
        return reading + batch + validation + taking + shapes.weights * FLOAT
    per_weight = ADAMW + (4 if shapes.settings.precision != "float32" else 0)
    activations = (
        shapes.settings.batch_size
        * FLOAT
        * (4 * shapes.inputs + (LAYERS * shapes.settings.blocks + 6) * shapes.settings.hidden + 6 * shapes.outputs)
    )
    stepping = shapes.weights * per_weight + activations
    return validation + batch + max(reading + stepping, taking + shapes.weights * FLOAT)


def _predicting(shapes: NetworkShapes, free: int) -> int:
    """The weights; a hat matrix of up to 1,024 test rows and, beside it, that of the ridge; a block of targets."""
    m, restandardized = min(shapes.m, TEST_ROWS), shapes.settings.restandardize != "none"
    rows = m + (shapes.held_rows if restandardized else 0)
    held = shapes.weights * FLOAT + PANEL * (shapes.inputs + 4 * shapes.settings.hidden) * FLOAT
    if shapes.full:
        features = rows * shapes.settings.hidden * FLOAT
        return held + features + 4 * rows * shapes.block * max(FLOAT, shapes.y_itemsize) + shapes.y_tile
    own = shapes.targets
    hats = 2 * rows * shapes.n * max(FLOAT, shapes.y_itemsize) + rows * shapes.outputs * FLOAT
    streaming = rows * shapes.block * shapes.y_itemsize + own.streaming
    if restandardized:
        streaming += 2 * PANEL * shapes.block * 8
    work = hats + streaming
    if shapes.skip:
        beside = hats + beside_ridge(shapes.n, min(m, TEST_ROWS))
        ridge = ridge_plan(shapes, free - WORKSPACE - held - beside).phases
        work = max(work + rows * shapes.n * shapes.ridge.itemsize, max(ridge.values()) + beside)
    return WORKSPACE + held + work


def beside_ridge(n: int, rows: int) -> int:
    """Bytes of a float32 hat matrix of some rows, which the ridge's plan does not count."""
    return rows * n * FLOAT
