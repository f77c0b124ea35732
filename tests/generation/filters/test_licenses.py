from pathlib import Path

import pytest
import yaml

from rebase.generation.filters.licenses import license_allowed, reject_license
from rebase.parameters import LicensePolicy
from tests.generation.filters.rows import row

PROJECT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("license", "allow", "deny", "unknown", "allowed"),
    [
        ("MIT", ["*"], [], "deny", True),
        ("mit", ["MIT"], [], "deny", True),
        ("CC-BY-NC-4.0", ["*"], ["*-nc-*"], "allow", False),
        ("CC BY-NC 4.0", ["*"], ["*-nc-*"], "allow", False),
        ("cc_by_nc_4.0", ["*"], ["*-nc-*"], "allow", False),
        ("cc-by-4.0", ["*"], ["*-nc-*"], "deny", True),
        ("CC-BY-NC-4.0", ["cc-by-nc-4.0"], ["*-nc-*"], "allow", False),  # deny wins
        ("gpl-3.0", ["mit", "apache-*"], [], "allow", False),
        ("apache-2.0; mit", ["mit", "apache-*"], [], "deny", True),
        ("mit; cc-by-nc-4.0", ["*"], ["*-nc-*"], "allow", False),
        ("unknown", ["*"], [], "deny", False),
        ("unknown", ["mit"], [], "allow", True),
        ("mit; unknown", ["*"], [], "deny", False),
        ("other", ["*"], [], "deny", False),
        ("NOASSERTION", ["*"], [], "deny", False),
        ("", ["*"], [], "deny", False),
        (" ; ()", ["*"], [], "deny", False),
        ("MIT OR CC-BY-NC-4.0", ["*"], ["*-nc-*"], "allow", True),  # one may choose
        ("CC BY-NC 4.0 or later", ["*"], ["*-nc-*"], "allow", False),  # nothing else
        ("GPL-2.0 or any later version", ["gpl-2.0*"], [], "deny", True),
        ("MIT AND CC-BY-NC-4.0", ["*"], ["*-nc-*"], "allow", False),
        ("(MIT OR GPL-3.0) AND CC-BY-4.0", ["mit", "cc-by-4.0"], [], "allow", False),
        ("CC-BY-SA-3.0+GPL-3.0", ["cc-*"], [], "allow", False),
        ("CC-BY-SA-3.0+GPL-3.0", ["cc-*", "gpl-*"], [], "allow", True),
        ("GPL-2.0+", ["gpl-2.0+"], [], "allow", True),
        ("Apache-2.0 (repo), PSF-2.0 (docs)", ["apache-2.0*"], [], "allow", False),
        ("other", ["*"], ["other"], "allow", False),
        ("", ["mit"], [], "allow", True),
        (" ; ", ["*"], [], "deny", False),
        ("cc-by-nc/mit", ["*"], ["*-nc"], "allow", False),
        ("mit|cc-by-nc", ["*"], ["*-nc"], "allow", False),
        ("mit & cc-by-nc", ["*"], ["*-nc"], "allow", False),
        ("cc-by-nc: research only", ["*"], ["*-nc"], "allow", False),
        ("CC-BY-NC.", ["*"], ["*-nc"], "allow", False),
        ("CC\u2011BY\u2013NC\u22124.0", ["*"], ["*-nc-*"], "allow", False),
        ("\uff23\uff23 BY-NC 4.0", ["*"], ["*-nc-*"], "allow", False),
        ("Apache-2.0/MIT.", ["apache-2.0", "mit"], [], "deny", True),
        ("N/A", ["*"], [], "deny", False),
        ("other; cc-by-nc-4.0", ["*"], ["*-nc-*"], "allow", False),
    ],
)
def test_license_policy(license, allow, deny, unknown, allowed):
    policy = LicensePolicy(allow=allow, deny=deny, unknown=unknown)
    assert license_allowed(license, policy) is allowed
    rejection = reject_license(row("x", license=license), policy)
    assert (rejection is None) is allowed
    assert rejection is None or rejection.detail == license


@pytest.mark.parametrize(
    ("license", "allowed"),
    [
        *[(name, False) for name in ("cc-by-nc-4.0", "cc-by-nc", "CC-BY-NC4.0", "cc-by-nc-sa-3.0", "CC BY ND 4.0")],
        *[(name, True) for name in ("ncsa", "cc-by-4.0", "cc-by-sa-4.0", "odc-by", "bsd-3-clause", "unknown")],
    ],
)
def test_the_default_policy_rejects_every_spelling_of_noncommercial_and_no_derivatives(license, allowed):
    parameters = yaml.safe_load((PROJECT / "conf/base/parameters_retrieve.yml").read_text(encoding="utf-8"))
    assert license_allowed(license, LicensePolicy(**parameters["retrieve"]["licenses"])) is allowed
