"""Choose the hyperparameters that are ``auto``, and find out from validation losses whether the rate was too high."""

from collections.abc import Sequence

from rebase.errors import RebaseError

#: The most weights of a student, and its learning rate with LoRA on all linear layers. From 1e9 on: QLoRA
#: (arXiv 2305.14314, table 9; up to 13B, and above). Below: the embedded 135M student learns best at the first rate,
#: and 0.5B students do not learn at it.
_RATES = ((2e8, 1e-3), (1e9, 3e-4), (2e10, 2e-4), (float("inf"), 1e-4))
#: A rate of so many times the one that suits a student's size is often too high for it to learn anything: 0.5B students
#: do not learn at the rate of the embedded 135M student, 3.3 times theirs.
_FAR_ABOVE = 3
#: AdamW moves a weight by about the learning rate in each step, so steps times rate says how far training can go: in
#: the main job, 0.06 is better than 0.03 and 0.09, with three seeds (docs/results.md). Lower rates and fewer examples
#: need more epochs to get as far: common recipes train too few steps on small sets (arXiv 2006.05987). No more than 3:
#: few examples have no validation loss that would show that the student memorizes.
_REACH, _MOST_EPOCHS = 0.05, 3
#: Examples of a step: half of the published run's 8, and all of them from this many examples on. LoRA tolerates large
#: steps less than full fine-tuning does ("LoRA primer", tinker-docs.thinkingmachines.ai).
_STEP, _LARGE_STEP, _ENOUGH_FOR_LARGE_STEPS = 4, 8, 1000
#: LoRA learns as well as full fine-tuning while its adapter has at least as many weights as the completions have tokens
#: (the same primer). Most sets need less than the least rank.
_RANKS = (16, 32, 64, 128, 256)
#: LoRA's scale for a rank: the published run has 16 for 8.
ALPHA_OF_RANK = 2
#: Validation loss that rises by more than this share above that of an earlier epoch is no noise.
_RISE = 0.05


class DivergedError(RebaseError):
    """The training loss is not finite."""


def choose_learning_rate(weights: int) -> float:
    """The learning rate of a student with this many weights."""
    return next(rate for most, rate in _RATES if weights < most)


def is_far_above(learning_rate: float, chosen_rate: float) -> bool:
    """Whether a learning rate is so far above the chosen one that the student may learn nothing."""
    return round(learning_rate / chosen_rate, 6) >= _FAR_ABOVE


def choose_step(examples: int) -> int:
    """How many of this many examples one step of the optimizer uses."""
    return _LARGE_STEP if examples >= _ENOUGH_FOR_LARGE_STEPS else _STEP


def choose_rank(widths: int, targets: int) -> int:
    """The rank of an adapter for completions of ``targets`` tokens; it has ``rank * widths`` weights."""
    return next((rank for rank in _RANKS if rank * widths >= targets), _RANKS[-1])


def choose_epochs(steps: int, learning_rate: float) -> int:
    """How many epochs of this many steps to train at this learning rate."""
    return min(_MOST_EPOCHS, max(1, round(_REACH / (steps * learning_rate))))


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
