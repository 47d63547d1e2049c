"""
What if? Sampling on conditions
===============================

What do patients look like whose body-mass index is 35? A model of the whole table answers for any columns that are given;
a model on conditions answers for some, chosen beforehand.
"""

# %%
# Data and model
# --------------
# The diabetes table, with the sex as a category and the progression of the disease after one year; without the
# cholesterol values that nearly follow from others.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes

from skvae import VAETransformer

data = load_diabetes(as_frame=True, scaled=False)
names = {"bp": "blood pressure", "s1": "cholesterol", "s3": "HDL", "s5": "log triglycerides"}
names["s6"] = "sugar"
X = data.data[["age", "sex", "bmi", *names]].rename(columns=names).astype({"age": int})
X["sex"] = X["sex"].map({1.0: "a", 2.0: "b"})  # the table does not tell which is which
X["progression"] = data.target

vae = VAETransformer(n_components=3, random_state=0).fit(X)

# %%
# One column given
# ----------------
# A thousand patients of each of three indices, beside the real ones whose index is within 1.5 of it.

given = [22.0, 28.0, 35.0]
colours = ["#4477AA", "#CCBB44", "#EE6677"]

fig, axes = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
for ax, name in zip(axes, ("progression", "HDL", "blood pressure")):
    for place, (bmi, colour) in enumerate(zip(given, colours)):
        drawn = vae.sample(1000, given={"bmi": bmi}, random_state=0)[name]
        real = X.loc[(X["bmi"] - bmi).abs() < 1.5, name]
        for rows, shift, width in ((drawn, 0.15, 7), (real, -0.15, 2)):
            ax.hlines(place + shift, *rows.quantile([0.1, 0.9]), color=colour, lw=width, alpha=0.6)
            ax.plot(rows.median(), place + shift, "o", color="black", ms=4)
    ax.set_yticks(range(3), [f"bmi {bmi:g}" for bmi in given])
    ax.set(xlabel=name, ylim=(-0.6, 2.6))
print("real patients by index:", {bmi: int(((X["bmi"] - bmi).abs() < 1.5).sum()) for bmi in given})
legend = [
    plt.Line2D([], [], color="0.5", lw=7, alpha=0.6, label="drawn, 10 to 90 %"),
    plt.Line2D([], [], color="0.5", lw=2, alpha=0.6, label="real, 10 to 90 %"),
    plt.Line2D([], [], color="black", marker="o", ms=4, ls="", label="median"),
]
fig.legend(handles=legend, loc="outside lower center", ncols=3, frameon=False)
plt.show()

# %%
# Several columns given
# ---------------------
# Any combination will do. How well the draws answer shows in the effective sample size: as how many draws from the
# right distribution the weighted ones count. Below ten there is a warning; more draws, `n_draws`, help then.

questions = [
    {"bmi": 35.0},
    {"bmi": 35.0, "sex": "b", "age": 30},
    {"bmi": 35.0, "log triglycerides": 5.5},
    {"bmi": 20.0, "log triglycerides": 5.5},
    {"bmi": 20.0, "log triglycerides": 6.0, "HDL": 90.0, "age": 25},
]
for question in questions:
    rows, size = vae.sample(1000, given=question, random_state=0, return_ess=True)
    low, middle, high = rows["progression"].quantile([0.1, 0.5, 0.9])
    print(
        f"progression {low:3.0f} {middle:3.0f} {high:3.0f}   {size[0]:4.0f} of 1000 count   {question}"
    )

# %%
# A model on conditions
# ---------------------
# Where age, sex and index are always known, they can be conditions: under a normal prior the latents are then about what
# these three do not tell. The latents of a patient, decoded under another index, say what the model expects of one who is
# otherwise alike.

conditions = ["age", "sex", "bmi"]
cvae = VAETransformer(n_components=3, condition_on=conditions, prior="normal", random_state=0)
cvae.fit(X)

patients = X[X["bmi"].between(24, 31)].iloc[[0, 4, 8, 20]]
latents = cvae.transform(patients)
indices = np.linspace(20, 36, 17)

fig, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
expected = [cvae.inverse_transform(latents, given=patients.assign(bmi=bmi)) for bmi in indices]
ways = np.array([rows["progression"] for rows in expected])
colours = ["#4477AA", "#EE6677", "#228833", "#AA3377"]
for way, colour, (_, patient) in zip(ways.T, colours, patients.iterrows()):
    label = f"{patient['age']} years, {patient['sex']}, bmi {patient['bmi']:.0f}"
    ax.plot(indices, way, color=colour, label=label)
    ax.plot(patient["bmi"], np.interp(patient["bmi"], indices, way), "o", color=colour)
ax.set(xlabel="body-mass index given", ylabel="progression expected")
ax.legend(frameon=False)
plt.show()

# %%
# What we see
# -----------
# Patients that are drawn for an index differ as the real ones of that index do: the disease progresses faster, HDL is
# lower, and blood pressure is higher the larger the index. There are 17 real patients with an index within 1.5 of 35,
# and as many drawn ones as one likes; but the model knows no more than the table does.
#
# All questions have hundreds of draws that count, even the last one, which is about a patient unlike any in the table. The
# effective sample size says how well the model's answer is computed, not whether the model is right so far from its data.
#
# The curves of the conditional model rise with the index, from where each patient is. They describe how patients of one
# index differ from those of another in this table. What would happen to a patient who loses weight is another
# question, which no table of this kind can answer.
