"""Save and load: one file per fitted estimator, which can be read without running code.

The file is a valid safetensors file. Its arrays are the tensors; everything else is a JSON manifest in the metadata, beside a
SHA-256 digest of all of it. The digest finds accidents; safety comes from the format, in which there is no place for code.
"""

import errno
import hashlib
import json
import math
import os
import platform
import re
import secrets
import shutil
import time
import types
import typing
import zoneinfo
from contextlib import suppress
from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import safetensors
import safetensors.numpy
import sklearn
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from skvae._course import HISTORY, Progress
from skvae._settings import Settings, class_of, name_of
from skvae._state import Fitted
from skvae._warnings import warn

__all__ = ["SkvaeFileError", "SkvaeVersionWarning", "check_can_be_saved", "load", "version", "warn_of_other_version", "write"]

FORMAT = "skvae"
FORMAT_VERSION = 1

#: what vars() of an estimator hold that belongs to scikit-learn or follows from the state
_LEFT_OUT = {
    "_callback_fit_ctx", "_fitted", "_metadata_request", "_n_features_out", "_parent_callback_ctx", "_skl_callbacks",
    "_skl_callbacks_to_teardown", "_sklearn_output_config", "n_components_", "prior_", "schema_",
}  # fmt: skip
_KEPT_IN_TRAINING = {"_sklearn_output_config", "feature_names_in_", "n_features_in_"}
_OUTPUTS = ("default", "pandas", "polars")
_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8",
    "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_CODES = {np.dtype(name): code for code, name in _DTYPES.items()}
_LONG_LIST = 32  # numbers, above which a list is stored as a tensor
_STALE_SECONDS = 3600  # age at which a temporary file has surely lost its writer
_MAX_HEADER = 100_000_000  # bytes, what safetensors accepts
_MAX_SPEC = 1_000_000  # characters of settings, beside what the parameters justify
_OURS = "Give a file that the save method of an estimator of skvae has written"
_DAMAGED = "Restore it from a copy, or save the estimator again"
_ALTERED = "The file was altered, or written by a version of skvae that differs from this one"


class SkvaeFileError(ValueError):
    """The file is not one that an estimator's `save` has written, or not as it was written."""


class SkvaeVersionWarning(UserWarning):
    """A pickled estimator comes from another version of skvae."""


def version() -> str:
    """Return the version of this skvae, which the package knows only once it has been imported."""
    from skvae import __version__

    return __version__


def warn_of_other_version(name: str, written_by: str) -> None:
    """Warn if a pickled estimator was written by another version of skvae."""
    if written_by != version():
        warn(
            f"This {name} was pickled by skvae {written_by} and is read by {version()}: its results may differ, or fail. Files "
            "that the save method writes can be read across versions.",
            SkvaeVersionWarning,
        )


# --- writing ---------------------------------------------------------------------------------------------------------


def write(path: str | os.PathLike, estimator: BaseEstimator, attributes: dict[str, Any] | None = None) -> None:
    """Write a fitted estimator to `path`, replacing the file as a whole.

    Parameters
    ----------
    path : str or path-like
        The file. The old one stays as it was unless the new one is complete and on the disk, which gets its permissions.

    estimator : estimator of skvae
        The estimator.

    attributes : dict, default=None
        Fitted attributes to write in place of those that the estimator has, if any, for an estimator in training; the columns
        are those of the estimator.

    Raises
    ------
    NotFittedError
        The estimator is not fitted.
    TypeError
        A parameter cannot be stored without code: a function, a generator of random numbers, a class of the user's own.
    OSError
        The file cannot be written; there is then no new file, and the old one is intact.
    """
    if attributes is None:
        check_is_fitted(estimator)
        attributes = vars(estimator)
    else:
        attributes = {**{k: v for k, v in vars(estimator).items() if k in _KEPT_IN_TRAINING}, **attributes}
    _replace_file(os.fsdecode(os.fspath(path)), _to_bytes(estimator, attributes))


def check_can_be_saved(estimator: BaseEstimator) -> None:
    """Raise the TypeError that `write` would raise for the parameters of an estimator, fitted or not."""
    _encode_parameters(estimator, {})


def _to_bytes(estimator: BaseEstimator, attributes: dict[str, Any]) -> bytes:
    tensors: dict[str, np.ndarray] = {}
    parameters = _encode_parameters(estimator, tensors)
    _check_categories(attributes["_fitted"])
    kept = {k: v for k, v in attributes.items() if k not in parameters and k not in _LEFT_OUT}
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "class": type(estimator).__name__,
        "params": parameters,
        "attributes": {k: _encode(v, k, tensors) for k, v in kept.items()},
        "state": {k: _encode(v, k, tensors) for k, v in attributes["_fitted"].pack().items()},
        "output": _plain_output_config(attributes),
        "versions": _versions(),
    }
    text = json.dumps(manifest, allow_nan=False)
    data = safetensors.numpy.save(tensors, metadata={"skvae": text, "sha256": _digest(text, tensors)})
    if int.from_bytes(data[:8], "little") > _MAX_HEADER:
        raise ValueError(
            f"The names and settings of this estimator take more than the {_MAX_HEADER:,} bytes that a file can hold of them. "
            "Use joblib.dump(estimator, path)."
        )
    return data


def _encode_parameters(estimator: Any, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    is_ours = type(estimator) is _estimator_class(type(estimator).__name__)
    if not is_ours:
        raise TypeError(
            f"A {type(estimator).__name__} cannot be saved: only the estimators that skvae itself defines can be read back "
            "without code. Use joblib.dump(estimator, path), whose files run code when they are loaded."
        )
    return {k: _encode(v, k, tensors) for k, v in estimator.get_params(deep=False).items()}


def _check_categories(fitted: Fitted) -> None:
    """Raise a TypeError that names the first column with a category that cannot be stored without code."""
    for format in fitted.codec.form.formats:
        for category in format.categories or ():
            try:
                _encode(category, "", {})
            except TypeError:
                raise TypeError(
                    f"Column {format.name!r} has categories of type {type(category).__name__}, and saving without code is not "
                    f"possible for that. Turn them into texts before fit, such as X[{format.name!r}].astype(str), or use "
                    "joblib.dump(estimator, path), whose files run code when they are loaded."
                ) from None


def _plain_output_config(attributes: dict[str, Any]) -> str | None:
    chosen = attributes.get("_sklearn_output_config", {}).get("transform")
    return chosen if isinstance(chosen, str) and chosen in _OUTPUTS else None


def _versions() -> dict[str, str]:
    ours = {"skvae": version(), "python": platform.python_version(), "scikit-learn": sklearn.__version__}
    return {**ours, "torch": str(torch.__version__), "numpy": np.__version__}


def _encode(value: Any, path: str, tensors: dict[str, np.ndarray]) -> Any:
    """Return `value` in JSON's terms, under a key with "~" where JSON has no such type, and put arrays into `tensors`."""
    if type(value) in (tuple, list, dict):
        return _encode_container(value, path, tensors)
    if isinstance(value, np.ndarray) and value.dtype in _CODES:
        return {"~array": _add(tensors, path, value)}
    if isinstance(value, np.ndarray) and value.ndim == 1 and all(type(v) is str for v in value):
        return {"~strings": value.tolist()}
    if isinstance(value, Settings) and name_of(type(value)) is not None:
        given = value.get_params(deep=False).items()
        return {"~settings": name_of(type(value)), "params": {k: _encode(v, f"{path}.{k}", tensors) for k, v in given}}
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, (np.bool_, np.integer)):
        return value.item()
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else {"~float": str(float(value))}
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, pd.Interval):
        return {"~interval": [*(_encode(end, path, tensors) for end in (value.left, value.right)), value.closed]}
    if isinstance(value, pd.Timestamp):
        zone = None if value.tz is None else str(value.tz)
        if zone is None:
            return {"~timestamp": [value.isoformat(), None]}
        if _is_zone(zone):
            return {"~timestamp": [value.tz_convert("UTC").tz_localize(None).isoformat(), zone]}
    if isinstance(value, pd.Timedelta):
        return {"~timedelta": value.isoformat()}
    raise TypeError(
        f"{path!r} holds {_described(value)}, and saving without code is not possible for that. Set it to a plain value or to "
        "one of skvae's own settings objects, or use joblib.dump(estimator, path), whose files run code when they are loaded."
    )


def _encode_container(value: Any, path: str, tensors: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if all(isinstance(k, str) and not k.startswith("~") for k in value):
            return {k: _encode(v, f"{path}.{k}", tensors) for k, v in value.items()}
        return {"~dict": [[_encode(k, path, tensors), _encode(v, f"{path}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list) and len(value) > _LONG_LIST and set(map(type, value)) in ({int}, {float}):
        return {"~numbers": _add(tensors, path, np.array(value))}
    items = [_encode(v, f"{path}.{i}", tensors) for i, v in enumerate(value)]
    return {"~tuple": items} if isinstance(value, tuple) else items


def _described(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"an object of type {type(value).__name__}"


def _add(tensors: dict[str, np.ndarray], path: str, array: np.ndarray) -> str:
    if path in tensors:
        raise ValueError(f"two arrays are called {path!r}")
    tensors[path] = np.array(array, order="C")
    return path


def _digest(manifest: str, tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(manifest.encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(json.dumps([name, _CODES[array.dtype], array.shape]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _replace_file(path: str, data: bytes) -> None:
    """Write `data` aside and put it in the place of `path` once it is on the disk."""
    path = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "Only a regular file can be written or replaced", path)
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "There is no folder for the file. Make it first", folder)
    mark = _mark(name)
    _sweep(folder, mark)
    temporary = os.path.join(folder, f".{mark}.{secrets.token_hex(4)}.skvae-tmp")
    file = open(temporary, "xb")  # noqa: SIM115
    try:
        with file:
            with suppress(OSError):  # where there is no old file, or no permissions can be set
                shutil.copymode(path, temporary)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    with suppress(OSError):  # the new file is there, and no error may say that it is not
        _sync_folder(folder)


def _mark(name: str) -> str:
    """Return a short stand-in for a file's name, which may itself be as long as names can be."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:8]


def _sync_folder(folder: str) -> None:
    """Put the folder's new entry on the disk as well, where the system lets folders be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(folder: str, mark: str) -> None:
    """Delete what earlier saves to the same path have left when they were killed."""
    ours = re.compile(rf"\.{mark}\.[0-9a-f]{{8}}\.skvae-tmp")
    with suppress(OSError):
        for entry in os.scandir(folder):
            if ours.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > _STALE_SECONDS:
                os.unlink(entry.path)


# --- reading ---------------------------------------------------------------------------------------------------------


def load(path: str | os.PathLike, *, device: str | None = None) -> BaseEstimator:
    """Read an estimator that its `save` method has written. No code from the file is run.

    Parameters
    ----------
    path : str or path-like
        The file.

    device : str, default=None
        Replaces the `device` parameter of the estimator, for a file from a machine with other devices.

    Returns
    -------
    estimator : estimator
        The fitted estimator; its results are those of the saved one, to the last bit, on the same device.

    Raises
    ------
    SkvaeFileError
        A `ValueError`: the file is not one of skvae's, is damaged, or comes from a newer version.
    FileNotFoundError
        There is no such file.

    Examples
    --------
    >>> import skvae
    >>> vae.save("model.skvae")                 # doctest: +SKIP
    >>> vae = skvae.load("model.skvae")         # doctest: +SKIP
    """
    path = os.fsdecode(os.fspath(path))
    text, digest, tensors = _read_file(path)
    manifest = _parse_manifest(path, text)
    if digest != _digest(text, tensors):
        raise _refusal(path, "its content does not have the checksum that was stored with it", _DAMAGED)
    try:
        return _to_estimator(manifest, tensors, device)
    except SkvaeFileError as error:
        raise _refusal(path, str(error), _ALTERED) from error
    except Exception as error:  # a forged file can make anything fail, and whatever it is, it makes no estimator
        raise _refusal(path, f"it describes no valid estimator ({error})", _ALTERED) from error


def _refusal(path: str, cause: str, advice: str) -> SkvaeFileError:
    return SkvaeFileError(f"{path!r} cannot be loaded: {cause}. {advice}.")


def _read_file(path: str) -> tuple[str, str, dict[str, np.ndarray]]:
    """Return manifest, digest and tensors of a file; of a file that is not ours, read only the beginning."""
    if os.path.isdir(path):
        raise _refusal(path, "it is a directory", _OURS)
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        header = file.read(length) if length <= _MAX_HEADER else b""
        if header[:1] != b"{":
            hint = "If it is a pickle that you trust, use joblib.load. " if start[:1] == b"\x80" else ""
            raise _refusal(path, "it is no safetensors file", hint + _OURS)
        metadata = _parse_header(path, header)
        data = start + header + file.read()
    try:
        tensors = {name: _to_array(entry) for name, entry in safetensors.deserialize(data)}
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise _refusal(path, f"it is cut off or damaged ({error})", _DAMAGED) from error
    return metadata["skvae"], metadata["sha256"], tensors


def _parse_header(path: str, header: bytes) -> dict[str, str]:
    try:
        metadata = json.loads(header).get("__metadata__", {})
    except (ValueError, RecursionError) as error:
        raise _refusal(path, f"it is cut off or damaged ({error})", _DAMAGED) from error
    if "skvae" not in metadata or "sha256" not in metadata:
        raise _refusal(path, "it is a safetensors file, but skvae did not write it", _OURS)
    return metadata


def _to_array(entry: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(entry["data"], dtype=_DTYPES[entry["dtype"]]).reshape(entry["shape"])


def _parse_manifest(path: str, text: str) -> dict[str, Any]:
    try:
        manifest = json.loads(text)
        version = manifest["format_version"]
        known = manifest["format"] == FORMAT and isinstance(version, int) and version >= 1
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise _refusal(path, f"its manifest is damaged ({error})", _DAMAGED) from error
    if not known:
        raise _refusal(path, f"its format {manifest['format']!r}, version {version!r}, is unknown", _DAMAGED)
    if version > FORMAT_VERSION:
        cause = f"it has version {version} of the format, and this skvae reads versions up to {FORMAT_VERSION}"
        raise _refusal(path, cause, "Upgrade: pip install -U skvae")
    return manifest


def _estimator_class(name: str) -> type | None:
    """Return the estimator that skvae offers under a name; the file can name no other."""
    import skvae

    cls = getattr(skvae, name) if name in skvae.__all__ else None
    is_estimator = isinstance(cls, type) and issubclass(cls, BaseEstimator) and not issubclass(cls, Settings)
    return cls if is_estimator else None


def _to_estimator(manifest: dict[str, Any], tensors: dict[str, np.ndarray], device: str | None) -> BaseEstimator:
    """Build the estimator; every number is checked against the arrays before anything is allocated for it."""
    cls = _estimator_class(manifest["class"])
    if cls is None:
        raise SkvaeFileError(f"skvae has no estimator {manifest['class']!r}")
    parameters, attributes, packed = (
        {k: _decode(v, tensors) for k, v in manifest[section].items()} for section in ("params", "attributes", "state")
    )
    if tensors:
        raise SkvaeFileError(f"it holds arrays that belong to nothing: {sorted(tensors)[:5]}")
    if device is not None:
        parameters["device"] = device
    estimator = cls(**parameters)
    estimator._validate_params()
    for name in attributes:
        if not name.isidentifier() or name.startswith("__") or name in _LEFT_OUT or hasattr(estimator, name):
            raise SkvaeFileError(f"it sets {name!r}, which is no fitted attribute")
    _check_sizes(packed)
    fitted = Fitted.unpack(packed)
    _check_state(fitted)
    _check_features(attributes, len(fitted.codec.schema))
    vars(estimator).update({**attributes, **fitted.attributes()})
    if manifest["output"] in _OUTPUTS:
        estimator.set_output(transform=manifest["output"])
    elif manifest["output"] is not None:
        raise SkvaeFileError(f"it asks for the output {manifest['output']!r}")
    return estimator


def _decode(value: Any, tensors: dict[str, np.ndarray]) -> Any:
    """Return what `_encode` was given; every array is handed out once."""
    if isinstance(value, list):
        return [_decode(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    tag = next((k for k in value if k.startswith("~")), None)
    if tag is None:
        return {k: _decode(v, tensors) for k, v in value.items()}
    content = value[tag]
    if tag == "~settings":
        params = {k: _decode(v, tensors) for k, v in value["params"].items()}
        return class_of(content)(**params).validate()
    if tag == "~float":
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content]
    if tag == "~tuple":
        return tuple(_decode(v, tensors) for v in content)
    if tag == "~dict":
        return {_decode(k, tensors): _decode(v, tensors) for k, v in content}
    if tag == "~numbers":
        return tensors.pop(content).tolist()
    if tag == "~array":
        return tensors.pop(content)
    if tag == "~interval":
        return pd.Interval(*(_decode(end, tensors) for end in content[:2]), closed=content[2])
    if tag == "~timestamp":
        moment, zone = content
        if zone is None:
            return pd.Timestamp(moment)
        if not _is_zone(zone):
            raise SkvaeFileError(f"it has a moment in the time zone {zone!r}, which is none by name")
        return pd.Timestamp(moment, tz="UTC").tz_convert(zone)
    if tag == "~timedelta":
        return pd.Timedelta(content)
    if tag == "~strings" and all(isinstance(v, str) for v in content):
        return np.array(content, dtype=object)
    raise SkvaeFileError(f"its manifest has an unknown entry {tag!r}")


_named_zones = cache(zoneinfo.available_timezones)


def _is_zone(name: str) -> bool:
    """Tell whether a time zone is known by its name: libraries read others from a path that the name tells."""
    return re.fullmatch(r"UTC([+-]\d\d:\d\d)?", name) is not None or name in _named_zones()


# --- checks of what a file describes ---------------------------------------------------------------------------------


def _check_sizes(packed: dict[str, Any]) -> None:
    """Refuse numbers of columns and components that the arrays in the file cannot have; the layout checks the rest."""
    if len(json.dumps(packed["pieces"], default=str)) > packed["params"].nbytes + _MAX_SPEC:
        raise SkvaeFileError("its settings are longer than its parameters")
    limits = {"n_columns": len(packed["codec"]["loc"]), "n_components": packed["params"].size, "seed": 2**63}
    for name, limit in limits.items():
        if not _conforms(packed[name], int) or not 0 <= packed[name] <= limit:
            raise SkvaeFileError(f"its {name} is {packed[name]!r}")


def _check_state(fitted: Fitted) -> None:
    """Refuse a state whose values do not have the types that its classes declare, or whose arrays do not fit together."""
    model, codec, training = fitted.model, fitted.codec, fitted.training
    d, size = len(codec.schema), model.layout.size
    vector = (fitted.params.dtype, (size,))
    parts = [model.pieces, codec]
    fits = [
        model.n_columns == codec.n_columns,
        model.n_components >= 1,
        fitted.params.dtype in (np.float32, np.float64),
        codec.order.dtype == np.int64 and len(np.unique(codec.order)) == codec.n_columns,
        bool(((codec.order >= 0) & (codec.order < d)).all()),
        all(a.shape == (codec.n_columns,) and a.dtype == np.float64 for a in (codec.low, codec.high)),
        all(a.shape == (codec.n_columns,) and a.dtype == bool for a in (codec.clips, codec.is_density, codec.is_whole)),
        len(codec.form.formats) == d,
        all(isinstance(name, str) for column in codec.schema for name in (column.name, column.kind)),
        all(a.shape == (d,) and a.dtype == np.float64 for a in (codec.loc, codec.scale)),
    ]
    if training is not None:
        progress = Progress(**training.progress)
        parts += [training, progress]
        fits += [
            all((a.dtype, a.shape) == vector for a in (training.params, training.best)),
            all(_is_memory(a, size, model.n_components) for a in training.slots.values()),
            min(progress.first, progress.n_steps, training.data_hash) >= 0,
            progress.first <= progress.epoch,
            set(progress.history) == set(HISTORY),
            len({len(values) for values in progress.history.values()}) == 1,
        ]
    if not (all(fits) and all(_has_declared_types(part) for part in parts)):
        raise SkvaeFileError("the parts of its state do not fit together")


def _is_memory(array: np.ndarray, size: int, n_components: int) -> bool:
    """Tell whether an array can be a number, a value per parameter, or latents of the training rows."""
    return array.dtype.kind == "f" and (array.shape in ((), (size,)) or (array.ndim == 2 and array.shape[1] == n_components))


def _check_features(attributes: dict[str, Any], n_columns: int) -> None:
    """Refuse names of columns that are not those of the state."""
    names = attributes.get("feature_names_in_", np.empty(n_columns, dtype=object))
    if attributes["n_features_in_"] != n_columns or names.shape != (n_columns,) or names.dtype != object:
        raise SkvaeFileError("its number of columns is not that of its state")


def _has_declared_types(record: Any) -> bool:
    hints = typing.get_type_hints(type(record))
    return all(_conforms(getattr(record, field.name), hints[field.name]) for field in fields(record))


def _conforms(value: Any, hint: Any) -> bool:
    """Tell whether a value is of the type that an annotation names."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_conforms(value, option) for option in inner)
    if origin is dict:
        return isinstance(value, dict) and all(_conforms(k, inner[0]) and _conforms(v, inner[1]) for k, v in value.items())
    if origin is list:
        return isinstance(value, list) and all(_conforms(v, inner[0]) for v in value)
    if origin is tuple and inner[-1] is ...:
        return isinstance(value, tuple) and all(_conforms(v, inner[0]) for v in value)
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_conforms, value, inner))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)
