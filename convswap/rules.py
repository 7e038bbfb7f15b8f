"""Reading rules from a TOML file."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .choice import Swap, check_rule
from .errors import ConvswapError, FileError, did_you_mean, nearest
from .formatting import size
from .options import code_named_by
from .targets.registry import KEEP

MAX_BYTES = 2**20

_EXAMPLE = '[[swap]]\nwhere = "*"\nto = "dynamic"'


def read_rules(path: str | os.PathLike[str], *, trust_source: bool = False) -> tuple[Swap, ...]:
    """The rules of a TOML file, in order, for `convert` and `plan`: a ``[[swap]]`` table for each.

    A table has ``where``, a pattern or a list of them, ``to``, the name of a target or ``"keep"``, and the target's
    options by name. Lists become tuples where an option takes these; ``"none"`` is None, which TOML has no word for.

    Args:
        path: the file.
        trust_source: allow options that are the name of a function, as ``"package.module:function"``, which is imported
            and run when layers are planned and built.

    Raises:
        FileError: if there is no such file, it cannot be read, or it holds no rules.
        ConvswapError: naming the table, if something is wrong with it, or it names a function without ``trust_source``.
    """
    path = Path(path)
    tables = _tables(_parse(path), path)
    rules = []
    for number, table in enumerate(tables, start=1):
        with _in_table(path, number, len(tables)):
            rules.append(_rule(table, trust_source))
    return tuple(rules)


def _parse(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise FileError(f"{path} is a folder, not a file of rules")
    if not path.exists():  # it may be a pipe
        raise FileError(f"there is no file {path}")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_BYTES:
        raise FileError(f"{path} is larger than {size(MAX_BYTES)}: this is no file of rules")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is no TOML: it must be text in UTF-8, and byte {error.start} of it is none") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise FileError(f"{path} is no TOML: {error}") from error
    except ValueError as error:  # dates that are none, numbers of too many digits
        raise FileError(f"{path} is no TOML: it has a value that cannot be ({error})") from error


def _tables(data: Mapping[str, Any], path: Path) -> list[Any]:
    unknown = [key for key in data if key != "swap"]
    if unknown:
        hint = did_you_mean(unknown[0], ["swap"]) or f" Options of a rule stand in its table:\n{_EXAMPLE}"
        raise FileError(f"{path} has a {unknown[0]!r} outside of the [[swap]] tables that rules are.{hint}")
    tables = data.get("swap")
    if isinstance(tables, dict):
        raise FileError(f"{path} has a table [swap]: each rule is a table [[swap]], in two pairs of brackets")
    if tables is not None and not isinstance(tables, list):
        raise FileError(f"{path}: swap must be [[swap]] tables, got {tables!r}")
    if not tables:
        raise FileError(f"{path} holds no rules: it needs a [[swap]] table for each, as in\n{_EXAMPLE}")
    return tables


def _rule(table: Any, trust_source: bool) -> Swap:
    """The rule of one table.

    Raises:
        ConvswapError: if something is wrong with it.
    """
    if not isinstance(table, dict):
        raise FileError(f"it must be a table, got {table!r}")
    options: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")  # as the command line has it
        if name in options:
            raise FileError(f"{name} is given twice")
        options[name] = None if isinstance(value, str) and value == "none" else value
    for name, instead in (("where", 'for all convolutions write where = "*"'), ("to", f'a target, or "{KEEP}"')):
        if name not in table:
            similar = nearest(name, (key for key in table if key not in ("where", "to")), count=1)
            raise FileError(f"{name!r} is missing: {instead}" + "".join(f" (is {key!r} that?)" for key in similar))
    del options["where"], options["to"]
    where, to = table["where"], table["to"]
    if not isinstance(where, str) and not (isinstance(where, list) and all(isinstance(one, str) for one in where)):
        raise FileError(f"where must be a pattern, or a list of patterns, in quotes, got {where!r}")
    if not isinstance(to, str):
        raise FileError(f"to must be the name of a target in quotes, got {to!r}")
    rule = Swap(where, to, **options)
    check_rule(rule)
    code = None if to == KEEP else code_named_by(to, options)
    if code is not None and not trust_source:
        raise ConvswapError(
            f"it names {code}, which would be imported and run: if you trust it, give trust_source=True "
            "(--trust-source on the command line)"
        )
    return rule


@contextmanager
def _in_table(path: Path, number: int, count: int) -> Iterator[None]:
    """Say which table of which file an error is about."""
    try:
        yield
    except ConvswapError as error:
        raise type(error)(f"{path}, [[swap]] table {number} of {count}: {error}") from error
