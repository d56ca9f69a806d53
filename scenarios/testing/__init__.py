"""Tests of scenarios: the conformance kit, which anybody can run on a scenario of theirs."""

from scenarios.testing.case import Case
from scenarios.testing.check import Check
from scenarios.testing.conformance import CHECKS, check_scenario
from scenarios.testing.report import ConformanceError, ConformanceReport, Finding

__all__ = ["CHECKS", "Case", "Check", "ConformanceError", "ConformanceReport", "Finding", "check_scenario"]
