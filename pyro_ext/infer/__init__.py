"""Objectives for models and guides."""

from pyro_ext.infer.multi_sample_elbo import MultiSampleELBO

__all__ = ["MultiSampleELBO"]
