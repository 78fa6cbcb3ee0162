"""Foundry Local: the runtime (what can be served) and the session (one case's child process).

The SDK runs models in its own process, does not give memory back after an unload and cannot cancel a load
(https://github.com/microsoft/Foundry-Local/issues/1079), so every case gets its own child
(`foundry_child`), and killing the child is how a load is cancelled. The agent never imports the SDK.

Reference models are registered in a catalog of their own under the agent's data directory, never in the
(possibly shared) model cache: a registration is a row of ``foundry.local.modelinfo.json`` there. Of two agents
that shared the file the last to register would win for both; the child refuses to load a path it did not mean.
"""

from __future__ import annotations

import difflib
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent import reference_model
from benchfleet_agent.child import ChildTimeout, Message
from benchfleet_agent.runtimes import Endpoint, Loaded, Model, Placement, Progress, RuntimeDescription, foundry_child
from benchfleet_agent.runtimes.foundry_link import ChildLink, FoundrySettings

NAME = "foundry"
INSTALL = "pip install foundry-local-sdk==2.2.1"
CLOSE_WATCHDOG_S = 25.0
"""The native runtime drains sessions and unloads for up to 10 s each before it ends."""
CATALOG_DEADLINE_S = 20.0
CATALOG_FRESH_S, CATALOG_RETRY_S = 600.0, 60.0
"""How long an answer of the public catalog is used, and how soon one that did not come is asked for again."""
STALL_S = 300.0
"""A download or a build that reports nothing for so long is given up."""

_MINIMUM_SDK = (2, 2)
_DEVICE_ORDER = ("npu", "gpu", "cpu")
_log = logging.getLogger(__name__)


class FoundryRuntime:
    """Foundry Local through its SDK: the reference models always, the public catalog when it can be asked."""

    name = NAME

    def __init__(self, settings: FoundrySettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._versions_lock, self._catalog_lock = threading.Lock(), threading.Lock()
        self._versions: dict[str, str] | None = None
        self._catalog: tuple[float, list[Model], str | None] | None = None

    def describe(self) -> RuntimeDescription:
        """Say which versions are installed. Imports and starts nothing of Foundry Local."""
        try:
            versions = self._installed()
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            return RuntimeDescription(NAME, False, f"runtime.python {self._settings.python} does not run: {error}")
        where = self._settings.python or sys.executable
        sdk = versions.get("sdk")
        if sdk is None:
            return RuntimeDescription(NAME, False, f"{where} has no foundry-local-sdk; {INSTALL} there")
        if _numbers(sdk) < _MINIMUM_SDK:
            reason = f"foundry-local-sdk {sdk} of {where} is too old (2.2 or later is needed); {INSTALL} there"
            return RuntimeDescription(NAME, False, reason, sdk, versions)
        return RuntimeDescription(NAME, True, None, sdk, versions)

    def models(self) -> list[Model]:
        """The reference models, then the public catalog's variants (asked in a short-lived child, kept for minutes).

        Without internet the first call takes about 5 s; an unreachable catalog is logged and adds nothing.
        """
        found, problem = self._public()
        if problem is not None:
            _log.warning("the public catalog is left out: %s", problem)
        return self._reference() + found

    def resolve(self, model: str, device: str | None) -> Model:
        """Pin a name to a variant; reference models resolve without touching the network.

        An alias with several variants gives Foundry Local's own order (NPU, GPU, CPU; a vendor's before a
        generic one), whatever is cached, so that hosts choose alike. Raises `WorkFailed` ``model_not_found``.
        """
        reference = self._reference()
        if matches := _matching(model, reference):
            return _choose(model, device, matches)
        public, problem = self._public()
        if matches := _matching(model, public):
            return _choose(model, device, matches)
        names = sorted({name for known in reference + public for name in (known.alias, known.variant)})
        near = difflib.get_close_matches(model, names, n=3, cutoff=0.4)
        advice = f"did you mean {' or '.join(near)}?" if near else "`benchfleet models HOST` lists what there is"
        note = f" (the public catalog could not be asked: {problem})" if problem else ""
        raise WorkFailed(Reason.MODEL_NOT_FOUND, f"Foundry Local has no model {model!r}{note}; {advice}")

    def open(self, model: Model, placement: Placement) -> FoundrySession:
        """A session for one case. Raises `WorkFailed` ``runtime_unavailable`` when the SDK is missing."""
        description = self.describe()
        if not description.available:
            raise WorkFailed(Reason.RUNTIME_UNAVAILABLE, description.reason or "Foundry Local is not available")
        return FoundrySession(self._settings, model, placement)

    def _installed(self) -> dict[str, str]:
        if self._settings.python is None:
            return foundry_child.versions()
        with self._versions_lock:
            if self._versions is None:
                command = [*self._settings.child_command(), "--versions"]
                printed = subprocess.run(command, capture_output=True, check=True, timeout=20, text=True)
                found: dict[str, str] = json.loads(printed.stdout)
                if "sdk" not in found:
                    return found  # asked again next time: it may be installed meanwhile
                self._versions = found
            return self._versions

    def _reference(self) -> list[Model]:
        cache_dir = self._settings.reference_cache_dir
        return [_reference_model(entry, cache_dir) for entry in reference_model.MODELS.values()]

    def _public(self) -> tuple[list[Model], str | None]:
        if self._settings.offline:
            return [], "the agent is set offline"
        with self._catalog_lock:
            if self._catalog is not None:
                asked, found, problem = self._catalog
                if self._clock() - asked < (CATALOG_FRESH_S if problem is None else CATALOG_RETRY_S):
                    return found, problem
            found, problem = self._ask_public()
            self._catalog = (self._clock(), found, problem)
            return found, problem

    def _ask_public(self) -> tuple[list[Model], str | None]:
        link = ChildLink(self._settings, "foundry catalog child")
        try:
            link.start((), local=False, timeout_s=CATALOG_DEADLINE_S)
            answer = link.ask({"do": "models", "catalog": "public"}, "models", CATALOG_DEADLINE_S)
        except WorkFailed as error:
            return [], error.failure.message
        except ChildTimeout:
            return [], f"it did not answer within {CATALOG_DEADLINE_S:g} s"
        finally:
            link.kill()
        found = [_catalog_model(entry) for entry in answer["models"]]
        # Without internet the SDK logs the failure and answers an empty list.
        return found, None if found else "it is empty or out of reach; is this host online?"


class FoundrySession:
    """One model in one case: prepares it, holds it in a child process, gives its address."""

    def __init__(self, settings: FoundrySettings, model: Model, placement: Placement) -> None:
        self._settings = settings
        self._model = model
        self._placement = placement
        self._reference = next((e for e in reference_model.MODELS.values() if e.variant == model.variant), None)
        self._link = ChildLink(settings, f"foundry child ({model.variant})")
        self._directory: Path | None = None

    def prepare(self, progress: Progress) -> None:
        """Build the reference model, or download the catalog's, unless it is there; report progress.

        Raises `WorkFailed`: ``download_failed``, ``build_failed``, ``disk_full``, ``ep_missing``, ``cancelled``.
        """
        if self._reference is None:
            self._download(progress)
            return
        self._directory = reference_model.directory(self._settings.reference_cache_dir, self._model.variant)
        if reference_model.is_built(self._settings.reference_cache_dir, self._model.variant):
            progress(f"{self._model.variant} is already built", 1.0)
        else:
            self._build(progress)

    def load(self, timeout_s: float) -> Loaded:
        """Start the child, load and serve the model, all before the deadline (seconds).

        Raises `WorkFailed`: ``load_timeout`` (the child is killed), ``not_cached``, ``corrupt_model``,
        ``load_failed``, ``ep_missing``, ``out_of_memory``, ``runtime_crashed``, ``unsupported``, ``cancelled``.
        """
        link, model, deadline = self._link, self._model, time.monotonic() + timeout_s
        stage = "starting"

        def left() -> float:
            return deadline - time.monotonic()

        try:
            link.start(self._placement.cpus, local=self._reference is not None, timeout_s=left())
            if self._reference is not None:
                stage = "registering the model"
                link.ask(self._registration(), "registered", left())
            elif names := _extra_providers(model):
                stage = f"registering {names[0]}"
                link.ask({"do": "register_eps", "names": names}, "eps_registered", left())
            stage = "loading the model"
            catalog = "public" if self._reference is None else "local"
            loaded = link.ask({"do": "load", "catalog": catalog, "variant": model.variant}, "loaded", left())
            stage = "opening its web service"
            url = str(link.ask({"do": "serve"}, "serving", left())["url"])
        except ChildTimeout:
            link.kill()
            raise WorkFailed(
                Reason.LOAD_TIMEOUT,
                f"{model.variant}: still {stage} after {timeout_s:g} s, so the runtime was killed; "
                "raise the plan's load timeout or choose a smaller model",
            ) from None
        except BaseException:
            link.kill()
            raise
        base_url = f"{url}/v1" if self._reference is None else f"{url}/catalogs/local/v1"
        return Loaded(loaded["load_ns"], loaded["execution_provider"], Endpoint(base_url, model.variant))

    def directory(self) -> Path | None:
        """The model's directory, once prepared."""
        return self._directory

    def process_ids(self) -> tuple[int, ...]:
        """The child's id while it runs."""
        return self._link.process_ids()

    def check(self) -> None:
        """Raise `WorkFailed`: ``runtime_crashed`` when the child ended, ``not_loaded`` before `load`."""
        self._link.check()

    def unload(self, timeout_s: float) -> int | None:
        """Unload the model; ns. The child keeps most of the memory until `close`.

        Raises `WorkFailed` ``runtime_crashed`` when the child is gone or does not answer in time (it is killed).
        """
        try:
            return int(self._link.ask({"do": "unload"}, "unloaded", timeout_s)["duration_ns"])
        except ChildTimeout:
            self._link.kill()
            message = f"{self._model.variant} was not unloaded within {timeout_s:g} s, so the runtime was killed"
            raise WorkFailed(Reason.RUNTIME_CRASHED, message) from None

    def close(self, timeout_s: float) -> None:
        """Let the child end by itself (it takes 1 to 2 s), kill it past the deadline or after 25 s."""
        self._link.stop(min(timeout_s, CLOSE_WATCHDOG_S))

    def kill(self) -> None:
        """End the child now; a waiting `prepare` or `load` raises ``cancelled``."""
        self._link.cancel()

    def _registration(self) -> Message:
        entry = self._reference
        assert entry is not None
        path = reference_model.directory(self._settings.reference_cache_dir, entry.variant)
        return {
            "do": "register",
            "path": str(path),
            "variant": entry.variant,
            "alias": entry.alias,
            "task": entry.task,
            "display_name": entry.display_name,
            "license": entry.license,
        }

    def _build(self, progress: Progress) -> None:
        cache_dir = str(self._settings.reference_cache_dir)
        command = [sys.executable, "-m", "benchfleet_agent.reference_model", "build", "--cache-dir", cache_dir]
        command += ["--variant", self._model.variant, "--progress", "json"]
        try:
            self._link.spawn(command)
            self._link.wait("built", STALL_S, progress, gone=Reason.BUILD_FAILED)
        except ChildTimeout:
            message = f"building {self._model.variant} reported nothing for {STALL_S:g} s; see the log and try again"
            raise WorkFailed(Reason.BUILD_FAILED, message) from None
        finally:
            self._link.stop(5.0)

    def _download(self, progress: Progress) -> None:
        variant = self._model.variant
        try:
            self._link.start((), local=False, timeout_s=STALL_S)
            if names := _extra_providers(self._model):
                self._link.ask({"do": "register_eps", "names": names}, "eps_registered", STALL_S, progress)
            command = {"do": "download", "variant": variant}
            answer = self._link.ask(command, "downloaded", STALL_S, progress, gone=Reason.DOWNLOAD_FAILED)
            self._directory = Path(answer["path"]) if answer.get("path") else None
        except ChildTimeout:
            message = (
                f"downloading {variant} stood still for {STALL_S:g} s; check the network and run again (it resumes)"
            )
            raise WorkFailed(Reason.DOWNLOAD_FAILED, message) from None
        finally:
            self._link.stop(5.0)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())


def _reference_model(entry: reference_model.ReferenceModel, cache_dir: Path) -> Model:
    built = reference_model.is_built(cache_dir, entry.variant)
    size_bytes = entry.size_bytes
    if built:
        directory = reference_model.directory(cache_dir, entry.variant)
        size_bytes = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return Model(
        alias=entry.alias,
        variant=entry.variant,
        device=entry.device,
        execution_provider=entry.execution_provider,
        size_bytes=size_bytes,
        license=entry.license,
        context_length=entry.context_length,
        capabilities=(*entry.capabilities, "test") if entry.alias == reference_model.TINY_ALIAS else entry.capabilities,
        cached=built,
    )


def _catalog_model(entry: Mapping[str, Any]) -> Model:
    return Model(**{**entry, "capabilities": tuple(entry["capabilities"])})


def _extra_providers(model: Model) -> list[str]:
    provider = model.execution_provider
    return [] if provider is None or provider == foundry_child.CPU_PROVIDER else [provider]


def _matching(name: str, models: Iterable[Model]) -> list[Model]:
    models = list(models)
    return [m for m in models if m.variant == name] or [m for m in models if m.alias == name]


def _choose(name: str, device: str | None, models: list[Model]) -> Model:
    fitting = [model for model in models if device is None or model.device == device]
    if not fitting:
        offered = ", ".join(sorted({model.device or "an unnamed device" for model in models}))
        raise WorkFailed(
            Reason.MODEL_NOT_FOUND, f"{name} has no variant for {device}, only for {offered}; ask for that"
        )
    return min(fitting, key=_preference)


def _preference(model: Model) -> tuple[int, int, int]:
    """Foundry Local's order (its model.cc): NPU, vendor GPU, CUDA, generic GPU, vendor CPU, generic CPU; new first."""
    device = _DEVICE_ORDER.index(model.device) if model.device in _DEVICE_ORDER else len(_DEVICE_ORDER)
    name, _, version = model.variant.rpartition(":")
    maker = 2 if "-generic-" in name else 1 if "-cuda-" in name else 0
    return device, maker, -int(version) if version.isdecimal() else 0
