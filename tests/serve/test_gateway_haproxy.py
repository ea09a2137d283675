"""What Ray is started with so that HAProxy in front of the gateway is safe."""

import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayobjects.serve import haproxy
from rayobjects.serve.haproxy import FRONTEND_RULES, environment, harden

CONFIGURATION = """\
global
    log 127.0.0.1:514 local0 info
    maxconn 100
defaults
    mode http
    log global
    option httplog
frontend prometheus
    bind :9101
    mode http
    no log
frontend http_frontend
    bind 127.0.0.1:8000
    acl routes path -i /-/routes
backend http-rayobjects
    log global
    server one 127.0.0.1:30000 check
frontend something_new
    bind *:8500
    bind 0.0.0.0:8501 proto h2
listen stats
  bind *:8404
  stats enable
"""


@pytest.fixture(autouse=True)
def short_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """pytest's own directories have long paths."""
    with tempfile.TemporaryDirectory(prefix="ro-", dir="/tmp") as directory:
        monkeypatch.setattr(haproxy, "SHORT_DIRECTORY", directory)
        yield


def test_open_ports_are_closed_or_on_loopback() -> None:
    lines = harden(CONFIGURATION.splitlines())
    binds = [line.strip() for line in lines if line.strip().startswith("bind")]
    assert binds == ["bind 127.0.0.1:8000", "bind 127.0.0.1:8500", "bind 127.0.0.1:8501 proto h2"]
    assert not any("stats" in line or "prometheus" in line for line in lines)


def test_requests_are_not_logged() -> None:
    assert not any("log" in line.split() for line in harden(CONFIGURATION.splitlines()))


def test_rules_are_in_the_frontend() -> None:
    lines = harden(CONFIGURATION.splitlines())
    start = lines.index("    bind 127.0.0.1:8000")
    assert tuple(lines[start + 1 : start + 1 + len(FRONTEND_RULES)]) == FRONTEND_RULES


def test_the_address_asked_for_is_kept() -> None:
    lines = harden(CONFIGURATION.replace("127.0.0.1:8000", "*:8000").splitlines())
    assert "    bind *:8000" in lines


def test_an_unknown_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match="another one"):
        harden(["global", "frontend web", "    bind *:80"])


def test_the_script_hardens_and_becomes_haproxy(tmp_path: Path) -> None:
    made = environment(str(tmp_path / "a folder"))
    script = Path(made["RAY_SERVE_HAPROXY_BINARY_PATH"])
    assert os.access(script, os.X_OK)
    configuration = tmp_path / "haproxy.cfg"
    text = CONFIGURATION.replace("defaults", "defaults\n    timeout connect 1s")
    configuration.write_text(text)
    # -c has HAProxy check the configuration and end.
    done = subprocess.run(
        [script, "-db", "-f", configuration, "-c"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "bind *:8404" not in configuration.read_text()
    assert f"    bind 127.0.0.1:8000\n{FRONTEND_RULES[0]}" in configuration.read_text()


def test_clusters_do_not_meet(tmp_path: Path) -> None:
    first = environment(str(tmp_path / "first"))
    second = environment(str(tmp_path / "second"))
    own = {name for name in first if name.endswith(("_PATH", "_LOC", "_BASE", "_FILE", "_PORT"))}
    assert len(own) == 8
    for name in own:
        assert first[name] != second[name]
    assert first["RAY_SERVE_ENABLE_HA_PROXY"] == "1"


def test_the_directory_is_private_and_sockets_have_short_paths(tmp_path: Path) -> None:
    made = environment(str(tmp_path / ("long" * 30)))
    for name in ("RAY_SERVE_HAPROXY_SOCKET_PATH", "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"):
        folder = Path(made[name]).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(made["RAY_SERVE_HAPROXY_SOCKET_PATH"]) + 57 < 107
    assert made["RAY_SERVE_HAPROXY_SOCKET_PATH"].startswith("/tmp/")


def test_another_users_directory_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(str(tmp_path / ("long" * 30)))
    owner = os.getuid() + 1
    (taken,) = Path(haproxy.SHORT_DIRECTORY).iterdir()
    monkeypatch.setattr(os, "getuid", lambda: owner)
    taken.rename(taken.with_name(taken.name.replace(f"ro-{owner - 1}-", f"ro-{owner}-")))
    with pytest.raises(PermissionError, match="somebody else"):
        environment(str(tmp_path / ("long" * 30)))
