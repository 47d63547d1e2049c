"""VAETransformer: the variational auto-encoder as a scikit-learn transformer."""

from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin

from skvae._base import BaseVAE


class VAETransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseVAE):
    """placeholder"""

    def transform(self, X):
        """Return the latent representation of every row, the mean of q(z|x).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The data.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            The posterior means; a row's value depends on that row alone, to the last bit.
        """
        return self._latents(X)

    def inverse_transform(self, X):
        """Return the mean of p(x|z) for every latent row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_components)
            Latent rows, as `transform` returns them.

        Returns
        -------
        X_original : ndarray of shape (n_samples, n_features)
            Rows in the units of the data.
        """
        return self._decoded(X)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
