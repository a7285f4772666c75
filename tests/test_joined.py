"""Joining a cluster: who is let in, how its end is seen. With real nodes: test_cluster."""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tune import ablation
from tune.engine import cluster
from tune.engine.cluster import ClusterConnection, check_cluster, check_listening
from tune.engine.head import EngineError

HEAD = "10.0.0.1:6379"


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> ClusterConnection:
    """A connection to a cluster before `connect`, with short waits."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(cluster, "GONE_SECONDS", 0.3)
    return ClusterConnection(HEAD, {"A": "1"})


@contextlib.contextmanager
def listening(backlog: int | None = None) -> Iterator[str]:
    """The address of something that accepts connections."""
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def problem_within(connection: ClusterConnection, seconds: float) -> str | None:
    end = time.monotonic() + seconds
    while connection.problem() is None and time.monotonic() < end:
        time.sleep(0.01)
    return connection.problem()


def test_a_cluster_that_answers_is_well(connection: ClusterConnection) -> None:
    with listening() as head, listening() as here:
        connection.watch({"its head": head, "Ray on this machine": here})
        assert problem_within(connection, 0.6) is None


def test_a_head_that_hangs_or_refuses_is_gone_after_a_while(connection: ClusterConnection) -> None:
    with listening() as head:
        connection.watch({"its head": head})
        assert problem_within(connection, 0.6) is None
    begun = time.monotonic()
    assert "the cluster is gone: its head has not answered" in str(problem_within(connection, 5))
    assert time.monotonic() - begun > 0.2
    with listening(backlog=0) as head, contextlib.ExitStack() as waiting:
        with contextlib.suppress(OSError):
            while True:  # Until one more is neither accepted nor refused.
                host, port = head.split(":")
                waiting.enter_context(socket.create_connection((host, int(port)), 0.2))
        connection.watch({"its head": head})
        assert "its head has not answered" in str(problem_within(connection, 5))


def test_a_driver_whose_own_node_has_left_is_told(connection: ClusterConnection) -> None:
    with listening() as head:
        with listening() as here:
            connection.watch({"its head": head, "Ray on this machine": here})
        assert "Ray on this machine has not answered" in str(problem_within(connection, 5))


def test_an_address_where_no_cluster_answers_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with listening() as address:
        check_listening(address)
        check_listening(address.replace("127.0.0.1", "[::ffff:127.0.0.1]"))
    begun = time.monotonic()
    with pytest.raises(EngineError, match=f"no Ray cluster answers at {address} .*refused"):
        check_listening(address)
    assert time.monotonic() - begun < 1
    words = ["--preset", "tiny", "--grid", "esteps=1,2", "--out", str(tmp_path / "sweep")]
    assert ablation.main([*words, "--address", address]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("AuthenticationError: RPC error: InvalidAuthToken: missing", "our token must be that of"),
        ("RpcError: Timed out while waiting for GCS", "does not answer as a Ray cluster"),
        ("ConnectionError: Could not find any running Ray instance.", "run the command on a node"),
        ("Something else", "the Ray cluster at auto cannot be joined: Something else"),
    ],
)
def test_what_ray_status_says_becomes_one_line(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "ray"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('Traceback ...\\n{words}\\n\\n')")
    program.chmod(0o755)
    monkeypatch.setattr(cluster, "ray_program", lambda: program)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(EngineError, match=said) as caught:
        check_cluster("auto")
    assert "\n" not in str(caught.value)
    program.write_text("#!/bin/sh\necho 'Timed out'\n")
    check_cluster("auto")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("Failed to connect to Ray cluster at\n10.0.0.1:6379", "run the command on a node"),
        ("Version mismatch: Ray 2.9\nhere 2.60", "cannot be joined: Version mismatch: Ray 2.9 her"),
    ],
)
def test_what_ray_says_becomes_one_line(
    words: str, said: str, connection: ClusterConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(EngineError, match=said) as caught:
        connection.connect()
    assert "\n" not in str(caught.value)


def test_nodes_are_sent_our_packages_and_the_driver_watches_its_head_and_its_node(
    connection: ClusterConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    given: dict[str, Any] = {}
    with listening() as head, listening() as here:
        host, port = here.split(":")
        own = {"NodeID": "ours", "NodeManagerAddress": host, "NodeManagerPort": port}
        context = SimpleNamespace(gcs_address=head, get_node_id=lambda: "ours")
        monkeypatch.setattr(ray, "init", lambda address, **more: given.update(more))
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
        monkeypatch.setattr(ray, "nodes", lambda: [own | {"NodeID": "other"}, own])
        connection.connect()
        assert problem_within(connection, 0.6) is None
    assert "its head has not answered" in str(problem_within(connection, 5))
    runtime = given["runtime_env"]
    assert runtime["env_vars"] == {"A": "1"}
    assert {Path(path).name for path in runtime["py_modules"]} == {"mpcc", "tune"}
    assert all((Path(path) / "__init__.py").is_file() for path in runtime["py_modules"])


def test_only_what_ray_can_join_is_an_address() -> None:
    for text in ("local", "auto", "head:6379", "[::1]:6379"):
        assert ablation.parse(["--address", text]).address == text
    for text in ("ray://head:10001", "head", ":6379", "head:0", "head:x", ""):
        with pytest.raises(ValueError, match="must be local, auto or HOST:PORT"):
            ablation.parse(["--address", text])
