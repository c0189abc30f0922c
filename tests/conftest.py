from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def shared_data() -> Path:
    """Real frames of CamVid, GTA5 and Cityscapes, which are not ours to ship."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("real data is not here: ../shared/data is absent")
    return path
