"""The Foundry Local child process: holds the native runtime and the model, speaks JSON lines.

Run as ``python -m benchfleet_agent.runtimes.foundry_child`` by `FoundrySession`, possibly under another
interpreter than the agent's (``runtime.python``). It therefore imports the standard library,
`benchfleet_agent.child` and ``foundry_local_sdk``, nothing else; it is the only module that imports the SDK.

Commands are ``{"do": NAME, …}``, one at a time; each is answered by the event named here or by
``failed{reason, message}`` (reasons: `benchfleet.failures.Reason`, as plain strings):

=============  ==============================================================  ======================================
command        fields                                                          answer
=============  ==============================================================  ======================================
start          app_name, data_dir, model_cache_dir, logs_dir, catalog_urls,    started{pid, versions, cpus}
               cpus, offline
describe                                                                       description{versions, eps}
models         catalog (``local`` or ``public``)                               models{models}
register       path, variant, alias, task, display_name, license, reasoning    registered{variant, replaced}
               [begin, end]
download       variant (public catalog)                                        progress{fraction}…, downloaded{already,
                                                                               path}
locate         variant (public catalog)                                        located{path}
remove         variant (public catalog)                                        removed{variant}
register_eps   names                                                          progress{…}…, eps_registered{names}
load           catalog, variant                                                loaded{load_ns, device,
                                                                               execution_provider, fell_back}
chat           see `foundry_direct`; several may be under way at once          chatted{request_id, …} for each
serve                                                                          serving{url}
unload                                                                         unloaded{duration_ns}
stop                                                                           stopped{duration_ns}, then it ends
=============  ==============================================================  ======================================

A closed stdin means ``stop``. A native call cannot be interrupted: the parent kills the process instead.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchfleet_agent.child import Message, Protocol, die_with_parent, take_protocol
from benchfleet_agent.runtimes.foundry_direct import start_chat
from benchfleet_agent.runtimes.foundry_errors import CommandFailed, explain
from benchfleet_agent.runtimes.foundry_offline import serve_nothing
from benchfleet_agent.runtimes.foundry_pinning import pin, with_threads

CPU_PROVIDER = "CPUExecutionProvider"
DISTRIBUTIONS = {
    "sdk": "foundry-local-sdk",
    "onnxruntime": "onnxruntime",
    "onnxruntime_genai": "onnxruntime-genai-core",
}
PROVIDER_LIBRARIES = {
    "CUDAExecutionProvider": ("libcuda", "cuda-ep", "providers_cuda"),
    "cuda": ("libcuda", "cuda-ep", "providers_cuda"),
    "WebGpuExecutionProvider": ("webgpu", "vulkan"),
    "OpenVINOExecutionProvider": ("openvino",),
    "QNNExecutionProvider": ("qnn",),
    "NvTensorRTRTXExecutionProvider": ("tensorrt", "nvinfer"),
}
"""By provider: words of which one is in the path of some library that the process must hold to use it."""
PROGRESS_INTERVAL_S = 0.25
DRAIN_S = 10.0
"""How long ``unload`` waits for requests to end; the time waited is not part of its duration."""

_MEGABYTE = 1 << 20


def versions() -> dict[str, str]:
    """Versions of the runtime's parts, by importlib.metadata (nothing is imported)."""
    found = {}
    for part, distribution in DISTRIBUTIONS.items():
        try:
            found[part] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class Service:
    """The native runtime of this process and the one model it may hold."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._sdk: Any = None
        self._manager: Any = None
        self._model: Any = None
        self._data_dir = Path()
        self._registered: Path | None = None
        self._cpus: list[int] = []
        self._offline = False

    def handle(self, command: Message) -> bool:
        """Carry out one command and answer it. False once the process should end."""
        name = str(command.get("do"))
        handlers: dict[str, Callable[[Message], None]] = {
            "start": self._start,
            "describe": self._describe,
            "models": self._models,
            "register": self._register,
            "download": self._download,
            "locate": self._locate,
            "remove": self._remove,
            "register_eps": self._register_eps,
            "load": self._load,
            "serve": self._serve,
            "chat": self._chat,
            "unload": self._unload,
            "stop": self._stop,
        }
        try:
            if name not in handlers:
                raise CommandFailed("internal", f"unknown command {name!r}: the agent and this child differ in version")
            if self._manager is None and name not in ("start", "stop"):
                raise CommandFailed("internal", f"{name} before start")
            handlers[name](command)
        except Exception as error:  # noqa: BLE001  whatever it is, the parent must hear of it
            reason, message = explain(name, error)
            self._protocol.send("failed", reason=reason, message=message, command=name)
        return name != "stop"

    def close(self) -> None:
        """Stop serving, drop the model, release the native runtime (a second or two)."""
        manager, self._manager, self._model = self._manager, None, None
        if manager is not None:
            manager.close()

    def _start(self, command: Message) -> None:
        self._cpus = pin(command.get("cpus") or ())
        self._data_dir = Path(command["data_dir"])
        try:
            # By name, so that type checkers do not need the SDK and this stays the one place that imports it.
            self._sdk = sdk = importlib.import_module("foundry_local_sdk")
            catalog_type = sdk.CatalogType
        except (ImportError, AttributeError, OSError) as error:
            raise CommandFailed(
                "runtime_unavailable",
                f"{sys.executable} cannot use foundry-local-sdk ({error}); pip install foundry-local-sdk==2.2.1 there",
            ) from error
        self._offline = bool(command.get("offline"))
        catalogs = [serve_nothing()] if self._offline else command.get("catalog_urls") or ()
        configuration = sdk.Configuration(
            command["app_name"],
            app_data_dir=command["data_dir"],
            model_cache_dir=command["model_cache_dir"],
            logs_dir=command["logs_dir"],
            log_level=sdk.LogLevel.WARNING,
            web=sdk.Configuration.WebService(urls="http://127.0.0.1:0"),
            catalog_urls=[(url, None) for url in catalogs] or None,
            disable_nonessential_telemetry=True,
        )
        sdk.FoundryLocalManager.initialize(configuration)
        self._manager = sdk.FoundryLocalManager.instance
        self._local, self._public = catalog_type.LOCAL, catalog_type.PUBLIC
        self._protocol.send("started", pid=os.getpid(), versions=versions(), cpus=self._cpus)

    def _catalog(self, command: Message) -> Any:
        return self._manager.get_catalog(self._local if command.get("catalog", "local") == "local" else self._public)

    def _find(self, command: Message) -> Any:
        model = self._catalog(command).get_model_variant(command["variant"])
        if model is None:
            message = f"Foundry Local's catalog has no {command['variant']}; is the host online, the name right?"
            raise CommandFailed("model_not_found", message)
        return model

    def _describe(self, _command: Message) -> None:
        eps = [{"name": ep.name, "registered": ep.is_registered} for ep in self._manager.discover_eps()]
        self._protocol.send("description", versions=versions(), eps=eps)

    def _models(self, command: Message) -> None:
        found = [
            _describe_model(variant) for model in self._catalog(command).list_models() for variant in model.variants
        ]
        self._protocol.send("models", models=found)

    def _register(self, command: Message) -> None:
        catalog = self._manager.get_catalog(self._local)
        path, variant, reasons = Path(command["path"]), command["variant"], bool(command.get("reasoning"))
        if not path.is_dir():
            raise CommandFailed("not_cached", f"{path} is no directory; prepare the model first")
        if self._cpus:
            path = with_threads(path, self._data_dir / "views", len(self._cpus))
        # Registrations persist in foundry.local.modelinfo.json and registering twice is an error.
        known = catalog.get_model_variant(variant)
        replaced = known is not None and not _is_same(known, path, command)
        if replaced:
            catalog.unregister_model(variant)
        if known is None or replaced:
            with self._sdk.ModelInfoBuilder() as metadata:
                for key, value in _properties(command).items():
                    metadata.set_string_property(key, value)
                metadata.set_int_property("supports_reasoning", int(reasons))
                catalog.register_model(str(path), variant, metadata)
        self._registered = path
        self._protocol.send("registered", variant=variant, replaced=replaced)

    def _download(self, command: Message) -> None:
        model = self._find({**command, "catalog": "public"})
        already = bool(model.is_cached)
        if not already and self._offline:
            message = f"{command['variant']} is not on this host and the agent is set offline; lay it into its cache"
            raise CommandFailed("not_cached", message)
        if not already:
            model.download(self._progress(command["variant"]))
        self._protocol.send("downloaded", already=already, path=str(model.get_path()))

    def _locate(self, command: Message) -> None:
        model = self._find({**command, "catalog": "public"})
        if not model.is_cached:
            raise CommandFailed("not_cached", f"{command['variant']} is not on this host")
        self._protocol.send("located", path=str(model.get_path()))

    def _remove(self, command: Message) -> None:
        model = self._find({**command, "catalog": "public"})
        model.remove_from_cache()
        self._protocol.send("removed", variant=command["variant"])

    def _register_eps(self, command: Message) -> None:
        offered = {ep.name: ep.is_registered for ep in self._manager.discover_eps()}
        wanted = list(command["names"])
        unknown = [name for name in wanted if name not in offered]
        if unknown:
            message = f"Foundry Local offers no {_words(unknown)} on this host, only {_words(offered) or 'the CPU'}"
            raise CommandFailed("ep_missing", f"{message}; choose another device, or install the device's driver")
        needed = [name for name in wanted if not offered[name]]
        if needed:
            reports = {name: self._progress(name) for name in needed}
            result = self._manager.download_and_register_eps(
                needed, lambda name, percent: reports.get(name, reports[needed[0]])(percent)
            )
            if result.failed_eps:
                message = f"{_words(result.failed_eps)} could not be downloaded and registered; check the network"
                raise CommandFailed("ep_missing", message)
        self._protocol.send("eps_registered", names=wanted)

    def _load(self, command: Message) -> None:
        model = self._find(command)
        if self._registered is not None and Path(model.get_path()).resolve() != self._registered.resolve():
            # The native catalog rereads its file, so the last of two agents that share one wins, silently.
            message = (
                f"{model.get_path()} was registered in place of {self._registered}; give each agent its own data_dir"
            )
            raise CommandFailed("load_failed", message)
        begin = time.perf_counter_ns()
        model.load()
        load_ns = time.perf_counter_ns() - begin
        self._model = model
        runtime = model.info.runtime
        provider = (runtime.execution_provider if runtime else None) or _configured_provider(Path(model.get_path()))
        device = str(runtime.device_type.value).lower() if runtime and runtime.device_type else None
        # A variant for CUDA loads on the CPU without a word when CUDA cannot be used (issues 295, 792, 1074).
        fell_back = provider != CPU_PROVIDER and provider_is_absent(provider)
        actual = CPU_PROVIDER if fell_back else provider
        self._protocol.send("loaded", load_ns=load_ns, device=device, execution_provider=actual, fell_back=fell_back)

    def _chat(self, command: Message) -> None:
        if self._model is None:
            raise CommandFailed("not_loaded", "no model is loaded in this child")
        start_chat(self._sdk, self._model, command, self._protocol)

    def _serve(self, _command: Message) -> None:
        if not self._manager.urls:
            self._manager.start_web_service()
        self._protocol.send("serving", url=self._manager.urls[0].rstrip("/"))

    def _unload(self, _command: Message) -> None:
        if self._model is None:
            raise CommandFailed("not_loaded", "no model is loaded in this child")
        patience = time.monotonic() + DRAIN_S
        while True:
            begin = time.perf_counter_ns()
            try:
                self._model.unload()
                break
            except self._sdk.FoundryLocalException as error:
                # A request's session outlives its last byte by some milliseconds, and unloading is refused meanwhile.
                if "still using it" not in str(error) or time.monotonic() >= patience:
                    raise
                time.sleep(0.02)
        duration_ns = time.perf_counter_ns() - begin
        self._model = None
        self._protocol.send("unloaded", duration_ns=duration_ns)

    def _stop(self, _command: Message) -> None:
        begin = time.perf_counter_ns()
        self.close()
        self._protocol.send("stopped", duration_ns=time.perf_counter_ns() - begin)

    def _progress(self, what: str) -> Callable[[float], None]:
        last = 0.0

        def report(percent: float) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= PROGRESS_INTERVAL_S:
                last = now
                self._protocol.send("progress", message=what, fraction=min(1.0, max(0.0, percent / 100.0)))

        return report


def provider_is_absent(provider: str | None) -> bool:
    """Whether no library that the provider needs is in this process's memory (Linux; elsewhere False: not known)."""
    words = PROVIDER_LIBRARIES.get(provider or "")
    if words is None or sys.platform != "linux":
        return False
    try:
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").lower()
    except OSError:
        return False
    return not any(word in mapped for word in words)


def _words(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)


def _properties(command: Message) -> dict[str, str]:
    """The model's metadata under the native library's keys; ``task`` is required, the rest optional.

    The context length is not among them: the library takes it from genai_config.json whatever it is told.
    """
    optional = {key: str(command[key]) for key in ("task", "alias", "display_name", "license") if command.get(key)}
    if reasoning := command.get("reasoning"):
        optional |= {"reasoning_start": str(reasoning[0]), "reasoning_end": str(reasoning[1])}
    return {"task": "chat-completion"} | optional


def _is_same(known: Any, path: Path, command: Message) -> bool:
    """Whether an existing registration still says what we would register; a stale one is replaced."""
    return (
        Path(known.get_path()).resolve() == path.resolve()
        and known.get_int_property("supports_reasoning") == bool(command.get("reasoning"))
        and all(known.get_string_property(key) == value for key, value in _properties(command).items())
    )


def _describe_model(model: Any) -> dict[str, Any]:
    info = model.info
    device = info.runtime.device_type if info.runtime else None
    return {
        "alias": info.alias,
        "variant": info.id,
        "device": str(device.value).lower() if device else None,
        "execution_provider": (info.runtime.execution_provider if info.runtime else None) or None,
        "size_bytes": None if info.file_size_mb is None else info.file_size_mb * _MEGABYTE,
        "license": info.license,
        "context_length": info.context_length,
        "capabilities": _capabilities(info),
        "cached": bool(model.is_cached),
        "loaded": bool(model.is_loaded),
    }


def _capabilities(info: Any) -> list[str]:
    named = [word.strip() for word in (info.capabilities or "").split(",") if word.strip()]
    if info.task and info.task not in named:
        named.append(info.task)
    if info.supports_tool_calling and "tools" not in named:
        named.append("tools")
    return named


def _configured_provider(path: Path) -> str | None:
    """The provider a local model's genai_config.json selects: none listed means the CPU.

    https://onnxruntime.ai/docs/genai/reference/config.html (``model.decoder.session_options.provider_options``)
    """
    try:
        config = json.loads((path / "genai_config.json").read_text(encoding="utf-8"))
        options = config["model"]["decoder"].get("session_options", {}).get("provider_options", [])
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    names = [name for option in options for name in option]
    return names[0] if names else CPU_PROVIDER


def main() -> int:
    """Serve commands until ``stop`` or the end of stdin (or print ``--versions``); 0 for a clean end."""
    if sys.argv[1:] == ["--versions"]:
        print(json.dumps(versions()))
        return 0
    protocol = take_protocol()
    die_with_parent()
    service = Service(protocol)
    while (command := protocol.receive()) is not None:
        if not service.handle(command):
            break
    service.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
