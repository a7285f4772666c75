"""Joining a cluster: who is let in, how its end is seen. With real nodes: test_cluster."""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tune import command, joined
from tune.preflight import PreflightError

NODES = [{"NodeID": "ours", "Alive": True}, {"NodeID": "other", "Alive": True}]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(joined, "GONE_SECONDS", 0.3)
    monkeypatch.setattr(joined, "JOIN_SECONDS", 0.0)


def problem_of(nodes: Callable[[], Any], seconds: float, listening: bool = False) -> str | None:
    """What a watch says within so many seconds."""
    watch = joined.Watch(nodes, "ours", lambda: listening)
    end = time.monotonic() + seconds
    try:
        while watch.problem() is None and time.monotonic() < end:
            time.sleep(0.01)
        return watch.problem()
    finally:
        watch.stop()


def test_a_cluster_that_answers_is_well_whatever_other_nodes_do(quick: None) -> None:
    assert problem_of(lambda: [NODES[0], NODES[1] | {"Alive": False}], 0.6) is None


def test_a_head_that_hangs_or_refuses_is_gone_after_a_while(quick: None) -> None:
    def refuses() -> Any:
        raise RuntimeError("no connection")

    for nodes in (lambda: time.sleep(2) or NODES, refuses):
        assert "the cluster is gone" in str(problem_of(nodes, 5))
        assert problem_of(nodes, 0.6, listening=True) is None  # busy, not gone


def test_a_port_that_is_open_is_told_from_one_that_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert joined.listens(address)
    assert not joined.listens(address)


def test_a_driver_whose_own_node_has_left_is_told(quick: None) -> None:
    left = [NODES[0] | {"Alive": False}, NODES[1]]
    assert "this machine is no node" in str(problem_of(lambda: left, 5))


def test_a_machine_that_is_no_node_is_told_to_become_one(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray._private.services, "find_node_ids", lambda: [])
    with pytest.raises(PreflightError, match="no node of a Ray cluster at 10.0.0.1:6379: run the"):
        joined.join("10.0.0.1:6379", {})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("No node info found matching attributes: ''\n when trying", "run the command on a node"),
        ("Could not find any running Ray instance. Please specify", "run the command on a node"),
        ("InvalidAuthToken: Authentication required", "our token must be that of its nodes"),
        ("Failed to connect to Ray cluster at 10.0.0.1:1", "our token must be that of its nodes"),
        ("Version mismatch: Ray 2.9\nhere 2.60", "cannot be joined: Version mismatch: Ray 2.9 her"),
    ],
)
def test_what_ray_says_becomes_one_line(
    words: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(PreflightError, match=said) as caught:
        joined.join("auto", {})
    assert "\n" not in str(caught.value)


def test_a_ray_that_does_not_come_up_here_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from tune import engine

    def refuse(*_: Any, **__: Any) -> None:
        raise Exception("The current node timed out during startup.\n This could happen")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(
        PreflightError, match="did not start on this machine .The current"
    ) as caught:
        engine.start("local", 1, 1, tmp_path, {})
    assert "\n" not in str(caught.value)


def test_only_what_ray_can_join_is_an_address() -> None:
    for text in ("local", "auto", "head:6379", "[::1]:6379"):
        assert command.address(text) == text
    for text in ("ray://head:10001", "head", ":6379", "head:0", "head:x", ""):
        with pytest.raises(command.UsageError, match="must be local, auto or HOST:PORT"):
            command.address(text)
