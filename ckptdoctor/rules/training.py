"""CKD6xx: optimizer state and what else a training status holds. Found by `training/`, explained here."""

from __future__ import annotations

from ckptdoctor.rules.base import Example
from ckptdoctor.rules.file import FileRule

FINE = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),)


def shown(code: str) -> tuple[Example, ...]:
    """A file whose reader found this."""
    return (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}, diagnostics=((code, "warning"),)),)


class OptimizerGroups(FileRule):
    """The parameter groups of the saved optimizer are not those of the model or of the optimizer at hand.

    What it means
        Another number of parameters or of groups: layers were frozen, a head was replaced, weight decay is
        split in another way.

    Why it matters
        ``torch.optim`` compares only how many groups and how many parameters there are, and maps state by
        position. Which hyperparameters a new group should get cannot be known when the saved ones differ.

    What to do
        Resume with ``auto_resume``, which carries state by name. ``param-groups=optimizer`` keeps the
        hyperparameters of the optimizer at hand.
    """

    code, name, severity = "CKD601", "optimizer-groups", "error"
    VALID, INVALID = FINE, shown("CKD601")


class OptimizerShape(FileRule):
    """Saved optimizer state has another shape than its parameter.

    What it means
        Moments and weights are not of the same network, or not in the same order.

    Why it matters
        ``torch.optim`` loads them without a word. The next step fails, or (fused kernels) reads past the end
        of the moments, or computes nonsense.

    What to do
        Resume with ``auto_resume``; if the state really is foreign, begin without it:
        ``decisions=["drop-state=**"]``.
    """

    code, name, severity = "CKD602", "optimizer-shape", "error"
    VALID, INVALID = FINE, shown("CKD602")


class OptimizerOrphan(FileRule):
    """There are moments without a parameter, or parameters without moments.

    What it means
        Parameters were frozen, added or removed between saving and loading.

    Why it matters
        By position every later parameter gets the state of another one.

    What to do
        Say which begin without state: ``decisions=["drop-state=backbone.**"]``.
    """

    code, name, severity = "CKD603", "optimizer-orphan", "error"
    VALID, INVALID = FINE, shown("CKD603")


class OptimizerDtype(FileRule):
    """Optimizer state has another dtype than its parameters.

    What it means
        The parameters became smaller since it was saved (float32 to bfloat16), or the optimizer keeps its
        state in float32 beside parameters of half precision.

    Why it matters
        ``torch.optim`` casts state to the parameter's dtype and so rounds it without a word.

    What to do
        ``auto_resume`` keeps state as the optimizer had it, and asks before it rounds:
        ``decisions=["state-dtype=round"]``.
    """

    code, name, severity = "CKD604", "optimizer-dtype", "error"
    VALID, INVALID = FINE, shown("CKD604")


class OptimizerDevice(FileRule):
    """Optimizer state was saved on another device than its parameters.

    What it means
        The file remembers, say, ``cuda:1`` for moments and ``cpu`` for weights.

    Why it matters
        ``torch.load`` without ``map_location`` puts them back there; a step over two devices fails.

    What to do
        Nothing with ``auto_resume``: state goes where its parameter is. With torch alone:
        ``map_location="cpu"``, and make the optimizer after ``model.to(device)``.
    """

    code, name, severity = "CKD605", "optimizer-device", "note"
    VALID, INVALID = FINE, shown("CKD605")


class OptimizerStep(FileRule):
    """Parameters of one optimizer were stepped different numbers of times.

    What it means
        Some were frozen for a time, or state of two runs was put together.

    Why it matters
        Adam's bias correction follows the count. Where parameters are joined into one, there is only one
        count for all of them.

    What to do
        Nothing if it is meant. Where a joined parameter is asked about: ``decisions=["drop-state=KEY"]``.
    """

    code, name, severity = "CKD606", "optimizer-step", "note"
    VALID, INVALID = FINE, shown("CKD606")


class OptimizerOrder(FileRule):
    """Which saved moments belong to which parameter is open.

    What it means
        The optimizer was saved without parameter names, and among parameters of one shape the order of the
        state dict and the order of the optimizer at hand disagree, or one of them is not known (safetensors
        files are sorted).

    Why it matters
        ``torch.optim`` would load them by position: moments of one layer in another, and no error.

    What to do
        Say whose order it is: ``decisions=["param-order=checkpoint"]`` or ``["param-order=model"]``. Save
        with ``save_checkpoint``, or give the optimizer ``model.named_parameters()``, and it is never asked.
    """

    code, name, severity = "CKD607", "optimizer-order", "error"
    VALID, INVALID = FINE, shown("CKD607")


class OptimizerNotCarried(FileRule):
    """Optimizer state cannot be carried over to the model at hand.

    What it means
        The state is of another kind of optimizer, or in 8-bit blocks, or the plan computes the parameter
        (a folded norm, a merged LoRA), and the moments of what is computed are no function of the saved ones.

    Why it matters
        Values that look like moments and are none disturb the training for thousands of steps.

    What to do
        Begin these parameters without state: ``decisions=["drop-state=PATTERN"]``.
    """

    code, name, severity = "CKD608", "optimizer-not-carried", "error"
    VALID, INVALID = FINE, shown("CKD608")


class TrainingPart(FileRule):
    """A part of the training status is asked for and not in the checkpoint, or cannot be made from it.

    What it means
        There is no scheduler (scaler, optimizer) state in the file, or it is of another kind, or it holds an
        object of a class that would have to be imported.

    Why it matters
        A run that goes on with a fresh schedule has another learning rate than the one that was interrupted.

    What to do
        Leave it out knowingly (``scheduler=None``), or give the object that fits.
    """

    code, name, severity = "CKD609", "training-part", "error"
    VALID, INVALID = FINE, shown("CKD609")
