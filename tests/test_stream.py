"""Training out of core: the pass over all rows, the rows held, and the order of an epoch."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LIKELIHOODS, table_for

from skvae import VAETransformer, _stream, data
from skvae._batch import Batch
from skvae._hashing import row_hashes
from skvae._random import generator
from skvae._schema import group_columns
from skvae._stream import Holder, StreamedTable, split_source
from skvae._table import Table, TableCodec
from skvae.data import ArraySource
from skvae.likelihoods import Bernoulli, Gaussian

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    """Blocks, pieces and windows of a few rows."""
    monkeypatch.setattr(data, "_BLOCK_BYTES", 200)
    monkeypatch.setattr(_stream, "_PIECE_CELLS", 30)
    monkeypatch.setattr(_stream, "_WINDOW_BYTES", 2000)


def table(n=1000, n_columns=2, weight=None, seed=0, copies=1, share_missing=0.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n // copies, n_columns))
    X[rng.random(X.shape) < share_missing] = np.nan
    X = np.repeat(X, copies, axis=0)
    return X, StreamedTable(ArraySource(X), weight)


def split(streamed, n_validation=50, seed=0):
    names = [f"x{j}" for j in range(streamed.n_features)]
    groups = group_columns([Gaussian(standardize=False)] * streamed.n_features, streamed.statistics, False)
    codec = TableCodec.learn(streamed.statistics, groups, names, streamed.form)
    return split_source(streamed, codec, seed, n_validation, torch.float64, CPU)


def epoch_of(train, batch_size=16, window=3, seed=0):
    return list(train.epoch(batch_size, generator(seed, "order"), window))


# --- the pass over all rows ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("share_missing", [0.0, 0.3, 0.98])
@pytest.mark.parametrize("weighted", [False, True])
def test_statistics_of_a_source_are_those_of_the_array(weighted, share_missing):
    weight = np.random.default_rng(1).integers(3, size=1000).astype(float) if weighted else None
    X, streamed = table(weight=weight, share_missing=share_missing)
    found, expected = streamed.statistics, Table.of(X, weight).statistics
    for name in ("mean", "std", "low", "high", "missing"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-12, atol=1e-15)
    assert streamed.survey.n_rows == (1000 if weight is None else (weight > 0).sum())
    assert streamed.survey.total_weight == (1000 if weight is None else weight.sum())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("share_missing", [0.0, 0.02])
def test_held_rows_and_fingerprint_do_not_depend_on_the_order_of_the_rows(monkeypatch, share_missing):
    monkeypatch.setattr(_stream, "_HELD_ROWS", 1000)
    X, streamed = table(n=5000, share_missing=share_missing)
    shuffled = StreamedTable(ArraySource(X[np.random.default_rng(1).permutation(len(X))]), None)
    one, other = streamed.survey, shuffled.survey
    np.testing.assert_array_equal(one.held.X, other.held.X)
    assert one.data_hash == other.data_hash != table(n=4998)[1].survey.data_hash
    assert one.n_distinct == pytest.approx(5000, rel=0.1)


def test_held_rows_are_those_of_the_smallest_hashes_with_exact_counts():
    rng = np.random.default_rng(0)
    X = rng.integers(12, size=(3000, 2)).astype(float)
    weight = rng.random(3000)
    holder = Holder(50)
    for start in range(0, 3000, 70):
        part = slice(start, start + 70)
        holder.add(row_hashes(X[part]), X[part], weight[part])
    held = holder.held()
    hashed = row_hashes(X)
    assert np.array_equal(held.hashed, np.unique(hashed)[:50])
    for h, x, count, total in zip(held.hashed, held.X, held.count, held.weight, strict=True):
        same = hashed == h
        assert (X[same] == x).all() and count == same.sum() and total == pytest.approx(weight[same].sum())


@pytest.mark.usefixtures("small")
def test_copies_are_counted():
    _, streamed = table(copies=4)
    assert streamed.survey.n_distinct == 250 and (streamed.survey.held.count == 4).all()


# --- the split -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_rows_set_aside_depend_on_content_and_seed_and_do_not_train():
    X, streamed = table()
    train, watched, total = split(streamed)
    again = split(StreamedTable(ArraySource(X[::-1]), None))[1]
    assert torch.equal(watched.x, again.x) and not torch.equal(watched.x, split(streamed, seed=1)[1].x)
    seen = torch.cat([rows.x for rows, _ in epoch_of(train)]).numpy()
    assert len(watched) == 50 and len(train) == len(seen) == 950 == total
    everything = np.concatenate([seen, watched.x.numpy()])
    assert np.array_equal(np.sort(everything[:, 0]), np.sort(X[:, 0]))


@pytest.mark.usefixtures("small")
def test_holes_travel_with_their_rows():
    X, streamed = table(n_columns=3, share_missing=0.3)
    train, watched, _ = split(streamed)
    everything = torch.cat([watched.x, *(rows.x for rows, _ in epoch_of(train))]).numpy()
    one, other = (np.nan_to_num(rows, nan=9.0) for rows in (everything, X))
    np.testing.assert_array_equal(one[np.lexsort(one.T)], other[np.lexsort(other.T)])


@pytest.mark.usefixtures("small")
def test_a_row_set_aside_takes_its_copies_along():
    _, streamed = table(copies=4)
    train, watched, _ = split(streamed, 25)
    seen = np.concatenate([rows.x.numpy() for rows, _ in epoch_of(train)])
    assert len(train) == len(seen) == 900 and not np.isin(seen[:, 0], watched.x.numpy()[:, 0]).any()


@pytest.mark.usefixtures("small")
def test_weights_travel_with_their_rows():
    X, _ = table()
    weight = np.floor(np.abs(X[:, 0]) * 4)
    train, _, total = split(StreamedTable(ArraySource(X), weight))
    windows = [rows for rows, _ in epoch_of(train)]
    x, w = torch.cat([rows.x for rows in windows]).numpy(), torch.cat([rows.weight for rows in windows]).numpy()
    np.testing.assert_allclose(w * train.mean_weight, np.floor(np.abs(x[:, 0]) * 4), atol=1e-12)
    assert w.mean() == pytest.approx(1) and w.min() > 0
    assert total == pytest.approx(w.sum() * train.mean_weight)


# --- the epoch -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("batch_size", [16, 1000, 7])
def test_windows_are_bounded_and_cut_into_batches(batch_size):
    train = split(table()[1])[0]
    windows = epoch_of(train, batch_size)
    assert all(len(rows) == sum(sizes) and len(sizes) <= 3 for rows, sizes in windows)
    assert max(size for _, sizes in windows for size in sizes) <= batch_size


@pytest.mark.usefixtures("small")
def test_the_order_is_a_function_of_the_generator():
    train = split(table()[1])[0]
    one, same, other = (torch.cat([rows.x for rows, _ in epoch_of(train, seed=seed)]) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("block_bytes", [200, 4000, 100_000])
def test_windows_of_sorted_rows_resemble_the_whole(monkeypatch, block_bytes):
    monkeypatch.setattr(data, "_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(_stream, "_WINDOW_BYTES", 16 * 500)
    X = np.column_stack([np.arange(5000) // 1000, np.random.default_rng(0).normal(size=5000)]).astype(float)
    train = split(StreamedTable(ArraySource(X), None), 0)[0]
    windows = [rows.x[:, 0] for rows, _ in epoch_of(train, batch_size=500, window=100)]
    assert len(windows) == 10
    shares = torch.stack([torch.bincount(w.long(), minlength=5) / len(w) for w in windows])
    assert (shares - 0.2).abs().max() < 0.08
    for rows, sizes in train.epoch(100, generator(0, "order"), 5):
        assert len(sizes) <= 5 and (rows.x[:100, 0].long().bincount(minlength=5) > 5).all()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_fit_on_sorted_rows_is_as_good_as_one_in_memory(monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.sort(rng.integers(8, size=6000))
    X = 3 * rng.normal(size=(8, 5))[labels] + rng.normal(size=(6000, 3)) @ rng.normal(size=(3, 5))
    X += 0.5 * rng.normal(size=X.shape)
    vae = VAETransformer(3, hidden_layer_sizes=(32,), max_iter=15, learning_rate="cosine", random_state=0)
    inside = vae.fit(X).score(X[::5])
    monkeypatch.setattr(data, "_BLOCK_BYTES", 40 * 50)
    monkeypatch.setattr(_stream, "_WINDOW_BYTES", 20 * 600)
    assert vae.fit(ArraySource(X)).score(X[::5]) == pytest.approx(inside, abs=0.1)


@pytest.mark.usefixtures("small")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("hidden", [(), (8,)])
@pytest.mark.parametrize("share_missing", [0.0, 0.3])
def test_the_same_batches_give_the_model_of_the_array(monkeypatch, hidden, share_missing):
    X, _ = table(n=400, n_columns=4, share_missing=share_missing)
    X[:, 3] += X[:, 0] + 5
    X = X[~np.isnan(X).all(axis=1)]  # copies are merged in memory alone
    plain = {"likelihood": Gaussian(standardize=False), "dtype": "float64", "random_state": 0}
    vae = VAETransformer(2, hidden_layer_sizes=hidden, max_iter=5, batch_size=50, early_stopping=False, **plain)
    inside = vae.fit(X)
    expected = inside._fitted.params, inside.transform(X), inside.score_samples(X)
    as_read = _stream.StreamedRows.epoch

    def as_in_memory(self, batch_size, order, window):
        rows = torch.cat([rows.x for rows, _ in as_read(self, batch_size, generator(0, "order"), window)])
        return Batch(rows[np.argsort(row_hashes(rows.numpy()))]).epoch(batch_size, order, window)

    monkeypatch.setattr(_stream.StreamedRows, "epoch", as_in_memory)
    vae.fit(ArraySource(X))
    for found, number in zip((vae._fitted.params, vae.transform(X), vae.score_samples(X)), expected, strict=True):
        np.testing.assert_allclose(found, number, rtol=1e-8, atol=1e-9)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("likelihood", [one for one in LIKELIHOODS if not isinstance(one, Bernoulli)], ids=repr)
def test_a_column_whose_cells_are_not_in_the_sample_trains(monkeypatch, likelihood):
    monkeypatch.setattr(_stream, "_HELD_ROWS", 1000)
    with_cell, without = np.split(table_for(likelihood, 4000, 12), 2)
    without[:, 2] = np.nan
    sampled = np.unique(row_hashes(without))[:1000]
    X = np.concatenate([without, with_cell[row_hashes(with_cell) > sampled[-1]]])
    source = ArraySource(X)
    assert np.isnan(StreamedTable(source, None).survey.held.X[:, 2]).all() and not np.isnan(X[:, 2]).all()
    vae = VAETransformer(2, likelihood=likelihood, hidden_layer_sizes=(4,), max_iter=2, random_state=0).fit(source)
    assert (
        not vae.schema_[2].constant and np.isfinite(vae._fitted.params).all() and np.isfinite(vae.score_samples(source)).all()
    )


# --- memory ----------------------------------------------------------------------------------------------------------

MEASURED = """
import sys, threading, time, warnings, numpy as np, sklearn, torch
from skvae import VAETransformer
from sys import argv
def now(what):
    return int(next(line for line in open("/proc/self/status") if line.startswith(what)).split()[1]) / 1024
after_imports = now("VmRSS")
anonymous = now("RssAnon")
if argv[1] == "memory":
    X = np.random.default_rng(0).standard_normal((1_000_000, 32), dtype=np.float32)
else:
    X = np.load(argv[2], mmap_mode="r")
peak, stop = [0.0], threading.Event()
def watch():
    while not stop.wait(0.005):
        peak[0] = max(peak[0], now("RssAnon"))
threading.Thread(target=watch, daemon=True).start()
warnings.simplefilter("ignore")
VAETransformer(8, hidden_layer_sizes=(16,), max_iter=1, random_state=0).fit(X)
stop.set()
print("MB", X.nbytes / 2**20, now("VmHWM") - after_imports, peak[0] - anonymous)
"""


def measured(*arguments):
    """Return, in MB, the data, the peak of a process beyond its imports, and that of its anonymous memory."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
    return map(float, re.search(r"MB (\S+) (\S+) (\S+)", output).groups())


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


@linux
@pytest.mark.slow
def test_a_fit_in_memory_takes_less_than_1_6_times_the_data():
    in_memory, peak, _ = measured("memory")
    assert peak < 1.6 * in_memory


@linux
@pytest.mark.slow
@pytest.mark.parametrize("share_missing", [0.0, 0.2])
def test_a_fit_out_of_core_takes_a_fixed_budget(tmp_path, share_missing):
    path = tmp_path / "X.npy"
    X = np.lib.format.open_memmap(path, "w+", dtype=np.float32, shape=(10_000_000, 32))
    rng = np.random.default_rng(0)
    for start in range(0, len(X), 1_000_000):
        cells = rng.standard_normal((1_000_000, 32), dtype=np.float32)
        cells[rng.random(cells.shape, dtype=np.float32) < share_missing] = np.nan
        X[start : start + 1_000_000] = cells
    X.flush()
    del X
    on_disk, _, peak = measured("disk", path)
    assert on_disk > 4 * data.MEMORY_BUDGET / 2**20
    assert peak < 200
