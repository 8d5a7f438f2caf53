"""A Dask scheduler that runs already: found by its address or its file, and asked whether it is one."""

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
    """A client of the scheduler at an address, or at that in a scheduler's JSON file.

    Raises SettingsError for what is no address, NetworkError where no scheduler answers.
    """
    address = address_of(Path(where)) if where.endswith(".json") else where
    todo = f"check the address and that `dask scheduler` runs there (--cluster {where})"
    try:
        with ThreadPoolExecutor(1) as thread:  # notebooks have a loop in this one
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
    except Exception as error:  # of what is no address, or one that lacks TLS's certificates or another library
        raise SettingsError(
            f"--cluster {shown(address, 200)} can't be reached: {said_by(error)}",
            expected="an address such as tcp://HOST:PORT",
            todo=todo,
        ) from error
    with client:
        yield client


async def _identity(address: str) -> Any:
    """What a server of Dask says of itself. A server of another kind may never answer, which Dask's client waits for."""
    comms: Any = import_module("distributed.comm")
    secure = import_module("distributed").Security().get_connection_args("client")
    comm = await comms.connect(address, timeout=CONNECT_WITHIN, **secure)
    try:
        await comm.write({"op": "identity", "reply": True})
        return await comm.read()
    finally:
        comm.abort()


def address_of(file: Path) -> str:
    """The address in a scheduler's file; raises SettingsError where there is none."""
    try:
        address = json.loads(file.read_text())["address"]
    except FileNotFoundError:
        raise SettingsError(
            f"there is no {file}", todo="start the scheduler with dask scheduler --scheduler-file and this path"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        address = None
    if not isinstance(address, str):
        raise SettingsError(f"{file} is no file of a Dask scheduler", expected='JSON with its "address"')
    return address
