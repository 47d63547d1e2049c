"""Tables for the benchmarks: those of scikit-learn, and others from the folder that SKVAE_DATA names or from OpenML."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn import datasets


def data_folder() -> Path | None:
    """Return the folder of larger data sets, if there is one."""
    folder = Path(os.environ.get("SKVAE_DATA") or Path(__file__).parents[2] / "shared" / "data")
    return folder if folder.is_dir() else None


def numeric_table(file: str, openml: str) -> np.ndarray | None:
    """Return the complete numeric rows of a table from the folder, or else from OpenML; None, with a line, without either."""
    folder = data_folder()
    try:
        if folder is not None:
            frame = pd.read_csv(folder / "tables" / file)
        else:
            frame = datasets.fetch_openml(openml, as_frame=True, parser="auto").frame
    except OSError as error:
        print(f"skipping {openml}: no SKVAE_DATA folder and OpenML cannot be reached ({error})", file=sys.stderr)
        return None
    return frame.select_dtypes("number").dropna().to_numpy(float)


def tables() -> dict[str, np.ndarray]:
    """Return the tables of numbers on which the defaults are judged."""
    found = {
        "iris": datasets.load_iris().data,
        "wine": datasets.load_wine().data,
        "diabetes": datasets.load_diabetes().data,
        "breast_cancer": datasets.load_breast_cancer().data,
        "wine_quality": numeric_table("wine_quality.csv.gz", "wine-quality-red"),
        "california_housing": numeric_table("california_housing.csv.gz", "california_housing"),
    }
    return {name: X for name, X in found.items() if X is not None}


def odd_tables() -> dict[str, np.ndarray]:
    """Return the larger tables of ADBench in the folder, their odd rows among the others."""
    folder = data_folder()
    files = [] if folder is None else sorted((folder / "adbench").glob("*.npz"))
    found = {file.stem.partition("_")[2]: np.load(file)["X"].astype(float) for file in files}
    return {name: X for name, X in found.items() if len(X) > 2_000}


def mixed_table(name: str) -> tuple[pd.DataFrame, str]:
    """Return a table of numbers and categories, blanks as missing values, and the name of its target.

    Whole numbers are `int64`, or `Int64` with holes; categories are of pandas' dtype, their levels sorted.
    """
    folder = required_folder() / "tables"
    schema = json.loads((folder / "schema.json").read_text(encoding="utf-8"))[name]
    kinds = {column: kind for column, kind in schema["columns"].items() if kind != "id_or_text" or column == "split"}
    raw = pd.read_csv(folder / f"{name}.csv.gz", keep_default_na=False, na_values=[""], usecols=list(kinds))
    frame = pd.DataFrame({c: whole_numbers(raw[c]) if kind == "num" else categories(raw[c]) for c, kind in kinds.items()})
    return frame, schema["target"]


def whole_numbers(column: pd.Series) -> pd.Series:
    """Return a column of numbers as integers if they all are."""
    if not (column.dropna() % 1 == 0).all():
        return column.astype("float64")
    return column.astype("Int64" if column.isna().any() else "int64")


def categories(column: pd.Series) -> pd.Series:
    """Return a column of pandas' category dtype; numbers that stand for levels are integers."""
    return whole_numbers(column).astype("category") if pd.api.types.is_numeric_dtype(column) else column.astype("category")


def hivae_table(name: str) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return one of HI-VAE's tables, the kinds of its columns and its published masks (True where a cell is hidden)."""
    with np.load(required_folder() / "hivae" / f"{name}.npz") as file:
        X, kinds = file["X"], file["types"].astype(str)
        masks = {k: np.unpackbits(file[k])[: X.size].reshape(X.shape).astype(bool) for k in file.files if k.startswith("mask_")}
    return X, kinds, masks


def required_folder() -> Path:
    """Return the folder of data sets; there is no other source of what is asked for."""
    folder = data_folder()
    if folder is None:
        raise FileNotFoundError("no folder of data sets: set SKVAE_DATA to the one that holds tables/ and hivae/")
    return folder
