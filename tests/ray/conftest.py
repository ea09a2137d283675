"""One Ray cluster for all tests here, and a set of objects on it for each hosting."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_cluster import RayCluster

import rayobjects as ro
from rayobjects.runtime import admin


@pytest.fixture(scope="session", autouse=True)
def clusters_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The clusters of these tests are not listed with the user's own."""
    directory = tmp_path_factory.mktemp("clusters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYOBJECTS_CLUSTERS_DIRECTORY", str(directory))
        for name in ("RAY_ADDRESS", "RAYOBJECTS_ADDRESS", "RAYOBJECTS_STORAGE"):
            patch.delenv(name, raising=False)
        yield directory


@pytest.fixture(scope="session")
def session_cluster(clusters_directory: Path) -> Iterator[RayCluster]:
    cluster = RayCluster()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def ray_cluster(session_cluster: RayCluster) -> RayCluster:
    """A cluster with nothing on it, which all modules share; starting one takes seconds."""
    if session_cluster.local is None:
        session_cluster.start()
    return session_cluster


@pytest.fixture(scope="module", params=["shared", "dedicated"])
def hosting(request: pytest.FixtureRequest, ray_cluster: RayCluster) -> Iterator[str]:
    """The objects of the module's cluster, in two shards, first hosted one way and then the
    other."""
    root = tempfile.mkdtemp(prefix="ro-test-")
    ro.init(storage=root, shards=2, hosting=request.param)
    yield request.param
    admin.stop_hosts()
    ro.shutdown()
    shutil.rmtree(root)
