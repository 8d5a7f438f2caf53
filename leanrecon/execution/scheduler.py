"""A client of a running Dask scheduler, by its address or its JSON file, after a check that it is a scheduler."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

from leanrecon.errors import LeanreconError, NetworkError, SettingsError, said_by, shown

CONNECT_WITHIN = 10.0
"""Seconds within which a scheduler has to answer."""


@contextlib.contextmanager
def connected(distributed: Any, where: str) -> Iterator[Any]:
    """A client of the scheduler at an address, or at the address in a scheduler's JSON file.

    Raises SettingsError for a value that is not an address, NetworkError if no scheduler answers.
    """
    address = address_of(Path(where)) if where.endswith(".json") else where
    todo = f"check the address and that `dask scheduler` runs there (--cluster {where})"
    try:
        with ThreadPoolExecutor(1) as thread:  # in notebooks this thread has an event loop
            found = thread.submit(lambda: asyncio.run(asyncio.wait_for(_identity(address), CONNECT_WITHIN))).result()
        kind = found.get("type") if isinstance(found, dict) else None
        if kind != "Scheduler":
            raise NetworkError(
                f"{address} is a {shown(kind)} of Dask", expected="the address of its scheduler", todo=todo
            )
        client = distributed.Client(address, timeout=CONNECT_WITHIN, set_as_default=False)
    except LeanreconError:
        raise
    except (OSError, TimeoutError) as error:
        raise NetworkError(
            f"no Dask scheduler answers at {address} within {CONNECT_WITHIN:.0f} s", todo=todo
        ) from error
    except Exception as error:  # no address, or TLS certificates or a library are missing
        raise SettingsError(
            f"--cluster {shown(address, 200)} can't be reached: {said_by(error)}",
            expected="an address such as tcp://HOST:PORT",
            todo=todo,
        ) from error
    with client:
        yield client


async def _identity(address: str) -> Any:
    """What a server of Dask reports of itself. Other servers may never answer, and Dask's own client would wait."""
    comms: Any = import_module("distributed.comm")
    secure = import_module("distributed").Security().get_connection_args("client")
    comm = await comms.connect(address, timeout=CONNECT_WITHIN, **secure)
    try:
        await comm.write({"op": "identity", "reply": True})
        return await comm.read()
    finally:
        comm.abort()


def address_of(file: Path) -> str:
    """The address in a scheduler's JSON file; raises SettingsError if there is none."""
    try:
        address = json.loads(file.read_text())["address"]
    except FileNotFoundError:
        raise SettingsError(
            f"there is no file {file}", todo="start the scheduler with `dask scheduler --scheduler-file` and this path"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        address = None
    if not isinstance(address, str):
        raise SettingsError(f"{file} is not the JSON file of a Dask scheduler", expected='JSON with its "address"')
    return address
