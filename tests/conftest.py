import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Read by torch when it is first imported. The tests' tensors are small: on a busy machine threads that wait for each
# other made them up to seven times slower, and `pytest -n 2` would start two threads per core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, and however long one takes: a busy machine is no fault of the code.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")

ROOT = Path(__file__).parent.parent


@pytest.fixture
def shared_data() -> Path:
    """Real frames of CamVid, GTA5 and Cityscapes, which are not ours to ship."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("real data is not here: ../shared/data is absent")
    return path
