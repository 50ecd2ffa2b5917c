"""Three answers to "does this flow pass?", on generated policies: what is meant, both walks, and traffic.

    python -m benchmarks.policy_agreement [--sets 200] [--flows 50] [--seed 1] [--mode iptables|nftables …]

Bar: no difference over 10,000 flows of 200 policy sets, in each proxy mode. A difference is shrunk to the
smallest policies that show it, and printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "system"))

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from policy_traffic import POLICY_SETS, SPEC, Traffic

from testbed.api.cluster import Cluster
from testbed.policy.meaning import Meaning


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--flows", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mode", nargs="+", default=["iptables", "nftables"])
    args = parser.parse_args()
    results = []
    for mode in args.mode:
        with tempfile.TemporaryDirectory() as folder:
            spec = Path(folder, "cluster.yaml")
            spec.write_text(SPEC.format(name=f"agree-{mode}", mode=mode, on_change="cut"))
            with Cluster.up(spec) as cluster:
                traffic = Traffic(cluster)
                traffic.begin()
                results.append({"mode": mode, **agree(traffic, args)})
    print(json.dumps(results, indent=2))
    return 0


def agree(traffic: Traffic, args: argparse.Namespace) -> dict[str, object]:
    """Try that many policy sets. Raises AssertionError with the smallest disagreement."""
    seen: Counter[str] = Counter()
    begun = time.monotonic()

    @seed(args.seed)
    @settings(max_examples=args.sets, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def one(data: st.DataObject) -> None:
        policies = data.draw(POLICY_SETS)
        flows = data.draw(st.lists(traffic.flows(), min_size=args.flows, max_size=args.flows))
        traffic.enforce(policies)
        assert traffic.disagreements(policies, flows) == []
        meaning = Meaning(traffic.snapshot(policies))
        seen["policy sets"] += 1
        seen["flows"] += len(flows)
        seen["denied"] += sum(not meaning.allowed(flow).allowed for flow in flows)

    one()
    return {**seen, "differences": 0, "seconds": round(time.monotonic() - begun, 1)}


if __name__ == "__main__":
    sys.exit(main())
