"""Speed of the node component: start-up of commands and the agent next to a bare interpreter, and planning."""

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from kata_gpu.core.gpu import CcMode
from kata_gpu.core.node_policy import NodePolicy
from kata_gpu.core.plan import Observed, plan_setup
from kata_gpu.host.simkernel.kernel import SimKernel
from kata_gpu.host.simkernel.presets import hgx_h100
from kata_gpu.ops.observe import observe
from tests.bench.dra import agent_start_s
from tests.bench.figure import Figure, seconds_per_call

HELP_MS, GPUS_MS, PLAN_MS, START_S = 150, 250, 20, 2.0


def _process_ms(*argv: str) -> float:
    """Best of some runs of a process, milliseconds."""
    return 1000 * seconds_per_call(
        lambda: subprocess.run([sys.executable, *argv], check=True, stdout=subprocess.DEVNULL), rounds=7, budget_s=0.7
    )


def figures() -> list[Figure]:
    """Milliseconds; the bare interpreter of the same run is reported beside them."""
    inventory = observe(SimKernel(hgx_h100()))
    more = tuple(
        replace(d, function=replace(d.function, address=replace(d.function.address, domain=1)))
        for d in inventory.devices[:4]
    )
    observed = Observed(inventory=replace(inventory, devices=(*inventory.devices, *more)))
    policy = NodePolicy.everything(CcMode.ON)
    with tempfile.TemporaryDirectory() as directory:
        sim = Path(directory) / "host.sim"
        SimKernel.create(hgx_h100(), sim)
        bare = _process_ms("-c", "pass")
        help_ms = _process_ms("-m", "kata_gpu.cli", "--help")
        gpus_ms = _process_ms("-m", "kata_gpu.cli", "gpus", "--sim", str(sim))
    plan_ms = 1000 * seconds_per_call(lambda: plan_setup(observed, policy))
    cold_s, settled_s = agent_start_s()
    warm = "byte code and page cache warm"
    return [
        Figure(suite="node", name="python -c pass", value=bare, unit="ms", caches=warm),
        Figure(suite="node", name="kata-gpu --help", value=help_ms, unit="ms", at_most=HELP_MS, caches=warm),
        Figure(suite="node", name="kata-gpu gpus, 8+4", value=gpus_ms, unit="ms", at_most=GPUS_MS, caches=warm),
        Figure(suite="node", name="plan for 16 devices", value=plan_ms, unit="ms", at_most=PLAN_MS, caches="none"),
        Figure(
            suite="node", name="agent to ready, 8+4 as wanted", value=settled_s, unit="s", at_most=START_S, caches=warm
        ),
        Figure(
            suite="node", name="agent to ready, 8+4 cold to on", value=cold_s, unit="s", at_most=START_S, caches=warm
        ),
    ]
