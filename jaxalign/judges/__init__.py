"""AI judges that can be trusted, because they are measured.

``jaxalign.judges.local``, which needs a model, is imported as a module; the rest is NumPy.
"""

from jaxalign.judges.aggregate import Combined, combine_verdicts, label_rows
from jaxalign.judges.audit import JudgeAudit, TrustReport, Verdicts
from jaxalign.judges.audit_warnings import trust_warnings
from jaxalign.judges.bias import Favour, self_preference, verbosity_bias
from jaxalign.judges.critique import Revision, critique_and_revise
from jaxalign.judges.endpoint import Endpoint, Reply, ask
from jaxalign.judges.items import Item
from jaxalign.judges.judge import JudgedPair, endpoint_judge, judge_pairs, judge_scores
from jaxalign.judges.pairwise import PairwiseReport, combine_orders, pairwise_report
from jaxalign.judges.panel import JudgingTask, Rater, judge_items
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
from jaxalign.judges.votes import panel_vote, score_expectation, verdict_probability
from jaxalign.stats import Bootstrap

__all__ = [
    "Agreement",
    "Bin",
    "Bootstrap",
    "Calibration",
    "Ceiling",
    "Combined",
    "Endpoint",
    "Favour",
    "Item",
    "JudgeAudit",
    "JudgedPair",
    "JudgedRanking",
    "JudgingTask",
    "PairwiseReport",
    "Principle",
    "Rater",
    "RaterAgreement",
    "Reply",
    "Revision",
    "TrustReport",
    "Verdicts",
    "agreement",
    "annotator_agreement",
    "ask",
    "blind_spots",
    "calibration",
    "combine_orders",
    "combine_verdicts",
    "critique_and_revise",
    "draw_principle",
    "endpoint_judge",
    "human_ceiling",
    "judge_items",
    "judge_pairs",
    "judge_rankings",
    "judge_reward",
    "judge_scorer",
    "judge_scores",
    "label_rows",
    "load_constitution",
    "pairwise_report",
    "panel_vote",
    "parse_ranking",
    "parse_score",
    "parse_verdict",
    "rater_agreement",
    "render",
    "score_expectation",
    "self_preference",
    "trust_warnings",
    "verbosity_bias",
    "verdict_probability",
]
