"""The stages of the loop, one file each, in the order of dvc.yaml."""

STAGES = (
    "settings",
    "prepare",
    "pretrain",
    "snapshot",
    "score",
    "select",
    "forecast",
    "predict",
    "annotate",
    "audit",
    "tune",
    "evaluate",
    "report",
)
NETWORK = ("pretrain", "score", "predict", "audit", "tune", "evaluate")
"""Stages that run the network: they are started by `launch`."""
ONCE = ("settings", "prepare", "pretrain", "report")
"""Stages that are of no round."""
