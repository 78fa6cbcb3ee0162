"""Foundry Local's older SDKs from the package index: what 1.2.4 serves, and whether our legacy service fits 0.5.1.

SDK 1.2.4's web service starts on Linux but lists and loads by the public catalog alone, so without internet nothing
more than its answers to that can be tried. Of the legacy service (0.8 and before) there is no Linux version: 0.5.1's
client is put to the fake that our dialect is tested with.
"""

from __future__ import annotations

import json
import os
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.runtimes import Model
from benchfleet_agent.runtimes.dialects import foundry_location
from benchfleet_agent.runtimes.endpoint import EndpointRuntime, EndpointSettings
from fakes.dialects import serving
from fakes.dialects.foundry import CPU, GPU, FakeFoundryService
from integration.conftest import clean_environment
from integration.package_index import install_or_skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SERVICE = """
import sys
from foundry_local_sdk import Configuration, FoundryLocalManager
web = Configuration.WebService(urls="http://127.0.0.1:0")
FoundryLocalManager.initialize(Configuration(app_name="benchfleet-test", app_data_dir=sys.argv[1], web=web))
FoundryLocalManager.instance.start_web_service()
print("serving", FoundryLocalManager.instance.urls[0], flush=True)
sys.stdin.read()
"""
CLIENT = """
import json
import sys
from foundry_local import FoundryLocalManager
manager = FoundryLocalManager(bootstrap=False)
said = {"endpoint": manager.endpoint, "catalog": sorted(one.id for one in manager.list_catalog_models())}
said["cached"] = sorted(one.id for one in manager.list_cached_models())
said["loaded"] = manager.load_model(sys.argv[1]).id
said["in_memory"] = [one.id for one in manager.list_loaded_models()]
manager.unload_model(sys.argv[1], force=True)
said["left"] = [one.id for one in manager.list_loaded_models()]
print(json.dumps(said))
"""


def environment_with(directory: Path, requirement: str) -> str:
    """The interpreter of a fresh environment with one package."""
    venv.create(directory)
    python = str(directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    install_or_skip(python, requirement)
    return python


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """SDK 1.2.4's web service in a process of its own: its root URL and process id."""
    python = environment_with(tmp_path / "environment", "foundry-local-sdk==1.2.4")
    command = [python, "-c", SERVICE, str(tmp_path / "data")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=clean_environment()
    ) as process:
        try:
            yield _url(process), process.pid
        finally:
            process.kill()


def _url(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.decode(errors="replace"))
        if lines[-1].startswith("serving "):
            return lines[-1].split()[1].rstrip("/")
    raise AssertionError(f"SDK 1.2.4 does not serve:\n{''.join(lines)}")


def test_sdk_1_2_4s_service_is_known_and_says_what_it_can(service: tuple[str, int]) -> None:
    url, pid = service
    runtime = EndpointRuntime(EndpointSettings(url, timeout_s=60.0))
    description = runtime.describe()
    assert (description.available, description.dialect) == (True, "foundry_cli"), description.reason
    if os.name == "posix":
        assert runtime.owner(runtime.dialect()).pids == (pid,)
    problem, listed = None, []
    try:
        listed = runtime.models()
    except WorkFailed as error:
        problem = error.failure
    # It has no catalog of its own: without internet it lists nothing, or says that it could not ask.
    assert problem is None or (problem.reason is Reason.HTTP_ERROR and "atalog" in problem.message)
    assert all(model.variant and model.loaded is False for model in listed)
    with pytest.raises(WorkFailed) as caught:
        runtime.dialect().load(Model("no-such-model", "no-such-model-generic-cpu:1"), 60.0)
    assert caught.value.failure.reason in (Reason.LOAD_FAILED, Reason.MODEL_NOT_FOUND)


@pytest.mark.skipif(os.name != "posix", reason="puts a shell script in place of the command line")
def test_sdk_0_5_1s_client_takes_our_fake_for_the_legacy_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = environment_with(tmp_path / "environment", "foundry-local-sdk==0.5.1")
    server = FakeFoundryService(cached=(CPU,))
    with serving(server) as url:
        command = tmp_path / "bin" / "foundry"
        command.parent.mkdir()
        status = f"🟢 Model management service is running on {url}/openai/status"
        command.write_text(f'#!/bin/sh\n[ "$1" = service ] && echo "{status}"\n', encoding="utf-8")
        command.chmod(0o755)
        monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
        done = subprocess.run(
            [python, "-c", CLIENT, CPU],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            env=clean_environment(),
        )
        assert done.returncode == 0, done.stderr
        assert foundry_location.locate() == url  # found as the client finds it
    said = json.loads(done.stdout)
    assert said["endpoint"] == f"{url}/v1"
    assert said["catalog"] == sorted([CPU, GPU])
    assert said["cached"] == [CPU]
    assert said["in_memory"] == [said["loaded"]] == [CPU]
    assert said["left"] == []
