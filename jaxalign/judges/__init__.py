"""AI judges that can be trusted, because they are measured.

``jaxalign.judges.local``, which needs a model, is imported as a module; the rest is NumPy.
"""

from jaxalign.judges.bias import Favour, self_preference, verbosity_bias
from jaxalign.judges.endpoint import Endpoint, Reply, ask
from jaxalign.judges.judge import JudgedPair, endpoint_judge, judge_pairs, judge_scores
from jaxalign.judges.label import Labelled, Revision, critique_and_revise, preference_rows
from jaxalign.judges.pairwise import PairwiseReport, combine_orders, pairwise_report
from jaxalign.judges.prompts import Principle, draw_principle, load_constitution, render
from jaxalign.judges.ranking import JudgedRanking, judge_rankings, parse_ranking
from jaxalign.judges.raters import (
    Agreement,
    Ceiling,
    RaterAgreement,
    agreement,
    annotator_agreement,
    blind_spots,
    human_ceiling,
    rater_agreement,
)
from jaxalign.judges.reliability import Bin, Calibration, calibration
from jaxalign.judges.rewards import judge_reward, judge_scorer
from jaxalign.judges.verdict import parse_score, parse_verdict
from jaxalign.judges.votes import SoftLabels, panel_vote, score_expectation, soft_labels, verdict_probability
from jaxalign.judges.warn import trust_warnings
from jaxalign.stats import Bootstrap

__all__ = [
    "Agreement",
    "Bin",
    "Bootstrap",
    "Calibration",
    "Ceiling",
    "Endpoint",
    "Favour",
    "JudgedPair",
    "JudgedRanking",
    "Labelled",
    "PairwiseReport",
    "Principle",
    "RaterAgreement",
    "Reply",
    "Revision",
    "SoftLabels",
    "agreement",
    "annotator_agreement",
    "ask",
    "blind_spots",
    "calibration",
    "combine_orders",
    "critique_and_revise",
    "draw_principle",
    "endpoint_judge",
    "human_ceiling",
    "judge_pairs",
    "judge_rankings",
    "judge_reward",
    "judge_scorer",
    "judge_scores",
    "load_constitution",
    "pairwise_report",
    "panel_vote",
    "parse_ranking",
    "parse_score",
    "parse_verdict",
    "preference_rows",
    "rater_agreement",
    "render",
    "score_expectation",
    "self_preference",
    "soft_labels",
    "trust_warnings",
    "verbosity_bias",
    "verdict_probability",
]
