import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import paths, storage
from pipeline.images.masks import load_mask, save_mask
from tests import opened


def test_everything_that_is_opened_is_seen_with_who_opened_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, beside = tmp_path / "project", tmp_path / "beside.txt"
    (project / "listed").mkdir(parents=True)
    (project / "taken").mkdir()
    beside.write_text("")
    monkeypatch.chdir(project)
    table = pd.DataFrame({"key": ["a"]})
    with opened.recorded(project) as files:
        storage.write(Path("whole.bin"), b"a")  # under another name at first
        storage.sha256(project / "whole.bin")
        save_mask(paths.mask("a"), np.zeros((2, 2), np.uint8))
        load_mask(paths.mask("a"))
        table.to_csv("table.csv")
        pd.read_csv("table.csv")
        with Path("weights.pt").open("wb") as file:
            torch.save({"a": torch.zeros(1)}, file)
        torch.load("weights.pt", weights_only=True)
        list(Path("listed").iterdir())
        shutil.rmtree("taken")
        beside.read_text()
    Path("whole.bin").read_bytes()
    Path("later.txt").write_text("")
    assert set(files.read) == {"whole.bin", "data/labels/a.png", "table.csv", "weights.pt", "listed"}
    assert {"whole.bin", "data/labels/a.png", "table.csv", "weights.pt", "taken"} == files.written
    assert files.read["data/labels/a.png"] == {frozenset({"pipeline.images.masks"})}
    assert files.read["table.csv"] == {frozenset()}
