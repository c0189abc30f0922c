"""Stage: writes all settings in force, with the defaults of those that params.yaml leaves out, for DVC to compare.

DVC fails on `params: [score]` where params.yaml has no section `score`, and only after the stage has run. The other
stages therefore depend on what this one writes. It also refuses a mistake in params.yaml before any of them starts.
"""

from pipeline import paths, storage
from pipeline.params import UNTRACKED, Params


def run(*, settings: Params) -> None:
    """Write settings.json."""
    storage.save_json(paths.SETTINGS, settings.model_dump(mode="json", exclude={*UNTRACKED, "launch", "budget"}))
