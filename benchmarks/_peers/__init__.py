"""Competitors, one module each, run as `python -m _peers MODULE` in their own process; `_workers.py` speaks to them.

A module offers what it can of: `Training(task, X)` with `epochs(n)`, which trains for n more epochs and returns the seconds
that they took; `default(...)`, a fit with the package's defaults and its held-out bound; `search(...)`, a grid
search; `Inference(task, ...)`, whose methods return seconds as well.
"""
