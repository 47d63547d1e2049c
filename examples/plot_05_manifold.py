"""
The manifold of handwritten digits
==================================

Which images does a model hold to be possible, and how do they pass into each other? The paper answers with two
figures: a grid over the two components of a small model (figure 4), and images drawn from models with more and more
components (figure 5). Here are both, for the 8 x 8 digits that scikit-learn brings along.
"""

# %%
# Data
# ----
# 1,797 images with grey levels from 0 to 16; a quarter is set aside to compare the models.

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skvae import VAETransformer
from skvae.displays import LatentSpaceDisplay, ManifoldDisplay, SamplesDisplay
from skvae.likelihoods import Bernoulli

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0, stratify=y)

# %%
# Two components
# --------------
# With `binarize="dynamic"` a grey level is the probability of ink: the pixels are drawn anew whenever an image is
# shown, so that the model sees many versions of each.

images = Bernoulli(limits=(0, 16), binarize="dynamic")
budget = {"learning_rate": "cosine", "max_iter": 80, "random_state": 0}
vae = VAETransformer(n_components=2, likelihood=images, **budget).fit(X_train)

LatentSpaceDisplay.from_estimator(vae, X_test, y_test, components=(0, 1))
plt.show()

# %%
# The same plane, seen by the decoder. The unit square is cut into 20 x 20 cells, and the inverse of the normal
# distribution function takes the middle of each to the latent space: each image stands for the same share of what the
# model would draw.

ManifoldDisplay.from_estimator(vae, image_shape=(8, 8), components=(0, 1))
plt.show()

# %%
# More components
# ---------------
# Images drawn from models with 2, 5, 10 and 20 components: a latent row from the prior, and the mean of its pixels.

fig, axes = plt.subplots(2, 2, figsize=(9, 5), layout="constrained")
models = [VAETransformer(k, likelihood=images, **budget).fit(X_train) for k in (5, 10, 20)]
for ax, model in zip(axes.flat, [vae, *models]):
    SamplesDisplay.from_estimator(model, image_shape=(8, 8), n_samples=50, random_state=0, ax=ax)
    title = f"{model.n_components_} components, {model.score(X_test):.1f} nats per image"
    ax.set_title(title, fontsize="medium")
plt.show()

# %%
# What we see
# -----------
# On the plane, digits that look alike are neighbours, and one turns into the next without a gap: that is what the prior
# asks for. Where the regions of many digits meet, in the middle, the images are blurred, because two components cannot
# tell them apart. With five the strokes are clearer, and new images more probable; with ten a little more so, and twenty
# add nothing to that. Many of the images drawn can be read as a digit, and others lie between two.
