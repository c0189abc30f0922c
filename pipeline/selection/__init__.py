"""Selection methods: which images to label, from their gains, minutes and features.

draw              in proportion to gain, with probabilities: Kool et al. 2019, Rosén 1972
best_first        the highest gains
class_stratified  at random, as many for every class: Lüth et al. 2026
class_balanced    the highest gains, each class weighted down by what is chosen of it already: Cai et al. 2021
coreset           the farthest from all that are chosen: Sener and Savarese 2018
badge             k-means++ on gradient embeddings: Ash et al. 2020
clue              the centres of gain-weighted k-means: Prabhu et al. 2021
coverage          those that together cover most gain of the pool, per predicted minute
representative    the same by whole images instead of classes: Wei et al. 2015
drawn_coverage    in proportion to the coverage that they add
learning_curve    those whose labels raise the expected IoU most, on a learning curve for every class
"""

from functools import partial

from pipeline.selection.contract import Budget, Candidates, Choice, Entry, Method, Settings
from pipeline.selection.coverage import coverage, drawn_coverage, representative
from pipeline.selection.distances import badge, clue, coreset
from pipeline.selection.draws import class_stratified, draw
from pipeline.selection.learning import learning_curve
from pipeline.selection.rankings import best_first, class_balanced

__all__ = ["METHODS", "Budget", "Candidates", "Choice", "Entry", "Method", "Settings"]

METHODS: dict[str, Entry] = {
    "draw": Entry(lambda settings: partial(draw, settings=settings), by_gain=True),
    "best_first": Entry(lambda _: best_first, by_gain=True),
    "class_stratified": Entry(lambda _: class_stratified),
    "class_balanced": Entry(lambda _: class_balanced, by_gain=True),
    "coreset": Entry(lambda _: coreset, "features"),
    "badge": Entry(lambda _: badge, "gradient"),
    "clue": Entry(lambda _: clue, "features"),  # weighs by gain, but was studied without a fallback: docs/gain_study.md
    "coverage": Entry(lambda settings: partial(coverage, settings=settings), "by_class", by_gain=True),
    "drawn_coverage": Entry(lambda settings: partial(drawn_coverage, settings=settings), "by_class", by_gain=True),
    "representative": Entry(lambda settings: partial(representative, settings=settings), "features", by_gain=True),
    "learning_curve": Entry(lambda settings: partial(learning_curve, settings=settings), "features"),
}
