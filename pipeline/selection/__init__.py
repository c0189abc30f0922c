"""Selection: which images to label, from their gains, minutes and features.

draw              in proportion to gain, with probabilities: Kool et al. 2019, Rosén 1972
best_first        the highest gains
class_stratified  at random, as many for every class: Lüth et al. 2026
class_balanced    the highest gains, classes weighted down by what is chosen of them: Cai et al. 2021
coreset           the farthest from all that are chosen: Sener and Savarese 2018
badge             k-means++ on gradient embeddings: Ash et al. 2020
clue              the centres of gain-weighted k-means: Prabhu et al. 2021
coverage          those that together cover most gain of the pool, per predicted minute
representative    the same by whole images instead of classes: Wei et al. 2015
drawn_coverage    in proportion to the coverage that they add
learning_curve    those that add most to the labels of the classes that can still be taught, on learning curves
"""

from pipeline.selection.contract import Budget, Candidates, Choice, Method, Options
from pipeline.selection.coverage import coverage, drawn_coverage, representative
from pipeline.selection.distances import badge, clue, coreset
from pipeline.selection.draws import class_stratified, draw
from pipeline.selection.learning import learning_curve
from pipeline.selection.rankings import best_first, class_balanced

__all__ = ["BY_GAIN", "METHODS", "NEEDS", "Budget", "Candidates", "Choice", "Method", "Options"]

METHODS: dict[str, Method] = {
    "draw": draw,
    "best_first": best_first,
    "class_stratified": class_stratified,
    "class_balanced": class_balanced,
    "coreset": coreset,
    "badge": badge,
    "clue": clue,
    "coverage": coverage,
    "drawn_coverage": drawn_coverage,
    "representative": representative,
    "learning_curve": learning_curve,
}

BY_GAIN = ("draw", "best_first", "class_balanced", "coverage", "drawn_coverage", "representative")
"""Methods that look for gain; the others for what is rare, typical or different, whatever the score says. CLUE weighs
its clusters by gain, but is measured (docs/gain_study.md) without a fallback."""

NEEDS: dict[str, str] = {
    "coreset": "features",
    "badge": "gradient",
    "clue": "features",
    "coverage": "by_class",
    "drawn_coverage": "by_class",
    "representative": "features",
    "learning_curve": "features",
}
"""The field of `Candidates` without which a method refuses; the others make do with the scores."""
