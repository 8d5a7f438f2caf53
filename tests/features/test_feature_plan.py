import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanrecon.features.pca import fit_batches
from leanrecon.features.plan import SLACK, Cost, plan_decode, plan_extract

FREE = Cost(held=0, per_image=0, batch=64)


@pytest.mark.parametrize(
    ("cost", "free", "batch", "expected"),
    [
        (FREE, 10**9, None, 64),  # the batch the space likes best
        (FREE, 10**9, 7, 7),  # what was asked for, or recorded
        (FREE, 10**9, 1000, 256),  # never more than a group of rows
        (FREE, SLACK + 8192 + 300 * 100 + 3 * 256 * 40 + 10 * 280, None, 10),  # as many as fit
        (FREE, 0, None, 1),  # the least, refused by the budget
        (Cost(held=10**9, per_image=0, batch=64), 10**9, None, 1),
        (Cost(held=0, per_image=10**8, batch=64), 10**9, None, 9),
        (Cost(held=0, per_image=10**8, batch=64), 0, 32, 32),  # a recorded batch is never made smaller
    ],
)
def test_batch_of_an_extraction(cost, free, batch, expected):
    # 1000 images of 100 bytes in chunks of 300, to rows of 10 numbers in chunks of 256: 280 bytes an image
    plan = plan_extract((1000, 10, 10, 1), 300, (256, 10), 10, cost, free=free, batch=batch)
    assert plan.batch == expected


def test_the_batch_of_a_small_store_is_no_larger_than_the_store():
    assert plan_extract((3, 10, 10, 1), 256, (256, 10), 10, FREE, free=10**9).batch == 3
    assert plan_decode((256, 10), 3, 10, (10, 10, 1), FREE, free=10**9).batch == 3


@given(
    image=st.tuples(*[st.integers(1, 512)] * 2, st.sampled_from([1, 3])),
    rows=st.integers(1, 10_000),
    chunk_rows=st.sampled_from([1, 8, 256]),
    dims=st.integers(1, 400_000),
    cost=st.builds(Cost, held=st.integers(0, 10**9), per_image=st.integers(0, 10**8), batch=st.integers(1, 512)),
    free=st.integers(0, 10**10),
)
def test_a_plan_fits_or_takes_one_image_at_a_time(image, rows, chunk_rows, dims, cost, free):
    chunks = (256, min(dims, 8192))
    for plan, largest in (
        (plan_extract((rows, *image), chunk_rows, chunks, dims, cost, free=free), cost.batch),
        (plan_decode(chunks, rows, dims, image, cost, free=free), cost.batch),
    ):
        assert 1 <= plan.batch <= min(largest, 256, rows)
        assert plan.work <= free or plan.batch == 1


@given(n=st.integers(1, 20_000), components=st.integers(1, 2000))
def test_every_image_is_learned_from_once_and_no_batch_is_too_short(n, components):
    components = min(components, n)
    batches = fit_batches(n, components)
    assert [row for batch in batches for row in batch] == list(range(n))
    assert all(len(batch) >= components for batch in batches)
    assert max(map(len, batches)) < max(256, components) + components or len(batches) == 1
