"""
Handwritten digits in a few numbers
===================================

What does a variational auto-encoder learn about images? Here it reads 8 x 8 pictures of handwritten digits, without
their labels, describes each by two numbers and later by more, and draws digits of its own.
"""

# %%
# Data
# ----
# 1,797 images with grey levels from 0 to 16. A quarter is set aside: the figures show images that were not used for
# training.

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0, stratify=y)
X_train.shape, X_test.shape

# %%
# Two components
# --------------
# The Bernoulli likelihood takes a grey level as the probability that the pixel is inked; `limits` says which levels
# stand for never and always. Two components make a map of the images.

from skvae import VAETransformer
from skvae.displays import (
    LatentSpaceDisplay,
    ManifoldDisplay,
    ReconstructionDisplay,
    SamplesDisplay,
    TrainingCurveDisplay,
)
from skvae.likelihoods import Bernoulli

images = Bernoulli(limits=(0, 16))
vae = VAETransformer(n_components=2, likelihood=images, random_state=0).fit(X_train)
print(f"{vae.n_iter_} epochs, {vae.score(X_test):.2f} nats per new image")

# %%
# The bound rises and flattens out. Training is judged on a tenth of the rows, which it does not learn from; when
# their bound stands still, the steps become shorter, and at last it ends.

TrainingCurveDisplay.from_estimator(vae)
plt.show()

# %%
# The map
# -------
# Each point is a new image, at its posterior mean. The labels only colour it.

LatentSpaceDisplay.from_estimator(vae, X_test, y_test, components=(0, 1))
plt.show()

# %%
# The decoder goes the other way, from any place on the map to an image. Places are chosen so that each is equally
# probable under the prior.

ManifoldDisplay.from_estimator(vae, image_shape=(8, 8), n_steps=16, components=(0, 1))
plt.show()

# %%
# More components
# ---------------
# Two numbers are few for a handwriting. The default number of components grows with the root of the number of
# pixels.

full = VAETransformer(likelihood=images, random_state=0).fit(X_train)
print(f"{full.active_units_} of {full.n_components_} components are in use")
print(f"{full.score(X_test):.2f} nats per new image")

for model in (vae, full):
    display = ReconstructionDisplay.from_estimator(model, X_test, image_shape=(8, 8))
    display.ax_.set_title(f"{model.n_components_} components")
plt.show()

# %%
# New images
# ----------
# A latent row drawn from the prior, and the mean of its pixels.

SamplesDisplay.from_estimator(full, image_shape=(8, 8), n_samples=40, random_state=0)
plt.show()

# %%
# What we see
# -----------
# Without labels, several digits find a region of their own in two components; those that look alike share one, as
# 1, 5 and 8 do. On the atlas they pass into each other without gaps, which the prior asks for. Two components keep
# the kind of most digits and lose the handwriting. With the default number, not all components are used: the others
# have switched themselves off, because what they could tell about an image is not worth its cost. The
# reconstructions follow the strokes more closely, and new images are more likely. Many of the images drawn from the
# model can be read as a digit; others lie between two.
