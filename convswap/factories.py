"""Functions of the user's as options: the names that recipes and files have for them, and what such names import."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from .errors import ConvswapError, ModelError, UnknownNameError, did_you_mean


def check_name(name: str, what: str) -> None:
    """Make sure that ``name`` is of the form ``package.module:function``; nothing is imported.

    Raises:
        ValueError: if it is not.
    """
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
        raise ValueError(f'{what} must be a function, or its name as "package.module:function", got {name!r}')


def resolve_factory(name: str) -> Callable[..., Any]:
    """The function of this name, ``package.module:function``. Its module is imported, which runs that module's code.

    Raises:
        ConvswapError: if there is no such module, it cannot be imported, or there is no such function in it.
    """
    try:
        check_name(name, "what is to be imported")
    except ValueError as error:
        raise UnknownNameError(str(error)) from None
    path, _, function = name.partition(":")
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        raise UnknownNameError(f"there is no module {path!r} to take {function!r} from ({error})") from error
    except (Exception, SystemExit) as error:  # whatever the module's own code raises
        raise ModelError(f"the module {path!r} cannot be imported ({type(error).__name__}: {error})") from error
    found = _look_up(module, function)
    if found is None:
        functions = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
        hint = did_you_mean(function, functions)
        raise UnknownNameError(f"the module {path!r} has no function {function!r}.{hint}")
    if not callable(found):
        raise UnknownNameError(f"{name} is no function, but of type {type(found).__name__}")
    made: Callable[..., Any] = found
    return made


def factory_name(function: Callable[..., Any]) -> str | None:
    """The name that `resolve_factory` finds ``function`` by, in any process; None if it has none.

    Lambdas and functions made in functions have none, nor has what is defined in a script that is run: there
    ``__main__`` is another module than elsewhere.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return None
    return f"{module}:{name}" if _look_up(sys.modules.get(module), name) == function else None


def described(function: Callable[..., Any]) -> str:
    """What to call a function that has no such name."""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    module = getattr(function, "__module__", None)
    return f"{name} of {module}" if isinstance(module, str) else str(name)


def called(factory: Callable[..., Any] | str) -> str:
    """What to call a function, or the name of one, in messages."""
    return factory if isinstance(factory, str) else factory_name(factory) or described(factory)


def require_name(what: str, value: Any) -> Any:
    """``value``, an option's, as JSON can hold it.

    Raises:
        ConvswapError: if it is a function without a name to import it by.
    """
    if not callable(value):
        return value
    name = factory_name(value)
    if name is None:
        raise ConvswapError(
            f"{what} is {described(value)}, which cannot be written down, because it cannot be imported by a name: "
            "define it at the top level of a module that is no script, and not as a lambda"
        )
    return name


def _look_up(module: Any, name: str) -> Any:
    found = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found
