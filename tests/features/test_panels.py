import numpy as np
import pytest

from leanrecon.devices import STATES_NBYTES, together_on_cpu
from leanrecon.features.panels import PANEL, panels

CASES = [
    ([0, 1, 2, 3], 4, [(0, [0, 1, 2, 3])]),
    ([2, 3, 4], 4, [(0, [2, 3]), (4, [0])]),
    ([9, 8, 8, 11], 4, [(8, [1]), (8, [0]), (8, [0, 3])]),  # in any order, and twice
    ([7, 5], 1, [(7, [0]), (5, [0])]),
    ([], 4, []),
]


@pytest.mark.parametrize(("rows", "size", "expected"), CASES)
def test_a_row_lies_at_its_number_modulo_the_size(rows, size, expected):
    found = list(panels(rows, size))
    assert [(panel.rows[0], panel.places.tolist()) for panel in found] == expected
    assert all(panel.rows.tolist() == list(range(panel.rows[0], panel.rows[0] + size)) for panel in found)
    every = np.arange(1, len(rows) + 1)
    for panel in found:
        filled = panel.filled(every)
        assert filled[panel.places].tolist() == every[panel.asked].tolist()
        assert filled.sum() == every[panel.asked].sum()
    assert [k for panel in found for k in every[panel.asked].tolist()] == every.tolist()


def test_rows_with_large_states_go_alone():
    assert together_on_cpu(STATES_NBYTES // PANEL, PANEL) == PANEL
    assert together_on_cpu(STATES_NBYTES // PANEL + 1, PANEL) == 1
