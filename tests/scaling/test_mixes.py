"""Data-mix laws on planted losses: mixes that cross between the small models and the large one."""

import pytest

from min_llm.config import UserError
from min_llm.scaling.mixes import Trained, fit_mixes, ranking, verify
from min_llm.scaling.power import PowerLaw

LAWS = {"web": PowerLaw(8.0, -0.07), "code": PowerLaw(9.5, -0.08), "books": PowerLaw(7.8, -0.06)}
SIZES = (10**5, 3 * 10**5, 10**6)
LARGE = 10**9


def planted(laws=LAWS, sizes=SIZES):
    return [Trained(mix, n, law(n)) for n in sizes for mix, law in laws.items()]


def test_the_order_at_a_larger_size_is_predicted():
    """ "code" is worse than "web" in every small model and better in the large one."""
    small = {mix: law(SIZES[-1]) for mix, law in LAWS.items()}
    assert min(small, key=small.get) == "web"
    laws = fit_mixes(planted())
    for mix, law in LAWS.items():
        assert laws[mix].exponent == pytest.approx(law.exponent) and laws[mix].r2 == pytest.approx(1)
    assert [mix for mix, _ in ranking(laws, LARGE)] == ["code", "web", "books"]
    assert dict(ranking(laws, LARGE)) == pytest.approx({mix: law(LARGE) for mix, law in LAWS.items()})
    verdict = verify(laws, LARGE, {mix: law(LARGE) for mix, law in LAWS.items()})
    assert verdict.predicted == verdict.measured == ("code", "web", "books") and verdict.swapped == ()
    assert verdict.errors == pytest.approx(dict.fromkeys(LAWS, 0), abs=1e-9)


def test_a_miss_is_reported():
    laws = fit_mixes(planted())
    measured = {mix: law(LARGE) for mix, law in LAWS.items()} | {"web": 1.0}
    verdict = verify(laws, LARGE, measured)
    assert verdict.measured == ("web", "code", "books") and verdict.swapped == (("code", "web"),)
    assert verdict.errors["web"] == pytest.approx(LAWS["web"](LARGE) - 1)


def test_mixes_that_cannot_be_compared_are_refused():
    with pytest.raises(UserError, match="'code' was trained at 2 of 3 sizes"):
        fit_mixes([run for run in planted() if (run.mix, run.parameters) != ("code", 10**6)])
    with pytest.raises(UserError, match="2 of 2 sizes; every mix needs the same three"):
        fit_mixes(planted(sizes=SIZES[:2]))
    with pytest.raises(UserError, match="Measured are the mixes web, predicted books, code, web"):
        verify(fit_mixes(planted()), LARGE, {"web": 2.0})
