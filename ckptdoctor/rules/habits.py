"""CKD8xx: habits that hurt later. Found by ``ckptdoctor lint``, explained here."""

from __future__ import annotations

from ckptdoctor.rules.file import FileRule
from ckptdoctor.rules.training import FINE, shown


class WrappedKeys(FileRule):
    """The keys hold the names of wrappers: ``module.``, ``_orig_mod.`` and the like.

    What it means
        ``state_dict()`` of a wrapped model was saved (DataParallel, DistributedDataParallel, torch.compile).

    Why it matters
        Only a model that is wrapped the same way takes them.

    What to do
        ``ckptdoctor repair CKPT --lint-fix -o OUT``. Save with ``save_checkpoint``, or the inner module's
        ``state_dict()``.
    """

    code, name, severity = "CKD801", "wrapped-keys", "warning"
    VALID, INVALID = FINE, shown("CKD801")


class OptimizerInside(FileRule):
    """The file holds an optimizer's state beside the weights.

    What it means
        It is a training status, made to go on from.

    Why it matters
        Whoever only uses the weights downloads two or three times their size.

    What to do
        ``ckptdoctor strip CKPT -o OUT`` for a release; keep the file for training.
    """

    code, name, severity = "CKD802", "optimizer-inside", "note"
    VALID, INVALID = FINE, shown("CKD802")


class NonContiguous(FileRule):
    """Tensors were saved with strides of a transposed or otherwise permuted view.

    What it means
        ``weight.t()`` or ``permute`` without ``.contiguous()``, or channels-last memory.

    Why it matters
        safetensors refuses them, and code that views them as flat sees another order.

    What to do
        ``ckptdoctor repair CKPT --lint-fix -o OUT``.
    """

    code, name, severity = "CKD803", "non-contiguous", "note"
    VALID, INVALID = FINE, shown("CKD803")


class Float64Inside(FileRule):
    """Tensors are float64 among others of less.

    What it means
        They came from numpy, which makes float64 by default.

    Why it matters
        Twice the size, and a model of float64 where it is loaded with ``assign=True``.

    What to do
        ``ckptdoctor repair MODEL CKPT -o OUT`` casts to the dtypes of the model and says what is rounded.
    """

    code, name, severity = "CKD804", "double-precision", "note"
    VALID, INVALID = FINE, shown("CKD804")


class PrivateMetadata(FileRule):
    """Entries tell of the machine or the person that wrote the file.

    What it means
        Absolute paths, user names, host names: from ``vars(args)``, a configuration, a logger.

    Why it matters
        They mean nothing elsewhere, and are public with the file.

    What to do
        ``ckptdoctor repair CKPT --lint-fix -o OUT`` keeps the last part of each path; ``ckptdoctor strip``
        keeps the weights alone.
    """

    code, name, severity = "CKD805", "private-metadata", "warning"
    VALID, INVALID = FINE, shown("CKD805")


class NoMetadata(FileRule):
    """The state dict lost its ``_metadata``.

    What it means
        It was rebuilt by a dict comprehension, or went through a format that has no place for it.

    Why it matters
        Modules convert values of old versions when they load; without the version they take all for old.

    What to do
        ``ckptdoctor repair CKPT --lint-fix -o OUT`` records what the tensors prove.
    """

    code, name, severity = "CKD806", "no-metadata", "note"
    VALID, INVALID = FINE, shown("CKD806")


class AveragesApart(FileRule):
    """The file holds averaged weights (EMA) beside the trained ones, and how far they are apart.

    What it means
        Two sets of weights of one network: ``lint --deep`` compares their values.

    Why it matters
        Both load without an error, and give other results.

    What to do
        Choose: ``--choose ema`` to use the network, ``--choose raw`` to go on training.
    """

    code, name, severity = "CKD807", "averages-apart", "note"
    VALID, INVALID = FINE, shown("CKD807")
