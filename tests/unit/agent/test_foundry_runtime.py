"""Foundry Local's runtime and session without the SDK: the child is a scripted one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.child import ChildGone, ChildTimeout, Message
from benchfleet_agent.runtimes import (
    Model,
    Placement,
    foundry_catalog,
    foundry_child,
    foundry_link,
)
from benchfleet_agent.runtimes.foundry import FoundryRuntime
from benchfleet_agent.runtimes.foundry_link import FoundrySettings as Settings
from benchfleet_agent.runtimes.foundry_session import FoundrySession as Session
from fakes.scripted_foundry import LISTING, REFERENCE, TINY, Made, ScriptedChild, made, settings, with_script

__all__ = ["made", "settings"]  # fixtures


@pytest.fixture
def session(settings: Settings) -> Session:
    runtime = FoundryRuntime(settings)
    return runtime.open(runtime.resolve("tiny-random", None), Placement(cpus=(1,)))


def failing(work: Callable[[], object]) -> WorkFailed:
    with pytest.raises(WorkFailed) as caught:
        work()
    return caught.value


def nothing(message: str, fraction: float | None) -> None:
    """A progress callback that ignores."""


def test_describe_names_versions_and_starts_nothing(settings: Settings, made: Made) -> None:
    description = FoundryRuntime(settings).describe()
    assert (description.name, description.available, description.version) == ("foundry", True, "2.2.1")
    assert description.components["onnxruntime"] == "1.31.0"
    assert made == []


@pytest.mark.parametrize(("versions", "words"), [({}, "has no foundry-local-sdk"), ({"sdk": "1.2.4"}, "too old")])
def test_a_missing_or_old_sdk_says_what_to_install(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], words: str
) -> None:
    monkeypatch.setattr(foundry_child, "versions", lambda: versions)
    runtime = FoundryRuntime(settings)
    description = runtime.describe()
    assert not description.available
    assert words in (description.reason or "")
    assert "pip install foundry-local-sdk==2.2.1" in (description.reason or "")
    error = failing(lambda: runtime.open(Model("a", "b"), Placement()))
    assert error.failure.reason is Reason.RUNTIME_UNAVAILABLE


def test_models_lists_reference_models_and_the_catalog(settings: Settings, made: Made) -> None:
    (settings.reference_cache_dir / TINY.replace(":", "-")).mkdir(parents=True)
    (settings.reference_cache_dir / TINY.replace(":", "-") / "model.onnx").write_bytes(b"12345")
    models = {model.variant: model for model in FoundryRuntime(settings).models()}
    assert len(models) == 6
    assert models[TINY].cached
    assert models[TINY].size_bytes == 5
    assert "test" in models[TINY].capabilities
    assert not models[REFERENCE].cached
    assert models[REFERENCE].size_bytes == 77
    assert models[REFERENCE].capabilities == ("chat-completion",)
    assert models["phi-4-mini-cuda-gpu:2"].capabilities == ("chat",)
    assert made[0].kills == 1


def test_the_catalog_is_kept_for_minutes_then_asked_again(settings: Settings, made: Made) -> None:
    now = [1000.0]
    runtime = FoundryRuntime(settings, clock=lambda: now[0])
    runtime.models()
    now[0] += foundry_catalog.FRESH_S - 1
    runtime.models()
    assert len(made) == 1
    now[0] += 1
    runtime.models()
    assert len(made) == 2


def test_offline_only_what_is_here_is_there(tmp_path: Path, made: Made) -> None:
    here = [{**entry, "cached": entry["device"] == "cpu"} for entry in LISTING]
    with_script(models=[{"event": "models", "models": here}])
    runtime = FoundryRuntime(Settings(tmp_path, tmp_path, tmp_path, offline=True))
    assert len(runtime.models()) == 4
    assert runtime.resolve("phi-4-mini", None).variant == "phi-4-mini-generic-cpu:10"
    assert "offline" in failing(lambda: runtime.resolve("phi-5", None)).failure.message
    assert [child.sent[0]["offline"] for child in made] == [True]


@pytest.mark.parametrize(
    "trouble",
    [
        ChildTimeout("late"),
        ChildGone("child", -11, ""),
        [{"event": "failed", "reason": "connection_failed", "message": "no route"}],
        [{"event": "models", "models": []}],
    ],
)
def test_an_unreachable_catalog_costs_only_itself(
    settings: Settings, made: Made, trouble: list[Message] | Exception
) -> None:
    with_script(models=trouble)
    runtime = FoundryRuntime(settings)
    assert [model.variant for model in runtime.models()] == [REFERENCE, TINY]
    message = failing(lambda: runtime.resolve("phi-4-mini", None)).failure.message
    assert "could not be asked" in message
    assert len(made) == 1
    assert made[0].kills == 1


@pytest.mark.parametrize("name", ["smollm2-135m", REFERENCE])
def test_reference_models_resolve_without_the_network(settings: Settings, made: Made, name: str) -> None:
    assert FoundryRuntime(settings).resolve(name, "cpu").variant == REFERENCE
    assert made == []


def test_a_reference_model_on_a_gpu_says_which_devices_it_has(settings: Settings) -> None:
    failure = failing(lambda: FoundryRuntime(settings).resolve("smollm2-135m", "gpu")).failure
    assert failure.reason is Reason.MODEL_NOT_FOUND
    assert "only for cpu" in failure.message


@pytest.mark.parametrize(
    ("name", "device", "variant"),
    [
        ("phi-4-mini", None, "phi-4-mini-cuda-gpu:2"),
        ("phi-4-mini", "gpu", "phi-4-mini-cuda-gpu:2"),
        ("phi-4-mini", "cpu", "phi-4-mini-generic-cpu:10"),
        ("phi-4-mini-generic-cpu:2", None, "phi-4-mini-generic-cpu:2"),
    ],
)
def test_an_alias_resolves_alike_on_every_host(settings: Settings, name: str, device: str | None, variant: str) -> None:
    assert FoundryRuntime(settings).resolve(name, device).variant == variant


def test_an_unknown_model_suggests_near_names(settings: Settings) -> None:
    failure = failing(lambda: FoundryRuntime(settings).resolve("smollm-135m", None)).failure
    assert failure.reason is Reason.MODEL_NOT_FOUND
    assert "did you mean smollm2-135m" in failure.message


def test_a_local_model_is_loaded_and_served_from_the_local_catalog(
    session: Session, settings: Settings, made: Made
) -> None:
    assert session.process_ids() == ()
    loaded = session.load(10.0)
    assert loaded.load_ns == 5_000_000
    assert loaded.execution_provider == "CPUExecutionProvider"
    assert loaded.endpoint.base_url == "http://127.0.0.1:4711/catalogs/local/v1"
    assert loaded.endpoint.model == TINY
    assert not loaded.endpoint.remote
    assert session.process_ids() == (made[0].pid,)
    start, register, load, serve = made[0].sent
    assert start["cpus"] == [1]
    assert Path(start["model_cache_dir"]).is_relative_to(settings.data_dir)
    assert register["path"] == str(settings.reference_cache_dir / TINY.replace(":", "-"))
    assert (load["catalog"], load["variant"], serve["do"]) == ("local", TINY, "serve")
    session.check()
    assert session.unload(1.0) == 7
    session.close(1.0)
    session.close(1.0)
    session.kill()


def test_a_catalog_model_registers_its_provider_and_is_served_at_v1(settings: Settings, made: Made) -> None:
    runtime = FoundryRuntime(settings)
    session = runtime.open(runtime.resolve("phi-4-mini", "gpu"), Placement())
    seen: list[tuple[str, float | None]] = []
    session.prepare(lambda message, fraction: seen.append((message, fraction)))
    assert seen == [("x", 0.5)]
    assert session.load(10.0).endpoint.base_url == "http://127.0.0.1:4711/v1"
    asked = [[message["do"] for message in child.sent] for child in made]
    assert asked == [
        ["start", "describe", "models"],
        ["start", "register_eps", "download"],
        ["start", "register_eps", "load", "serve"],
    ]
    assert made[1].stops == 1


def test_prepare_builds_once_and_forwards_progress(session: Session, settings: Settings, made: Made) -> None:
    built: list[Message] = [
        {"event": "progress", "stage": "s", "fraction": None, "message": "m"},
        {"event": "built", "path": "p"},
    ]
    with_script(build=built)
    seen: list[tuple[str, float | None]] = []
    session.prepare(lambda message, fraction: seen.append((message, fraction)))
    assert seen == [("m", None)]
    assert made[0].command[1:4] == ["-m", "benchfleet_agent.reference_model", "build"]
    (settings.reference_cache_dir / TINY.replace(":", "-")).mkdir(parents=True)
    session.prepare(lambda message, fraction: seen.append((message, fraction)))
    assert len(made) == 1
    assert seen[-1][1] == 1.0


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ([{"event": "failed", "reason": "disk_full", "message": "no room"}], Reason.DISK_FULL),
        (ChildGone("build", 1, "ImportError: numpy"), Reason.BUILD_FAILED),
        (ChildTimeout("late"), Reason.BUILD_FAILED),
        ([{"event": "failed", "reason": "from the future", "message": "?"}], Reason.INTERNAL),
    ],
)
def test_a_failed_build_has_a_reason(
    session: Session, trouble: list[Message] | Exception, reason: Reason, made: Made
) -> None:
    with_script(build=trouble)
    assert failing(lambda: session.prepare(nothing)).failure.reason is reason
    assert not made[0].running


@pytest.mark.parametrize(
    ("stage", "words"),
    [("start", "starting"), ("register", "registering"), ("load", "loading"), ("serve", "web service")],
)
def test_a_late_load_is_killed_and_says_at_what(session: Session, made: Made, stage: str, words: str) -> None:
    with_script(**{stage: ChildTimeout("late")})
    failure = failing(lambda: session.load(3.0)).failure
    assert failure.reason is Reason.LOAD_TIMEOUT
    assert words in failure.message
    assert made[0].kills >= 1


def test_a_failed_load_keeps_the_childs_reason_and_ends_the_child(session: Session, made: Made) -> None:
    with_script(load=[{"event": "failed", "reason": "corrupt_model", "message": "bad file"}])
    failure = failing(lambda: session.load(3.0)).failure
    assert (failure.reason, failure.message) == (Reason.CORRUPT_MODEL, "bad file")
    assert made[0].kills == 1


@pytest.mark.parametrize(
    ("kills", "reason", "words"),
    [((3, 4), Reason.OUT_OF_MEMORY, "struck"), ((3, 3), Reason.RUNTIME_CRASHED, "suspect the out-of-memory killer")],
)
def test_sigkill_in_a_load_is_judged_by_the_kernels_counter(
    session: Session, monkeypatch: pytest.MonkeyPatch, kills: tuple[int, int], reason: Reason, words: str
) -> None:
    counter = iter(kills)
    monkeypatch.setattr(foundry_link, "_oom_kills", lambda: next(counter))
    with_script(load=ChildGone("child", -9, ""))
    failure = failing(lambda: session.load(3.0)).failure
    assert failure.reason is reason
    assert "signal 9" in failure.message
    assert words in failure.message


def test_check_says_how_the_runtime_ended(session: Session, made: Made) -> None:
    assert failing(session.check).failure.reason is Reason.NOT_LOADED
    session.load(3.0)
    made[0].running, made[0].returncode = False, -11  # type: ignore[assignment]
    failure = failing(session.check).failure
    assert failure.reason is Reason.RUNTIME_CRASHED
    assert "killed by signal 11: last words" in failure.message
    assert str(made[0].log_path) in failure.message
    assert session.process_ids() == ()


def test_kill_prevents_a_later_start(session: Session, made: Made) -> None:
    session.kill()
    assert failing(lambda: session.load(3.0)).failure.reason is Reason.CANCELLED
    assert made == []


def test_a_kill_during_a_load_is_cancelled_not_crashed(
    session: Session, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed_meanwhile(child: ScriptedChild, timeout_s: float | None) -> Message:
        session.kill()
        raise ChildGone(child.name, -9, "")

    monkeypatch.setattr(ScriptedChild, "receive", killed_meanwhile)
    assert failing(lambda: session.load(3.0)).failure.reason is Reason.CANCELLED
    assert made[0].kills >= 1


def test_an_unload_that_hangs_ends_the_child(session: Session, made: Made) -> None:
    with_script(unload=ChildTimeout("late"))
    session.load(3.0)
    assert failing(lambda: session.unload(1.0)).failure.reason is Reason.RUNTIME_CRASHED
    assert made[0].kills == 1


def test_old_logs_make_room(settings: Settings, session: Session) -> None:
    settings.log_dir.mkdir()
    for number in range(40):
        (settings.log_dir / f"foundry-1-{number}.log").touch()
    (settings.log_dir / "agent.log").touch()
    session.load(3.0)
    assert len(list(settings.log_dir.glob("foundry-*.log"))) == foundry_link.KEPT_LOGS
    assert (settings.log_dir / "agent.log").exists()
