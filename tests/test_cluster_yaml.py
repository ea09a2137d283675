"""cluster.yaml is what Ray's launcher accepts, and starts Ray as this package does itself."""

import json
import shlex
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from rayobjects.runtime.cluster import RAY_ENVIRONMENT

ROOT = Path(__file__).parent.parent
CONFIGURATION = yaml.safe_load((ROOT / "cluster.yaml").read_text())

ONLY_HERE = {
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S",  # a node of a cluster has reason to drain
    "RAY_worker_maximum_startup_concurrency",  # follows the CPUs of this machine
}


def test_ray_accepts_it() -> None:
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(CONFIGURATION, json.loads(schema.read_text()))


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_node_has_the_environment(commands: str) -> None:
    exports, *_ = CONFIGURATION[commands][1].split(";")
    words = shlex.split(exports)
    assert words[0] == "export"
    variables = dict(word.split("=", 1) for word in words[1:])
    assert variables["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert variables["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    for name in RAY_ENVIRONMENT.keys() - ONLY_HERE:
        assert variables[name] == RAY_ENVIRONMENT[name], name
