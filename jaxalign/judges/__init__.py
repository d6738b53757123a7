"""AI judges that can be trusted, because they are measured."""

from jaxalign.judges.agreement import (
    Agreement,
    Ceiling,
    RaterAgreement,
    agreement,
    blind_spots,
    human_ceiling,
    rater_agreement,
)
from jaxalign.judges.bias import Favour, VerbosityBias, self_preference, verbosity_bias
from jaxalign.judges.bootstrap import Bootstrap
from jaxalign.judges.calibration import Bin, Calibration, calibration
from jaxalign.judges.pairwise import PairwiseReport, combine_orders, pairwise_report
from jaxalign.judges.warn import trust_warnings

__all__ = [
    "Agreement",
    "Bin",
    "Bootstrap",
    "Calibration",
    "Ceiling",
    "Favour",
    "PairwiseReport",
    "RaterAgreement",
    "VerbosityBias",
    "agreement",
    "blind_spots",
    "calibration",
    "combine_orders",
    "human_ceiling",
    "pairwise_report",
    "rater_agreement",
    "self_preference",
    "trust_warnings",
    "verbosity_bias",
]
