"""One case's Foundry Local: the child process that holds its model, from preparing the files to the end.

A model comes from one of three places: a reference model is built here, a local model lies in the operator's
directories, a catalog model is downloaded. The first two are registered in the child's own local catalog.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent import reference_model
from benchfleet_agent.child import ChildTimeout, Message
from benchfleet_agent.keep_awake import kept_awake
from benchfleet_agent.runtimes import Endpoint, Loaded, Model, Placement, Progress, foundry_child
from benchfleet_agent.runtimes.foundry_catalog import PROVIDER_STALL_S
from benchfleet_agent.runtimes.foundry_files import damage_of
from benchfleet_agent.runtimes.foundry_link import ChildLink, FoundrySettings
from benchfleet_agent.runtimes.local_models import TASK, LocalModel, provider_name

CLOSE_WATCHDOG_S = 25.0
"""The native runtime drains sessions and unloads for up to 10 s each before it ends."""
STALL_S = 300.0
"""A download or a build that reports nothing for so long is given up."""
RETRY_PAUSES_S = (2.0, 8.0)
"""Pauses before a failed download is tried again; it goes on where it stopped."""


@dataclass(frozen=True, slots=True)
class Source:
    """A model and where it comes from: built here, the operator's own, or neither: the public catalog's."""

    model: Model
    reference: reference_model.ReferenceModel | None = None
    local: LocalModel | None = None

    @property
    def registered(self) -> bool:
        """Whether it is served from the child's local catalog."""
        return self.reference is not None or self.local is not None

    def registration(self, cache_dir: Path) -> Message:
        """The child's ``register`` for it; reference models lie in ``cache_dir``."""
        model = self.model
        if self.local is not None:
            found: Message = {"path": str(self.local.path), "alias": model.alias, "task": TASK,
                              "display_name": model.alias, "license": model.license or ""}  # fmt: skip
            if self.local.reasoning is not None:
                found["reasoning"] = list(self.local.reasoning)
        else:
            entry = self.reference
            assert entry is not None
            found = {"path": str(reference_model.directory(cache_dir, entry.variant)), "alias": entry.alias,
                     "task": entry.task, "display_name": entry.display_name, "license": entry.license}  # fmt: skip
        return {"do": "register", "variant": model.variant, **found}


class FoundrySession:
    """One model in one case: prepares it, holds it in a child process, gives its address."""

    def __init__(self, settings: FoundrySettings, source: Source, placement: Placement) -> None:
        self._settings = settings
        self._source = source
        self._model = source.model
        self._placement = placement
        self._link = ChildLink(settings, f"foundry child ({self._model.variant})")
        self._directory: Path | None = None

    def prepare(self, progress: Progress) -> None:
        """Build the reference model, or download the catalog's, unless it is there; report progress.

        Raises `WorkFailed`: ``download_failed``, ``build_failed``, ``corrupt_model``, ``disk_full``, ``ep_missing``,
        ``cancelled``.
        """
        fetches = not self._source.registered and not self._model.cached
        with kept_awake(f"fetching {self._model.variant}") if fetches else contextlib.nullcontext():
            self.fetch(progress, STALL_S)

    def fetch(self, progress: Progress, stall_s: float) -> None:
        """`prepare`, giving up when nothing is heard for ``stall_s`` seconds."""
        source, cache_dir = self._source, self._settings.reference_cache_dir
        if source.local is not None:
            if damage := damage_of(source.local.path):
                raise WorkFailed(Reason.CORRUPT_MODEL, f"{source.local.path}: {damage}; put the model there anew")
            self._directory = source.local.path
        elif source.reference is not None:
            self._directory = reference_model.directory(cache_dir, self._model.variant)
            if reference_model.is_built(cache_dir, self._model.variant):
                progress(f"{self._model.variant} is already built", 1.0)
            else:
                self._build(progress, stall_s)
        else:
            self._directory = self._fetch_whole(progress, stall_s)

    def load(self, timeout_s: float) -> Loaded:
        """Start the child, load and serve the model, all before the deadline (seconds).

        Raises `WorkFailed`: ``load_timeout`` (the child is killed), ``not_cached``, ``corrupt_model``,
        ``load_failed``, ``ep_missing``, ``out_of_memory``, ``runtime_crashed``, ``unsupported``, ``cancelled``.
        """
        link, model, deadline = self._link, self._model, time.monotonic() + timeout_s
        registered = self._source.registered
        stage = "starting"

        def left() -> float:
            return deadline - time.monotonic()

        try:
            link.start(self._placement.cpus, local=registered, timeout_s=left())
            if names := extra_providers(model):
                stage = f"registering {names[0]}"
                link.ask({"do": "register_eps", "names": names}, "eps_registered", left())
            if registered:
                stage = "registering the model"
                link.ask(self._source.registration(self._settings.reference_cache_dir), "registered", left())
            stage = "loading the model"
            catalog = "local" if registered else "public"
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
        base_url = f"{url}/catalogs/local/v1" if registered else f"{url}/v1"
        provider = provider_name(loaded["execution_provider"])
        return Loaded(loaded["load_ns"], provider, Endpoint(base_url, model.variant))

    def directory(self) -> Path | None:
        """The model's directory, once prepared."""
        return self._directory

    def process_ids(self) -> tuple[int, ...]:
        """The child's id while it runs."""
        return self._link.process_ids()

    def check(self) -> None:
        """Raise `WorkFailed`: ``runtime_crashed`` when the child ended, ``not_loaded`` before `load`."""
        self._link.check()

    def send_direct(self, command: Message) -> None:
        """Have the child answer a chat request without HTTP (its ``chat``). Raises `WorkFailed` when it is gone."""
        self._link.send(command)

    def receive_direct(self, timeout_s: float) -> Message:
        """The next answered chat request. Raises `ChildTimeout`, or `WorkFailed` when the child is gone."""
        return self._link.wait("chatted", timeout_s)

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

    def _build(self, progress: Progress, stall_s: float) -> None:
        cache_dir = str(self._settings.reference_cache_dir)
        command = [sys.executable, "-m", "benchfleet_agent.reference_model", "build", "--cache-dir", cache_dir]
        command += ["--variant", self._model.variant, "--progress", "json"]
        try:
            self._link.spawn(command)
            self._link.wait("built", stall_s, progress, gone=Reason.BUILD_FAILED)
        except ChildTimeout:
            message = f"building {self._model.variant} reported nothing for {stall_s:g} s; see the log and try again"
            raise WorkFailed(Reason.BUILD_FAILED, message) from None
        finally:
            self._link.stop(5.0)

    def _fetch_whole(self, progress: Progress, stall_s: float) -> Path | None:
        """Download and look at what arrived; what is damaged is deleted and fetched once more."""
        model = self._model
        directory = self._fetch(progress, stall_s)
        for last in (False, True):
            damage = damage_of(directory, model.size_bytes) if directory is not None else None
            if damage is None or directory is None:
                return directory
            if last:
                break
            progress(f"{model.variant} is damaged ({damage}); fetching it again", None)
            shutil.rmtree(directory, ignore_errors=True)
            directory = self._fetch(progress, stall_s)
        raise WorkFailed(Reason.DOWNLOAD_FAILED, f"{model.variant} arrived damaged twice: {damage}; try again later")

    def _fetch(self, progress: Progress, stall_s: float) -> Path | None:
        """Download, trying again after a failure; it goes on where it stopped."""
        for pause_s in (*RETRY_PAUSES_S, None):
            try:
                return self._download(progress, stall_s)
            except WorkFailed as error:
                if error.failure.reason is not Reason.DOWNLOAD_FAILED or pause_s is None:
                    raise
                progress(f"{self._model.variant}: {error.failure.message}; trying again", None)
                self._link.pause(pause_s)
        raise AssertionError

    def _download(self, progress: Progress, stall_s: float) -> Path | None:
        link, variant = self._link, self._model.variant
        what, reason, limit_s = "downloading " + variant, Reason.DOWNLOAD_FAILED, stall_s
        try:
            link.start((), local=False, timeout_s=stall_s)
            if names := extra_providers(self._model):
                what, reason, limit_s = f"fetching {names[0]}", Reason.EP_MISSING, min(stall_s, PROVIDER_STALL_S)
                link.ask({"do": "register_eps", "names": names}, "eps_registered", limit_s, progress)
                what, reason, limit_s = "downloading " + variant, Reason.DOWNLOAD_FAILED, stall_s
            command = {"do": "download", "variant": variant}
            answer = link.ask(command, "downloaded", stall_s, progress, gone=Reason.DOWNLOAD_FAILED)
            return Path(answer["path"]) if answer.get("path") else None
        except ChildTimeout:
            message = f"{what} stood still for {limit_s:g} s; check the network and run again (it resumes)"
            raise WorkFailed(reason, message) from None
        finally:
            link.stop(5.0)


def extra_providers(model: Model) -> Sequence[str]:
    """The execution providers that must be registered before the model can be loaded; the CPU's is always there."""
    provider = model.execution_provider
    return [] if provider is None or provider == foundry_child.CPU_PROVIDER else [provider]
