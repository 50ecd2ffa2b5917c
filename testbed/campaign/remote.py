"""Cells on other machines: tasks of a dask.distributed cluster, one at a time on each worker.

A worker is a machine (a VM) with the same version of the testbed, started with the resource ``testbed=1``:
``dask worker tcp://HOST:8786 --resources testbed=1``. A cell goes there with its files and comes back as
its folder; nothing is shared. Where a worker dies its cell is given to another, and what comes back counts
once.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from testbed.campaign.bundle import Request, code_version, unpack
from testbed.campaign.execute import Executed, execute, lost, told
from testbed.cells import CELL, read_cell
from testbed.errors import InputError, Lack, MissingCapability, NotConverged, TestbedError
from testbed.wait import wait_until

RESOURCE: Final = "testbed"
CONNECT, WORKERS = 10.0, 60.0
"""Seconds for the scheduler to answer, and for a first worker to be there."""


class Cluster:
    """A dask cluster. Use as a context manager. Raises InputError, MissingCapability, NotConverged."""

    def __init__(self, address: str, report: Callable[[str], None]) -> None:
        try:
            import distributed
        except ImportError as error:
            raise MissingCapability(
                [
                    Lack(
                        "dask.distributed",
                        "--scheduler runs cells on a dask cluster",
                        "pip install 'testbed[distributed]'",
                    )
                ]
            ) from error
        self._distributed: Any = distributed
        try:
            self._client: Any = self._distributed.Client(address, timeout=CONNECT)
        except (OSError, TimeoutError, ValueError) as error:
            raise InputError(f"--scheduler {address}: no dask scheduler answers there: {error}") from error
        self._report = report
        self._boots: dict[str, str] = {}
        self._most = Counter[str]()
        self.workers = 0

    def __enter__(self) -> Self:
        try:
            self._check()
        except BaseException:
            self._client.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()

    def _check(self) -> None:
        """Wait for workers, and see that they have our code and whether they share machines."""
        wait_until(
            lambda: bool(self._ours()),
            WORKERS,
            f"a worker with the resource {RESOURCE}=1 (dask worker ADDRESS --resources {RESOURCE}=1)",
            interval=0.2,
        )
        ours = self._ours()
        try:
            codes = self._client.run(code_version, workers=ours)
        except ModuleNotFoundError as error:
            raise InputError(f"a worker has no testbed: {error}; install it on every machine") from error
        for worker, code in codes.items():
            if code != code_version():
                raise InputError(f"worker {worker} has testbed {code}, and here is {code_version()}")
        self.workers = len(ours)
        self._report(f"{len(ours)} workers on {len(self._company())} machines")

    def _ours(self) -> list[str]:
        known: Mapping[str, Any] = self._client.scheduler_info(n_workers=-1)["workers"]
        return [address for address, about in known.items() if about.get("resources", {}).get(RESOURCE)]

    def _company(self) -> Counter[str]:
        """How many workers each machine has or had at most until now: they come and go, and what died may
        have disturbed what comes back."""
        ours = self._ours()
        if new := [address for address in ours if address not in self._boots]:
            self._boots |= self._client.run(boot, workers=new, on_error="ignore")
        self._most |= Counter(self._boots[address] for address in ours if address in self._boots)
        return self._most

    def run(self, requests: Sequence[Request], work: Path) -> Iterator[Executed]:
        """The cells, as they end. work: where they are unpacked. Raises TestbedError if the scheduler
        goes."""
        mark = os.urandom(4).hex()
        waiting = {
            self._client.submit(
                remote_cell,
                msgspec.msgpack.encode(request),
                key=f"{request.campaign}-{request.address}-{mark}",
                resources={RESOURCE: 1},
                priority=-request.position,
                pure=False,
            ): request
            for request in requests
        }
        try:
            for future in self._distributed.as_completed(list(waiting)):
                request = waiting.pop(future)
                yield self._returned(future, request, work / request.address)
                future.release()
        finally:
            self._client.cancel(list(waiting))

    def _returned(self, future: Any, request: Request, work: Path) -> Executed:
        try:
            packed: bytes = future.result()
        except self._distributed.KilledWorker as error:
            return lost(request, work, f"the workers it was given to died: {error}")
        except (CancelledError, self._distributed.CommClosedError) as error:
            raise TestbedError(f"the scheduler went away ({error}); --resume goes on") from error
        shutil.rmtree(work, ignore_errors=True)
        returned = msgspec.msgpack.decode(packed, type=Returned)
        unpack(returned.files, work)
        record, beside = read_cell(work / CELL), self._company()[returned.boot]
        if beside > 1:
            doubt = f"{beside} workers on its machine: not known whether they disturbed it"
            record = msgspec.structs.replace(record, beside=beside, marks=(doubt, *record.marks))
        return told(record, work)


class Returned(msgspec.Struct, frozen=True):
    """A cell that comes back. boot: of the machine it ran on; files: path → content of its folder."""

    boot: str
    files: dict[str, bytes]


def remote_cell(encoded: bytes) -> bytes:
    """Run a cell on the worker that this is called on; ``Returned`` as msgpack."""
    from distributed import get_worker

    request = msgspec.msgpack.decode(encoded, type=Request)
    # dask removes this folder with the worker, and that of a killed one when the next starts.
    work = Path(get_worker().local_directory) / f"{RESOURCE}-{request.address}"
    try:
        executed = execute(request, work)
    except NotConverged as error:
        raise TestbedError(str(error)) from None  # travels, as the other cannot be unpickled
    else:
        found = sorted(path for path in executed.folder.rglob("*") if path.is_file())
        files = {str(path.relative_to(executed.folder)): path.read_bytes() for path in found}
        return msgspec.msgpack.encode(Returned(boot(), files))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def boot() -> str:
    """What tells this machine, since it was started, from every other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
