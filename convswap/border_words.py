"""Errors at the border in words and rows of text, for every form they are read in."""

from __future__ import annotations

from collections.abc import Sequence

from .border_errors import BorderErrors, FilterErrors

_METHODS = {
    "extrapolated": "extrapolated (order = pad)",
    "padding_free": "padding-free (order k−1)",
}

_FILTERS = {"gaussian": "Gaussian", "sobel": "Sobel", "laplacian": "Laplacian"}


def headline(borders: BorderErrors) -> str:
    """One line that says what was looked at."""
    photos = "a photo" if borders.photos == 1 else f"{borders.photos} photos"
    return f"Errors at the border of {photos} of {'×'.join(map(str, borders.size))} pixels"


def explanation(borders: BorderErrors) -> str:
    """What the numbers are, in a few sentences."""
    photo = "the photo" if borders.photos == 1 else "each photo"
    return (
        f"{'×'.join(map(str, borders.size))} pixels in the middle of {photo} were filtered with their border treated "
        f"in each way, and compared with what the filter gives where the {borders.margin} pixels around them are "
        "known. A number is the root mean square error of the outputs whose windows cross the border, divided by the "
        "root mean square of the true outputs there; the least is marked ▾. Photos are as they were given to the model "
        "or to border_errors: where they are normalised, zeros are the mean colour."
    )


def columns(borders: BorderErrors) -> tuple[str, ...]:
    """Heading of each column of `rows`."""
    return ("border", *map(filter_words, borders.filters))


def rows(borders: BorderErrors) -> list[tuple[str, ...]]:
    """A row for each method: its name, and its error for each filter."""
    least = [_least(each) for each in borders.filters]
    return [
        (
            _marked(method, borders.used),
            *(
                _error(each.error(method), each.error(method) == best)
                for each, best in zip(borders.filters, least, strict=True)
            ),
        )
        for method in borders.methods
    ]


def method_words(method: str) -> str:
    """A method's name."""
    return _METHODS.get(method, f"padding-free ({method})" if method.startswith("order ") else method)


def filter_words(each: FilterErrors) -> str:
    """A filter's name."""
    return f"{_FILTERS.get(each.filter, each.filter)} {each.kernel}×{each.kernel}"


def scales(borders: BorderErrors) -> str:
    """What the darkest cells of the maps are, in a sentence or two."""
    found: dict[str, list[str]] = {}
    for each in borders.filters:
        reached = any(method.method == "replicate" and "f" in method.map for method in each.methods)
        words = (
            "Darkest is an error as great as the greatest of replicate, or greater"
            if reached
            else "Darkest where replicate is exact is the greatest error of all"
        )
        if each.scale:
            found.setdefault(words, []).append(f"{relative(each.scale)} ({filter_words(each)})")
    return " ".join(f"{words}: {', '.join(scales)}." for words, scales in found.items())


def relative(value: float) -> str:
    """A relative error: ``0.00047``, ``0.66``, ``12``, ``126``."""
    return f"{value:.2g}" if value < 99.5 else f"{value:.0f}"


def _marked(method: str, used: Sequence[str]) -> str:
    """A method's name, and whether the conversion that the report is of uses it."""
    if method not in used:
        return method_words(method)
    # Explicit boundaries alone have zeros beneath, and kernels of their own to learn.
    return f"{method_words(method)} ← this conversion{', untrained' if method == 'zeros' else ''}"


def _least(each: FilterErrors) -> float | None:
    return min((method.error for method in each.methods if method.error is not None), default=None)


def _error(error: float | None, least: bool) -> str:
    if error is None:
        return "–"
    return f"{relative(error)} ▾" if least else relative(error)
