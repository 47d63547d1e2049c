"""Images that a model makes: the manifold that two components span, and samples."""

from numbers import Integral

import numpy as np
import torch

from skvae.displays._drawing import as_images, check_estimator, check_images, draw_images, new_axes, two_components

_INCHES_PER_IMAGE = 0.36
_MAX_TICKS = 7


class ManifoldDisplay:
    """Manifold: the images that the decoder makes of evenly probable places in two latent components.

    The unit square is cut into cells of equal size, and the middle of each is taken to the latent space by the inverse of the
    prior's distribution function, so that every image stands for the same share of all. It needs a prior under which components
    are independent: the standard normal one, one of a family such as gamma, or one of your own that has `quantile`. Make one
    with :meth:`from_estimator`; all parameters are kept as attributes.

    Parameters
    ----------
    mean : ndarray of shape (n_steps, n_steps, n_features)
        Means of p(x|z); the first axis is the second component, from low to high.

    places : ndarray of shape (n_steps,)
        Values of the components, ascending.

    components : tuple of two int
        Numbers of the components to the right and upwards.

    image_shape : tuple of int
        Height and width of an image, and the number of channels, 1 or 3, if it has any.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where the images were drawn.

    figure_ : matplotlib Figure
        The figure that holds `ax_`.

    See Also
    --------
    VAETransformer : Its method `inverse_transform` gives the images.
    LatentSpaceDisplay : Where the rows of a table lie in the same two components.

    References
    ----------
    Kingma & Welling, *Auto-Encoding Variational Bayes*, 2013, figure 4.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skvae import VAETransformer
    >>> from skvae.displays import ManifoldDisplay
    >>> from skvae.likelihoods import Bernoulli
    >>> X, _ = load_digits(return_X_y=True)
    >>> images = Bernoulli(limits=(0, 16))
    >>> vae = VAETransformer(2, likelihood=images, learning_rate="cosine", max_iter=5, random_state=0).fit(X)
    >>> display = ManifoldDisplay.from_estimator(vae, image_shape=(8, 8), n_steps=12)
    >>> display.mean.shape
    (12, 12, 64)
    """

    def __init__(self, *, mean, places, components, image_shape):
        self.mean = mean
        self.places = places
        self.components = components
        self.image_shape = image_shape

    @classmethod
    def from_estimator(cls, estimator, *, image_shape, n_steps=20, components=None, ax=None, **kwargs):
        """Draw the manifold of a fitted estimator.

        Parameters
        ----------
        estimator : VAETransformer
            A fitted estimator with at least two components.

        image_shape : tuple of int
            Height and width of an image; or height, width and 3 for colours, the channels of a pixel side by side in a row.

        n_steps : int, default=20
            Number of images in each direction.

        components : tuple of two int, default=None
            Which components to follow, the others staying at the median of the prior; None takes the two that carry most
            nats (`kl_per_component_`).

        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        **kwargs : dict
            Passed to `ax.imshow`.

        Returns
        -------
        display : ManifoldDisplay
            The display, drawn.
        """
        check_estimator(estimator, cls.__name__)
        check_images(estimator, image_shape, cls.__name__)
        components = two_components(estimator, components, cls.__name__)
        if not isinstance(n_steps, Integral) or n_steps < 1:
            raise ValueError(f"n_steps, the number of images in each direction, must be 1 or more, got {n_steps!r}.")
        prior = estimator._fitted.model.prior
        places = _quantiles(prior, (np.arange(n_steps) + 0.5) / n_steps)
        z = np.full((n_steps, n_steps, estimator.n_components_), _quantiles(prior, np.array([0.5])))
        z[..., components[0]], z[..., components[1]] = np.meshgrid(places, places)
        mean = np.asarray(estimator.inverse_transform(z.reshape(n_steps**2, -1))).reshape(n_steps, n_steps, -1)
        return cls(mean=mean, places=places, components=components, image_shape=image_shape).plot(ax, **kwargs)

    def plot(self, ax=None, **kwargs):
        """Draw the images.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        **kwargs : dict
            Passed to `ax.imshow`.

        Returns
        -------
        self : ManifoldDisplay
            The display.
        """
        n = len(self.places)
        ax = new_axes(ax, type(self).__name__, (1 + _INCHES_PER_IMAGE * n,) * 2)
        draw_images(ax, as_images(self.mean[::-1], self.image_shape), **kwargs)
        height, width = self.image_shape[:2]
        shown = np.arange(n)[:: -(-n // _MAX_TICKS)]
        labels = [f"{place:.1f}" for place in self.places[shown]]
        ax.set_xticks(shown * (width + 1) + (width - 1) / 2, labels)
        ax.set_yticks((n - 1 - shown) * (height + 1) + (height - 1) / 2, labels)
        ax.set(xlabel=f"component {self.components[0]}", ylabel=f"component {self.components[1]}")
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _quantiles(prior, u):
    """Return the quantiles u of every component of a prior under which they are independent and alike."""
    if not prior.offers("quantile"):
        raise ValueError(
            f"ManifoldDisplay sets images at places that are equally probable under the prior, and knows no quantiles of the "
            f"components of {prior!r}, or they depend on each other. Draw a SamplesDisplay, or decode places of your own by "
            "inverse_transform."
        )
    return prior.quantile(torch.from_numpy(u)).numpy()


class SamplesDisplay:
    """Samples: images drawn from the model, latents from the prior and then the image.

    Make one with :meth:`from_estimator`; all parameters are kept as attributes.

    Parameters
    ----------
    samples : ndarray of shape (n_samples, n_features)
        The images.

    image_shape : tuple of int
        Height and width of an image, and the number of channels, 1 or 3, if it has any.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where the images were drawn.

    figure_ : matplotlib Figure
        The figure that holds `ax_`.

    See Also
    --------
    VAETransformer : Its method `sample` gives the images.

    References
    ----------
    Kingma & Welling, *Auto-Encoding Variational Bayes*, 2013, figure 5.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skvae import VAETransformer
    >>> from skvae.displays import SamplesDisplay
    >>> from skvae.likelihoods import Bernoulli
    >>> X, _ = load_digits(return_X_y=True)
    >>> images = Bernoulli(limits=(0, 16))
    >>> vae = VAETransformer(8, likelihood=images, learning_rate="cosine", max_iter=5, random_state=0).fit(X)
    >>> display = SamplesDisplay.from_estimator(vae, image_shape=(8, 8), random_state=0)
    >>> display.samples.shape
    (40, 64)
    """

    def __init__(self, *, samples, image_shape):
        self.samples = samples
        self.image_shape = image_shape

    @classmethod
    def from_estimator(cls, estimator, *, image_shape, n_samples=40, noise=False, random_state=None, ax=None, **kwargs):
        """Draw images from a fitted estimator.

        Parameters
        ----------
        estimator : VAETransformer
            A fitted estimator.

        image_shape : tuple of int
            Height and width of an image; or height, width and 3 for colours, the channels of a pixel side by side in a row.

        n_samples : int, default=40
            Number of images.

        noise : bool, default=False
            Whether to draw the pixels from p(x|z); False shows their means, as the paper does.

        random_state : int, RandomState instance or None, default=None
            Where the draws come from; None gives other images each time.

        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        **kwargs : dict
            Passed to `ax.imshow`.

        Returns
        -------
        display : SamplesDisplay
            The display, drawn.
        """
        check_estimator(estimator, cls.__name__)
        check_images(estimator, image_shape, cls.__name__)
        samples = estimator.sample(n_samples, random_state=random_state, noise=noise)
        return cls(samples=np.asarray(samples), image_shape=image_shape).plot(ax, **kwargs)

    def plot(self, ax=None, *, n_columns=10, **kwargs):
        """Draw the images.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        n_columns : int, default=10
            Number of images side by side.

        **kwargs : dict
            Passed to `ax.imshow`.

        Returns
        -------
        self : SamplesDisplay
            The display.
        """
        n_columns = min(n_columns, len(self.samples))
        n_rows = -(-len(self.samples) // n_columns)
        grid = np.full((n_rows * n_columns, self.samples.shape[1]), np.nan)  # the last places may stay empty
        grid[: len(self.samples)] = self.samples
        ax = new_axes(ax, type(self).__name__, (2 * _INCHES_PER_IMAGE * n_columns, 2 * _INCHES_PER_IMAGE * n_rows))
        draw_images(ax, as_images(grid.reshape(n_rows, n_columns, -1), self.image_shape), **kwargs)
        self.ax_, self.figure_ = ax, ax.figure
        return self
