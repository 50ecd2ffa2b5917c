"""A campaign that is killed again and again: is any cell lost, or there twice, or anything left on the host?

Runs a campaign of a tiny scenario undisturbed, then another one that is killed with SIGKILL at random moments
and resumed, then one through a real dask scheduler to two worker processes, of which some are killed and
replaced; and compares the sets of cells, and the host before and after each kill.

    python -m benchmarks.campaign [--cells 60] [--kills 10] [--worker-kills 2] [--seed 1]
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testbed.cluster import statedir

SOURCE = Path(__file__).parents[1]
sys.path.insert(0, str(SOURCE / "tests" / "system"))
from campaigning import COMBINATIONS, Bench, Dask, kill_workers  # noqa: E402 - what the tests use
from hoststate import host_state, mark  # noqa: E402 - the same eyes as the tests'


@contextmanager
def place() -> Iterator[Path]:
    """A directory for every file of the commands."""
    path = Path(tempfile.mkdtemp(prefix="testbed-campaign-"))
    try:
        yield path
    finally:
        statedir.clean_stale()
        shutil.rmtree(path)


def main() -> int:
    """Run it; 1 where anything was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=60, help="a multiple of 6")
    parser.add_argument("--kills", type=int, default=10, help="of the campaign's process")
    parser.add_argument(
        "--worker-kills", type=int, default=2, help="of dask workers, in a campaign of its own"
    )
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    chance = random.Random(args.seed)  # noqa: S311 - moments, not secrets
    mark()
    with place() as there:
        bench = Bench.make(there, args.cells // COMBINATIONS)
        undisturbed = bench.finish("undisturbed")
        print(f"undisturbed: {bench.done('undisturbed')} cells in {undisturbed:.1f} s", flush=True)
        killed = kill_and_resume(bench, args.kills, undisturbed / max(args.kills, 1), chance)
        lost = through_dask(bench, there, args.worker_kills, chance)
    for line in bench.wrong:
        print(line)
    print(f"campaign: seed {args.seed}: {len(bench.wrong)} differences")
    return 1 if bench.wrong or killed < args.kills or lost < args.worker_kills else 0


def kill_and_resume(bench: Bench, kills: int, each: float, chance: random.Random) -> int:
    """Kill a campaign so many times, let it end, compare; returns the number of kills. each: about how many
    seconds it gets between two."""
    killed = 0
    total = bench.replicates * COMBINATIONS
    while killed < kills and bench.done("killed") < total:
        done = bench.kill_once("killed", chance.uniform(0.2, 1.3) * each)
        killed += 1
        print(f"kill {killed}: {done} cells done", flush=True)
    if kills:
        bench.finish("killed", "--resume")
        bench.compare("undisturbed", "killed")
        print(f"killed {killed} times: {bench.done('killed')} cells", flush=True)
    return killed


def through_dask(bench: Bench, there: Path, kills: int, chance: random.Random) -> int:
    """The same on two workers, some of which are killed; returns how many were."""
    if not kills:
        return 0
    before = host_state()
    with Dask(there) as dask:
        bench.options = ["--scheduler", dask.address]
        lost = kill_workers(bench, dask, "dask", kills, chance)
    bench.check_host(before)
    bench.compare("undisturbed", "dask")
    print(f"through dask, {lost} workers killed: {bench.done('dask')} cells", flush=True)
    return lost


if __name__ == "__main__":
    sys.exit(main())
