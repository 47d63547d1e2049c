"""Settings objects: small, comparable, searchable descriptions of the pieces of a model. They never hold tensors."""

import inspect
from typing import Any

from sklearn.base import BaseEstimator, clone

from skvae._sklearn import Interval, StrOptions

__all__ = ["Interval", "Settings", "StrOptions", "from_spec", "register", "resolve", "to_spec"]

#: name of a constructor parameter -> {name of a piece: its class}; filled by `register`
REGISTRY: dict[str, dict[str, type]] = {}


class Settings(BaseEstimator):
    """Base of the objects that choose and configure a piece: likelihood, network, objective, optimizer, ...

    Parameters in scikit-learn's sense (`get_params`, `set_params`, `clone`, grids such as `objective__beta`), a readable
    `repr`, and equality by type and parameters. `fit` never changes a settings object and keeps a clone of it.
    """

    _parameter_constraints: dict[str, list] = {}

    def __eq__(self, other):
        return type(self) is type(other) and self.get_params(deep=False) == other.get_params(deep=False)

    def __hash__(self):
        return hash(type(self))

    def validate(self) -> "Settings":
        """Check the parameters against their constraints; return self."""
        self._validate_params()
        return self


def register(role: str, **named: type) -> None:
    """Give the pieces that play `role` the names by which a string parameter finds them."""
    REGISTRY.setdefault(role, {}).update(named)


def resolve(role: str, value: Any) -> Settings:
    """Return a validated settings object of our own for a name or a user's object."""
    piece = REGISTRY[role][value]() if isinstance(value, str) else clone(value)
    return piece.validate()


def to_spec(settings: Settings) -> dict:
    """Describe a settings object with plain values; a class that is not ours stays a class."""
    known = any(type(settings) in named.values() for named in REGISTRY.values())
    params = settings.get_params(deep=False)
    return {
        "class": type(settings).__name__ if known else type(settings),
        "params": {k: to_spec(v) if isinstance(v, Settings) else v for k, v in params.items()},
    }


def from_spec(spec: dict) -> Settings:
    """Rebuild what `to_spec` described; names are looked up among our own classes only."""
    cls = spec["class"]
    if not inspect.isclass(cls):
        known = {c.__name__: c for named in REGISTRY.values() for c in named.values()}
        if cls not in known:
            raise ValueError(f"unknown piece {cls!r}; known pieces are {sorted(known)}")
        cls = known[cls]
    params = {k: from_spec(v) if isinstance(v, dict) and "class" in v else v for k, v in spec["params"].items()}
    return cls(**params)
