"""What settings name is brought here: shown beforehand, checked, and only what is needed."""

import hashlib
import json
import shutil
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
constants = pytest.importorskip("huggingface_hub.constants")

from safetensors.torch import load_file, save_file  # noqa: E402
from support.damage import flipped  # noqa: E402
from support.hub_server import LARGE  # noqa: E402

from leanrecon.errors import InputError, NetworkError, StoreError  # noqa: E402
from leanrecon.net import download, retry  # noqa: E402
from leanrecon.weights import published  # noqa: E402
from leanrecon.weights.fetch import RECORD, fetch_all  # noqa: E402
from leanrecon.weights.folders import find_model  # noqa: E402
from leanrecon.weights.needs import Need, is_published, where  # noqa: E402
from leanrecon.weights.pieces import Piece  # noqa: E402
from leanrecon.weights.published import FILES, Address  # noqa: E402

BASE = Need(
    "refine.base",
    "tiny/base",
    (Piece("network", ("unet",)), Piece("network", ("vae",)), Piece("scheduler", ("scheduler",))),
)
TEXT = Need(
    "features.clip.model",
    "tiny/base",
    (Piece("network", ("text_encoder", ".")), Piece("tokenizer", ("tokenizer", "."))),
)
NEEDED = {
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
}
PICKLED = {"model": "pytorch_model", "diffusion_pytorch_model": "diffusion_pytorch_model"}
VDVAE = Need("features.vdvae.checkpoint", "model.th")
BYTES = np.random.default_rng(0).bytes(300_000)


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The server as the hub, and empty caches."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("LEANRECON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(FILES, "model.th", Address(f"{server.url}/assets/model.th"))
    monkeypatch.setitem(FILES, "captions.npy", Address(dataset="some/captions"))
    return server


@pytest.fixture
def base(tmp_path):
    """A model with more files than anyone needs; its unet in two precisions, its vae in one."""
    folder = tmp_path / "published"
    tensors = {"a": torch.randn(200, 20), "b": torch.randn(30)}
    for name, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps({"of": name}))
        save_file(tensors, folder / name / f"{stem}.safetensors")
        torch.save(tensors, folder / name / f"{PICKLED[stem]}.bin")
    half = {name: value.half() for name, value in tensors.items()}
    save_file(half, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    (folder / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).write_text(name)
    (folder / "v1-5-pruned.ckpt").write_bytes(BYTES)
    (folder / "README.md").write_text("a model")
    return folder


def contents(folder, names):
    return {name: (folder / name).read_bytes() for name in names}


def test_only_needed_files_are_fetched_into_hugging_face_s_cache(hub, base, said):
    hub.put_model("tiny/base", base)
    assert where(BASE) is None
    fetch_all([BASE], said)
    folder = find_model("tiny/base", "refine.base")
    assert where(BASE) == folder
    assert hub.files() == NEEDED
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == NEEDED
    assert contents(folder, NEEDED) == contents(base, NEEDED)
    assert hub.nbytes() == sum(len(data) for data in contents(base, NEEDED).values())
    assert not list((folder.parents[1] / "blobs").glob("*.partial*"))


def test_what_will_be_fetched_is_shown_before_the_first_byte(hub, base, said):
    hub.put_model("tiny/base", base)
    sizes = {name: (base / name).stat().st_size for name in NEEDED}
    shown = []
    hub.fault = lambda asked: shown.append(said.text) if "/resolve/" in asked.path else None
    fetch_all([BASE], said)
    for name in NEEDED:
        assert f"  {name}: " in shown[0]
    assert "downloading tiny/base for refine.base" in shown[0]
    assert f"{sum(sizes.values()) / 1000:.0f}" in shown[0]
    assert "tiny/base: " in said.lines[-1]


def test_a_second_call_asks_for_nothing(hub, base, said):
    hub.put_model("tiny/base", base)
    hub.put("/assets/model.th", BYTES)
    fetch_all([BASE, VDVAE], said)
    hub.asked.clear()
    fetch_all([BASE, VDVAE], said)
    assert hub.asked == []
    assert [line.partition(":")[0] for line in said.lines[-2:]] == ["tiny/base", "model.th"]


def test_another_part_of_a_model_is_fetched_alone(hub, base, said):
    hub.put_model("tiny/base", base)
    fetch_all([BASE], said)
    hub.asked.clear()
    assert where(TEXT) is None
    fetch_all([TEXT], said)
    assert hub.files() == {f"text_encoder/{n}" for n in ("config.json", "model.safetensors")} | {
        f"tokenizer/{n}" for n in ("vocab.json", "merges.txt")
    }
    assert where(TEXT) == where(BASE) is not None


def test_an_interrupted_fetch_continues(hub, base, said, monkeypatch):
    hub.put_model("tiny/base", base)
    monkeypatch.setattr(retry, "ATTEMPTS", 1)
    large = "vae/diffusion_pytorch_model.safetensors"
    hub.fault = lambda asked: 5000 if large in asked.path and asked.method == "GET" else None
    with pytest.raises(NetworkError, match="everything fetched so far is kept"):
        fetch_all([BASE], said)
    assert where(BASE) is None
    hub.fault = lambda asked: None
    hub.asked.clear()
    fetch_all([BASE], said)
    assert contents(where(BASE), NEEDED) == contents(base, NEEDED)
    rest = (base / large).stat().st_size - 5000
    assert hub.nbytes(large) == rest
    assert hub.nbytes("unet") == 0


def test_servers_that_fail_for_a_while_are_asked_again(hub, base, said):
    hub.put_model("tiny/base", base)
    seen = set()

    def first_time(asked):
        new = (asked.method, asked.path) not in seen
        seen.add((asked.method, asked.path))
        return 503 if new else None

    hub.fault = first_time
    fetch_all([BASE], said)
    assert contents(where(BASE), NEEDED) == contents(base, NEEDED)


@pytest.mark.parametrize("name", ["unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors"])
def test_a_damaged_file_is_fetched_again_and_only_that(name, hub, base, said):
    hub.put_model("tiny/base", base)
    fetch_all([BASE], said)
    hub.asked.clear()
    file = where(BASE) / name
    file.write_bytes(flipped(file.read_bytes()))
    fetch_all([BASE], said)
    assert "is damaged and will be downloaded again" in said.text
    assert contents(where(BASE), NEEDED) == contents(base, NEEDED)
    assert hub.nbytes() == hub.nbytes(name) == (base / name).stat().st_size


@pytest.mark.parametrize("name", ["unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors"])
def test_wrong_bytes_from_the_hub_are_refused(name, hub, base, said, monkeypatch):
    hub.put_model("tiny/base", base)
    real = download.digest_of
    monkeypatch.setattr(
        download, "digest_of", lambda path, kind: "0" * 40 if path.stat().st_size == size else real(path, kind)
    )
    size = (base / name).stat().st_size
    with pytest.raises(NetworkError, match="sent a file whose (sha256|git) is 0000"):
        fetch_all([BASE], said)
    assert where(BASE) is None


def test_a_new_version_takes_the_place_of_one_that_is_not_whole(hub, base, said):
    hub.put_model("tiny/base", base)
    fetch_all([BASE], said)
    (base / "README.md").write_text("another version")
    hub.put_model("tiny/base", base, commit="2" * 40)
    hub.asked.clear()
    fetch_all([BASE], said)
    assert hub.asked == []  # what is here is whole
    hub.asked.clear()
    fetch_all([TEXT, BASE], said)
    assert where(TEXT).name == "2" * 40
    fetch_all([BASE], said)
    assert hub.nbytes("unet") == 0
    assert contents(where(BASE), NEEDED) == contents(base, NEEDED)


def test_pickles_are_converted_once_and_not_kept(hub, base, said, tmp_path):
    for file in base.rglob("*.safetensors"):
        if "vae" not in str(file):
            file.unlink()
    hub.put_model("tiny/base", base)
    fetch_all([BASE], said)
    folder = where(BASE)
    assert folder == tmp_path / "cache" / "models" / "tiny--base" == find_model("tiny/base", "refine.base")
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        RECORD,
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    expected = torch.load(base / "unet" / "diffusion_pytorch_model.bin", weights_only=True)
    found = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert list((tmp_path / "cache" / "downloads").iterdir()) == []
    hub.asked.clear()
    fetch_all([BASE], said)
    assert hub.asked == []
    (tmp_path / "cache" / "downloads" / f"{'0' * 64}.bin").write_bytes(b"left by a killed process")
    fetch_all([BASE], said)
    assert list((tmp_path / "cache" / "downloads").iterdir()) == []
    # Another part comes to the same place, and what is there stays.
    fetch_all([Need(TEXT.setting, TEXT.name, (*BASE.pieces, *TEXT.pieces))], said)
    assert where(TEXT) == where(BASE) == folder
    assert hub.nbytes("unet") == hub.nbytes("vae") == 0
    # A converted file that is damaged is made again.
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(flipped(whole))
    fetch_all([BASE], said)
    assert file.read_bytes() == whole
    assert hub.nbytes("vae") == 0


def test_pickles_that_would_run_code_are_not_converted(hub, base, said):
    for file in (base / "unet").glob("*.safetensors"):
        file.unlink()
    torch.save({"a": types.SimpleNamespace()}, base / "unet" / "diffusion_pytorch_model.bin")
    hub.put_model("tiny/base", base)
    with pytest.raises(InputError, match="runs no code from weight files"):
        fetch_all([BASE], said)
    assert where(BASE) is None


# Files that have no model's name


@pytest.mark.parametrize("md5", [False, True])
def test_a_published_file_is_fetched_and_remembered(md5, hub, said, tmp_path):
    hub.put("/assets/model.th", BYTES, md5=md5)
    fetch_all([VDVAE], said)
    file = tmp_path / "cache" / "model.th"
    assert file.read_bytes() == BYTES
    seen = json.loads((tmp_path / "cache" / RECORD).read_text())
    assert seen == {"model.th": {"bytes": len(BYTES), "sha256": hashlib.sha256(BYTES).hexdigest()}}
    file.write_bytes(flipped(BYTES))
    hub.asked.clear()
    fetch_all([VDVAE], said)
    assert file.read_bytes() == BYTES
    assert hub.nbytes() == len(BYTES)


def test_a_published_file_that_changes_is_refused(hub, said, tmp_path):
    hub.put("/assets/model.th", BYTES)
    fetch_all([VDVAE], said)
    (tmp_path / "cache" / "model.th").unlink()
    hub.put("/assets/model.th", BYTES[::-1])
    with pytest.raises(NetworkError, match="sent a file whose sha256 is .*the published file has changed"):
        fetch_all([VDVAE], said)


def test_a_file_of_another_digest_than_is_published_is_refused(hub, said, monkeypatch):
    monkeypatch.setitem(FILES, "model.th", Address(hub.put("/assets/model.th", BYTES), sha256="0" * 64))
    with pytest.raises(NetworkError, match=f"not {'0' * 64}"):
        fetch_all([VDVAE], said)
    assert where(VDVAE) is None


def test_torchvision_s_files_are_fetched_by_name_and_proved_by_the_digits_in_it(hub, said, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "TORCHVISION", f"{hub.url}/models/")
    for digits, refused in ((hashlib.sha256(BYTES).hexdigest()[:8], False), ("01234567", True)):
        need = Need("judges.x.weights", f"some_net-{digits}.pth")
        hub.put(f"/models/{need.name}", BYTES)
        assert is_published(need)
        if refused:
            with pytest.raises(NetworkError, match="so it is damaged or another file") as caught:
                fetch_all([need], said)
            assert f"begins with {digits}" in str(caught.value)
        else:
            fetch_all([need], said)
        assert (where(need) is None) == refused
    assert not is_published(Need("judges.x.weights", "some_net.pth"))


def test_captions_come_from_a_data_set(hub, said, tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    np.save(folder / "captions.npy", np.array([["a dog"] * 5] * 100))
    (folder / "train.tar").write_bytes(BYTES)
    assert (folder / "captions.npy").stat().st_size > LARGE
    hub.put_model("datasets/some/captions", folder)
    need = Need("dataset.captions", "captions.npy")
    fetch_all([need], said)
    assert where(need).read_bytes() == (folder / "captions.npy").read_bytes()
    assert hub.files() == {"captions.npy"}


def test_a_data_set_without_the_file_is_refused(hub, base, said):
    hub.put_model("datasets/some/captions", base)
    with pytest.raises(NetworkError, match=r"some/captions has no captions\.npy any more"):
        fetch_all([Need("dataset.captions", "captions.npy")], said)


# What can be wrong


def test_what_is_here_already_is_left_as_it_is(hub, base, said, tmp_path, monkeypatch):
    (tmp_path / "mine.th").write_bytes(b"mine")
    monkeypatch.chdir(tmp_path)
    fetch_all([Need("a", str(base), BASE.pieces), Need("b", "mine.th")], said)
    assert hub.asked == []
    assert len(said.lines) == 2


@pytest.mark.parametrize(
    ("need", "error", "found"),
    [
        (
            Need("features.vdvae.checkpoint", "folder/x.th"),
            InputError,
            r"checkpoint = 'folder/x\.th' is neither on this machine nor a published name",
        ),
        (
            Need("refine.base", "/nowhere/base", BASE.pieces),
            InputError,
            "refine.base = '/nowhere/base' is neither on this machine nor .*Expected a folder",
        ),
        (Need("refine.base", "no/such-model", BASE.pieces), NetworkError, "neither a local folder nor a model on the"),
        (Need("refine.base", "a--b/c", BASE.pieces), NetworkError, "neither a local folder nor a model on the"),
        (Need("refine.base", "tiny/base", (Piece("network", ("prior",)),)), InputError, "tiny/base has no network in"),
        (VDVAE, NetworkError, r"cannot download http\S+model.th \(404 "),
    ],
)
def test_what_can_not_be_fetched_is_named_before_a_byte_is(need, error, found, hub, base, said):
    hub.put_model("tiny/base", base)
    with pytest.raises(error, match=found):
        fetch_all([BASE, need], said)
    assert hub.nbytes() == 0


def test_offline_is_offline(hub, base, said, monkeypatch):
    hub.put_model("tiny/base", base)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.utils._http.is_offline_mode", lambda: True, raising=False)
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE"):
        fetch_all([BASE], said)
    assert hub.asked == []


def test_a_disk_without_room_is_refused_before_the_first_byte(hub, base, said, monkeypatch):
    hub.put_model("tiny/base", base)
    hub.put("/assets/model.th", BYTES)
    need = sum((base / name).stat().st_size for name in NEEDED) + len(BYTES)
    room = types.SimpleNamespace(free=need - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    with pytest.raises(StoreError, match="the download needs .* in .*are free.*LEANRECON_CACHE"):
        fetch_all([BASE, VDVAE], said)
    assert hub.nbytes() == 0
    room.free = need
    fetch_all([BASE, VDVAE], said)


def test_converting_needs_room_for_both(hub, base, said, monkeypatch):
    for file in (base / "unet").glob("*.safetensors"):
        file.unlink()
    hub.put_model("tiny/base", base)
    names = NEEDED - {"unet/diffusion_pytorch_model.fp16.safetensors"} | {"unet/diffusion_pytorch_model.bin"}
    need = sum((base / name).stat().st_size for name in names)
    room = types.SimpleNamespace(free=need + (base / "unet" / "diffusion_pytorch_model.bin").stat().st_size - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    with pytest.raises(StoreError, match="the download needs"):
        fetch_all([BASE], said)
    room.free += 1
    fetch_all([BASE], said)


def test_two_fetches_at_once_are_refused(hub, base, said, tmp_path):
    from leanrecon.places.hold import held

    with held(tmp_path / "cache", "another", ""), pytest.raises(StoreError, match="another fetch-weights is using"):
        fetch_all([BASE], said)
