"""A generator by the name of its factory: a user's, with weights in safetensors, or one of the zoo."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from mpsearch.errors import ArtifactError, ModelError, MpsearchError, UsageError
from mpsearch.model import one_line
from mpsearch.zoo.published import Note, load_published, unheard
from mpsearch.zoo.state import fit

PREFIX = "zoo:"


def load_generator(
    factory: str, weights: Path | None, options: Mapping[str, Any], base: Path, note: Note = unheard
) -> nn.Module:
    """Build a generator and load its weights, in evaluation mode.

    Args:
        factory: ``module:function`` or ``path/to/file.py:function``, called with ``options``; ``zoo:NAME`` for one of
            ``PUBLISHED``, which brings its weights.
        weights: safetensors with the generator's ``state_dict``; None keeps what the factory made.
        options: keyword arguments.
        base: folder where relative paths and modules are looked for first; then the working directory.
        note: told origin and licence of what is fetched.
    """
    if is_published(factory):
        if weights is not None or options:
            raise UsageError(f"{factory} brings its own weights and takes no options")
        return load_published(factory.removeprefix(PREFIX), note)
    build = resolve(factory, base)
    try:
        model = build(**options)
    except MpsearchError:  # one of ours says itself what is wrong
        raise
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise UsageError(f"{factory} fails with the options {dict(options)}: {one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{factory} returns a {type(model).__name__}, not a torch.nn.Module")
    if weights is not None:
        load_weights(model, base / weights if (base / weights).exists() else weights)
    return model.eval()


def is_published(factory: str) -> bool:
    """Whether the factory is a name of the zoo's; a function in a ``zoo.py`` of one's own is ``zoo.py:function``."""
    return factory.startswith(PREFIX)


def resolve(name: str, base: Path) -> Callable[..., Any]:
    """The object that ``module:function`` or ``file.py:function`` names."""
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise UsageError(f"{name!r} is no factory: write module:function or path/to/file.py:function")
    try:
        path = base / place if (base / place).exists() else Path(place)
        module = _from_file(path) if place.endswith(".py") else _from_module(place, base)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise UsageError(f"cannot import {place!r}: {one_line(error)}") from error
    if not callable(found := getattr(module, attribute, None)):
        options = ", ".join(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise UsageError(f"{place!r} has no function {attribute!r}; it has {options or 'none'}")
    return found  # type: ignore[no-any-return]


def load_weights(model: nn.Module, path: Path) -> None:
    """Load safetensors strictly; the error lists the first names or shapes that do not fit."""
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise ArtifactError(f"the weights {path} do not exist") from None
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} is no safetensors file, or a truncated one: {error}") from None
    fit(model, state, path)


def _from_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    module = importlib.util.module_from_spec(spec)
    with _importable(path.parent):
        spec.loader.exec_module(module)
    return module


def _from_module(name: str, base: Path) -> Any:
    with _importable(base):
        return importlib.import_module(name)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Modules beside the factory, or in the working directory, can be imported while it is."""
    before = sys.path.copy()
    sys.path[:0] = [str(folder), str(Path.cwd())]
    try:
        yield
    finally:
        sys.path[:] = before
