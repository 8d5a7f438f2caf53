"""Models are found in folders and in Hugging Face's cache, and never fetched on the way."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
constants = pytest.importorskip("huggingface_hub.constants")

from safetensors.torch import save_file  # noqa: E402

from leanrecon.errors import InputError  # noqa: E402
from leanrecon.weights.folders import Weights, arithmetic, find_model, part_of, present_name, read_config  # noqa: E402

COMMIT = "0" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Hugging Face's cache, empty, and no network that could fill it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("looking for a model asks no network"))
    return tmp_path / "hub"


def test_a_path_is_taken_as_it_is(cache, tmp_path, monkeypatch):
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "model").write_text("")
    monkeypatch.chdir(tmp_path)
    assert find_model("some/model", "refine.base").is_file()
    assert find_model(str(tmp_path / "some"), "refine.base") == tmp_path / "some"


def test_a_name_is_found_in_the_cache(cache):
    kept = cache / "models--some--model"
    (kept / "snapshots" / COMMIT).mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(COMMIT)
    assert find_model("some/model", "refine.base") == kept / "snapshots" / COMMIT


@pytest.mark.parametrize("name", ["some/model", "gpt2", "/nowhere/at/all", "a/b/c", "-", "a--b/c"])
def test_what_is_nowhere_is_refused_with_the_command_that_fetches_it(name, cache):
    with pytest.raises(InputError) as error:
        find_model(name, "refine.base")
    assert f"there is no folder {name}" in str(error.value)
    assert "leanrecon fetch-weights RECIPE" in str(error.value)
    assert "set refine.base" in str(error.value)


def test_the_first_part_that_is_there_is_taken(tmp_path):
    (tmp_path / "vae").mkdir()
    with pytest.raises(InputError, match=r"has no vae/config\.json or config\.json. Expected the folder of a model"):
        part_of(tmp_path, ("vae", "."), "config.json", "a model")
    (tmp_path / "config.json").write_text("{}")
    assert part_of(tmp_path, ("vae", "."), "config.json", "a model") == tmp_path
    (tmp_path / "vae" / "config.json").write_text("{}")
    assert part_of(tmp_path, ("vae", "."), "config.json", "a model") == tmp_path / "vae"


@pytest.mark.parametrize("content", ["", "[]", "{", "\udcff", "3"])
def test_a_config_that_is_none_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"config\.json (can't be read|does not hold the config of a model)"):
        read_config(tmp_path / "config.json")
    with pytest.raises(InputError, match="can't be read"):
        read_config(tmp_path / "none.json")


def test_what_decides_results_is_told_from_names():
    config = {"_class_name": "A", "_name_or_path": "/x", "architectures": ["A"], "torch_dtype": "float16", "width": 4}
    assert arithmetic(config) == {"width": 4}


def test_weights_are_found_whole_in_shards_or_in_half_precision(tmp_path):
    def entries():
        return {name: entry.file.name for name, entry in Weights.of(tmp_path).entries.items()}

    with pytest.raises(InputError, match="has no weights"):
        entries()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"in pytorch_model\.bin only, .* no file that can run code"):
        entries()
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "model.fp16.safetensors")
    assert entries() == dict.fromkeys("ab", "model.fp16.safetensors")
    for name in "ab":
        save_file({name: torch.ones(2)}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in "ab"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert entries() == {name: f"{name}.safetensors" for name in "ab"}
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks b\.safetensors"):
        entries()
    save_file({"a": torch.ones(2), "c": torch.ones(3)}, tmp_path / "model.safetensors")
    assert entries() == dict.fromkeys("ac", "model.safetensors")


def test_weights_are_renamed_left_out_and_measured(tmp_path):
    save_file({"x.a": torch.ones(20), "x.b": torch.ones(5), "y": torch.ones(7)}, tmp_path / "model.safetensors")
    weights = Weights.of(tmp_path, lambda name: None if name == "y" else name.replace("x.", "z."))
    assert sorted(weights.entries) == ["z.a", "z.b"]
    assert weights.named(("z.",)) == list(weights.entries)
    assert weights.nbytes(("z.",), "float32") == 128 + 64
    assert weights.nbytes(("z.a",), "float16") == 64
    assert weights.loading_nbytes(("z.",), "float32", "cpu") == 192
    assert weights.loading_nbytes(("z.",), "float16", "cpu") == 128 + 80
    assert weights.loading_nbytes(("z.",), "float16", "cuda") == 160


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("encoder.mid_block.attentions.0.query.weight", "encoder.mid_block.attentions.0.to_q.weight"),
        ("decoder.mid_block.attentions.0.proj_attn.bias", "decoder.mid_block.attentions.0.to_out.0.bias"),
        ("down_blocks.0.attentions.1.proj_in.weight", None),
        ("text_model.key.weight", None),
    ],
)
def test_old_names_of_attention_are_brought_up_to_date(old, new):
    assert present_name(old) == (new or old)
