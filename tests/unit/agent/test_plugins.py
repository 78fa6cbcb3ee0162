"""Plug-ins: whose names count, what a broken one does, and what an adapter's answers become."""

from __future__ import annotations

import importlib.metadata
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.runtimes import Model, RuntimeDescription
from benchfleet_agent.runtimes.adapter_http import Generation
from benchfleet_agent.runtimes.adapter_server import Broken, kind_of, make, read_models
from benchfleet_agent.runtimes.plugins import Examined, Plugin, PluginRuntime, admit, installed, read_examined

LOGS = Path("unused")


def plugin(name: str = "echo", distribution: str = "echo-runtime") -> Plugin:
    return Plugin(name, "echo:Adapter", distribution, "1.0")


def runtime(*examined: Examined, clock: Callable[[], float] = lambda: 0.0) -> PluginRuntime:
    answers = iter(examined)
    return PluginRuntime(plugin(), LOGS, examine=lambda: next(answers), clock=clock)


def listing(*entries: dict[str, Any]) -> Examined:
    return read_examined({"kind": "adapter", "models": list(entries)})


def test_installed_plugins_are_read_without_an_import() -> None:
    point = importlib.metadata.EntryPoint("ghost", "no_such_module:Thing", "benchfleet.runtimes")
    (found,) = installed([point])
    assert (found.name, found.value) == ("ghost", "no_such_module:Thing")


@pytest.mark.parametrize("name", ["foundry", "Upper", "with space", "", "9lives"])
def test_names_that_are_taken_or_none_are_refused(name: str) -> None:
    (found,) = admit([plugin(name)], {"foundry", "endpoint"})
    assert found.problem


def test_of_two_with_one_name_neither_is_used() -> None:
    one, other, third = admit([plugin("a", "x"), plugin("a", "y"), plugin("b")], {"foundry"})
    assert "echo:Adapter of x 1.0 and echo:Adapter of y 1.0" in one.problem
    assert other.problem == one.problem
    assert not third.problem


def test_nothing_is_examined_before_somebody_asks() -> None:
    asked: list[str] = []

    def examine() -> Examined:
        asked.append("asked")
        return Examined(kind="adapter")

    made = PluginRuntime(plugin(), LOGS, examine=examine)
    assert asked == []
    assert made.describe().available
    assert made.describe().available
    assert asked == ["asked"]


def test_a_broken_plugin_says_why_lists_nothing_and_refuses_cases() -> None:
    broken = runtime(Examined("importing echo failed: ImportError: torch"))
    said = broken.describe()
    assert not said.available
    assert said.reason == "echo:Adapter of echo-runtime 1.0: importing echo failed: ImportError: torch"
    assert broken.models() == []
    with pytest.raises(WorkFailed) as caught:
        broken.resolve("m", None)
    assert caught.value.failure.reason is Reason.RUNTIME_UNAVAILABLE


def test_a_broken_plugin_is_tried_again_after_a_while() -> None:
    now = [0.0]
    mended = runtime(Examined("no"), Examined(kind="adapter"), clock=lambda: now[0])
    assert not mended.describe().available
    assert not mended.describe().available
    now[0] = 301.0
    assert mended.describe().available


def test_a_good_plugin_is_not_imported_again_for_a_description() -> None:
    now = [0.0]
    good = runtime(listing({"id": "a"}), listing({"id": "b"}), clock=lambda: now[0])
    assert good.describe().available
    now[0] = 10_000.0
    assert good.describe().available
    assert good.resolve("a", None).variant == "a"
    assert [model.variant for model in good.models()] == ["b"]


def test_an_examination_that_ends_in_an_error_does_not_leave_anybody_waiting() -> None:
    def examine() -> Examined:
        raise RuntimeError("out of threads")

    assert "out of threads" in str(PluginRuntime(plugin(), LOGS, examine=examine).describe().reason)


def test_a_slow_import_delays_no_description(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchfleet_agent.runtimes.plugins.DESCRIBE_S", 0.0)
    gate = threading.Event()

    def examine() -> Examined:
        gate.wait(10)
        return Examined(kind="adapter")

    slow = PluginRuntime(plugin(), LOGS, examine=examine)
    assert "still being imported" in str(slow.describe().reason)
    gate.set()
    assert slow.resolve("m", None).variant == "m"
    assert slow.describe().available


def test_without_a_list_any_name_goes_with_one_only_those() -> None:
    assert runtime(Examined(kind="adapter")).resolve("what/ever", "gpu") == Model(
        "what/ever", "what/ever", device="gpu"
    )
    listed = runtime(
        listing({"id": "a-gpu", "alias": "a", "device": "gpu"}, {"id": "a-cpu", "alias": "a", "device": "cpu"})
    )
    assert listed.resolve("a", "cpu").variant == "a-cpu"
    with pytest.raises(WorkFailed, match="no model 'b'"):
        listed.resolve("b", None)


def test_what_an_adapter_says_of_a_model_is_taken_as_far_as_it_makes_sense() -> None:
    entry = {
        "id": "m",
        "device": "tpu",
        "size_bytes": -1,
        "context_length": 4096,
        "capabilities": ["chat"],
        "cached": 1,
    }
    (model,) = listing(entry).models or ()
    assert model == Model("m", "m", context_length=4096, capabilities=("chat",), loaded=False)


def test_an_adapter_cannot_pull_and_says_so() -> None:
    with pytest.raises(WorkFailed, match="cannot download models") as caught:
        runtime(Examined(kind="adapter")).pull(Model("m", "m"), lambda message, fraction: None, lambda: False, 1)
    assert caught.value.failure.reason is Reason.UNSUPPORTED


class WholeRuntime:
    """A runtime of somebody else."""

    name = "whole"

    def describe(self) -> RuntimeDescription:
        return RuntimeDescription("own name", True, version="7", capabilities=frozenset({"remove"}))

    def models(self) -> list[Model]:
        raise ZeroDivisionError("their bug")

    def resolve(self, model: str, device: str | None) -> Model:
        return Model(model, model)

    def open(self, model: Model, placement: object) -> Any:
        return "a session"

    def remove(self, model: Model) -> int | None:
        return 5


def test_a_whole_runtime_keeps_what_it_can_and_its_bugs(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = runtime(Examined(kind="runtime"))
    whole._inner = WholeRuntime()
    said = whole.describe()
    assert (said.name, said.version, said.capabilities) == ("echo", "7", frozenset({"remove"}))
    assert whole.remove(Model("m", "m")) == 5
    with pytest.raises(WorkFailed, match="their bug"):
        whole.models()
    with pytest.raises(WorkFailed, match="cannot unload"):
        whole.unload(Model("m", "m"))


class Adapter:
    """Fits."""

    def load(self, model_id: str) -> None:
        """Load."""

    def generate(self, messages: list[dict[str, str]], max_tokens: int, **sampling: float) -> Iterator[str]:
        """Answer."""
        return iter(())


class NoSampling(Adapter):
    """Takes no seed."""

    def generate(self, messages: list[dict[str, str]], max_tokens: int) -> str:  # type: ignore[override]
        return ""


class Half:
    """Has no generate."""

    def load(self, model_id: str) -> None:
        """Load."""


def test_shapes_are_told_apart_for_classes_and_objects() -> None:
    assert kind_of(Adapter) == kind_of(Adapter()) == "adapter"
    assert kind_of(WholeRuntime) == "runtime"


@pytest.mark.parametrize(
    ("thing", "word"), [(Half, "no generate"), (NoSampling, "does not fit"), (3, "no load and no")]
)
def test_a_wrong_shape_says_what_is_missing(thing: Any, word: str) -> None:
    with pytest.raises(Broken, match=word):
        kind_of(thing)


def test_a_class_that_cannot_be_made_is_broken_even_if_it_exits() -> None:
    class Exits:
        def __init__(self) -> None:
            raise SystemExit(2)

    with pytest.raises(Broken, match="SystemExit"):
        make(Exits)


@pytest.mark.parametrize("listed", [3, [3], [{"name": "x"}], [""], [{"id": "x", "tags": {1}}]])
def test_a_list_of_models_that_is_none_is_broken(listed: Any) -> None:
    with pytest.raises(Broken):
        read_models(listed)


def test_names_and_objects_may_be_listed() -> None:
    assert read_models(["a", {"id": "b", "device": "gpu"}]) == [{"id": "a"}, {"id": "b", "device": "gpu"}]


def test_pieces_are_text_and_counts_come_among_them() -> None:
    made = Generation(iter(["a", "", {"prompt_tokens": 3}, "b", {"completion_tokens": 2, "finish_reason": "length"}]))
    assert list(made.pieces()) == ["a", "b"]
    assert made.usage == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert made.finish_reason == "length"


def test_half_a_count_is_none() -> None:
    made = Generation(iter(["a", {"completion_tokens": 1}]))
    assert list(made.pieces()) == ["a"]
    assert made.usage is None
    assert made.finish_reason == "stop"


def test_a_text_is_one_piece_and_anything_else_is_an_error() -> None:
    assert list(Generation("abc").pieces()) == ["abc"]
    with pytest.raises(TypeError, match="bytes"):
        list(Generation(iter([b"raw"])).pieces())


def test_what_nobody_reads_is_closed() -> None:
    closed: list[bool] = []

    def generate() -> Iterator[str]:
        try:
            yield "a"
            yield "b"
        finally:
            closed.append(True)

    made = Generation(generate())
    assert next(made.pieces()) == "a"
    made.close()
    assert closed == [True]


def test_what_is_examined_survives_the_trip_between_processes() -> None:
    message = json.loads(json.dumps({"event": "examined", "kind": "adapter", "models": read_models(["a"])}))
    assert read_examined(message) == Examined(kind="adapter", models=(Model("a", "a", loaded=False),))
