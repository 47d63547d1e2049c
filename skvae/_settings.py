"""Settings objects: small, comparable, searchable descriptions of the pieces of a model. They never hold tensors."""

import inspect
from numbers import Integral
from typing import Any

from sklearn.base import BaseEstimator, clone

from skvae._sklearn import Interval, StrOptions

__all__ = ["Interval", "Settings", "StrOptions", "class_of", "from_spec", "name_of", "register", "resolve", "to_spec"]

#: name of a constructor parameter -> {name of a piece: its class}; filled by `register`
REGISTRY: dict[str, dict[str, "type | Settings"]] = {}


class Settings(BaseEstimator):
    """Base of the objects that choose and configure a piece: likelihood, network, objective, optimizer, ...

    Parameters in scikit-learn's sense (`get_params`, `set_params`, `clone`, grids such as `objective__beta`), a readable
    `repr`, and equality by type and parameters. `fit` never changes a settings object and keeps a clone of it.
    """

    _parameter_constraints: dict[str, list] = {}

    @classmethod
    def _get_param_names(cls):
        if "_param_names" not in vars(cls):  # which no class inherits
            cls._param_names = super()._get_param_names()
        return cls._param_names

    def __eq__(self, other):
        return type(self) is type(other) and self._compared() == other._compared()

    def __hash__(self):
        return hash(type(self))

    def _compared(self) -> dict[str, Any]:
        """Return the parameters in the form in which they are compared."""
        return {name: _plain(value) for name, value in self.get_params(deep=False).items()}

    def validate(self) -> "Settings":
        """Check the parameters against their constraints; return self."""
        self._validate_params()
        return self


def _plain(value: Any) -> Any:
    """Return a value with tuples in the place of lists and arrays, which say the same."""
    if getattr(value, "ndim", 0) and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, dict) else value


def check_whole(name: str, value: Any, least: int = 1) -> int:
    """Return an argument that must be a whole number of at least `least` as one of Python's."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    return int(value)


def belongs_with(piece: Settings, name: str, basis: str) -> bool:
    """Tell whether method `name` says the same as method `basis`: a subclass that overrides the latter alone means that one."""
    owner, of_basis = (next(cls for cls in type(piece).__mro__ if n in vars(cls)) for n in (name, basis))
    return issubclass(owner, of_basis)


def register(role: str, **named: "type | Settings") -> None:
    """Give the pieces that play `role` names for a string parameter; a class stands for an object of it as it comes."""
    REGISTRY.setdefault(role, {}).update(named)


def resolve(role: str, value: Any) -> Settings:
    """Return a validated settings object of our own for a name or a user's object."""
    named = REGISTRY[role]
    if isinstance(value, str) and value not in named:
        raise ValueError(f"{value!r} is no {role} by name. Use one of {sorted(named)}, or an object that describes one.")
    piece = named[value] if isinstance(value, str) else value
    return (piece() if isinstance(value, str) and isinstance(piece, type) else clone(piece)).validate()


def _class(piece: "type | Settings") -> type:
    return piece if isinstance(piece, type) else type(piece)


def name_of(cls: type) -> str | None:
    """Return the name by which stored settings find a class again, such as "prior.StandardNormal"; None if it is not ours."""
    roles = (role for role, named in REGISTRY.items() if cls in map(_class, named.values()))
    return next((f"{role}.{cls.__name__}" for role in roles), None)


def class_of(name: str) -> type:
    """Return the class of a name that `name_of` gave."""
    known = {f"{role}.{cls.__name__}": cls for role, named in REGISTRY.items() for cls in map(_class, named.values())}
    if name not in known:
        raise ValueError(f"unknown piece {name!r}; known pieces are {sorted(known)}")
    return known[name]


def to_spec(settings: Settings) -> dict:
    """Describe a settings object with plain values; a class that is not ours stays a class."""
    params = settings.get_params(deep=False)
    return {
        "class": name_of(type(settings)) or type(settings),
        "params": {name: _spec_of(value) for name, value in params.items()},
    }


def _spec_of(value: Any) -> Any:
    """Describe the settings objects in a value; a dict gets a class as well, so that none of its keys make it look like one."""
    if isinstance(value, Settings):
        return to_spec(value)
    if isinstance(value, (list, tuple)):
        return type(value)(map(_spec_of, value))
    if isinstance(value, dict):
        return {"class": "dict", "params": {key: _spec_of(one) for key, one in value.items()}}
    return value


def from_spec(spec: dict) -> Settings:
    """Rebuild what `to_spec` described; names are looked up among our own classes only."""
    cls = spec["class"] if inspect.isclass(spec["class"]) else class_of(spec["class"])
    params = {name: _from_spec_of(value) for name, value in spec["params"].items()}
    return cls(**params).validate()


def _from_spec_of(value: Any) -> Any:
    """Rebuild the settings objects in a value."""
    if isinstance(value, dict):
        is_spec = set(value) == {"class", "params"}
        if is_spec and value["class"] != "dict":
            return from_spec(value)
        items = value["params"] if is_spec else value  # older files have dicts as they are
        return {key: _from_spec_of(one) for key, one in items.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_from_spec_of, value))
    return value
