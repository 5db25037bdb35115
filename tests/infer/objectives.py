"""Objectives with the arguments of Trace_ELBO, for tests that compare them."""

from pyro.infer import TraceEnum_ELBO

from pyro_ext.infer import MultiSampleELBO


def multi_sample(num_particles, vectorize_particles, max_plate_nesting):
    """The bound of one particle, averaged over as many."""
    return MultiSampleELBO(1, num_outer=num_particles, max_plate_nesting=max_plate_nesting)


def enum(**kwargs):
    """Without its warning that nothing is enumerated."""
    return TraceEnum_ELBO(strict_enumeration_warning=False, **kwargs)
