"""Foundry Local's public catalog, asked through a child of its own, and the execution providers it depends on.

The catalog lists only what the registered providers can run, so those that are on the host are registered before it
is asked. Offline it is never asked: the SDK then lists what its last answer, kept beside the models, says.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.child import ChildTimeout
from benchfleet_agent.runtimes import ExecutionProvider, Model, Progress
from benchfleet_agent.runtimes.foundry_link import ChildLink, FoundrySettings
from benchfleet_agent.runtimes.foundry_providers import ProviderShelf

ANSWER_S = 45.0
"""For all of it, child and providers included; controllers wait a minute for an answer."""
FRESH_S, RETRY_S = 600.0, 60.0
"""How long an answer is used, and how soon one that did not come is asked for again."""
PROVIDER_STALL_S = 120.0
"""A provider's download that reports nothing for so long is given up; such downloads are known to hang
(https://github.com/microsoft/Foundry-Local/issues/272)."""
OFFLINE = "the agent is set offline"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CatalogAnswer:
    """What the catalog said."""

    models: tuple[Model, ...] = ()
    providers: tuple[ExecutionProvider, ...] = ()
    """Those that Foundry Local offers on this host beside the CPU's."""
    problem: str | None = None
    """Why there are no models, or not all."""


class PublicCatalog:
    """The catalog, its last answer kept for minutes. Safe from several threads."""

    def __init__(self, settings: FoundrySettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._answer: tuple[float, CatalogAnswer] | None = None
        self._providers: tuple[ExecutionProvider, ...] = ()

    @property
    def shelf(self) -> ProviderShelf:
        """The providers on this host."""
        return ProviderShelf(self._settings.cache_dir, self._settings.data_dir / "foundry")

    def ask(self) -> CatalogAnswer:
        """The answer, up to `FRESH_S` old. Up to `ANSWER_S`; without internet about 5 s."""
        with self._lock:
            if self._answer is not None:
                asked, answer = self._answer
                if self._clock() - asked < (FRESH_S if answer.problem is None else RETRY_S):
                    return answer
            answer = self._ask()
            self._answer = (self._clock(), answer)
            self._providers = answer.providers or self._providers
            return answer

    def providers(self) -> tuple[ExecutionProvider, ...]:
        """The providers as last told, without asking."""
        return self._providers

    def forget(self) -> None:
        """What is here has changed; the next question is a new one."""
        with self._lock:
            self._answer = None

    def fetch_providers(self, names: Sequence[str], link: ChildLink, progress: Progress, stall_s: float) -> None:
        """Download and register providers, one after the other, in the child behind ``link``.

        Raises `WorkFailed`: ``ep_missing`` when none of them could be had, ``cancelled``, ``disk_full``.
        """
        refused: list[WorkFailed] = []
        limit_s = min(stall_s, PROVIDER_STALL_S)
        for name in names:
            progress(f"{name}: fetching the execution provider", None)
            try:
                link.start((), local=False, timeout_s=limit_s)
                link.ask({"do": "register_eps", "names": [name]}, "eps_registered", limit_s, progress)
                self.shelf.note([name])
            except ChildTimeout:
                message = f"fetching {name} stood still for {limit_s:g} s; check the network and pull again"
                refused.append(WorkFailed(Reason.EP_MISSING, message))
            except WorkFailed as error:
                if error.failure.reason is not Reason.EP_MISSING:
                    raise
                refused.append(error)
            finally:
                link.stop(5.0)
        self.forget()
        for one in refused:
            progress(one.failure.message, None)
        if refused and len(refused) == len(names):
            raise refused[0]

    def _ask(self) -> CatalogAnswer:
        offline = self._settings.offline
        deadline = time.monotonic() + ANSWER_S
        link = ChildLink(self._settings, "foundry catalog child")
        offered: tuple[ExecutionProvider, ...] = ()

        def left() -> float:
            return deadline - time.monotonic()

        try:
            link.start((), local=False, timeout_s=left())
            offered = self._offered(link.ask({"do": "describe"}, "description", left())["eps"])
            if names := [one.name for one in offered if one.downloaded and not one.registered]:
                offered = self._register(link, names, offered, left())
            answer = link.ask({"do": "models", "catalog": "public"}, "models", left())
        except WorkFailed as error:
            return CatalogAnswer((), offered, error.failure.message)
        except ChildTimeout:
            return CatalogAnswer((), offered, "it did not answer in time")
        finally:
            link.kill()
        found = tuple(_model(entry) for entry in answer["models"])
        if offline:
            return CatalogAnswer(tuple(one for one in found if one.cached), offered, OFFLINE)
        # Without internet the SDK logs the failure and answers what it remembers, or an empty list.
        return CatalogAnswer(found, offered, None if found else "it is empty or out of reach; is this host online?")

    def _offered(self, told: Sequence[Mapping[str, Any]]) -> tuple[ExecutionProvider, ...]:
        shelf = self.shelf
        return tuple(
            ExecutionProvider(str(one["name"]), bool(one["registered"]) or shelf.has(one["name"]), one["registered"])
            for one in told
        )

    def _register(
        self, link: ChildLink, names: Sequence[str], offered: Sequence[ExecutionProvider], timeout_s: float
    ) -> tuple[ExecutionProvider, ...]:
        """Register what is on the host, which is quick; one that will not costs only its own variants."""
        registered = set()
        for name in names:
            try:
                link.ask({"do": "register_eps", "names": [name]}, "eps_registered", timeout_s / (2 * len(names)))
                registered.add(name)
            except WorkFailed as error:
                if error.failure.reason is not Reason.EP_MISSING:
                    raise
                _log.warning("%s is here and cannot be used: %s", name, error.failure.message)
        return tuple(replace(one, registered=one.registered or one.name in registered) for one in offered)


def _model(entry: Mapping[str, Any]) -> Model:
    return Model(**{**entry, "capabilities": tuple(entry["capabilities"])})
