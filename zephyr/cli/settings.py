"""Where each setting's text comes from: a flag, else the environment, else a file, else the default.

click keeps that order and knows which it was; `zephyr.config` reads the texts and holds their bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from zephyr.config import (
    DEFAULTS,
    SPECS,
    Settings,
    environment_variable,
    flag,
    format_value,
    parse_setting,
    validated,
)
from zephyr.errors import ConfigError

NUMBER_KINDS = frozenset({"duration", "bytes", "number", "count", "quorum"})
"""Kinds of settings that a file may give as a whole number; a duration's is in seconds."""
FRACTION_KINDS = frozenset({"duration", "bytes", "number"})
"""Those that it may give as any number."""
SOURCES = {"COMMANDLINE": "flag", "ENVIRONMENT": "environment", "DEFAULT_MAP": "file", "DEFAULT": "default"}
"""click's names of where a value came from, and ours."""

Command = TypeVar("Command", bound=Callable[..., Any])


def read_settings_file(path: str) -> dict[str, str]:
    """Read a TOML file as texts by setting. Raises ConfigError with one line that names the file."""
    import tomllib  # noqa: PLC0415  # only with --config

    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config: {path}: {error.strerror}") from None
    except ValueError as error:  # What is no TOML, and what is no UTF-8.
        raise ConfigError(f"--config: {path}: {error}") from None
    texts: dict[str, str] = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        if name not in SPECS:
            raise ConfigError(f"--config: {path}: there is no setting {key!r}")
        if name in texts:
            raise ConfigError(f"--config: {path}: {key!r} is there twice, with - and with _")
        text = _text_from_toml(SPECS[name].kind, value)
        if text is None:
            raise ConfigError(f"--config: {path}: {key!r} has a value of the wrong type ({type(value).__name__})")
        texts[name] = text
    return texts


def _text_from_toml(kind: str, value: Any) -> str | None:
    """Turn a TOML value into a setting's text; None when its type does not fit the setting."""
    match value:
        case bool():
            return None
        case str():
            return value
        case int() if kind in NUMBER_KINDS:
            return str(value)
        case float() if kind in FRACTION_KINDS:
            return repr(value)
        case list() if kind in ("addresses", "seeds") and all(isinstance(item, str) for item in value):
            return ",".join(value) or "none"
        case _:
            return None


def _use_settings_file(context: click.Context, _parameter: click.Parameter, path: str | None) -> str | None:
    if path:
        context.default_map = read_settings_file(path)
    return path


def _host_name() -> str:
    import socket  # noqa: PLC0415  # only where --id is not given

    return socket.gethostname()


def setting_options(command: Command) -> Command:
    """Give a command one option for each setting, and --config."""
    for name, spec in reversed(SPECS.items()):
        named_by_host = name == "id"
        command = click.option(
            flag(name),
            name,
            envvar=environment_variable(name),
            default=_host_name if named_by_host else format_value(spec, DEFAULTS[name]),
            show_default="the host name" if named_by_host else not spec.secret,
            metavar="|".join(spec.choices) or spec.kind.upper(),
            help=spec.help,
        )(command)
    return click.option(
        "--config",
        envvar="ZEPHYR_CONFIG",
        is_eager=True,
        callback=_use_settings_file,
        metavar="FILE",
        help="TOML file of settings, named like the flags.",
    )(command)


def source_of(context: click.Context, name: str) -> tuple[str, str]:
    """Tell where a setting's text came from: the kind of source, and its name."""
    found = context.get_parameter_source(name)
    assert found is not None
    source = SOURCES[found.name]
    origins = {"flag": flag(name), "environment": environment_variable(name), "file": context.params["config"]}
    return source, str(origins.get(source, ""))


def settings_from(context: click.Context) -> Settings:
    """Parse and check all settings of a command. Raises ConfigError."""
    values: dict[str, Any] = {}
    for name in SPECS:
        source, origin = source_of(context, name)
        try:
            values[name] = parse_setting(name, context.params[name])
        except ConfigError as error:
            # A flag is in sight; a variable or a line of a file may not be.
            raise ConfigError(f"{error} (from {origin})" if source in ("environment", "file") else str(error)) from None
    return validated(Settings(**values))
