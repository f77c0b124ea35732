"""Choose a learning rate by the student's size, and find out from validation losses whether it was too high."""

from collections.abc import Sequence

from rebase.errors import RebaseError

#: The most weights of a student, and its learning rate with LoRA on all linear layers. From 1e9 on: QLoRA
#: (arXiv 2305.14314, table 9; up to 13B, and above). Below: the embedded 135M student learns best at the first rate,
#: and 0.5B students do not learn at it.
_RATES = ((2e8, 1e-3), (1e9, 3e-4), (2e10, 2e-4), (float("inf"), 1e-4))
#: Validation loss that rises by more than this share above that of an earlier epoch is no noise.
_RISE = 0.05


class DivergedError(RebaseError):
    """The training loss is not finite."""


def choose_learning_rate(weights: int) -> float:
    """The learning rate of a student with this many weights."""
    return next(rate for most, rate in _RATES if weights < most)


def find_fault(initial: float, losses: Sequence[float]) -> str | None:
    """What validation losses say against the learning rate; None if nothing.

    ``initial`` is the loss before training, ``losses`` are those after each epoch.
    """
    best = min(losses)
    if best >= initial:
        return f"the validation loss did not fall below the untrained student's ({best:.3f}, before {initial:.3f})"
    if losses[-1] > (1 + _RISE) * best:
        epoch = losses.index(best) + 1
        return (
            f"the student memorizes: the validation loss rose from {best:.3f} after epoch {epoch} to {losses[-1]:.3f}"
        )
    return None
