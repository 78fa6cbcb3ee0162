"""The real Foundry Local SDK with the tiny reference model: the life of a session, and how it may end badly."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent import reference_model
from benchfleet_agent.child import Child
from benchfleet_agent.runtimes import Endpoint, Placement
from benchfleet_agent.runtimes.endpoint import EndpointRuntime, EndpointSettings
from benchfleet_agent.runtimes.foundry import FoundryRuntime
from benchfleet_agent.runtimes.foundry_link import FoundrySettings
from benchfleet_agent.runtimes.foundry_session import FoundrySession

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("foundry_local_sdk") is None, reason="needs foundry-local-sdk"),
    pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="building the tiny model needs onnx"),
]
VARIANT = reference_model.TINY_VARIANT
posix = pytest.mark.skipif(os.name != "posix", reason="signals")
SIGKILL, SIGSTOP, SIGSEGV = 9, 19 if sys.platform == "linux" else 17, 11  # by number: Windows has no such names
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc")


def nothing(message: str, fraction: float | None) -> None:
    """A progress callback that ignores."""


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the tiny model in it, built through a session as a first use does."""
    base = tmp_path_factory.mktemp("reference")
    session = open_session(FoundrySettings(base / "data", base / "cache", base / "logs", offline=True))
    seen: list[str] = []
    session.prepare(lambda message, fraction: seen.append(message))
    assert seen
    assert session.process_ids() == ()
    return base / "cache"


@pytest.fixture
def settings(tmp_path: Path, cache_dir: Path) -> FoundrySettings:
    return FoundrySettings(tmp_path / "data", cache_dir, tmp_path / "logs", offline=True)


@pytest.fixture
def sessions(settings: FoundrySettings) -> Iterator[Callable[..., FoundrySession]]:
    opened: list[FoundrySession] = []

    def make(changed: FoundrySettings = settings, cpus: tuple[int, ...] = ()) -> FoundrySession:
        opened.append(open_session(changed, cpus))
        return opened[-1]

    yield make
    for session in opened:
        session.kill()


def open_session(settings: FoundrySettings, cpus: tuple[int, ...] = ()) -> FoundrySession:
    runtime = FoundryRuntime(settings)
    return runtime.open(runtime.resolve(reference_model.TINY_ALIAS, "cpu"), Placement(cpus))


def stream(endpoint: Endpoint, max_tokens: int = 8) -> Iterator[dict[str, Any]]:
    """Chunks of one chat answer."""
    body = {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = urllib.request.Request(
        f"{endpoint.base_url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])


def wait_until(true: Callable[[], Any], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def gone(pid: int) -> bool:
    """Whether nothing of the child's process group is left."""
    if sys.platform == "win32":
        return True
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return True
    return False


def failing(work: Callable[[], object]) -> WorkFailed:
    with pytest.raises(WorkFailed) as caught:
        work()
    return caught.value


def test_the_whole_life_of_a_session(sessions: Callable[..., FoundrySession]) -> None:
    session = sessions()
    session.prepare(nothing)
    loaded = session.load(60)
    (pid,) = session.process_ids()
    assert loaded.load_ns
    assert 0 < loaded.load_ns < 60_000_000_000
    assert loaded.execution_provider == "CPUExecutionProvider"
    assert loaded.endpoint.base_url.startswith("http://127.0.0.1:")
    session.check()
    chunks = list(stream(loaded.endpoint))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk.get("usage")] == [8]
    unloaded_ns = session.unload(30)  # at once: the request's session may still be open
    assert unloaded_ns is not None
    assert unloaded_ns > 0
    with pytest.raises(urllib.error.HTTPError):
        list(stream(loaded.endpoint))
    began = time.monotonic()
    session.close(25)
    assert time.monotonic() - began < 20
    assert session.process_ids() == ()
    if os.name == "posix":
        assert gone(pid)
    session.close(25)
    session.kill()


def test_a_second_case_finds_the_persisted_registration(sessions: Callable[..., FoundrySession]) -> None:
    for _ in range(2):
        session = sessions()
        assert list(stream(session.load(60).endpoint))
        session.close(25)


def test_the_endpoint_runtime_reads_what_foundry_serves(sessions: Callable[..., FoundrySession]) -> None:
    loaded = sessions().load(60)
    runtime = EndpointRuntime(EndpointSettings(loaded.endpoint.base_url))
    assert runtime.describe().available
    assert runtime.resolve(VARIANT.partition(":")[0], None).variant == VARIANT
    assert runtime.open(runtime.resolve(VARIANT, None), Placement()).load(5).endpoint == loaded.endpoint


@posix
def test_a_load_that_hangs_is_killed_at_its_deadline(sessions: Callable[..., FoundrySession]) -> None:
    session = sessions()
    with ThreadPoolExecutor() as pool:
        load = pool.submit(session.load, 2.0)
        wait_until(session.process_ids)
        pids = session.process_ids()
        os.kill(pids[0], SIGSTOP)  # frozen while it imports the SDK
        error = load.exception(30)
    assert isinstance(error, WorkFailed)
    assert error.failure.reason is Reason.LOAD_TIMEOUT
    assert "2 s" in error.failure.message
    assert gone(pids[0])


@posix
def test_a_kill_from_another_thread_cancels_a_load(sessions: Callable[..., FoundrySession]) -> None:
    session = sessions()
    with ThreadPoolExecutor() as pool:
        load = pool.submit(session.load, 60.0)
        wait_until(session.process_ids)
        pids = session.process_ids()
        os.kill(pids[0], SIGSTOP)
        session.kill()
        error = load.exception(30)
    assert isinstance(error, WorkFailed)
    assert error.failure.reason is Reason.CANCELLED
    assert gone(pids[0])


@posix
@pytest.mark.parametrize(("number", "words"), [(SIGSEGV, "signal 11"), (SIGKILL, "out-of-memory killer")])
def test_a_crash_is_reported_with_how_it_ended(
    sessions: Callable[..., FoundrySession], number: int, words: str
) -> None:
    session = sessions()
    loaded = session.load(60)
    (pid,) = session.process_ids()
    os.kill(pid, number)
    wait_until(lambda: not session.process_ids())
    failure = failing(session.check).failure
    assert failure.reason is Reason.RUNTIME_CRASHED
    assert words in failure.message
    with pytest.raises(urllib.error.URLError):
        list(stream(loaded.endpoint))
    assert failing(lambda: session.unload(5)).failure.reason is Reason.RUNTIME_CRASHED
    session.close(5)


def broken_copy(cache_dir: Path, tmp_path: Path) -> tuple[Path, Path]:
    copy = tmp_path / "broken"
    shutil.copytree(cache_dir, copy)
    return copy, reference_model.directory(copy, VARIANT)


@pytest.mark.parametrize("harm", ["truncated", "missing", "not json"])
def test_a_broken_model_is_a_failed_load_and_ends_the_child(
    sessions: Callable[..., FoundrySession], settings: FoundrySettings, tmp_path: Path, harm: str
) -> None:
    copy, model = broken_copy(settings.reference_cache_dir, tmp_path)
    weights = model / "model.onnx"
    if harm == "truncated":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif harm == "missing":
        weights.unlink()
    else:
        (model / "genai_config.json").write_text("{")
    session = sessions(FoundrySettings(settings.data_dir, copy, settings.log_dir, offline=True))
    failure = failing(lambda: session.load(60)).failure
    assert failure.reason in (Reason.CORRUPT_MODEL, Reason.LOAD_FAILED), failure
    assert session.process_ids() == ()


def test_a_model_that_was_never_prepared_is_not_cached(
    sessions: Callable[..., FoundrySession], settings: FoundrySettings, tmp_path: Path
) -> None:
    session = sessions(FoundrySettings(settings.data_dir, tmp_path / "empty", settings.log_dir, offline=True))
    assert failing(lambda: session.load(60)).failure.reason is Reason.NOT_CACHED


def test_noise_on_stdout_never_breaks_the_protocol(
    sessions: Callable[..., FoundrySession], settings: FoundrySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = tmp_path / "noisy"
    noisy.mkdir()
    (noisy / "sitecustomize.py").write_text(
        "import os, sys, threading, time\n"
        "def shout():\n"
        "    while True:\n"
        '        print(\'{"event": "loud"\', file=sys.stdout, flush=True)\n'
        '        os.write(1, b\'{"event": "raw"}\\n\')\n'
        "        time.sleep(0.002)\n"
        "if any('foundry_child' in word for word in sys.orig_argv):\n"
        "    threading.Thread(target=shout, daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(noisy), os.environ.get("PYTHONPATH", "")]))
    session = sessions()
    loaded = session.load(60)
    assert list(stream(loaded.endpoint))
    assert session.unload(30) is not None
    session.close(25)
    assert any("loud" in path.read_text(errors="replace") for path in settings.log_dir.glob("foundry-*.log"))


@pytest.fixture
def child(settings: FoundrySettings) -> Iterator[Child]:
    settings.log_dir.mkdir(parents=True)
    child = Child("child", settings.child_command(), log_path=settings.log_dir / "child.log")
    child.send(settings.start_command((), local=True))
    assert child.receive(60)["event"] == "started"
    yield child
    child.kill()


def ask(child: Child, **command: Any) -> dict[str, Any]:
    child.send(command)
    return child.receive(60)


def test_registering_twice_is_harmless_and_a_stale_path_is_replaced(
    child: Child, settings: FoundrySettings, tmp_path: Path
) -> None:
    model = reference_model.directory(settings.reference_cache_dir, VARIANT)
    moved = tmp_path / "moved"
    shutil.copytree(model, moved)
    command = {"do": "register", "variant": VARIANT, "alias": "tiny-random", "license": "mit"}
    assert [ask(child, **command, path=str(path))["replaced"] for path in (model, model, moved, moved)] == [
        False,
        False,
        True,
        False,
    ]
    (listed,) = ask(child, do="models", catalog="local")["models"]
    assert (listed["variant"], listed["alias"], listed["cached"]) == (VARIANT, "tiny-random", True)
    shutil.rmtree(moved)
    assert ask(child, **command, path=str(model))["replaced"] is True
    assert ask(child, do="load", variant=VARIANT)["event"] == "loaded"


def test_of_two_children_that_share_a_registration_the_loser_refuses_to_load(
    child: Child, settings: FoundrySettings, tmp_path: Path
) -> None:
    model = reference_model.directory(settings.reference_cache_dir, VARIANT)
    moved = tmp_path / "moved"
    shutil.copytree(model, moved)
    other = Child("other", settings.child_command(), log_path=settings.log_dir / "other.log")
    try:
        other.send(settings.start_command((), local=True))
        assert other.receive(60)["event"] == "started"
        assert ask(child, do="register", variant=VARIANT, path=str(model))["event"] == "registered"
        assert ask(other, do="register", variant=VARIANT, path=str(moved))["replaced"] is True
        assert ask(other, do="load", variant=VARIANT)["event"] == "loaded"
        answer = ask(child, do="load", variant=VARIANT)
        assert answer["reason"] == "load_failed"
        assert str(moved) in answer["message"]
    finally:
        other.kill()


def test_the_child_stops_on_command_and_on_a_closed_pipe(child: Child, settings: FoundrySettings) -> None:
    assert ask(child, do="nonsense")["reason"] == "internal"
    assert ask(child, do="stop")["event"] == "stopped"
    assert child.stop(20)
    second = Child("second", settings.child_command(), log_path=settings.log_dir / "second.log")
    assert second.stop(20)


def test_another_interpreter_needs_only_the_sdk(
    sessions: Callable[..., FoundrySession], settings: FoundrySettings
) -> None:
    changed = FoundrySettings(
        settings.data_dir, settings.reference_cache_dir, settings.log_dir, python=sys.executable, offline=True
    )
    assert FoundryRuntime(changed).describe().components["onnxruntime"]
    session = sessions(changed)
    assert list(stream(session.load(60).endpoint))


def test_the_agents_half_imports_no_sdk() -> None:
    code = "import sys, benchfleet_agent.runtimes.foundry; sys.exit('foundry_local_sdk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@linux
def test_a_pinned_runtime_stays_on_its_processors_while_it_answers(sessions: Callable[..., FoundrySession]) -> None:
    cpu = max(os.sched_getaffinity(0))  # type: ignore[attr-defined, unused-ignore]
    session = sessions(cpus=(cpu,))
    loaded = session.load(60)
    (pid,) = session.process_ids()
    answering, seen = threading.Event(), 0

    def answer() -> None:
        for _ in stream(loaded.endpoint, 1000):
            answering.set()
        answering.clear()

    with ThreadPoolExecutor() as pool:
        request = pool.submit(answer)
        answering.wait(30)
        while not request.done():
            masks = [mask for mask in map(allowed_cpus, Path(f"/proc/{pid}/task").iterdir()) if mask]
            assert set(masks) == {str(cpu)}
            seen += 1
        request.result()
    assert seen
    assert session.unload(30) is not None


def allowed_cpus(task: Path) -> str | None:
    try:
        lines = (task / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # the thread ended meanwhile
        return None
    return next(line.split()[1] for line in lines if line.startswith("Cpus_allowed_list"))


@linux
def test_a_processor_the_host_lacks_is_an_invalid_spec(sessions: Callable[..., FoundrySession]) -> None:
    failure = failing(lambda: sessions(cpus=(100_000,)).load(60)).failure
    assert failure.reason is Reason.INVALID_SPEC
    assert "100000" in failure.message
