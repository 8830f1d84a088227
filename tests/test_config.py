"""Settings: how their texts are read, and which source of a text wins."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyr.cli import main
from zephyr.config import (
    DEFAULTS,
    SPECS,
    Settings,
    environment_variable,
    flag,
    format_address,
    format_value,
    parse_address,
    parse_duration_s,
    parse_setting,
    validated,
)
from zephyr.errors import ConfigError

BOUNDED = sorted(name for name, spec in SPECS.items() if spec.low is not None)
STEP = {"duration": 0.001, "bytes": 1, "count": 1, "number": 0.001}
"""Finest step in which a kind is written."""
CLUSTER_EXPECTED = "1 to 64 of the characters A-Z a-z 0-9 . _ - and none of evictions, members, settings"


@pytest.fixture(autouse=True)
def no_settings_of_this_shell(monkeypatch):
    for name in [*SPECS, "config", "url"]:
        monkeypatch.delenv(environment_variable(name), raising=False)


def run(capsys, *arguments):
    """Return the exit code, stdout and stderr of a command."""
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def shown(capsys, *arguments):
    """Return what `config show` says with these flags, by setting."""
    code, out, err = run(capsys, "config", "show", "-o", "json", *arguments)
    assert (code, err) == (0, "")
    return json.loads(out)


# --- texts --------------------------------------------------------------------------------------------


@given(st.data())
def test_what_is_written_of_a_bounded_setting_reads_back_as_the_same(data):
    name = data.draw(st.sampled_from(BOUNDED))
    spec = SPECS[name]
    step = STEP[spec.kind]
    steps = data.draw(st.integers(math.ceil(spec.low / step), math.floor(spec.high / step)))
    value = steps if step == 1 else round(steps * step, 3)
    assert parse_setting(name, format_value(spec, value)) == pytest.approx(value, rel=1e-9)


@given(st.lists(st.tuples(st.from_regex(r"[a-z][a-z0-9.-]{0,20}", fullmatch=True), st.integers(0, 65535)), max_size=5))
def test_addresses_read_back_as_they_were_written(pairs):
    value = tuple(format_address(*pair) for pair in pairs)
    assert parse_setting("join", format_value(SPECS["join"], value)) == value
    assert [parse_address(address) for address in value] == pairs


@given(st.integers(0, 65535))
def test_an_ipv6_host_stands_in_brackets(port):
    assert parse_address(format_address("fe80::1", port)) == ("fe80::1", port)
    with pytest.raises(ValueError, match="fe80"):
        parse_address(f"fe80::1:{port}")


@pytest.mark.parametrize("name", [name for name in SPECS if name != "id"])
def test_each_default_is_within_its_own_bounds_and_reads_back(name):
    assert parse_setting(name, format_value(SPECS[name], DEFAULTS[name])) == DEFAULTS[name]


@pytest.mark.parametrize("name", BOUNDED)
def test_a_value_just_out_of_its_bounds_is_refused_in_one_line_that_names_flag_and_bounds(name):
    spec = SPECS[name]
    step = STEP[spec.kind]
    for value in (spec.low - step, spec.high + step):
        # A duration below zero has no text at all, and is refused for its form.
        text = f"{value:.3f}" if step < 1 else f"{value:.0f}"
        with pytest.raises(ConfigError) as refused:
            parse_setting(name, text)
        line = str(refused.value)
        assert line.startswith(f"{flag(name)}: ")
        assert "\n" not in line
        assert text in line
    assert parse_setting(name, format_value(spec, spec.low)) == pytest.approx(spec.low)
    assert parse_setting(name, format_value(spec, spec.high)) == pytest.approx(spec.high)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("1.5", 1.5), (".5s", 0.5), ("500ms", 0.5), ("5m", 300), ("2h", 7200), ("7d", 604800)],
)
def test_durations_have_the_units_people_write(text, seconds):
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1", "1 s", "1S", "1e3", "nan", "inf", "1s2"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011  # the text alone is its message
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("id", "a b", "--id: 'a b' is not 1 to 64 of the characters A-Z a-z 0-9 . _ -"),
        ("id", "", "--id: '' is not 1 to 64 of the characters A-Z a-z 0-9 . _ -"),
        ("zone", "a/b", "--zone: 'a/b' is not up to 64 of the characters A-Z a-z 0-9 . _ -"),
        ("cluster", "members", "--cluster: 'members' is not " + CLUSTER_EXPECTED),
        ("http", "8080", "--http: '8080' is not HOST:PORT"),
        ("http", "host:65536", "--http: 'host:65536' is not HOST:PORT"),
        ("advertise", "a b", "--advertise: 'a b' is not an IP address or a host name, without a port"),
        ("advertise", "host:1", "--advertise: 'host:1' is not an IP address or a host name, without a port"),
        ("gossip_profile", "wan", "--gossip-profile: 'wan' is none of lan, local"),
        ("etcd", "a:1,b", "--etcd: 'a:1,b' is not HOST:PORT,... or none"),
        ("join", "a:1,b", "--join: 'a:1,b' is not HOST:PORT, dns:NAME:PORT or srv:NAME, with commas between, or none"),
        ("join", "srv:", "--join: 'srv:' is not HOST:PORT, dns:NAME:PORT or srv:NAME, with commas between, or none"),
        ("lease_ttl", "soon", "--lease-ttl: 'soon' is not a duration such as 500ms, 10s, 2m, 1h or 7d"),
        ("lease_ttl", "1s", "--lease-ttl: 1s is not between 2s and 5m"),
        ("memory", "lots", "--memory: 'lots' is not a size such as 64KiB, 256MiB or 2GiB"),
        ("memory", "1KiB", "--memory: 1KiB is not between 1MiB and 1024GiB"),
        ("replicas", "2.5", "--replicas: '2.5' is not a whole number"),
        ("weight", "nan", "--weight: 'nan' is not a number"),
        ("weight", "11", "--weight: 11 is not between 0.1 and 10"),
        ("read_quorum", "0", "--read-quorum: '0' is not 1, quorum, all or a whole number above 0"),
        ("eviction", "fifo", "--eviction: 'fifo' is none of sieve, lru"),
    ],
)  # fmt: skip
def test_each_kind_says_in_one_line_what_it_expects(name, text, expected):
    with pytest.raises(ConfigError) as refused:
        parse_setting(name, text)
    assert str(refused.value) == expected


@pytest.mark.parametrize("text", ["", "10.0.0.1", "fd00::1", "fe80::1%eth0", "zephyr_node-1.example"])
def test_an_address_or_a_name_is_advertised(text):
    assert parse_setting("advertise", text) == text


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"read_quorum": "4"}, "--read-quorum: 4 is more than --replicas 3"),
        ({"id": ""}, "--id: a node needs a name, and the host has none"),
        ({"etcd_cert": "c.pem"}, "--etcd-cert and --etcd-key go together"),
        ({"etcd_password": "secret"}, "--etcd-user and --etcd-password go together"),
        ({"value_max": 1 << 20, "memory": 1 << 20}, "--value-max: 1048576 bytes do not fit into --memory 1048576"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(changed, expected):
    with pytest.raises(ConfigError) as refused:
        validated(Settings(**{"id": "n1", **changed}))
    assert str(refused.value) == expected


@pytest.mark.parametrize(
    ("text", "replicas", "count"), [("1", 3, 1), ("quorum", 3, 2), ("quorum", 4, 3), ("all", 3, 3)]
)
def test_a_quorum_is_counted_from_the_replicas(text, replicas, count):
    assert Settings(id="n1").quorum(text, replicas) == count


# --- sources ------------------------------------------------------------------------------------------


@pytest.fixture
def settings_file(tmp_path):
    def write(text):
        path = tmp_path / "node.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(capsys, monkeypatch, settings_file):
    path = settings_file('lease-ttl = "20s"\nreplicas = 5\nzone = "file"\n')
    monkeypatch.setenv("ZEPHYR_LEASE_TTL", "30s")
    monkeypatch.setenv("ZEPHYR_REPLICAS", "4")
    settings = shown(capsys, "--config", path, "--lease-ttl", "40s")
    assert settings["lease-ttl"] == {"value": "40s", "source": "flag", "from": "--lease-ttl"}
    assert settings["replicas"] == {"value": "4", "source": "environment", "from": "ZEPHYR_REPLICAS"}
    assert settings["zone"] == {"value": "file", "source": "file", "from": path}
    assert settings["memory"] == {"value": "256MiB", "source": "default", "from": ""}


@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_setting_has_its_flag_its_variable_and_its_key_in_a_file(name, capsys, monkeypatch, settings_file):
    spec = SPECS[name]
    partners = {"etcd_cert": "etcd_key", "etcd_key": "etcd_cert", "etcd_user": "etcd_password",
                "etcd_password": "etcd_user"}  # fmt: skip
    text = {"address": "127.0.0.1:1", "addresses": "127.0.0.1:1", "seeds": "127.0.0.1:1", "quorum": "1"}.get(
        spec.kind, "given"
    )
    if spec.low is not None:
        text = format_value(spec, DEFAULTS[name])
    if spec.choices:
        text = spec.choices[-1]
    partner = [flag(partners[name]), "given"] if name in partners else []
    key = name.replace("_", "-")
    value = "********" if spec.secret else text
    assert shown(capsys, flag(name), text, *partner)[key] == {"value": value, "source": "flag", "from": flag(name)}
    path = settings_file(f"{name} = {json.dumps(text)}\n")
    assert shown(capsys, "--config", path, *partner)[key] == {"value": value, "source": "file", "from": path}
    variable = environment_variable(name)
    monkeypatch.setenv(variable, text)
    assert shown(capsys, *partner)[key] == {"value": value, "source": "environment", "from": variable}


def test_the_file_is_found_by_the_environment_too(capsys, monkeypatch, settings_file):
    monkeypatch.setenv("ZEPHYR_CONFIG", settings_file('cluster = "blue"\n'))
    assert shown(capsys)["cluster"]["value"] == "blue"


def test_a_file_has_values_in_tomls_own_types(capsys, settings_file):
    path = settings_file(
        "lease_ttl = 20\nweight = 0.5\nread-quorum = 1\nmemory = 2097152\nvalue_max = 1024\netcd = []\n"
        'join = ["a:1", "b:2"]\nrequest_timeout = 0.25\n'
    )
    settings = shown(capsys, "--config", path)
    names = ("lease-ttl", "weight", "read-quorum", "memory", "etcd", "join")
    assert {name: settings[name]["value"] for name in names} == {
        "lease-ttl": "20s", "weight": "0.5", "read-quorum": "1", "memory": "2MiB", "etcd": "none", "join": "a:1,b:2",
    }  # fmt: skip
    assert settings["request-timeout"]["value"] == "250ms"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lease-ttl = ", "Invalid value"),
        ("leese-ttl = 1", "there is no setting 'leese-ttl'"),
        ("lease-ttl = true", "'lease-ttl' has a value of the wrong type (bool)"),
        ("zone = 1", "'zone' has a value of the wrong type (int)"),
        ("replicas = 2.0", "'replicas' has a value of the wrong type (float)"),
        ("join = [1]", "'join' has a value of the wrong type (list)"),
        ("[http]\nport = 1", "'http' has a value of the wrong type (dict)"),
        ("lease-ttl = 3\nlease_ttl = 4", "'lease_ttl' is there twice"),
        ('lease-ttl = "1s"', "1s is not between 2s and 5m (from "),
    ],
)
def test_an_unusable_file_is_one_line_and_exit_code_64(text, says, capsys, settings_file):
    code, out, err = run(capsys, "node", "--config", settings_file(text))
    assert (code, out) == (64, "")
    assert err.startswith("zephyr: ")
    assert says in err
    assert err.count("\n") == 1


def test_a_file_that_cannot_be_read_is_one_line_and_exit_code_64(capsys, tmp_path):
    (tmp_path / "latin.toml").write_bytes(b'zone = "\xe9"')
    for path in (tmp_path / "absent.toml", tmp_path, tmp_path / "latin.toml"):
        code, _, err = run(capsys, "node", "--config", str(path))
        assert code == 64
        assert str(path) in err
        assert err.count("\n") == 1


def test_a_secret_is_never_shown(capsys, monkeypatch):
    monkeypatch.setenv("ZEPHYR_ETCD_PASSWORD", "swordfish")
    monkeypatch.setenv("ZEPHYR_ETCD_USER", "root")
    assert shown(capsys)["etcd-password"]["value"] == "********"
    for arguments in (["config", "show"], ["config", "show", "--help"], ["node", "--lease-ttl", "1"]):
        _, out, err = run(capsys, *arguments)
        assert "swordfish" not in out + err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["node", "--lease-ttl", "1"], "--lease-ttl: 1 is not between 2s and 5m"),
        (["node", "--read-quorum", "9"], "--read-quorum: 9 is more than --replicas 3"),
        (["node", "--weight", "100\n"], "--weight"),
        (["node", "--nonsense"], "--nonsense"),
        (["node", "surplus"], "surplus"),
        (["node", "--http"], "--http"),
        (["config", "show", "-o", "yaml"], "yaml"),
        (["config"], "Missing command"),
        (["nonsense"], "nonsense"),
        ([], "Missing command"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_64(arguments, says, capsys):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (64, "")
    assert err.startswith("zephyr: ")
    assert says in err
    assert err.count("\n") == 1


def test_a_variable_that_cannot_be_used_is_named(capsys, monkeypatch):
    monkeypatch.setenv("ZEPHYR_LEASE_TTL", "soon")
    code, _, err = run(capsys, "node")
    assert code == 64
    assert "(from ZEPHYR_LEASE_TTL)" in err


def test_the_id_is_the_hosts_name_by_default(capsys, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "host-7")
    assert shown(capsys)["id"] == {"value": "host-7", "source": "default", "from": ""}


def test_settings_are_tab_separated_when_piped(capsys):
    code, out, _ = run(capsys, "config", "show", "--id", "n1")
    lines = [line.split("\t") for line in out.splitlines()]
    assert code == 0
    assert lines[0] == ["setting", "value", "source", "from"]
    assert lines[1] == ["id", "n1", "flag", "--id"]
    assert len(lines) == len(SPECS) + 1
