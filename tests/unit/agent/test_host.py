"""Identity, the parsers behind the fingerprint, and what counts as a problem."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading
import uuid
from pathlib import Path

import pytest

from benchfleet_agent import host as host_module
from benchfleet_agent.host import (
    Conditions,
    HostIdentity,
    Severity,
    find_problems,
    fingerprint,
    hash_machine_id,
    parse_cpuinfo,
    parse_os_release,
    parse_platform_uuid,
)
from benchfleet_agent.probes import DeviceInfo, ProbeDescription

DATA = Path("data")


def test_an_identity_is_made_once_and_kept(tmp_path: Path) -> None:
    first, second = HostIdentity.load(tmp_path / "agent"), HostIdentity.load(tmp_path / "agent")
    assert first.host_id == second.host_id == str(uuid.UUID(first.host_id))
    assert first.machine_id == second.machine_id
    assert first.instance_id != second.instance_id
    assert os.listdir(tmp_path / "agent") == ["host_id"]
    assert HostIdentity.load(tmp_path / "other").host_id != first.host_id
    assert HostIdentity.load(tmp_path / "other").machine_id == first.machine_id


def test_agents_that_start_at_once_agree(tmp_path: Path) -> None:
    barrier, ids = threading.Barrier(8), set()

    def load() -> None:
        barrier.wait()
        ids.add(HostIdentity.load(tmp_path).host_id)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 1


def test_an_identity_needs_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert HostIdentity.load(tmp_path).host_id == HostIdentity.load(tmp_path).host_id
    assert os.listdir(tmp_path) == ["host_id"]


def test_a_damaged_identity_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "host_id").write_text("rubbish")
    with pytest.raises(ValueError, match="delete it"):
        HostIdentity.load(tmp_path)


def test_the_machine_id_hides_its_source() -> None:
    assert hash_machine_id("abc") == hash_machine_id("abc") != hash_machine_id("abd")
    assert len(hash_machine_id("abc")) == 64
    assert hash_machine_id("abc") != hashlib.sha256(b"abc").hexdigest(), "salted"


def test_containers_go_by_the_kernels_boot_and_machines_by_their_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(host_module, "_read", lambda path: path.name)
    monkeypatch.setattr(host_module, "_in_container", lambda: True)
    assert host_module._machine_source() == "boot_id"
    monkeypatch.setattr(host_module, "_in_container", lambda: False)
    assert host_module._machine_source() == "machine-id"
    monkeypatch.setattr(host_module, "_read", lambda path: None)
    monkeypatch.setattr(socket, "gethostname", lambda: "lab-3")
    assert host_module._machine_source().startswith("lab-3 "), "the last resort is name and network address"


X86 = """\
processor	: 0
vendor_id	: AuthenticAMD
model name	: AMD Ryzen 9 7950X  16-Core   Processor
cpu cores	: 16

processor	: 1
model name	: AMD Ryzen 9 7950X  16-Core   Processor
"""
GRAVITON = """\
processor	: 0
BogoMIPS	: 243.75
CPU implementer	: 0x41
CPU architecture: 8
CPU part	: 0xd0c
CPU revision	: 1

processor	: 1
CPU implementer	: 0x41
CPU part	: 0xd0c
"""
PI = """\
processor	: 0
CPU implementer	: 0x41
CPU part	: 0xd0b

Revision	: c04170
Model		: Raspberry Pi 5 Model B Rev 1.0
"""
BIG_LITTLE = """\
CPU implementer	: 0x41
CPU part	: 0xd85
CPU implementer	: 0x41
CPU part	: 0xd87
CPU implementer	: 0x41
CPU part	: 0xfff
"""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (X86, "AMD Ryzen 9 7950X 16-Core Processor"),
        (GRAVITON, "2x Arm Neoverse-N1"),
        (PI, "Raspberry Pi 5 Model B Rev 1.0 (1x Arm Cortex-A76)"),
        (BIG_LITTLE, "1x Arm Cortex-X925 + 1x Arm Cortex-A725 + 1x Arm 0x41/0xfff"),
        ("", ""),
    ],
)
def test_the_processors_name(text: str, name: str) -> None:
    assert parse_cpuinfo(text) == name


def test_the_distributions_name() -> None:
    text = 'NAME="Debian GNU/Linux"\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'
    assert parse_os_release(text) == "Debian GNU/Linux 12 (bookworm)"
    assert parse_os_release("NAME=Alpine\n") == "Alpine"
    assert parse_os_release("") == ""


def test_the_platform_uuid_of_a_mac() -> None:
    text = '    "IOPlatformSerialNumber" = "X"\n    "IOPlatformUUID" = "0F2C4E10-1111-2222-3333-444455556666"\n'
    assert parse_platform_uuid(text) == "0F2C4E10-1111-2222-3333-444455556666"
    assert parse_platform_uuid("") is None


def test_a_good_host_has_no_problems() -> None:
    assert find_problems(Conditions(), DATA) == ()
    assert find_problems(Conditions(False, 0.5, 0.02, "performance", "acpi-cpufreq"), DATA) == ()


@pytest.mark.parametrize(
    ("conditions", "severity", "word"),
    [
        (Conditions(on_battery=True), Severity.WARNING, "battery"),
        (Conditions(disk_free_ratio=0.05), Severity.WARNING, "5.0%"),
        (Conditions(disk_free_ratio=0.005), Severity.ERROR, "0.5%"),
        (Conditions(busy_ratio=0.4), Severity.WARNING, "40%"),
        (Conditions(governor="powersave", frequency_driver="acpi-cpufreq"), Severity.WARNING, "powersave"),
    ],
)
def test_each_problem_comes_with_advice(conditions: Conditions, severity: Severity, word: str) -> None:
    (problem,) = find_problems(conditions, DATA)
    assert problem.severity is severity
    assert word in problem.message
    assert problem.advice


def test_powersave_is_no_problem_where_the_processor_scales_itself() -> None:
    assert find_problems(Conditions(governor="powersave", frequency_driver="intel_pstate"), DATA) == ()


def test_a_fingerprint_becomes_a_host(tmp_path: Path) -> None:
    identity = HostIdentity.load(tmp_path)
    gpu = DeviceInfo("GPU-1", "gpu", "Fake", "610.57", None)
    probes = [
        ProbeDescription("nvidia", True, None, 12.5, ("device_power_w",), 100, (gpu,)),
        ProbeDescription("other", False, "no driver", None, (), 1_000),
    ]
    found = fingerprint(identity, tmp_path / "not" / "there", probes, busy_ratio=0.9)
    message = found.to_proto()
    assert (message.host_id, message.machine_id) == (identity.host_id, identity.machine_id)
    assert message.os_name
    assert message.architecture
    assert message.memory_bytes > 2**28
    assert message.HasField("on_battery") == (found.on_battery is not None)
    assert [device.device_id for device in message.devices] == ["GPU-1"]
    assert not message.devices[0].HasField("memory_bytes")
    assert [(probe.probe_id, probe.available, probe.HasField("cost_us")) for probe in message.probes] == [
        ("nvidia", True, True),
        ("other", False, False),
    ]
    assert any("90%" in problem.message for problem in message.problems)
