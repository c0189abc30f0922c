"""The stages of the loop, one file each, in the order of dvc.yaml."""

STAGES = (
    "settings",
    "prepare",
    "regions",
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
"""Stages that run the network: `launch` starts their processes."""
ONCE = ("settings", "prepare", "regions", "pretrain", "report")
"""Stages that run once, not once a round."""
