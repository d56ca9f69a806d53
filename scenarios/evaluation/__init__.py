"""Evaluation: what a trained model is worth, and how runs compare.

`Evaluate` and `Predict` are scenarios that train nothing: constructors take settings, calls take a model and data.
`Evaluate` gives a `Report`, which writes itself as Markdown, JSON and plots. `run_report` and `compare` read what training
runs left in their directories, those of killed runs as well. `ensemble_report` is the report card of an ensemble.
"""

from scenarios.evaluation.compare import Comparison, Row, compare
from scenarios.evaluation.ensemble_report import EnsembleReport, ensemble_report
from scenarios.evaluation.evaluate import Evaluate
from scenarios.evaluation.predict import Predict
from scenarios.evaluation.report import Report
from scenarios.evaluation.run_report import run_report
from scenarios.evaluation.worst import Example

__all__ = [
    "Comparison",
    "EnsembleReport",
    "Evaluate",
    "Example",
    "Predict",
    "Report",
    "Row",
    "compare",
    "ensemble_report",
    "run_report",
]
