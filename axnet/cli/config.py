"""Settings of a command in a YAML file: `--config FILE`, and what a run came to, written beside its weights."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

CONFIG_NAME = "config.yaml"
_LEFT_OUT = ("config_file", "out", "resume", "quiet")  # of the call, not of the run


def _read(context: typer.Context, path: Path | None) -> Path | None:
    """Make a file's values the defaults of the command's options; flags override them."""
    if path is None or context.resilient_parsing:
        return path
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config '{path}' is no YAML: {error}") from error
    values = {} if found is None else found
    if not isinstance(values, dict):
        raise ValueError(f"config '{path}' holds a {type(values).__name__}, expected one 'option: value' a line.")
    known = {name: option for option in context.command.params if (name := option.name) not in (None, "config_file")}
    defaults = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise ValueError(f"config '{path}' has {key!r}, expected options of axnet {context.info_name}, see --help.")
        if value is not None:
            defaults[name] = _plain(value, known[name], path)
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _plain(value: Any, option: Any, path: Path) -> Any:
    """As it would stand behind the flag, whose type reads it; on and off of a switch stay."""
    if isinstance(value, bool) != bool(getattr(option, "is_flag", False)):
        raise ValueError(f"config '{path}' has {option.name}: {value!r}, expected what --help says of it.")
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict):  # a policy for each finding
        return json.dumps(value)
    return value if isinstance(value, bool) else str(value)


Config = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--config",
        exists=True,
        dir_okay=False,
        is_eager=True,
        callback=_read,
        metavar="FILE.yaml",
        help="Settings, one 'option: value' a line (configs/ has one a data set); flags override them.",
    ),
]


def write_settings(context: typer.Context, folder: Path) -> None:
    """Write all of a command's settings, as flags, file and defaults gave them, so that --config repeats the run."""
    import yaml

    from axnet.data.files import replacing

    settings: dict[str, Any] = {}
    for option in context.command.params:
        name = str(option.name)
        value = context.params.get(name)
        if name not in _LEFT_OUT and value is not None:
            plain = value.value if isinstance(value, Enum) else value
            settings[name] = str(plain) if isinstance(plain, Path) else plain
    with replacing(folder / CONFIG_NAME) as partial:
        partial.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
