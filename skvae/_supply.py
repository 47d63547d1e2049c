"""What one model sees in its epochs: rows in a random order, batch by batch, and noise for each, functions of the seed."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from skvae._batch import Batch, TrainingRows, batch_sizes, joined
from skvae._model import Model
from skvae._random import generator, normal

_WINDOW_BATCHES = 64  # that are gathered, and given their noise, at a time,
WINDOW_CELLS = 2**20  # with so many cells or numbers of noise at most
_USUAL_COMPONENTS = 16
_SHORT_CELLS = 2**18  # of epochs that are drawn together


class Part(NamedTuple):
    """Rows of some batches, which follow each other, and their noise."""

    rows: Batch
    sizes: list[int]  # of the batches
    noise: Tensor  # (s, n, k)


class Supply:
    """The rows and the noise of one model's training.

    Short epochs are drawn together, a power of two of them, because to prepare a batch costs nearly as much as a small step.
    Not so those of rows that come but `once`: the next rows, which may be fewer, would get noise of these again.
    """

    def __init__(self, model: Model, data: TrainingRows, seed: int, batch_size: int, n_draws: int, once: bool = False):
        self.model, self.data, self.seed, self.batch_size, self.n_draws = model, data, seed, batch_size, n_draws
        self.sizes = batch_sizes(len(data), batch_size)  # of the batches of an epoch
        # not by the number of components: windows of models that train together must have as many batches
        self.row_cells = max(data.n_columns, n_draws * _USUAL_COMPONENTS)
        short = min(_WINDOW_BATCHES // len(self.sizes), _SHORT_CELLS // (len(data) * self.row_cells))
        self.n_together = 1 if once else _power_of_two(short)
        self._kept: tuple[int, Part] | None = None

    def n_ahead(self, epoch: int) -> int:
        """Return for how many epochs, from this one on, everything is drawn together."""
        return self.n_together - epoch % self.n_together

    def parts(self, epoch: int) -> Iterator[Part]:
        """Yield every row once, with noise."""
        if self.n_together > 1:
            yield self.ahead(epoch, 1)
            return
        n_batches = max(1, min(_WINDOW_BATCHES, WINDOW_CELLS // (self.batch_size * self.row_cells)))
        order = generator(self.seed, "order", epoch, device=self.data.device)
        for number, (rows, sizes) in enumerate(self.data.epoch(self.batch_size, order, n_batches)):
            yield self._part(rows, sizes, "epoch", epoch, number)

    def ahead(self, epoch: int, n_epochs: int) -> Part:
        """Return every row once for each of some epochs, which are drawn together, one epoch after the other."""
        number, done = divmod(epoch, self.n_together)
        if self._kept is None or self._kept[0] != number:
            self._kept = number, self._drawn_together(number)
        rows, _, noise = self._kept[1]
        here = slice(done * len(self.data), (done + n_epochs) * len(self.data))
        return Part(rows.slice(here.start, here.stop), self.sizes * n_epochs, noise[:, here])

    def _drawn_together(self, number: int) -> Part:
        order = generator(self.seed, "order of epochs", self.n_together, number, device=self.data.device)
        epochs = [self.data.epoch(self.batch_size, order, _WINDOW_BATCHES) for _ in range(self.n_together)]
        rows = joined([rows for epoch in epochs for rows, _ in epoch])
        return self._part(rows, self.sizes * self.n_together, "epochs", self.n_together, number)

    def _part(self, rows: Batch, sizes: list[int], *place: int | str) -> Part:
        """Return rows as the model sees them at this place, with the noise of the place."""
        stream = generator(self.seed, "noise", *place, device=rows.device)
        noise = normal((self.n_draws, len(rows), self.model.n_noise), stream, rows.dtype)
        return Part(self.model.presented(rows, *place), sizes, noise)


def _power_of_two(n: int) -> int:
    """Return the largest power of two that is no larger than n, 1 at least."""
    return 1 << (max(n, 1).bit_length() - 1)
