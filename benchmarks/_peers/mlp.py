"""scikit-learn's MLPRegressor as an auto-encoder, for the time a whole process takes."""

import numpy as np
from sklearn.neural_network import MLPRegressor


def default(train):
    """Fit with the defaults; the rows are their own targets."""
    X = np.load(train)
    MLPRegressor(random_state=0).fit(X, X)
    return {}
