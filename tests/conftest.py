"""What all tests share: one Ray cluster, started when the first test asks for it, objects on it for
each module that wants some, and the way to a browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_cluster import RayCluster, objects_on

FROM_OUTSIDE = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")


CLUSTERS = {"session_cluster", "RayCluster", "Served", "surroundings"}
"""What a test has that starts Ray: a fixture, or a name that its module uses."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks those tests as `cluster`, so that they can run beside all others."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        module = getattr(item, "module", None)
        if CLUSTERS & (fixtures | set(vars(module) if module is not None else ())):
            item.add_marker("cluster")


@pytest.fixture(scope="session", autouse=True)
def _own_surroundings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither see nor touch the clusters and settings of whoever runs them."""
    for name in list(os.environ):
        if name.startswith("RAYOBJECTS_") or name in FROM_OUTSIDE:
            del os.environ[name]
    os.environ["RAYOBJECTS_CLUSTERS_DIRECTORY"] = str(tmp_path_factory.mktemp("clusters"))


@pytest.fixture(scope="session")
def session_cluster(_own_surroundings: None) -> Iterator[RayCluster]:
    cluster = RayCluster()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def ray_cluster(session_cluster: RayCluster) -> RayCluster:
    """A cluster that this process is attached to, with nothing on it. All modules share it, since
    starting one takes seconds; one that stops it gets, and leaves, a new one."""
    if session_cluster.local is None:
        session_cluster.start()
    return session_cluster


@pytest.fixture(scope="module")
def objects(ray_cluster: RayCluster) -> Iterator[Path]:
    """The storage root of the module's objects, in two shards; `ro.deploy` what you need."""
    with objects_on(ray_cluster, shards=2) as root:
        yield root


@pytest.fixture(scope="module", params=["shared", "dedicated"])
def hosting(request: pytest.FixtureRequest, ray_cluster: RayCluster) -> Iterator[str]:
    """The module's objects, in two shards, first hosted one way and then the other."""
    with objects_on(ray_cluster, shards=2, hosting=request.param):
        yield request.param


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium; browser tests are skipped where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found is not None:
            return found
    pytest.skip("no Chromium here: `apt-get install chromium` (Debian) lets the browser tests run")
