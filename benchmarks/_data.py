"""Tables for the benchmarks: those of scikit-learn, and others from the folder that SKVAE_DATA names or from OpenML."""

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
