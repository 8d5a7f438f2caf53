import pickle
import re

import pytest

from leanrecon import errors
from leanrecon.errors import BudgetError, InputError, LeanreconError, NetworkError, SettingsError, StoreError

KINDS = [LeanreconError, InputError, SettingsError, BudgetError, StoreError, NetworkError]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "betas.npy holds 3 rows."),
        ({"expected": "one a stimulus"}, "betas.npy holds 3 rows. Expected one a stimulus."),
        ({"todo": "use --overwrite"}, "betas.npy holds 3 rows. Use --overwrite."),
        (
            {"expected": "one a stimulus", "todo": "leave some out"},
            "betas.npy holds 3 rows. Expected one a stimulus. Leave some out.",
        ),
        ({"expected": "one a stimulus.", "todo": "Leave."}, "betas.npy holds 3 rows. Expected one a stimulus. Leave."),
    ],
)
def test_an_error_says_what_was_found_expected_and_to_do(kind, arguments, text):
    error = kind("betas.npy holds 3 rows", **arguments)
    assert str(error) == text
    assert (error.found, error.expected) == ("betas.npy holds 3 rows", arguments.get("expected"))


@pytest.mark.parametrize("kind", KINDS)
def test_errors_cross_processes_whole(kind):
    error = pickle.loads(pickle.dumps(kind("found", expected="expected", todo="do this")))
    assert type(error) is kind
    assert (error.found, error.expected, error.todo) == ("found", "expected", "do this")
    assert str(error) == "found. Expected expected. Do this."


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [(InputError, ValueError), (SettingsError, ValueError), (BudgetError, MemoryError), (StoreError, OSError)],
)
def test_each_error_is_caught_as_the_builtin_that_it_resembles(kind, builtin):
    with pytest.raises(builtin, match="found"):
        raise kind("found")


def test_every_error_of_the_package_is_one_kind():
    defined = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert all(issubclass(kind, LeanreconError | errors.LeanreconWarning) for kind in defined)


def test_a_sentence_keeps_its_capitals_and_quotes():
    assert re.fullmatch(r'x\. Set alpha = "loo"\.', str(SettingsError("x", todo='set alpha = "loo"')))
