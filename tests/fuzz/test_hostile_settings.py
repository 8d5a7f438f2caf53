"""Settings of any content: whatever is written in a file, an override or a size is settings or one SettingsError."""

import random
import sys
import time
from pathlib import Path

import pytest
from fuzz.mutations import mutated

from leanrecon.errors import LeanreconError, SettingsError, plain
from leanrecon.memory import parse_budget, parse_bytes
from leanrecon.study.recipes import read_settings, read_tables

SEED = 5
SECONDS = 6.0

SETTINGS = """
memory = "1GB"
seed = 3
[dataset]
kind = "arrays"
betas = "b.npy"
stimuli = "i.npy"
test_fraction = 0.3
[areas]
V1V2 = ["V1", "V2"]
[features.pca]
components = 4
[features.pixels]
[regression]
alpha = 10
[evaluate]
resamples = 100
"""

HOSTILE = (
    *("{}", "[]", "[1]", "''", "nan", "-inf", "1e400", "true", "2020-01-01", "'\\u0000'", "{a.b=1}", "~nobody_here/x"),
    *(
        "9" * 5000,
        "9" * 400,
        "-" + "9" * 30,
        "[" * 5000,
        "{a=" * 3000,
        "x" * 300,
        "x/" * 3000,
        "..",
        "/",
        "\ud800",
        "\0",
    ),
    *("\x1b]0;title\x07", "a\nb = 1", "1\nb = 2", "'''", "#", "=", ".", "a.b.c=1", "https://me:token@host/x"),
    "s3://key:secret@bucket/x?X-Amz-Signature=deadbeef",
)

pytestmark = pytest.mark.slow


def read(path: Path, overrides: list[str]) -> None:
    """Read settings; anything but a LeanreconError passes on, and its message must be fit for a terminal."""
    try:
        read_settings(path, overrides)
    except LeanreconError as error:
        said = str(error)
        assert said.isprintable(), repr(said)
        assert len(said) < 4000
        assert "token" not in said.partition("a token or a")[0]
        assert "secret" not in said


def test_mutated_settings_files_give_settings_or_one_of_our_errors(tmp_path: Path) -> None:
    path, random_ = tmp_path / "s.toml", random.Random(SEED)
    path.write_text(SETTINGS)
    read_settings(path)  # the seed itself is sound
    done, until = 0, time.monotonic() + SECONDS
    while time.monotonic() < until:
        path.write_bytes(mutated(SETTINGS.encode(), ".toml", random_))
        try:
            read(path, [])
        except BaseException:
            print(f"seed {SEED}, file {done}: {path.read_bytes()!r}")
            raise
        done += 1
    assert done > SECONDS, "at least one file a second"


def test_hostile_overrides_give_settings_or_one_of_our_errors(tmp_path: Path) -> None:
    path, random_ = tmp_path / "s.toml", random.Random(SEED)
    path.write_text(SETTINGS)
    keys = ("memory", "seed", "dataset", "dataset.kind", "dataset.betas", "dataset.test_fraction", "areas", "areas.x")
    keys += (
        "features",
        "features.pca",
        "features.pca.kind",
        "features.pca.components",
        "regression",
        "regression.kind",
    )
    keys += (
        "regression.pca",
        "regression.pca.kind",
        "regression.alpha",
        "stage1.size",
        "stage1.space",
        "refine",
        "stores",
    )
    keys += ("refine.kind", "decode", "decode.kind", "judges", "judges.x.kind", "stores.chunk", "evaluate.resamples")
    every = [f"{key}={value}" for key in keys for value in HOSTILE] + [*HOSTILE, "." * 5000 + "=1", "a." * 5000 + "b=1"]
    random_.shuffle(every)
    until = time.monotonic() + SECONDS
    for done, override in enumerate(every):
        if time.monotonic() > until and done > 100:
            break
        try:
            read(path, [override])
        except BaseException:
            print(f"override {override[:200]!r}")
            raise


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_size_is_refused(value: str) -> None:
    for parse in (parse_bytes, parse_budget):
        with pytest.raises(SettingsError):
            parse(value)
    with pytest.raises(SettingsError):
        parse_bytes(value + "GB")


@pytest.mark.parametrize("value", ["4", "1", "0", "999kB", 12])
def test_a_budget_without_its_unit_is_refused(value: str | int) -> None:
    with pytest.raises(SettingsError, match="too little for any study"):
        parse_budget(value)


@pytest.mark.parametrize("nested", ["list", "dict"])
def test_tables_that_are_nested_too_deeply_are_refused(nested: str) -> None:
    value: object = 1
    for _ in range(3 * sys.getrecursionlimit()):
        value = [value] if nested == "list" else {"a": value}
    with pytest.raises(SettingsError, match="nested too deeply"):
        read_tables({"dataset": {"kind": "arrays", "betas": value}}, Path.cwd())


def test_names_that_no_file_can_have_are_no_settings_file() -> None:
    for name in ("x" * 5000, "a\0b", "/" + "y/" * 5000, "\ud800", "\x1b[31m"):
        with pytest.raises(SettingsError, match="neither a settings file nor a recipe") as error:
            read_settings(name)
        assert str(error.value).isprintable()


def test_a_byte_order_mark_is_no_part_of_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_bytes(b"\xef\xbb\xbf" + SETTINGS.encode())
    assert read_settings(path)[0] == read_settings_of(tmp_path / "plain.toml")


def read_settings_of(path: Path) -> object:
    path.write_text(SETTINGS)
    return read_settings(path)[0]


def test_an_endpoint_with_a_token_is_refused_and_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('[dataset]\nkind = "nsd"\nroot = "s3://b"\nendpoint_url = "https://me:hush@host"\n')
    with pytest.raises(SettingsError, match=r"dataset\.endpoint_url is a URL with a user, a token") as error:
        read_settings(path)
    assert "hush" not in str(error.value)


def test_control_characters_and_credentials_are_left_out_of_every_message() -> None:
    said = plain("\x1b]0;x\x07 a\r\nb \u202e \x9b31m https://me:hush@host/x?Signature=hush s3://k:hush@b")
    assert said.isprintable()
    assert "hush" not in said
    assert r"\x1b]0;x\x07 a\x0d\x0ab" in said
