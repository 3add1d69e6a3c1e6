"""Base models on this machine: downloaded, prepared, examined, and added to the catalogue.

`python -m workers.base_models` has the commands behind `toque models pull` and `toque models add`.
"""
