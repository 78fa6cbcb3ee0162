"""Foundry Local: what it can serve here, and what it is asked outside a case (`foundry_session` is one case).

The SDK runs models in its own process, does not give memory back after an unload and cannot cancel a load
(https://github.com/microsoft/Foundry-Local/issues/1079), so every case gets its own child
(`foundry_child`), and killing the child is how a load is cancelled. The agent never imports the SDK.

Reference models are registered in a catalog of their own under the agent's data directory, never in the
(possibly shared) model cache: a registration is a row of ``foundry.local.modelinfo.json`` there. Of two agents
that shared the file the last to register would win for both; the child refuses to load a path it did not mean.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent import reference_model
from benchfleet_agent.child import ChildTimeout
from benchfleet_agent.model_paths import check_model_path, is_path
from benchfleet_agent.runtimes import (
    ExecutionProvider,
    Model,
    Placement,
    Progress,
    RuntimeDescription,
    foundry_child,
)
from benchfleet_agent.runtimes.foundry_catalog import CatalogAnswer, PublicCatalog
from benchfleet_agent.runtimes.foundry_files import size_of
from benchfleet_agent.runtimes.foundry_link import ChildLink, FoundrySettings
from benchfleet_agent.runtimes.foundry_providers import absent_for
from benchfleet_agent.runtimes.foundry_session import FoundrySession, Source, extra_providers
from benchfleet_agent.runtimes.local_models import LocalModel, describe, scan

NAME = "foundry"
INSTALL = "pip install foundry-local-sdk==2.2.1"
REMOVE_S = 60.0
CAPABILITIES = frozenset(
    {"list", "pull", "load", "remove", "serve", "direct", "usage_in_stream", "exact_token_count", "can_pick_variant",
     "can_register_eps", "cancel_on_disconnect"}
)  # fmt: skip
"""Not ``unload`` and not ``multi_model``: a model is in memory only while its case runs, in a child that ends with
it. That a client's leaving ends the answer was seen on 2.2.1, within half a second."""

_MINIMUM_SDK = (2, 2)
_DEVICE_ORDER = ("npu", "gpu", "cpu")
_log = logging.getLogger(__name__)


class FoundryRuntime:
    """Foundry Local through its SDK: the reference models always, the public catalog when it can be asked."""

    name = NAME

    def __init__(self, settings: FoundrySettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._catalog = PublicCatalog(settings, clock)
        self._versions_lock = threading.Lock()
        self._versions: dict[str, str] | None = None
        self._by_path: dict[str, LocalModel] = {}

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
        return RuntimeDescription(NAME, True, None, sdk, versions, CAPABILITIES)

    def models(self) -> list[Model]:
        """The reference models, the operator's own, then the public catalog's variants (kept for minutes).

        Without internet the first call takes about 5 s; an unreachable catalog is logged and adds nothing. Offline
        those of its models that are here.
        """
        answer = self._catalog.ask()
        if answer.problem is not None and not self._settings.offline:
            _log.warning("the public catalog is left out: %s", answer.problem)
        return self._reference() + self._local() + list(answer.models)

    def providers(self) -> tuple[ExecutionProvider, ...]:
        """The execution providers offered here, as `models` last found them."""
        return self._catalog.providers()

    def resolve(self, model: str, device: str | None) -> Model:
        """Pin a name, or the path of a model's directory, to a variant; what is here needs no network.

        An alias with several variants gives Foundry Local's own order (NPU, GPU, CPU; a vendor's before a
        generic one), whatever is cached, so that hosts choose alike. Raises `WorkFailed`: ``model_not_found``,
        ``ep_missing`` when the catalog shows such variants only with a provider that is not here yet,
        ``path_not_allowed``, ``corrupt_model``.
        """
        if is_path(model):
            local = describe(self._allowed(model))
            self._by_path[local.model.variant] = local
            return _choose(model, device, [local.model])
        here = self._reference() + self._local()
        if matches := _matching(model, here):
            return _choose(model, device, matches)
        answer = self._catalog.ask()
        public, problem = list(answer.models), answer.problem
        matches = _matching(model, public)
        wanted = device or _device_in(model)
        if wanted in ("gpu", "npu") and problem is None and not any(one.device == wanted for one in matches):
            _require_provider(model, wanted, answer)
        if matches:
            return _choose(model, device, matches)
        known = here + public
        if versions := sorted(one.variant for one in known if one.variant.rpartition(":")[0] == model):
            message = f"{model!r} lacks its version; write {' or '.join(versions)}, or an alias"
            raise WorkFailed(Reason.MODEL_NOT_FOUND, message)
        names = sorted({name for one in known for name in (one.alias, one.variant)})
        near = difflib.get_close_matches(model, names, n=3, cutoff=0.4)
        advice = f"did you mean {' or '.join(near)}?" if near else "`benchfleet models HOST` lists what there is"
        note = f" (the public catalog could not be asked: {problem})" if problem else ""
        raise WorkFailed(Reason.MODEL_NOT_FOUND, f"Foundry Local has no model {model!r}{note}; {advice}")

    def pull(self, model: Model, progress: Progress, cancelled: Callable[[], bool], timeout_s: float) -> Model:
        """Build or download the model unless it is there and whole; ``timeout_s`` bounds the silence.

        Raises `WorkFailed` as `FoundrySession.prepare`.
        """
        if model.device is not None and model.size_bytes is None and model.execution_provider is None:
            model = self._with_provider(model, progress, cancelled, timeout_s)
        session = self.open(model, Placement())
        try:
            with _while_wanted(cancelled, session.kill):
                session.fetch(progress, timeout_s)
            self._catalog.shelf.note(extra_providers(model))
        finally:
            session.close(5.0)
            self._catalog.forget()
        directory = session.directory()
        return replace(model, cached=True, size_bytes=size_of(directory) if directory else model.size_bytes)

    def pullable(self, model: str, device: str | None) -> Model:
        """What `pull` is asked for: where the variant shows only after a provider's download, one of that name."""
        try:
            return self.resolve(model, device)
        except WorkFailed as error:
            if error.failure.reason is not Reason.EP_MISSING or self._settings.offline:
                raise
        return Model(alias=model, variant=model, device=device or _device_in(model), cached=False)

    def remove(self, model: Model) -> int | None:
        """Delete a built or downloaded model; bytes freed. Raises `WorkFailed`: ``unsupported``, ``not_cached``."""
        source = self._source(model)
        if source.local is not None:
            message = f"{source.local.path} is the operator's own directory; delete it there"
            raise WorkFailed(Reason.UNSUPPORTED, message)
        if source.reference is None:
            return self._remove_cached(model)
        directory = reference_model.directory(self._settings.reference_cache_dir, model.variant)
        if not directory.is_dir():
            raise WorkFailed(Reason.NOT_CACHED, f"{model.variant} is not on this host")
        freed = size_of(directory)
        shutil.rmtree(directory)
        return freed

    def _remove_cached(self, model: Model) -> int:
        link = ChildLink(self._settings, f"foundry removal child ({model.variant})")
        try:
            link.start((), local=False, timeout_s=REMOVE_S)
            path = Path(link.ask({"do": "locate", "variant": model.variant}, "located", REMOVE_S)["path"])
            freed = size_of(path)
            link.ask({"do": "remove", "variant": model.variant}, "removed", REMOVE_S)
        except ChildTimeout:
            message = f"removing {model.variant} took more than {REMOVE_S:g} s and was given up; try again"
            raise WorkFailed(Reason.MODEL_IN_USE, message) from None
        finally:
            link.kill()
            self._catalog.forget()
        return freed

    def open(self, model: Model, placement: Placement) -> FoundrySession:
        """A session for one case. Raises `WorkFailed` ``runtime_unavailable`` when the SDK is missing."""
        description = self.describe()
        if not description.available:
            raise WorkFailed(Reason.RUNTIME_UNAVAILABLE, description.reason or "Foundry Local is not available")
        return FoundrySession(self._settings, self._source(model), placement)

    def _with_provider(
        self, model: Model, progress: Progress, cancelled: Callable[[], bool], timeout_s: float
    ) -> Model:
        """Fetch the providers a device needs, then pin the variant, which shows only now."""
        absent = absent_for(model.device, self._catalog.ask().providers)
        if absent:
            link = ChildLink(self._settings, f"foundry provider child ({model.variant})")
            with _while_wanted(cancelled, link.cancel):
                self._catalog.fetch_providers(absent, link, progress, timeout_s)
        return self.resolve(model.variant, model.device)

    def _source(self, model: Model) -> Source:
        for entry in reference_model.MODELS.values():
            if entry.variant == model.variant:
                return Source(model, reference=entry)
        local = self._by_path.get(model.variant)
        if local is None or not local.path.is_dir():
            local = next((one for one in self._scan() if one.model.variant == model.variant), None)
        return Source(model, local=local)

    def _scan(self) -> list[LocalModel]:
        return scan(self._settings.model_roots)

    def _local(self) -> list[Model]:
        taken = {entry.variant for entry in reference_model.MODELS.values()}
        return [one.model for one in self._scan() if one.model.variant not in taken]

    def _allowed(self, path: str) -> Path:
        """The directory, when it lies under a root that agent.toml names; links do not lead out of it."""
        return check_model_path(path, self._settings.model_roots)

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


def _device_in(variant: str) -> str | None:
    """The device that a variant's id names, unless that is the CPU."""
    found = re.search(r"-(gpu|npu)(?::\d+)?$", variant)
    return found[1] if found else None


def _require_provider(model: str, device: str, answer: CatalogAnswer) -> None:
    """Raise ``ep_missing`` when a provider that is not here may be why there is no such variant."""
    if not (absent := absent_for(device, answer.providers)):
        return
    message = (
        f"Foundry Local shows no variant of {model!r} for {device} before its execution provider is on this host "
        f"({', '.join(absent)}); `benchfleet pull HOST {model} --device {device}` fetches it"
    )
    raise WorkFailed(Reason.EP_MISSING, message)


@contextlib.contextmanager
def _while_wanted(cancelled: Callable[[], bool], kill: Callable[[], None]) -> Iterator[None]:
    """End the work inside as soon as nobody wants it any more."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            if cancelled():
                kill()
                return

    watcher = threading.Thread(target=watch, name="pull-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


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
        quantisation=entry.quantisation,
    )


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
