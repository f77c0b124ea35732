"""Reject rows by the license of their dataset.

Dataset cards write licenses freely ("Apache-2.0 (repo), PSF-2.0 (docs)", "CC BY-NC 4.0"). A strict SPDX parser such as
``license-expression`` rejects most of these, and brackets are read here as a warning: every license in them must pass.
"""

import re

from rebase.generation.filters.base import Candidate, Rejection, find_pattern
from rebase.parameters import LicensePolicy

_UNKNOWN = {"unknown", "other", "none", "noassertion", "n/a", "unspecified"}
_OR = re.compile(r"\s+or\s+")
_AND = re.compile(r"\s+and\s+|[;,]|\+(?=\s*\w)")
_SPACE = re.compile(r"[\s_]+")


def license_allowed(license: str, policy: LicensePolicy) -> bool:
    """Whether the policy allows a license.

    All of several licenses (``;``, ``,``, ``+``, ``AND``) must be allowed, or one alternative of a choice (``OR``).
    With brackets all must be allowed.
    """

    def allowed(part: str) -> bool:
        if find_pattern(part, policy.deny):
            return False
        return policy.unknown == "allow" if part in _UNKNOWN else bool(find_pattern(part, policy.allow))

    def all_allowed(alternative: str) -> bool:
        # "CC BY-NC 4.0" is a common spelling of cc-by-nc-4.0.
        parts = [_SPACE.sub("-", part.strip()) for part in _AND.split(alternative) if part.strip()]
        return all(map(allowed, parts or ["unknown"]))

    text = re.sub(r"[()]", " ", license.casefold())
    if text != license.casefold():
        return all_allowed(_OR.sub(";", text))
    return any(map(all_allowed, _OR.split(text)))


def reject_license(row: Candidate, policy: LicensePolicy) -> Rejection | None:
    """Reject a row of a dataset whose license the policy does not allow."""
    return None if license_allowed(row.license, policy) else Rejection("license", row.license)
