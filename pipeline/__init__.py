"""Regain: active domain adaptation for semantic segmentation by expected reward gain."""
