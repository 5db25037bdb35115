"""Models and guides that do not fit together."""

from collections.abc import Iterable

from pyro.distributions.util import is_identically_zero

from pyro_ext.infer.enumeration import Site, is_enumerated


def refuse_sequential_enumeration(sites: Iterable[Site]) -> None:
    """Raises if a site is to be enumerated in another way than in parallel."""
    for site in sites:
        if site["infer"].get("enumerate") and not is_enumerated(site):
            raise ValueError(
                f"Site '{site['name']}' asks for enumeration by "
                f"'{site['infer']['enumerate']}', which is not done here. Draw the site in the "
                "guide; MultiSampleELBO also takes infer={'enumerate': 'parallel'}."
            )


def refuse_mismatch(model: list[Site], guide: list[Site]) -> None:
    """Raises if model and guide have not the same latent sites."""
    for site in guide:
        if site["is_observed"] and not site["infer"].get("is_auxiliary"):
            raise ValueError(
                f"Guide site '{site['name']}' is observed, but a guide only draws. Remove it, or "
                "check whether model and guide are swapped."
            )
    needed = {s["name"] for s in model if not s["is_observed"] and not is_enumerated(s)}
    drawn = {s["name"] for s in guide if not s["is_observed"]}
    missing = sorted(needed - drawn)
    if missing:
        raise ValueError(
            f"Model sites {missing} are neither observed nor in the guide, which draws "
            f"{sorted(drawn)}. Draw them in the guide, observe them with obs=, enumerate them with "
            "infer={'enumerate': 'parallel'}, or, if they are computed, use pyro.deterministic."
        )
    auxiliary = {s["name"] for s in guide if s["infer"].get("is_auxiliary")}
    superfluous = sorted(drawn - auxiliary - {s["name"] for s in model})
    if superfluous:
        raise ValueError(
            f"Guide sites {superfluous} are not in the model. If they are auxiliary variables of "
            "the guide, mark them with infer={'is_auxiliary': True}."
        )


def refuse_score_function(guide_sites: Iterable[Site]) -> None:
    """Raises if a site of the guide needs more than a pathwise gradient."""
    for site in guide_sites:
        score = site["score_parts"].score_function
        if not is_identically_zero(score) and score.requires_grad and not is_enumerated(site):
            raise ValueError(
                f"Guide site '{site['name']}' ({type(site['fn']).__name__}) has trainable "
                "parameters but is not reparameterised, so the pathwise gradient of a multi-sample "
                "bound would miss a term. Use gradient=auto or vimco, a reparameterised "
                "distribution, or detach its parameters; the value of the bound is available "
                "under torch.no_grad()."
            )
