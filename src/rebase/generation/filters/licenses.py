"""Reject rows by the license of their dataset.

Dataset cards write licenses freely ("Apache-2.0 (repo), PSF-2.0 (docs)", "CC BY-NC 4.0"). A strict SPDX parser such as
``license-expression`` rejects most of these, and brackets are read here as a warning: every license in them must pass.
"""

import re
import unicodedata

from rebase.generation.filters.base import Candidate, Rejection, find_pattern
from rebase.parameters import LicensePolicy

_UNKNOWN = {"unknown", "other", "none", "noassertion", "na", "unspecified"}
# "GPL-3.0 or later" is one license.
_OR = re.compile(r"\s+or\s+(?!(?:any\s+)?(?:later|newer|above)\b)")
_AND = re.compile(r"\s+and\s+|[;,/|&:]|\+(?=\s*\w)")
_SPACE = re.compile(r"[\s_]+")
_DASH = re.compile("[\u2010-\u2015\u2212]")


def license_allowed(license: str, policy: LicensePolicy) -> bool:
    """Whether the policy allows a license.

    All of several licenses (between one of ``;,/|&:+`` or ``AND``) must be allowed, or one alternative of a choice
    (``OR``). With brackets all must be allowed.
    """

    def allowed(part: str) -> bool:
        if find_pattern(part, policy.deny):
            return False
        return policy.unknown == "allow" if part in _UNKNOWN else bool(find_pattern(part, policy.allow))

    def all_allowed(alternative: str) -> bool:
        return all(map(allowed, _names(alternative) or ["unknown"]))

    text = _normalize(license)
    if re.search(r"[()]", text):
        return all_allowed(_OR.sub(";", re.sub(r"[()]", " ", text)))
    return any(map(all_allowed, _OR.split(text)))


def license_names(license: str) -> list[str]:
    """All licenses that a text names, as patterns are compared with them."""
    parts = re.split(r"[()]", _normalize(license))
    return [name for part in parts for alternative in _OR.split(part) for name in _names(alternative)]


def reject_license(row: Candidate, policy: LicensePolicy) -> Rejection | None:
    """Reject a row of a dataset whose license the policy does not allow."""
    return None if license_allowed(row.license, policy) else Rejection("license", row.license)


def _normalize(license: str) -> str:
    return _DASH.sub("-", unicodedata.normalize("NFKC", license).casefold()).replace("n/a", "na")


def _names(alternative: str) -> list[str]:
    parts = (part.strip(" \t\n.") for part in _AND.split(alternative))
    # "CC BY-NC 4.0" is a common spelling of cc-by-nc-4.0.
    return [_SPACE.sub("-", part) for part in parts if part]
