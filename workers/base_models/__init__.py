"""Base models on this machine: downloaded, prepared, examined, and added to the catalogue.

`python -m workers.base_models` has the commands behind `toque models pull` and `toque models add`.
"""

from workers.base_models.errors import BaseModelError
from workers.base_models.preparation import unready

__all__ = ["BaseModelError", "unready"]
