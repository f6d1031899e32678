"""Where an engine's actors live on a cluster of several nodes, and what the loss of one costs."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import sys, time
from pieray.cluster import ray_cluster as cluster
cluster.prepare_environment()
import ray
from ray.cluster_utils import Cluster

import pieray
from pieray.errors import PierayError

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20})
workers = [nodes.add_node(num_cpus=1, object_store_memory=80 << 20) for _ in range(2)]
nodes.wait_for_nodes()
ray.init(address=nodes.address, log_to_driver=False)
head = next(n["NodeID"] for n in ray.nodes() if "node:__internal_head__" in n["Resources"])
SOURCE = pieray.ProgramSource("one", "one.py", source="def main():\\n    return 1\\n")

def places(engine):
    return {a["role"]: a["node_id"] for a in engine.status()["actors"]}

for attempt in range(3):
    engine = pieray.start(namespace=f"nodes-{attempt}", address=nodes.address)
    found = ray.get(engine._controller.node_id.remote())
    assert found == head, (found, head)
    deadline = time.monotonic() + 60
    while "broker" not in places(engine):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    where = places(engine)
    assert where["broker"] == head
    assert where["resource-manager"] == where["batcher"]
    if attempt < 2:
        engine.close()
for worker in workers:
    nodes.remove_node(worker, allow_graceful=False)
deadline = time.monotonic() + 120
while True:
    try:
        assert engine.launch(SOURCE).result(timeout=30) == 1
        break
    except PierayError as error:
        assert time.monotonic() < deadline, error
        time.sleep(0.5)
engine.close()
print("well")
"""


def test_the_loss_of_every_worker_node_ends_no_engine() -> None:
    command = [sys.executable, "-c", PROGRAM]
    environment = {**os.environ, "RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, env=environment)
    assert "well" in done.stdout.splitlines(), done.stdout[-2000:] + done.stderr[-6000:]  # Ray writes there too
