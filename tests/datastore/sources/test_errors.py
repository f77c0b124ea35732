"""Reasons why a dataset could not be read."""

import time

import pytest

from rebase.datastore.sources import HubSource, failure_reason


def test_offline_is_unreachable_not_malformed(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("nothing to wait for"))
    with pytest.raises(Exception, match=r"[Oo]ffline") as error:
        HubSource("owner/name", None, None).fingerprint()
    assert failure_reason(error.value) == "unreachable"
    assert failure_reason(ValueError("bad row")) == "malformed"
    assert failure_reason(PermissionError(13, "no")) == "unreadable"
    assert failure_reason(MemoryError()) == "too_large"
