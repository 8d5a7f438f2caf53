"""Models on the Hugging Face Hub: their files, and adding downloaded ones to Hugging Face's own cache.

``net.download`` fetches the bytes, as huggingface_hub restarts an interrupted file from its first byte.
"""

import errno
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from leanrecon.errors import NetworkError, SettingsError, installing
from leanrecon.net.download import CHOOSES, Remote, digest_of, retry_of
from leanrecon.net.retry import RETRIED
from leanrecon.places.disk import explained_disk_errors
from leanrecon.places.files import write_text

Kind = Literal["model", "dataset"]

Answer = TypeVar("Answer")

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Repository:
    """One version of a model or data set, and its files by name."""

    name: str
    kind: Kind
    commit: str
    files: dict[str, Remote]


def look_up(name: str, kind: Kind = "model") -> Repository:
    """The files of a model with their sizes and digests; raises NetworkError if it can't be found."""
    try:
        from huggingface_hub import HfApi, hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
    except ImportError:
        raise SettingsError(
            f"{name} is on the Hugging Face Hub, which needs huggingface_hub",
            todo=installing("models"),
        ) from None
    info: Any = _asked(name, lambda: HfApi().repo_info(name, repo_type=kind, files_metadata=True))
    own = {key: value for key, value in build_hf_headers().items() if key.lower() == "authorization"}
    files = {}
    for file in info.siblings or ():
        url = hf_hub_url(name, file.rfilename, repo_type=kind, revision=info.sha)
        sha256 = file.lfs.sha256 if file.lfs else None
        files[file.rfilename] = Remote(url, file.size, sha256, None if sha256 else file.blob_id, headers=own)
    return Repository(name, kind, str(info.sha), files)


def blob_of(repository: Repository, file: str) -> Path:
    """The path of a file's bytes in Hugging Face's cache, named by its digest."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    digest = repository.files[file].digest
    if digest is None or not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", digest[1]):
        raise NetworkError(f"the hub gives no digest of {file} in {repository.name}", todo="try again later")
    folder = repo_folder_name(repo_id=repository.name, repo_type=repository.kind)
    return Path(constants.HF_HUB_CACHE) / folder / "blobs" / digest[1]


def show_in_cache(repository: Repository, files: list[str]) -> None:
    """Link files whose bytes are in Hugging Face's cache to this version, and make it the version of the name."""
    from huggingface_hub import hf_hub_download

    link = partial(hf_hub_download, repository.name, repo_type=repository.kind, revision=repository.commit)
    for file in files:
        _asked(repository.name, partial(link, file))
    folder = blob_of(repository, files[0]).parents[1]
    write_text(folder / "refs" / "main", repository.commit)


def is_sound(path: Path) -> bool:
    """Whether a file of Hugging Face's cache matches the digest in its name; other names are not checked."""
    name = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return digest_of(path, "sha256") == name
    return not re.fullmatch(r"[0-9a-f]{40}", name) or digest_of(path, "git") == name


def _asked(name: str, ask: Callable[[], Answer]) -> Answer:
    """The hub's answer, with retries; raises NetworkError that says what to do."""
    from huggingface_hub import constants, errors

    # Versions of huggingface_hub use different HTTP libraries.
    libraries = [sys.modules[library] for library in ("httpx", "httpx2") if library in sys.modules]
    broken = (OSError, *(library.HTTPError for library in libraries))
    retry = retry_of(f"{constants.ENDPOINT}/{name}")
    while True:
        try:
            return ask()
        except errors.GatedRepoError:
            raise NetworkError(
                f"{name} requires its terms to be accepted",
                todo=f"accept them at {constants.ENDPOINT}/{name}, and sign in with `hf auth login`",
            ) from None
        except (errors.RepositoryNotFoundError, errors.HFValidationError):
            raise NetworkError(
                f"{name} is neither a local folder nor a model on the Hugging Face Hub",
                expected="a path, or a name such as openai/clip-vit-large-patch14",
            ) from None
        except errors.OfflineModeIsEnabled:
            raise NetworkError(
                f"{name} is not on this machine, and HF_HUB_OFFLINE forbids downloading it",
                todo="unset it, and run the command again",
            ) from None
        except broken as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if isinstance(error, PermissionError) or getattr(error, "errno", None) in _DISK:
                with explained_disk_errors(Path(constants.HF_HUB_CACHE), CHOOSES):
                    raise
            if status is not None and status not in RETRIED:
                raise NetworkError(f"the hub refused {name}: {status}", todo="check its name and your access") from None
            retry.after(error)
