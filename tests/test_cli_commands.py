"""The commands that look into a running cluster, in this process and on the session's cluster."""

import json
from pathlib import Path

import pytest
from test_cli_input import fails, run

import rayobjects as ro

pytestmark = pytest.mark.usefixtures("counter")


@pytest.fixture(scope="module")
def counter(objects: Path) -> None:
    class CliCounter(ro.DurableObject):
        """Counts."""

        count: int = ro.durable(0)

        def increment(self, by: int = 1) -> int:
            self.count += by
            return self.count

        def keep(self, key: str, value: dict[str, int]) -> None:
            self.storage[key] = value

        def asked_by(self) -> str:
            return ro.context().get("user", "nobody")

        def fail(self) -> None:
            raise LookupError("no such\nthing")

        @ro.internal
        def hidden(self) -> None: ...

    counters = ro.deploy(CliCounter)
    counters.get("home").increment.remote(2).result(timeout_s=60)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code, out, error = run(capsys, *arguments)
    assert (code, error) == (0, "")
    return out


def test_call_and_get(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "call", "CliCounter", "a/b ü", "increment", "by=40") == "40\n"
    assert answer(capsys, "call", "CliCounter", "a/b ü", "increment") == "41\n"
    out = answer(capsys, "call", "CliCounter", "a/b ü", "keep", "key=k", 'value={"x": 1}')
    assert out == "null\n"
    assert json.loads(answer(capsys, "get", "CliCounter", "a/b ü")) == {
        "attributes": {"count": 41},
        "storage": {"k": {"x": 1}},
    }


def test_a_request_context(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("call", "CliCounter", "c", "asked_by")
    assert answer(capsys, *asked) == '"nobody"\n'
    assert answer(capsys, *asked, "--context", "user=ann=1", "--context", "x=") == '"ann=1"\n'
    code, _, error = run(capsys, *asked, "--context", "user")
    assert (code, "'user' is not KEY=TEXT" in error) == (2, True)
    assert "choose another name" in fails(capsys, *asked, "--context", "caller=me")


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("l1", "l2", "l3"):
        answer(capsys, "call", "CliCounter", name, "increment")
    assert answer(capsys, "list", "CliCounter", "--prefix", "l") == "l1\nl2\nl3\n"
    assert answer(capsys, "list", "CliCounter", "--prefix", "l", "--limit", "2") == "l1\nl2\n"
    assert answer(capsys, "list", "CliCounter", "--limit", "0") == ""
    assert json.loads(answer(capsys, "list", "CliCounter", "--limit", "0", "--json")) == []
    assert "there are: CliCounter" in fails(capsys, "list", "Cat", "--limit", "0")
    listed = answer(capsys, "list", "CliCounter", "--prefix", "l", "--json")
    assert json.loads(listed) == ["l1", "l2", "l3"]
    assert json.loads(answer(capsys, "list", "CliCounter", "--prefix", "none", "--json")) == []


def test_names_that_a_terminal_would_obey(capsys: pytest.CaptureFixture[str]) -> None:
    """They can be used, and are shown as JSON; errors about them are one harmless line."""
    names = ["odd\n1", "odd\x1b[31m2", "odd\u20283", "odd\x9b4", '"odd"']
    for name in names:
        answer(capsys, "call", "CliCounter", name, "increment")
    listed = answer(capsys, "list", "CliCounter", "--prefix", "odd")
    assert listed.isascii()
    assert sorted(map(json.loads, listed.splitlines())) == sorted(names[:4])
    assert answer(capsys, "list", "CliCounter", "--prefix", '"') == '"\\"odd\\""\n'
    as_json = answer(capsys, "list", "CliCounter", "--prefix", "odd", "--json")
    assert sorted(json.loads(as_json)) == sorted(names[:4])
    assert "\x1b" not in as_json
    assert "\x9b" not in as_json
    assert "odd\\x1b[31m5" in fails(capsys, "get", "CliCounter", "odd\x1b[31m5")
    deleted = run(capsys, "delete", "CliCounter", "odd\x1b[31m2", "--yes")
    assert deleted == (0, "", "Deleted CliCounter/odd\\x1b[31m2.\n")


def test_delete(capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, "call", "CliCounter", "gone", "increment")
    deleted = run(capsys, "delete", "CliCounter", "gone", "--yes")
    assert deleted == (0, "", "Deleted CliCounter/gone.\n")
    again = fails(capsys, "delete", "CliCounter", "gone", "--yes")
    assert "there is no object CliCounter/gone" in again
    assert "there is no object CliCounter/gone" in fails(capsys, "get", "CliCounter", "gone")


def test_nobody_to_ask(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    assert "add --yes" in fails(capsys, "delete", "CliCounter", "home")
    assert "add --yes" in fails(capsys, "delete-class", "CliCounter")
    # What could not be deleted anyhow comes first.
    assert "no class 'Nobody'" in fails(capsys, "delete", "Nobody", "home")
    assert "no class 'Nobody'" in fails(capsys, "delete-class", "Nobody")
    assert "there is no object" in fails(capsys, "delete", "CliCounter", "nobody")


def test_hosting_is_named_as_users_do(objects: Path) -> None:
    class CliCounter(ro.DurableObject, hosting="dedicated"):
        pass

    with pytest.raises(ro.InvalidCall, match=r"hosting='shared'.* changed to 'dedicated'"):
        ro.deploy(CliCounter)


def test_another_storage_than_the_clusters(objects: Path, tmp_path: Path) -> None:
    with pytest.raises(ro.InvalidCall, match=f"stores its objects in {objects}, not in {tmp_path}"):
        ro.init(storage=str(tmp_path))


def test_status(capsys: pytest.CaptureFixture[str], objects: Path) -> None:
    status = json.loads(answer(capsys, "status", "--json"))
    assert status["storage"] == str(objects)
    assert status["shards"] == 2
    assert "CliCounter" in [each["name"] for each in status["classes"]]
    for_people = answer(capsys, "status")
    assert "default/0000" in for_people
    assert "fail, increment, keep" in for_people


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["call", "CliCounter", "home", "fly"], "fly"),
        (["call", "CliCounter", "home", "_hidden"], "_hidden"),
        (["call", "CliCounter", "home", "hidden"], "hidden"),
        (["call", "CliCounter", "home", "on_start"], "on_start"),
        (["call", "Nobody", "home", "fly"], "Nobody"),
        (["call", "CliCounter", "", "increment"], "must not be empty"),
        (["call", "CliCounter", "home", "increment", "by=text"], "by"),
        (["call", "CliCounter", "home", "increment", "to=1"], "to"),
        (["call", "CliCounter", "home", "keep"], "key"),
        (["call", "CliCounter", "home", "fail"], "LookupError: no such thing"),
        (["get", "CliCounter", "nobody"], "there is no object CliCounter/nobody"),
        (["get", "CliCounter", "x" * 1025], "1,024"),
        (["get", "Nobody", "home"], "Nobody"),
        (["list", "Nobody"], "'Nobody' is deployed (there are: CliCounter"),
        (["delete", "Nobody", "home", "--yes"], "Nobody"),
    ],
)
def test_mistakes(command: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in fails(capsys, *command)


def test_the_hosts_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(capsys, "--debug", "call", "CliCounter", "home", "fail")
    assert code == 1
    assert 'raise LookupError("no such\\nthing")' in error
