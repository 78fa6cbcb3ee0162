from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from benchfleet_controller.inventory import InventoryError, UnknownHost, all_hosts, load_inventory, resolve_hosts
from benchfleet_controller.plan import HostTarget

SAMPLE = Path(__file__).parents[3] / "deploy/fleet.toml"


@pytest.fixture(autouse=True)
def _no_inventory_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BENCHFLEET_FLEET", raising=False)
    monkeypatch.setattr(platformdirs, "user_config_dir", lambda *_: str(tmp_path / "config"))


def _file(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("argument", "name", "address"),
    [
        ("lab=192.168.1.20:50555", "lab", "192.168.1.20:50555"),
        ("lab=192.168.1.20", "lab", "192.168.1.20:50551"),
        ("lab = desk", "lab", "desk:50551"),
        ("127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1"),
        ("desk.local", "desk.local", "desk.local:50551"),
        ("localhost", "localhost", "localhost:50551"),
        ("[::1]:50552", "[::1]:50552", "[::1]:50552"),
        ("[::1]", "[::1]", "[::1]:50551"),
        ("::1", "::1", "[::1]:50551"),
        ("listed", "listed", "10.0.0.1:50551"),
        ("earlier", "earlier", "10.0.0.2:7"),
    ],
)
def test_what_a_host_means(argument: str, name: str, address: str) -> None:
    (target,) = resolve_hosts([argument], {"listed": "10.0.0.1"}, {"listed": "10.9.9.9:1", "earlier": "10.0.0.2:7"})

    assert target == HostTarget(name, address)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lab="], "host lab=: '' is no address; write HOST:PORT"),
        (["=10.0.0.1"], "'' cannot be a host's name; use letters, digits and dashes"),
        (["a\x1bb=10.0.0.1"], r"'a\x1bb' cannot be a host's name"),
        (["x" * 101 + "=10.0.0.1"], "cannot be a host's name"),
        (["lab=10.0.0.1:99999"], "is no address; write HOST:PORT"),
        (["lab=10.0.0.1:http"], "is no address; write HOST:PORT"),
        (["lab=10.0.0"], "'10.0.0' is no address; write HOST:PORT, for example 192.168.1.20:50551"),
        (["lab=300.1.1.1"], "'300.1.1.1' is no address"),
        (["lab=[::1:50551"], "write HOST:PORT, IPv6 with a port needs brackets: [::1]:50551"),
        (["lab=[:::1]"], "'[:::1]' is no address"),
        (["lab=10.0.0.1:5:6"], "'10.0.0.1:5:6'"),
        (["lab=a b:1"], "'a b:1' is no address"),
        (["http://lab:50551"], "an agent's address has no 'http'://; write 192.168.1.20:50551"),
        (["a=10.0.0.1", "a=10.0.0.2"], "two hosts are called a (10.0.0.1:50551 and 10.0.0.2:50551); name them apart"),
        (["a=10.0.0.1", "b=10.0.0.1:50551"], "a and b are both 10.0.0.1:50551; leave one of them out"),
        (["10.0.0.1", "10.0.0.1"], "the host 10.0.0.1 is named twice; name it once"),
    ],
)
def test_what_makes_no_sense_says_what_to_do(arguments: list[str], said: str) -> None:
    with pytest.raises(InventoryError) as error:
        resolve_hosts(arguments, {}, {})

    assert said in str(error.value)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("desc", "no host is known as 'desc'; did you mean desk? If not, give its address: desc=192.168.1.20:50551"),
        ("zzz", "no host is known as 'zzz'; give its address: zzz=192.168.1.20:50551"),
        ("", "no host is known as ''; give its address: NAME=192.168.1.20:50551"),
        ("a\x1b", r"no host is known as 'a\x1b'; give its address: NAME="),
    ],
)
def test_an_unknown_name_is_told_near_names_and_how_to_write_an_address(argument: str, said: str) -> None:
    with pytest.raises(UnknownHost) as error:
        resolve_hosts([argument], {"desk": "10.0.0.1"}, {"lab": "10.0.0.2"})

    assert said in str(error.value)


def test_all_hosts_are_one_an_address() -> None:
    found = all_hosts({"desk": "10.0.0.1"}, {"10.0.0.1": "10.0.0.1:50551", "lab": "10.0.0.2:50551"})

    assert found == (HostTarget("desk", "10.0.0.1:50551"), HostTarget("lab", "10.0.0.2:50551"))


def test_the_inventory_is_the_flag_else_the_variable_else_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_inventory(None) == {}

    _file(tmp_path / "config/fleet.toml", '[hosts]\nmine = "10.0.0.1"')
    assert load_inventory(None) == {"mine": "10.0.0.1"}

    monkeypatch.setenv("BENCHFLEET_FLEET", str(_file(tmp_path / "b.toml", '\ufeff[hosts]\nnamed = "10.0.0.2"')))
    assert load_inventory(None) == {"named": "10.0.0.2"}
    assert load_inventory(_file(tmp_path / "c.toml", "")) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[hosts\n", ": line 1, column 7: "),
        ('[hosts]\na = "10.0.0.1"\na = "10.0.0.2"\n', ": line 3, column 15: Cannot overwrite a value"),
        ("hosts = 3", "hosts must be a table: write [hosts] and then"),
        ('host = "10.0.0.1"', "'host' is no key of an inventory; write [hosts] and then name = \"address\" lines"),
        ("[hosts]\na = 3", "hosts.a must be an address such as \"192.168.1.20:50551\", not '3'"),
        ('[hosts]\na = "10.0.0.1:x"', "hosts.a: '10.0.0.1:x' is no address"),
        ('[hosts]\n"a\\u001b" = "10.0.0.1"', r"hosts: 'a\x1b' cannot be a host's name"),
    ],
)
def test_an_inventory_that_makes_no_sense_says_where(tmp_path: Path, text: str, said: str) -> None:
    path = _file(tmp_path / "fleet.toml", text)

    with pytest.raises(InventoryError) as error:
        load_inventory(path)

    assert str(path) in str(error.value)
    assert said in str(error.value)


def test_all_problems_of_an_inventory_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InventoryError) as error:
        load_inventory(_file(tmp_path / "fleet.toml", 'x = 1\n[hosts]\na = 3\nb = "10.0.0.1:x"'))

    assert len(str(error.value).splitlines()) == 3


def test_an_inventory_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"[hosts]\n# \xff")

    with pytest.raises(InventoryError, match=r"absent\.toml cannot be read"):
        load_inventory(tmp_path / "absent.toml")
    with pytest.raises(InventoryError, match="is not UTF-8"):
        load_inventory(tmp_path / "latin.toml")


def test_the_sample_is_read() -> None:
    assert {target.name for target in all_hosts(load_inventory(SAMPLE), {})} == {"desk", "lab-1"}
