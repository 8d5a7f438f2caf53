"""The registry of kinds: built-in ones, those of other packages, and what is said of those that can't be used."""

import sys
import types
from importlib.metadata import EntryPoint
from typing import Literal

import pytest
from pydantic import BaseModel

from leanrecon import kinds
from leanrecon.app.kinds import first_sentence
from leanrecon.errors import SettingsError
from leanrecon.features.space import FixedSpace


class BlurSettings(BaseModel):
    kind: Literal["blur"] = "blur"
    radius: int = 2


class Blur(FixedSpace):
    """A feature space of another package."""

    Settings = BlurSettings
    dims = cost = encode = made_of = None


class Untold(Blur):
    Settings = BlurSettings


class Half:
    Settings = BlurSettings
    dims = None


class Unset:
    dims = cost = encode = made_of = None


@pytest.fixture
def installed(monkeypatch):
    """Registers entry points as installed distributions do."""
    module = types.ModuleType("another_package")
    module.Blur, module.Half, module.Unset, module.Untold = Blur, Half, Unset, Untold
    monkeypatch.setitem(sys.modules, "another_package", module)
    points: dict[str, list[EntryPoint]] = {}

    def entry_points(*, group):
        return points.get(group, [])

    def install(group: str, distribution: str, **targets: str) -> None:
        dist = types.SimpleNamespace(name=distribution)
        points.setdefault(f"leanrecon.{group}", []).extend(
            EntryPoint(name.replace("_", "-"), target, f"leanrecon.{group}")._for(dist)
            for name, target in targets.items()
        )
        kinds._third_party.cache_clear()
        kinds._load.cache_clear()

    monkeypatch.setattr(kinds, "entry_points", entry_points)
    kinds._third_party.cache_clear()
    yield install
    kinds._third_party.cache_clear()
    kinds._load.cache_clear()


@pytest.mark.parametrize("group", kinds.GROUPS)
def test_every_built_in_kind_has_its_protocol_and_sentences_for_its_settings(group):
    for name in kinds.BUILT_IN[group]:
        kind = kinds.get(group, name)
        assert kind.__doc__, f"{group} {name} has no docstring"
        assert kind.Settings.model_fields["kind"].default == name
        bare = [key for key, field in kind.Settings.model_fields.items() if key != "kind" and not field.description]
        assert not bare, f"{group} {name}: settings without a sentence: {bare}"
    assert kinds.broken(group) == []


def test_a_kind_of_another_package_is_found_by_name(installed):
    installed("features", "blurry", blur="another_package:Blur")
    assert kinds.get("features", "blur") is Blur
    assert "blur" in kinds.names("features")
    assert kinds.entries("features")["blur"].provider == "blurry"
    settings = kinds.settings_of("features", {"radius": 5}, "features.blur.", default="blur")
    assert settings == BlurSettings(radius=5)
    assert kinds.kind_of("features", settings) is Blur


def test_a_taken_name_stays_with_the_built_in_kind(installed):
    before = kinds.get("features", "pca")
    installed("features", "greedy", pca="another_package:Blur", blur="another_package:Blur")
    assert kinds.get("features", "pca") is before
    assert kinds.get("features", "blur") is Blur
    (sentence,) = kinds.clashes("features")
    assert "greedy" in sentence
    assert "'pca'" in sentence


def test_two_packages_of_one_name_do_not_hide_that(installed):
    installed("features", "a-first", blur="another_package:Blur")
    installed("features", "b-second", blur="another_package:Blur")
    assert kinds.entries("features")["blur"].provider == "a-first"
    (sentence,) = kinds.clashes("features")
    assert "b-second" in sentence
    assert "a-first" in sentence


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("no_such_package:Blur", ["ModuleNotFoundError", "no_such_package"]),
        ("another_package:Missing", ["AttributeError", "Missing"]),
        ("another_package:Half", ["lacks cost, encode, made_of"]),
        ("another_package:Unset", ["lacks Settings"]),
    ],
)
def test_a_kind_that_cant_be_used_is_named_with_its_distribution(installed, target, words):
    installed("features", "half-done", blur=target)
    with pytest.raises(SettingsError) as caught:
        kinds.get("features", "blur")
    for word in ("half-done", "'blur'", *words):
        assert word in str(caught.value)
    assert kinds.get("features", "pca")  # the rest keeps working
    assert any("half-done" in sentence for sentence in kinds.broken("features"))


def test_a_kind_whose_settings_bear_another_name_is_refused(installed):
    installed("features", "renamed", blurry="another_package:Blur")
    with pytest.raises(SettingsError, match="'blurry' of the distribution renamed has Settings.kind = 'blur'.*equal"):
        kinds.get("features", "blurry")
    assert any("blurry" in sentence for sentence in kinds.broken("features"))


def test_a_kind_is_described_by_its_own_words(installed):
    assert first_sentence(Blur) == "A feature space of another package."
    assert first_sentence(Untold) == ""


def lacking(group: str, *parts: str) -> type:
    """A kind that has all parts that its group asks for but these."""
    every = {*kinds.REQUIRED[group], *kinds.WHEN_MADE.get(group, ())} - {*parts}
    return type("Kind", (), dict.fromkeys(every) | {"Settings": BlurSettings, "__init__": lambda self, settings: None})


@pytest.mark.parametrize(("group", "part"), [(group, part) for group, of in kinds.REQUIRED.items() for part in of])
def test_each_part_that_a_kind_lacks_is_named(installed, group, part):
    sys.modules["another_package"].Half = lacking(group, part)
    installed(group, "half-done", blur="another_package:Half")
    with pytest.raises(SettingsError, match=f"'blur' of the distribution half-done lacks {part}. Expected"):
        kinds.get(group, "blur")


@pytest.mark.parametrize(("group", "part"), [(group, part) for group, of in kinds.WHEN_MADE.items() for part in of])
def test_a_part_may_come_with_the_settings_and_is_missed_once_the_kind_is_made(installed, group, part):
    kind = sys.modules["another_package"].Half = lacking(group, part)
    installed(group, "half-done", blur="another_package:Half")
    with pytest.raises(SettingsError, match=f"'blur' of the distribution half-done lacks {part}. Expected"):
        kinds.made(group, BlurSettings())
    kind.__init__ = lambda self, settings: setattr(self, part, settings.radius)
    assert getattr(kinds.made(group, BlurSettings()), part) == 2


def test_an_unknown_name_is_refused_with_the_nearest(installed, monkeypatch):
    with pytest.raises(SettingsError, match=r"did you mean pca\?"):
        kinds.get("features", "pcaa")
    monkeypatch.setitem(kinds.BUILT_IN, "decoders", {})
    with pytest.raises(SettingsError, match="none is installed"):
        kinds.get("decoders", "gan")
    for kind in ({}, [], 3, None, "x" * 10_000):
        with pytest.raises(SettingsError) as caught:
            kinds.settings_of("features", {"kind": kind}, "features.a.", default="pca")
        assert str(caught.value).startswith("features.a.kind = ")
        assert len(str(caught.value)) < 300


def test_a_table_without_a_kind_says_how_to_give_one():
    with pytest.raises(SettingsError, match=r"Give \[features.mine\] a kind"):
        kinds.settings_of("features", {}, "features.mine.", default="mine")
