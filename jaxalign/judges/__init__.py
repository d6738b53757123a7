"""AI judges that can be trusted, because they are measured.

``jaxalign.judges.local``, which needs a model, is imported as a module; the rest is NumPy.
"""

from jaxalign.judges.aggregate import Combined as Combined
from jaxalign.judges.aggregate import combine_verdicts as combine_verdicts
from jaxalign.judges.aggregate import label_rows as label_rows
from jaxalign.judges.aggregate import panel_vote as panel_vote
from jaxalign.judges.audit import JudgeAudit as JudgeAudit
from jaxalign.judges.audit import TrustReport as TrustReport
from jaxalign.judges.audit import Verdicts as Verdicts
from jaxalign.judges.audit_warnings import trust_warnings as trust_warnings
from jaxalign.judges.bias import Favour as Favour
from jaxalign.judges.bias import self_preference as self_preference
from jaxalign.judges.bias import verbosity_bias as verbosity_bias
from jaxalign.judges.endpoint import Endpoint as Endpoint
from jaxalign.judges.endpoint import Reply as Reply
from jaxalign.judges.endpoint import ask as ask
from jaxalign.judges.items import Item as Item
from jaxalign.judges.judge import JudgedPair as JudgedPair
from jaxalign.judges.judge import JudgedRanking as JudgedRanking
from jaxalign.judges.judge import endpoint_judge as endpoint_judge
from jaxalign.judges.judge import judge_pairs as judge_pairs
from jaxalign.judges.judge import judge_rankings as judge_rankings
from jaxalign.judges.judge import judge_scores as judge_scores
from jaxalign.judges.pairwise import PairwiseReport as PairwiseReport
from jaxalign.judges.pairwise import combine_orders as combine_orders
from jaxalign.judges.pairwise import pairwise_report as pairwise_report
from jaxalign.judges.panel import JudgingTask as JudgingTask
from jaxalign.judges.panel import Rater as Rater
from jaxalign.judges.panel import judge_items as judge_items
from jaxalign.judges.prompts import Principle as Principle
from jaxalign.judges.prompts import draw_principle as draw_principle
from jaxalign.judges.prompts import load_constitution as load_constitution
from jaxalign.judges.prompts import render as render
from jaxalign.judges.raters import Agreement as Agreement
from jaxalign.judges.raters import Ceiling as Ceiling
from jaxalign.judges.raters import RaterAgreement as RaterAgreement
from jaxalign.judges.raters import agreement as agreement
from jaxalign.judges.raters import annotator_agreement as annotator_agreement
from jaxalign.judges.raters import blind_spots as blind_spots
from jaxalign.judges.raters import human_ceiling as human_ceiling
from jaxalign.judges.raters import rater_agreement as rater_agreement
from jaxalign.judges.reliability import Bin as Bin
from jaxalign.judges.reliability import Calibration as Calibration
from jaxalign.judges.reliability import calibration as calibration
from jaxalign.judges.revise import Revision as Revision
from jaxalign.judges.revise import critique_and_revise as critique_and_revise
from jaxalign.judges.rewards import judge_reward as judge_reward
from jaxalign.judges.rewards import judge_scorer as judge_scorer
from jaxalign.judges.verdict import parse_ranking as parse_ranking
from jaxalign.judges.verdict import parse_score as parse_score
from jaxalign.judges.verdict import parse_verdict as parse_verdict
from jaxalign.judges.verdict import score_expectation as score_expectation
from jaxalign.judges.verdict import verdict_probability as verdict_probability
from jaxalign.stats import Bootstrap as Bootstrap
