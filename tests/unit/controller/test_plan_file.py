from __future__ import annotations

import json
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from benchfleet_controller import plan as plans
from benchfleet_controller import plan_file
from benchfleet_controller.plan import DEFAULT_PROMPTS, Conditions, Deadlines, HostTarget, Plan, PromptSet, Stop
from benchfleet_controller.plan_draft import Overrides, PlanDraft, PlanError, build_plan
from benchfleet_controller.plan_file import load_plan

ROOT = Path(__file__).parents[3]
HOSTS = (HostTarget("a", "127.0.0.1:1"),)
MINIMUM = PlanDraft(hosts=HOSTS, models=("m",))


def _file(tmp_path: Path, text: str, name: str = "plan.toml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def _example() -> str:
    found = re.search(r"```toml\n(.*?)```", (ROOT / "docs/plan.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_documented_example_is_a_plan(tmp_path: Path) -> None:
    plan = build_plan(load_plan(_file(tmp_path, _example())), Overrides(), {})
    document = tomllib.loads(_example())

    assert [host.name for host in plan.hosts] == list(document["hosts"])
    assert {prompts.name: len(prompts.prompts) for prompts in plan.prompt_sets} == {
        name: len(entries) for name, entries in document["prompts"].items()
    }
    assert (plan.rounds, plan.warmup_rounds, list(plan.concurrencies)) == (
        document["rounds"], document["warmup"], document["concurrency"],
    )  # fmt: skip
    assert plan.deadlines == Deadlines(**document["deadlines"])


def test_the_documentation_has_every_key_with_its_default() -> None:
    lines = (ROOT / "docs/plan.md").read_text(encoding="utf-8").splitlines()
    rows = {cells[1].strip(" `"): cells for line in lines if len(cells := line.split("|")) == 6}
    plan = Plan("", (), ())

    keys = set(tomllib.loads(_example()))
    commented = {"endpoint", "blocks", "rate", "arrival", "prompt_tokens", "prompt_count"}
    assert keys | commented == {key.partition(".")[0] for key in rows} - {"key", "---"}
    assert {field.name for field in fields(Deadlines)} == {key[10:] for key in rows if key.startswith("deadlines.")}
    for key, value in {
        "rounds": plan.rounds, "warmup": plan.warmup_rounds, "concurrency": plan.concurrencies[0], "seed": plan.seed,
        "max_tokens": plan.max_tokens, "temperature": plan.temperature, "top_p": plan.top_p, "stream": plan.stream,
    }.items():  # fmt: skip
        assert json.loads(rows[key][3]) == value, key


def test_json_says_the_same(tmp_path: Path) -> None:
    toml = load_plan(_file(tmp_path, _example()))

    assert load_plan(_file(tmp_path, json.dumps(tomllib.loads(_example())), "plan.json")) == toml


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    assert load_plan(_file(tmp_path, "")) == PlanDraft()


@pytest.mark.parametrize(
    "text",
    [
        '[hosts]\na = "127.0.0.1:1"',
        '[[hosts]]\nname = "a"\naddress = "127.0.0.1:1"',
        'hosts = ["a"]',
        'hosts = ["a=127.0.0.1:1"]',
    ],
)
def test_hosts_have_three_spellings(tmp_path: Path, text: str) -> None:
    assert load_plan(_file(tmp_path, text), {"a": "127.0.0.1:1"}).hosts == HOSTS


def test_prompts_have_three_spellings_and_files_lie_next_to_the_plan(tmp_path: Path) -> None:
    _file(tmp_path, "One?\nTwo?", "q.txt")
    for text, expected in (
        ('prompts = "q.txt"', [("q", 2)]),
        ('prompts = ["One?"]', [("inline", 1)]),
        ('[[prompts]]\nid = "x"\nprompt = "One?"', [("inline", 1)]),
        ('[prompts]\nfile = "q.txt"\ntexts = ["One?"]', [("file", 2), ("texts", 1)]),
    ):
        sets = load_plan(_file(tmp_path, text)).prompt_sets
        assert sets is not None
        assert [(found.name, len(found.prompts)) for found in sets] == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rounds = ", ": line 1, the last: Invalid value"),
        ("rounds = 1\nmodels = [1 2]\n", ": line 2, column 13: Unclosed array"),
        ("rounds = 1\nrounds = 2\n", ": line 2, column 11: Cannot overwrite a value"),
        ("round = 3", ": round is no key of a plan; did you mean rounds?"),
        ("deadline = 3", ": deadline is no key of a plan; did you mean deadlines?"),
        ("zzz = 3", ": zzz is no key of a plan; known are name, hosts, models"),
        ('"a\\u001b" = 3', r": 'a\x1b' is no key of a plan"),
        ("[deadlines]\nreqest_s = 3", ": deadlines.reqest_s is no key of a plan; did you mean deadlines.request_s?"),
        ("deadlines = 3", ": deadlines must be a table of seconds"),
        ("[deadlines]\nload_s = 0", ": deadlines.load_s must be above 0 and at most 86400 seconds, not 0"),
        ("[deadlines]\nload_s = nan", ": deadlines.load_s must be above 0 and at most 86400 seconds, not nan"),
        ('[deadlines]\nload_s = "1"', ": deadlines.load_s must be a number, not '1'"),
        ('rounds = "3"', ": rounds must be a whole number, not '3'"),
        ("rounds = 3.0", ": rounds must be a whole number, not 3.0"),
        ("rounds = true", ": rounds must be a whole number, not true"),
        ("rounds = 0", ": rounds must lie between 1 and 10000, not 0"),
        ("rounds = 10001", ": rounds must lie between 1 and 10000, not 10001"),
        ("warmup = -1", ": warmup must lie between 0 and 10000, not -1"),
        ("concurrency = 0", ": concurrency must lie between 1 and 256, not 0"),
        ("concurrency = [1, 257]", ": concurrency[1] must lie between 1 and 256, not 257"),
        ("concurrency = [1, 1]", ": concurrency[1] names 1 a second time; name it once"),
        ('concurrency = [1, "2"]', ": concurrency[1] must be a whole number, not '2'"),
        ("concurrency = []", ": concurrency must not be empty"),
        ("max_tokens = 0", ": max_tokens must lie between 1 and 1048576, not 0"),
        ("temperature = 2.1", ": temperature must lie between 0 and 2, not 2.1"),
        ("temperature = -0.1", ": temperature must lie between 0 and 2, not -0.1"),
        ("temperature = nan", ": temperature must lie between 0 and 2, not nan"),
        ('temperature = "hot"', ": temperature must be a number, not 'hot'"),
        ("top_p = 0", ": top_p must be above 0 and at most 1, not 0"),
        ("seed = 9223372036854775808", ": seed must lie between -9223372036854775808 and 9223372036854775807"),
        ("stream = 1", ": stream must be true or false, not 1"),
        ('name = ""', ": name must be 1 to 200 characters"),
        (
            'name = "a\\u001b[2J"',
            r": name must be 1 to 200 characters, none of them a control character, not 'a\x1b[2J'",
        ),
        ("models = []", ": models must not be empty; name at least one"),
        ('models = ["m", ""]', ": models[1] must be 1 to 300 characters"),
        ('models = ["m", "m"]', ": models[1] names 'm' a second time"),
        (
            'models = ["m\\u0000"]',
            r": models[0] must be 1 to 300 characters, none of them a control character, not 'm\x00'",
        ),
        ("models = [1]", ": models[0] must be a text, not 1"),
        ('devices = ["cpu", "tpu"]', ": devices[1] must be cpu, gpu, npu or all, not 'tpu'; did you mean"),
        ('devices = "GPU"', ": devices must be cpu, gpu, npu or all, not 'GPU'; did you mean gpu?"),
        ("runtimes = []", ": runtimes must not be empty"),
        ('endpoint = "ftp://x"', ": endpoint must be a URL such as http://127.0.0.1:8080/v1, not 'ftp://x'"),
        ('endpoint = ""', ": endpoint must not be empty"),
        ('endpoint = "http://me:secret@x"', ": endpoint must not carry credentials"),
        ('endpoint = "http://x"\nruntimes = ["foundry"]', ": endpoint is given, but runtimes does not name it"),
        ("hosts = 3", ": hosts must name at least one host: write [hosts] and then"),
        ("[hosts]", ": hosts must name at least one host"),
        ("hosts = []", ": hosts must name at least one host"),
        ("[hosts]\na = 3", ": hosts.a must be an address, not 3"),
        ('[hosts]\na = "10.0.0.1:x"', ": hosts.a: '10.0.0.1:x' is no address; write HOST:PORT"),
        ('[hosts]\n"a\\u001b" = "10.0.0.1"', r": hosts: 'a\x1b' cannot be a host's name"),
        ('[hosts]\na = "10.0.0.1"\nb = "10.0.0.1"', ": hosts: a and b are both 10.0.0.1:50551; leave one"),
        ('hosts = ["a=10.0.0.1", "a=10.0.0.2"]', ": hosts: two hosts are called a (10.0.0.1"),
        ('hosts = ["desk"]', ": hosts[0]: no host is known as 'desk'; give its address: desk="),
        ("hosts = [1]", ": hosts[0] must be a table of name and address, both texts, not 1"),
        ('[[hosts]]\nname = "a"', ": hosts[0] must be a table of name and address, both texts, not {'name': 'a'}"),
        ("prompts = 3", ": prompts must be a file's name or a list of prompts, not 3"),
        ("prompts = []", ": prompts: there is no prompt in it"),
        ("[prompts]", ": prompts must not be empty; name a file, texts, or sets of such"),
        ('prompts = "absent.txt"', "absent.txt cannot be read: No such file"),
        ("prompts = [3]", ": prompts: prompt 1: a prompt is a text or an object, not a number"),
        ("[prompts.a.b]", ": prompts.a must be a file's name or a list of prompts, not {'b': {}}"),
        ('[prompts]\n"a\\u001b" = ["x"]', ": prompts: a set's name must be 1 to 200 characters"),
    ],
)
def test_a_file_that_makes_no_sense_says_where_and_what_to_do(tmp_path: Path, text: str, said: str) -> None:
    path = _file(tmp_path, text)

    with pytest.raises(PlanError) as error:
        load_plan(path)

    message = str(error.value)
    assert message.startswith(str(path))
    assert said in message
    assert "\n" not in message
    assert "secret" not in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{\n"rounds": 1,}', ": line 2, column "),
        ('{"hosts": {"a": "10.0.0.1", "a": "10.0.0.2"}}', ": the key 'a' is given twice; give it once"),
        ("[1]", ": a plan is a table of keys, not [1]"),
        ("[" * 200_000, ": is nested too deeply"),
        ('{"temperature": NaN}', ": temperature must lie between 0 and 2, not nan"),
    ],
)
def test_json_that_makes_no_sense_says_where(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(PlanError) as error:
        load_plan(_file(tmp_path, text, "plan.json"))

    assert said in str(error.value)


def test_all_problems_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    text = 'rounds = 0\nmodles = ["m"]\nconcurrency = [0, 300]\nprompts = [1, 2]\n'
    text += '[hosts]\na = "x:y"\nb = 3\n[deadlines]\nload_s = -1'

    with pytest.raises(PlanError) as error:
        load_plan(_file(tmp_path, text))

    assert len(str(error.value).splitlines()) == 9


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "latin.toml").write_bytes(b"# \xff")
    with pytest.raises(PlanError, match=r"absent\.toml cannot be read: No such file"):
        load_plan(tmp_path / "absent.toml")
    with pytest.raises(PlanError, match=r"latin\.toml is not UTF-8; save it as UTF-8"):
        load_plan(tmp_path / "latin.toml")

    monkeypatch.setattr(plan_file, "MAXIMUM_FILE_BYTES", 10)
    with pytest.raises(PlanError, match="put long prompts into their own files"):
        load_plan(_file(tmp_path, "# 345678901"))


def test_flags_win_over_the_file_and_the_file_over_the_environment() -> None:
    environment = {"BENCH_ROUNDS": "7", "BENCH_MODELS": "e1, e2,", "BENCH_MAX_TOKENS": "9", "BENCH_TEMPERATURE": "0.5"}
    draft = PlanDraft(hosts=HOSTS, models=("f",), rounds=8, max_tokens=10)

    plan = build_plan(draft, Overrides(rounds=9), environment)
    assert (plan.rounds, plan.models, plan.max_tokens, plan.temperature, plan.warmup_rounds) == (9, ("f",), 10, 0.5, 1)
    assert build_plan(PlanDraft(hosts=HOSTS), Overrides(), environment).models == ("e1", "e2")
    assert build_plan(MINIMUM, Overrides(), {}).prompt_sets == (DEFAULT_PROMPTS,)


def test_false_and_zero_flags_are_given() -> None:
    draft = PlanDraft(hosts=HOSTS, models=("m",), stream=True, temperature=1, warmup_rounds=2, seed=1)

    plan = build_plan(draft, Overrides(stream=False, temperature=0.0, warmup_rounds=0, seed=0), {"BENCH_STREAM": "1"})
    assert (plan.stream, plan.temperature, plan.warmup_rounds, plan.seed) == (False, 0.0, 0, 0)


def test_the_seeds_variables_are_defaults() -> None:
    environment = {"BENCH_PROMPT": "Hi?", "BENCH_STREAM": "0", "FOUNDRY_LOCAL_ENDPOINT": "http://127.0.0.1:5273/v1"}

    plan = build_plan(MINIMUM, Overrides(), environment)
    assert (plan.prompt_sets[0].prompts[0].messages[0].content, plan.stream) == ("Hi?", False)
    assert (plan.runtimes, plan.endpoint_url) == (("endpoint",), "http://127.0.0.1:5273/v1")
    assert build_plan(MINIMUM, Overrides(runtimes=("foundry",)), environment).runtimes == ("foundry",)


def test_the_endpoint_runtime_may_use_the_agents_own_endpoint() -> None:
    assert build_plan(MINIMUM, Overrides(runtimes=("endpoint",)), {}).endpoint_url == ""
    assert build_plan(MINIMUM, Overrides(endpoint_url="127.0.0.1:8080"), {}).runtimes == ("endpoint",)


def test_prompts_of_flags_go_before_the_files(tmp_path: Path) -> None:
    path = _file(tmp_path, "One?", "q.txt")

    assert build_plan(MINIMUM, Overrides(prompts_file=path), {"BENCH_PROMPT": "x"}).prompt_sets[0].name == "q"
    assert build_plan(MINIMUM, Overrides(prompts=("x", "y")), {}).prompt_sets[0].prompts[1].prompt_id == "p2"


@pytest.mark.parametrize(
    ("flags", "environment", "said"),
    [
        ({"rounds": 0}, {}, "--rounds must lie between 1 and 10000, not 0"),
        ({"warmup_rounds": -1}, {}, "--warmup must lie between 0 and 10000, not -1"),
        ({"concurrencies": (1, 257)}, {}, "--concurrency must lie between 1 and 256, not 257"),
        ({"max_tokens": 0}, {}, "--max-tokens must lie between 1 and 1048576, not 0"),
        ({"temperature": 3.0}, {}, "--temperature must lie between 0 and 2, not 3.0"),
        ({"models": ("m", "m")}, {}, "--model names 'm' a second time; name it once"),
        (
            {"models": ("\x1b",)},
            {},
            r"--model must be 1 to 300 characters, none of them a control character, not '\x1b'",
        ),
        ({"devices": ("tpu",)}, {}, "--device must be cpu, gpu, npu or all, not 'tpu'"),
        ({"first_token_s": 0.0}, {}, "--first-token-timeout must be above 0 and at most 86400 seconds, not 0.0"),
        ({"endpoint_url": "http://a:b@c"}, {}, "--endpoint must not carry credentials"),
        ({"endpoint_url": "x", "runtimes": ("foundry",)}, {}, "--endpoint is given, but the runtimes do not name it"),
        ({"name": "\n"}, {}, "--name must be 1 to 200 characters"),
        ({"prompts": ("",)}, {}, "--prompt: prompt 1: the prompt is empty"),
        ({"prompts": ("x",), "prompts_file": Path("q.txt")}, {}, "--prompts and --prompt exclude each other"),
        ({"prompts_file": Path("absent.txt")}, {}, "absent.txt cannot be read"),
        ({}, {"BENCH_ROUNDS": "many"}, "the environment variable BENCH_ROUNDS must be a whole number, not 'many'"),
        ({}, {"BENCH_ROUNDS": "0"}, "the environment variable BENCH_ROUNDS must lie between 1 and 10000, not 0"),
        ({}, {"BENCH_STREAM": "yes"}, "the environment variable BENCH_STREAM must be 0 or 1, not 'yes'"),
        (
            {},
            {"BENCH_MAX_TOKENS": "1.5"},
            "the environment variable BENCH_MAX_TOKENS must be a whole number, not '1.5'",
        ),
        ({}, {"BENCH_TEMPERATURE": "nan"}, "the environment variable BENCH_TEMPERATURE must lie between 0 and 2"),
        ({}, {"FOUNDRY_LOCAL_ENDPOINT": "http://a:b@c"}, "variable FOUNDRY_LOCAL_ENDPOINT must not carry credentials"),
    ],
)
def test_bad_flags_and_variables_are_named(flags: dict[str, Any], environment: dict[str, str], said: str) -> None:
    with pytest.raises(PlanError) as error:
        build_plan(MINIMUM, Overrides(**flags), environment)

    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bad_variable_that_is_not_used_is_nobodys_business() -> None:
    assert build_plan(MINIMUM, Overrides(rounds=2), {"BENCH_ROUNDS": "many"}).rounds == 2


def test_a_plan_needs_hosts_and_models() -> None:
    with pytest.raises(PlanError) as error:
        build_plan(None, Overrides(rounds=0), {"BENCH_MODELS": " , "})

    assert str(error.value).splitlines() == [
        "--rounds must lie between 1 and 10000, not 0",
        "no host is named; add --host NAME=ADDRESS (an agent's address) or [hosts] to the plan",
        "no model is named; add --model, for example --model smollm2-135m, or models to the plan",
    ]


def test_too_many_cases_and_too_much_text_are_refused() -> None:
    models = tuple(f"m{index}" for index in range(101))
    with pytest.raises(PlanError, match=r"the plan makes 1010 cases on each host .*, more than 1000; split it"):
        build_plan(MINIMUM, Overrides(models=models, concurrencies=tuple(range(1, 11))), {})
    with pytest.raises(PlanError, match=r"the prompts hold 13\.0 MiB of text, more than the 12 MiB"):
        build_plan(MINIMUM, Overrides(prompts=("x" * (1 << 20),) * 13), {})


def test_every_field_of_a_plan_can_be_said() -> None:
    inside = {field.name for nested in (Deadlines, Stop, Conditions) for field in fields(nested)}

    assert {field.name for field in fields(PlanDraft)} == (
        {field.name for field in fields(Plan)} - {"deadlines", "stop", "conditions"}
    ) | inside | {"prompt_token_counts", "prompt_count"}


def test_load_shapes_and_conditions_of_a_file_become_a_plan(tmp_path: Path) -> None:
    text = (
        'models = ["m"]\nconcurrency = "1..4"\nrate = [0.5, 2]\narrival = "constant"\nidle_pause_s = 3\n'
        'prefix_cache = "allow"\npage_cache = "drop"\nprompt_tokens = "64..128"\nprompt_count = 2\n'
        'goodput = "ttft=500ms"\ncertificate = false\n'
        '[hosts]\na = "10.0.0.1"\n[stop]\nround_duration_s = 5\nminimum_duration_s = 9'
    )
    plan = build_plan(load_plan(_file(tmp_path, text)), Overrides(), {})

    assert (plan.concurrencies, plan.rates, plan.arrival) == ((1, 2, 4), (0.5, 2), "constant")
    assert (plan.prefix_cache, plan.page_cache, plan.idle_pause_s, plan.certificate) == ("allow", "drop", 3, False)
    assert plan.prompt_sets == (PromptSet.synthetic(64, 2), PromptSet.synthetic(128, 2))
    assert plan.stop == Stop(round_duration_s=5, minimum_duration_s=9, maximum_rounds=10_000)


def test_what_a_host_must_be_like_reaches_its_job(tmp_path: Path) -> None:
    text = (
        'models = ["m"]\npath = ["http", "direct"]\nkeep_warm_period_s = 60\nskip_unfit = true\n'
        'idle_baseline_s = 0\n[hosts]\na = "10.0.0.1"\n'
        "[conditions]\nrequire_ac = true\ncool_temperature_c = 60\nmaximum_background_ratio = 0.05\nwait_s = 20"
    )
    plan = build_plan(load_plan(_file(tmp_path, text)), Overrides(), {})
    (job,) = plans.expand(plan, lambda: "id")
    spec = job.to_proto(plan, "run", "me")

    assert plan.conditions == Conditions(True, 60, 0.05, 20)
    assert (spec.conditions.require_ac, spec.conditions.cool_temperature_c, spec.conditions.wait_s) == (True, 60, 20)
    assert (spec.HasField("idle_baseline_s"), spec.idle_baseline_s) == (True, 0)
    assert sorted(case.path for case in spec.cases) == ["direct", "http"]
    assert all(case.skip_unfit and case.keep_warm_period_s == 60 for case in spec.cases)


def test_without_conditions_a_job_has_none() -> None:
    (job,) = plans.expand(build_plan(MINIMUM, Overrides(), {}), lambda: "id")

    spec = job.to_proto(build_plan(MINIMUM, Overrides(), {}), "run", "me")
    assert not spec.HasField("conditions")
    assert not spec.HasField("idle_baseline_s")


def test_an_open_loop_allows_many_in_flight_unless_told() -> None:
    assert build_plan(MINIMUM, Overrides(rates=(2.0,)), {}).concurrencies == (64,)
    assert build_plan(MINIMUM, Overrides(rates=(2.0,), concurrencies=(8,)), {}).concurrencies == (8,)


def test_lengths_and_prompts_replace_each_other_between_flags_and_file(tmp_path: Path) -> None:
    with_prompts = PlanDraft(hosts=HOSTS, models=("m",), prompt_sets=(DEFAULT_PROMPTS,))
    with_lengths = PlanDraft(hosts=HOSTS, models=("m",), prompt_token_counts=(64,))

    assert build_plan(with_prompts, Overrides(prompt_token_counts=(32,)), {}).prompt_sets[0].token_count == 32
    assert build_plan(with_lengths, Overrides(prompts=("Hi?",)), {}).prompt_sets[0].name == "inline"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (Overrides(arrival="poisson"), "add a rate"),
        (Overrides(wait_s=5), "a longest wait is for conditions"),
        (Overrides(paths=("direct",), rates=(2.0,)), "a rate is for the path http"),
        (Overrides(cool_temperature_c=10), "--wait-until-cool must lie between 20 and 120 °C, not 10"),
        (Overrides(paths=("pigeon",)), "--path must be http or direct, not 'pigeon'"),
        (Overrides(rates=(0.0,)), "--rate must be above 0 and at most 10000 requests/s"),
        (Overrides(rates=(5000.0,), round_duration_s=3600), "more than 100000 requests a round"),
        (Overrides(maximum_rounds=5), "add a minimum duration or an interval"),
        (Overrides(maximum_rounds=2, minimum_duration_s=1), "at most 2 rounds contradict the 3 rounds"),
        (Overrides(rounds=2, interval_ratio=0.1), "an interval needs at least 3 rounds, not 2"),
        (Overrides(prompts=("a",), prompt_token_counts=(8,)), "exclude each other"),
        (Overrides(prompt_count=3), "add their length"),
        (Overrides(deterministic=True, temperature=0.5), "deterministic means temperature 0"),
        (Overrides(deterministic=True, round_duration_s=3), "send every prompt once"),
        (Overrides(goodput="ttft=1", stream=False), "need streamed answers"),
        (Overrides(first_token_s=5.0, stream=False), "a deadline for a first token needs streamed answers"),
        (Overrides(token_s=5.0, stream=False), "a deadline for each token needs streamed answers"),
        (Overrides(token_s=700.0), "700 s for each token is more than 600 s for the whole request"),
        (Overrides(first_token_s=10.0, request_s=5.0), "10 s for a first token is more than 5 s for the whole request"),
        (Overrides(token_s=6.0, request_s=5.0), "6 s for each token is more than 5 s"),
        (Overrides(goodput="ttft"), "--goodput makes no sense"),
        (Overrides(prefix_cache="off"), "--prefix-cache must be defeat or allow"),
    ],
)
def test_what_excludes_each_other_is_refused_with_the_reason(overrides: Overrides, said: str) -> None:
    with pytest.raises(PlanError) as error:
        build_plan(MINIMUM, overrides, {})

    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_models_file_names_the_models_and_is_kept(tmp_path: Path) -> None:
    facts = _file(tmp_path, '{"x": {"capabilities": ["chat"], "size_mb": 5}, "y": {}}', "models.json")
    plan_text = 'models = "models.json"\n[hosts]\na = "10.0.0.1"\n'

    from_flag = build_plan(PlanDraft(hosts=HOSTS), Overrides(models_file=facts), {})
    chosen = build_plan(PlanDraft(hosts=HOSTS), Overrides(models_file=facts, models=("y",)), {})
    from_file = build_plan(load_plan(_file(tmp_path, plan_text)), Overrides(), {})

    assert from_flag.models == from_file.models == ("x", "y")
    assert from_flag.model_facts == from_file.model_facts
    assert (chosen.models, len(chosen.model_facts)) == (("y",), 2)
    assert from_flag.model_facts[0].size_bytes == 5_000_000


def test_all_devices_are_interleaved_unless_rounds_stop_by_themselves() -> None:
    assert build_plan(MINIMUM, Overrides(devices=("all",)), {}).blocks == 2
    assert build_plan(MINIMUM, Overrides(devices=("all",), rounds=1), {}).blocks == 1
    assert build_plan(MINIMUM, Overrides(devices=("all",), interval_ratio=0.1), {}).blocks == 1
    assert build_plan(MINIMUM, Overrides(devices=("all",), blocks=3), {}).blocks == 3
    for overrides, said in (
        (Overrides(devices=("all", "cpu")), "leave the others out"),
        (Overrides(blocks=4), "4 blocks need as many rounds"),
        (Overrides(blocks=2, minimum_duration_s=1), "blocks split a fixed number of rounds"),
    ):
        with pytest.raises(PlanError, match=said):
            build_plan(MINIMUM, overrides, {})


@pytest.mark.parametrize("explicit", [{"deterministic": False}, {"temperature": 0.7}, {"round_duration_s": 5.0}])
def test_all_devices_get_the_same_words_unless_a_flag_says_otherwise(explicit: dict[str, Any]) -> None:
    assert build_plan(MINIMUM, Overrides(devices=("all",)), {}).deterministic
    assert not build_plan(MINIMUM, Overrides(devices=("cpu",)), {}).deterministic
    assert not build_plan(MINIMUM, Overrides(devices=("all",), **explicit), {}).deterministic
