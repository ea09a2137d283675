"""What all tests share: one Ray cluster a session, started when the first test asks for it, and
the way to a browser."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayobjects.runtime.cluster import LocalCluster

FROM_OUTSIDE = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")


@pytest.fixture(scope="session", autouse=True)
def _own_surroundings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither see nor touch the clusters and settings of whoever runs them."""
    for name in list(os.environ):
        if name.startswith("RAYOBJECTS_") or name in FROM_OUTSIDE:
            del os.environ[name]
    os.environ["RAYOBJECTS_CLUSTERS_DIRECTORY"] = str(tmp_path_factory.mktemp("clusters"))


@pytest.fixture(scope="session")
def cluster(_own_surroundings: None) -> Iterator[LocalCluster]:
    """A Ray cluster that this process is attached to; it has no storage yet."""
    from rayobjects.runtime.cluster import connect, start_local
    from rayobjects.serve import haproxy

    with start_local(environment=haproxy.environment) as started:
        connect(started.address)
        yield started


@pytest.fixture(scope="session")
def objects(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The storage root of the session's cluster, with two shards; `ro.deploy` what you need."""
    from rayobjects.runtime import admin, client

    root = tmp_path_factory.mktemp("storage")
    client.init(str(root), shards=2)
    yield root
    client.shutdown()
    admin.stop_hosts()


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium; browser tests are skipped where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found is not None:
            return found
    pytest.skip("no Chromium here: `apt-get install chromium` (Debian) lets the browser tests run")
