"""Conformance kit: does a distribution or a transform keep the contract of the library?"""

from pyro_ext.testing.case import ConformanceError
from pyro_ext.testing.distribution import DISTRIBUTION_CLAUSES, check_distribution
from pyro_ext.testing.transform import TRANSFORM_CLAUSES, check_transform

__all__ = [
    "DISTRIBUTION_CLAUSES",
    "TRANSFORM_CLAUSES",
    "ConformanceError",
    "check_distribution",
    "check_transform",
]
