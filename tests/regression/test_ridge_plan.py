"""The plan of a ridge: tables of cases worked out by hand, and what holds for every shape and budget."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanrecon.regression.ridge.limits import TEST_ROWS, WARM, WORKSPACE
from leanrecon.regression.ridge.plan import Shapes, plan_fit, plan_per_target, plan_predict, plan_stream, plan_weights
from leanrecon.regression.ridge.triangle import DEPTH, panel_nbytes, triangle_nbytes

GB = 10**9
NSD = Shapes(n=8859, p=15_724, m=982, t=91_168, block=7808, x_tile=8_100_000, y_tile=8_000_000, scratch=8_100_000)
MANY_ROWS = Shapes(n=30_000, p=2000, m=50, t=5000, block=1000, x_tile=2_048_000, y_tile=1_024_000)


@pytest.mark.parametrize(
    ("shapes", "dual", "order", "itemsize"),
    [
        (NSD, True, 8859, 4),
        (MANY_ROWS, False, 2000, 8),
        (Shapes(3072, 3072, 1, 1, 1), True, 3072, 8),
        (Shapes(3073, 3073, 1, 1, 1), True, 3073, 4),
        (Shapes(3074, 3073, 1, 1, 1), False, 3073, 4),
    ],
)
def test_the_smaller_gram_matrix_is_factored_in_float64_up_to_order_3072(shapes, dual, order, itemsize):
    assert (shapes.dual, shapes.order, shapes.itemsize) == (dual, order, itemsize)


@pytest.mark.parametrize(
    ("n", "p", "m", "restandardized", "through_hat"),
    [
        (100, 200, 10**6, False, True),  # dual: always
        (10_000, 1000, 1000, False, True),  # 10⁷ against 1.2·10⁷
        (10_000, 1000, 1300, False, False),  # 1.3·10⁷ against 1.23·10⁷
        (10_000, 1000, 1300, True, True),  # the moments go with the hat matrix
    ],
)
def test_predictions_go_the_way_of_less_arithmetic(n, p, m, restandardized, through_hat):
    assert Shapes(n, p, m, 1, 1, restandardized=restandardized).through_hat == through_hat


def test_the_nsd_ridge_in_memory():
    planned = plan_fit(NSD, GB, known=True)
    triangle = 4 * (1024 * (8 * 8859 - 1024 * 28) + 667**2)
    assert (planned.in_memory, planned.pass_nbytes, planned.triangle) == (True, triangle, triangle)
    slabs = 2 * 512 * 8859 * 4 + 8_100_000  # two panels of 512 voxels, and what reading takes
    cross = 982 * 8859 * 4
    assert planned.phases["gram"] == WORKSPACE + triangle + slabs + cross + 2 * 982 * 512 * 4
    assert planned.phases["factor"] == WORKSPACE + cross + triangle
    assert planned.phases["predictions"] < 120_000_000  # the kernel is gone
    assert planned.work == planned.phases["gram"] < 310_000_000  # 288 MB measured by the first experiments


def test_the_nsd_ridge_without_room_for_the_kernel():
    planned = plan_fit(NSD, 180_000_000, known=True)
    assert not planned.in_memory
    assert planned.work <= 180_000_000
    assert planned.pass_nbytes >= panel_nbytes(8859, 4)
    assert planned.phases["factor"] == WORKSPACE + 982 * 8859 * 4 + 3 * panel_nbytes(8859, 4)


@pytest.mark.parametrize("megabytes", [0, 1, 100, 140])
def test_where_nothing_fits_the_least_is_named(megabytes):
    planned = plan_fit(NSD, megabytes * 1_000_000, known=True)
    assert planned.work > megabytes * 1_000_000
    again = plan_fit(NSD, planned.work, known=True)
    assert again.work == planned.work  # and that is enough


def test_test_betas_that_are_known_save_memory():
    free = 10 * GB
    for shapes in (NSD, MANY_ROWS):
        assert plan_fit(shapes, free, known=True).work <= plan_fit(shapes, free).work
    late = plan_fit(NSD, free).phases["predictions"] - plan_fit(NSD, free, known=True).phases["predictions"]
    assert late == triangle_nbytes(8859, 4)


def test_leave_one_out_needs_the_square_three_times():
    planned = plan_fit(NSD, 10 * GB, loo=True, alphas=65)
    assert (
        planned.phases["eigenvectors"] >= 3 * 8859**2 * 4
    )  # 1.08 GB measured by the first experiments, with the triangle
    assert plan_fit(NSD, 10 * GB).work < planned.work < 1.3 * GB


def test_a_search_for_alpha_holds_a_factor_beside_the_kernel():
    planned = plan_fit(NSD, 10 * GB, known=True, loo=True)
    triangle = triangle_nbytes(8859, 4)
    assert planned.searched
    assert planned.in_memory
    assert 2 * triangle + 982 * 8859 * 4 < planned.phases["search"] < 560_000_000
    assert planned.scratch == triangle
    small = plan_fit(NSD, 300_000_000, known=True, loo=True)
    assert (small.in_memory, small.searched, small.scratch) == (False, True, 3 * triangle)
    assert small.work <= 300_000_000
    assert not plan_fit(replace(NSD, n=1250), 10 * GB, loo=True).searched
    assert not plan_fit(MANY_ROWS, 10 * GB, loo=True).searched


def test_an_alpha_for_every_target_counts_its_grid():
    few, many = (plan_fit(NSD, 10 * GB, loo=True, per_target=True, alphas=k).phases["leave one out"] for k in (10, 110))
    assert many - few == 100 * (8 * 91_168 + 4 * 8859)


@pytest.mark.parametrize(
    ("m", "free", "together", "count"),
    [
        (500, 10 * GB, False, 1),
        (1024, 10 * GB, False, 1),
        (1025, 10 * GB, False, 2),
        (10_000, 10 * GB, False, 10),
        (10_000, 0, False, 1),  # the least, refused by the budget
        (10_000, 0, True, 10),
        (0, 10 * GB, False, 1),
    ],
)
def test_panels_of_test_rows_share_a_pass_over_the_targets(m, free, together, count):
    shapes = Shapes(8859, 15_724, m, 91_168, 7808)
    assert plan_predict(shapes, free, on_disk=False, together=together)[0] == count


TRIALS = replace(NSD, n=27_000, m=1000, s=9000, largest=3)


def test_single_trials_hold_a_column_of_the_hat_matrix_for_each_image():
    folded, rows = (plan_fit(shapes, 10 * GB, known=True) for shapes in (TRIALS, replace(TRIALS, s=None, largest=1)))
    assert rows.phases["predictions"] - folded.phases["predictions"] == 1000 * (27_000 - 9000) * 4
    assert folded.work == folded.phases["hat matrix"] < rows.work
    shuffled = plan_fit(replace(TRIALS, shuffled=True), 10 * GB, known=True)
    assert shuffled.phases["predictions"] == rows.phases["predictions"] + 1000 * 9000 * 4  # folded anew each time


def test_leaving_images_out_of_single_trials_fits_where_the_eigenvectors_did():
    planned = plan_fit(TRIALS, 10 * GB, known=True, loo=True)
    assert planned.phases["leave one out"] < planned.phases["eigenvectors"]
    assert planned.phases["eigenvectors"] >= 3 * 15_724**2 * 4


# What holds for all of them

SHAPES = st.builds(
    Shapes,
    n=st.integers(1, 40_000),
    p=st.integers(1, 40_000),
    m=st.integers(0, 5000),
    t=st.integers(1, 400_000),
    block=st.integers(1, 8192),
    x_tile=st.integers(0, 10**7),
    y_tile=st.integers(0, 10**7),
    scratch=st.integers(0, 10**7),
    y_scratch=st.integers(0, 10**7),
    y_itemsize=st.sampled_from([4, 8]),
    restandardized=st.booleans(),
    shuffled=st.booleans(),
    s=st.none() | st.integers(1, 40_000),
    largest=st.integers(1, 5),
)
FREE = st.integers(0, 4 * GB)
OPTIONS = st.fixed_dictionaries(
    {
        "known": st.booleans(),
        "loo": st.booleans(),
        "per_target": st.booleans(),
        "extra_rows": st.sampled_from([0, 1000]),
    }
).map(lambda options: options | {"per_target": options["per_target"] and options["loo"]})


def passes(planned):
    """How often the betas are read to form the Gram matrix: an upper bound."""
    return 1 if planned.in_memory else -(-planned.triangle // max(planned.pass_nbytes, 1))


@given(shapes=SHAPES, free=FREE, options=OPTIONS)
def test_a_plan_fits_or_is_the_least(shapes, free, options):
    planned = plan_fit(shapes, free, **options)
    assert all(work >= WORKSPACE for work in planned.phases.values())
    assert planned.work <= free or planned.work <= plan_fit(shapes, 0, **options).work
    assert plan_fit(shapes, planned.work, **options).work <= planned.work
    if planned.in_memory:
        assert planned.pass_nbytes == planned.triangle
    else:
        assert panel_nbytes(shapes.order, shapes.itemsize) <= planned.pass_nbytes <= planned.triangle


@given(shapes=SHAPES, free=FREE, more=FREE, options=OPTIONS)
def test_more_memory_never_takes_more_passes(shapes, free, more, options):
    less, much = plan_fit(shapes, free, **options), plan_fit(shapes, free + more, **options)
    if less.work <= free:
        assert passes(much) <= passes(less)
        assert much.in_memory or not less.in_memory


@given(shapes=SHAPES, free=FREE, options=OPTIONS)
def test_the_triangle_is_held_where_it_lies_in_memory(shapes, free, options):
    planned = plan_fit(shapes, free, **options)
    assert planned.phases["gram"] >= planned.pass_nbytes + 2 * min(DEPTH, max(shapes.n, shapes.p)) * shapes.order
    if planned.in_memory and not options["per_target"]:
        assert planned.phases["factor"] >= planned.triangle


@given(shapes=SHAPES, free=FREE, more=FREE, on_disk=st.booleans(), extra=st.sampled_from([0, 1000]))
def test_more_memory_never_takes_more_passes_over_the_targets(shapes, free, more, on_disk, extra):
    count, work = plan_predict(shapes, free, on_disk=on_disk, extra_rows=extra)
    assert work > WARM
    assert work <= free or count == 1
    assert plan_predict(shapes, free + more, on_disk=on_disk, extra_rows=extra)[0] >= count
    assert 1 <= count <= max(-(-shapes.m // TEST_ROWS), 1)
    if shapes.m:
        assert plan_predict(shapes, free, on_disk=on_disk, extra_rows=extra, together=True)[0] == -(
            -shapes.m // TEST_ROWS
        )


@given(shapes=SHAPES, free=FREE, options=OPTIONS)
def test_what_fits_at_fit_fits_when_predicting(shapes, free, options):
    """Test rows of one panel were planned for: a fit that took its 16 MB of workspace leaves room for them."""
    known = options["known"] and shapes.m <= TEST_ROWS and shapes.through_hat and not options["per_target"]
    planned = plan_fit(shapes, free, **options)
    if shapes.m > TEST_ROWS or shapes.m == 0:
        return
    held = WORKSPACE - WARM
    rows = shapes.m + options["extra_rows"]
    if options["per_target"]:
        later = held + shapes.order**2 * shapes.itemsize + plan_per_target(shapes)
    elif known:
        columns = shapes.n if shapes.shuffled else shapes.width  # folded by image, unless rows are to be shuffled
        later = held + rows * columns * shapes.itemsize + plan_stream(shapes, rows)
    else:
        kept = planned.triangle if planned.in_memory else 0
        on_disk = not planned.in_memory
        later = held + kept + plan_predict(shapes, free, on_disk=on_disk, extra_rows=options["extra_rows"])[1]
    assert later <= planned.work


@given(shapes=SHAPES, on_disk=st.booleans())
def test_weights_hold_a_block_of_them(shapes, on_disk):
    work = plan_weights(shapes, on_disk=on_disk)
    targets = shapes.n if shapes.dual else shapes.width  # of each row, or of each image
    assert work >= WARM + min(shapes.t, 512) * (targets + shapes.p) * shapes.itemsize
