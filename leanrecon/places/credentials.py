"""Credentials of buckets, which come from the environment alone: what is set, and what to say where it does not do."""

import os
import re
import shlex
from pathlib import Path

from leanrecon.errors import SettingsError, shown

TO_SET = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL for a server other than Amazon's)",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
"""What to do where credentials are missing or refused, by scheme."""

SERVERS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "gs": ("STORAGE_EMULATOR_HOST",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURITE_BLOB_STORAGE_URL"),
}
"""Variables with the address of a server other than the vendor's, as the vendors' own clients know them."""

NONE = "there are no credentials in the environment"

_PREFIXES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
_SECRET = re.compile("ACCESS_KEY|ACCOUNT_KEY|ACCOUNT_NAME|SESSION_TOKEN|SAS_TOKEN")
_ANY = re.compile("KEY|TOKEN|CREDENTIALS|ACCOUNT|SECRET")
_PROFILES = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE")
_FILES = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}
"""Variables that name the files of Amazon's profiles, and where these lie otherwise."""


def endpoint_of(scheme: str) -> str:
    """The address of a server other than the vendor's; empty where none is set."""
    return next((os.environ[name] for name in SERVERS[scheme] if os.environ.get(name)), "")


def check_environment(scheme: str) -> None:
    """Raise SettingsError for an endpoint that is not a URL, keys with spaces or line breaks, and a profile without keys.

    No value of a key is shown.
    """
    endpoint = endpoint_of(scheme)
    if endpoint and not re.fullmatch(
        r"https?://[\w.-]+(:[0-9]{1,5})?(/[!-~]*)?|https?://\[[0-9a-fA-F:]+\](:[0-9]{1,5})?/?", endpoint
    ):
        names = " or ".join(name for name in SERVERS[scheme] if os.environ.get(name))
        raise SettingsError(f"{names} is not the address of a server", expected="a URL such as https://host:port")
    for name in sorted(os.environ):
        value = os.environ[name]
        if name.startswith(_PREFIXES[scheme]) and _SECRET.search(name) and not re.fullmatch(r"[!-~]*", value):
            raise SettingsError(
                f"{name} holds a space, a line break, or another character that no key has",
                todo="set it again without them",
            )
    profile = next((name for name in _PROFILES if os.environ.get(name)), None) if scheme == "s3" else None
    unsigned = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true", "yes", "on")
    if profile is not None and not has_credentials(scheme) and not unsigned:
        raise SettingsError(
            f"{profile} is set to {shown(os.environ[profile])}, but leanrecon reads no profiles, and {NONE}",
            expected="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            todo=f"{_exporting(os.environ[profile])}; or unset {profile} where the role of this machine is meant",
        )


def has_credentials(scheme: str) -> bool:
    """Whether the environment holds any credentials, beside names of profiles and of their files."""
    return any(
        name.startswith(_PREFIXES[scheme]) and name not in _FILES and _ANY.search(name) and value
        for name, value in os.environ.items()
    )


def missing(scheme: str) -> tuple[str, str]:
    """What was found where credentials are missing, and what to do: files of Amazon's profiles are named."""
    if scheme == "s3" and (there := [path for path in _profile_files() if path.is_file()]):
        return f"{NONE}, and leanrecon does not read {there[0]}", _exporting(None)
    return NONE, TO_SET[scheme]


def _profile_files() -> list[Path]:
    named = [Path(os.environ.get(name) or path) for name, path in _FILES.items()]
    try:
        return [path.expanduser() for path in named]
    except RuntimeError:  # a user without a home folder
        return []


def _exporting(profile: str | None) -> str:
    """What to do to have the keys of a profile in the environment."""
    chosen = "" if profile is None else f" --profile {shlex.quote(profile)}"
    return f'export them first, for example by eval "$(aws configure export-credentials{chosen} --format env)"'
