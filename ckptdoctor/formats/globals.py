"""Which names in a pickle are harmless, and which are known from attacks.

Reading never imports or calls any of them; this is about what would happen under
``torch.load(..., weights_only=False)``.
"""

from __future__ import annotations

HARMLESS = frozenset({
    "argparse.Namespace", "types.SimpleNamespace", "_codecs.encode", "copyreg._reconstructor",
    "copy_reg._reconstructor", "copyreg.__newobj__", "typing.Any", "enum.Enum", "decimal.Decimal",
    "fractions.Fraction", "uuid.UUID", "collections.OrderedDict", "collections.defaultdict",
    "collections.Counter", "collections.deque",
    "datetime.datetime", "datetime.date", "datetime.time", "datetime.timedelta", "datetime.timezone",
    "pathlib.Path", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePath",
    "pathlib.PurePosixPath", "pathlib.PureWindowsPath", "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "numpy.dtype", "numpy.ndarray",
    "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar",
    "numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer",
    "torch.Size", "torch.Tensor", "torch.device", "torch.Generator", "torch.serialization._get_layout",
    "torch.torch_version.TorchVersion", "torch.distributed._tensor.api.DTensor",
    "pytorch_lightning.utilities.parsing.AttributeDict", "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict", "lightning.fabric.utilities.data.AttributeDict",
    "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.base.Metadata",
    "omegaconf.base.ContainerMetadata", "omegaconf.nodes.AnyNode", "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.StringNode", "omegaconf.nodes.FloatNode", "omegaconf.nodes.BooleanNode",
    "easydict.EasyDict", "addict.addict.Dict", "yacs.config.CfgNode", "fvcore.common.config.CfgNode",
})  # fmt: skip

BUILTIN_TYPES = frozenset({
    "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "long",
    "object", "range", "set", "slice", "str", "tuple", "unicode", "xrange",
})  # fmt: skip

# Modules whose classes and functions make tensors, modules and optimizers, and nothing else.
HARMLESS_MODULES = (
    "torch._utils", "torch._tensor", "torch.tensor", "torch.storage", "torch.cuda", "torch.autograd",
    "torch.nn.parameter", "torch.nn.modules", "torch.nn.utils", "torch.nn.parallel", "torch.optim",
    "torch.jit._pickle", "__torch__", "numpy.dtypes",
)  # fmt: skip

DANGEROUS = frozenset({
    "_ctypes", "_pickle", "aiohttp", "asyncio", "bdb", "cProfile", "cloudpickle", "code", "codeop",
    "commands", "ctypes", "dill", "doctest", "ensurepip", "ftplib", "http", "httplib", "idlelib",
    "imp", "importlib", "marshal", "multiprocessing", "nt", "os", "pdb", "pickle", "pip", "posix",
    "profile", "pty", "requests", "runpy", "shelve", "shutil", "signal", "site", "smtplib", "socket",
    "subprocess", "sys", "telnetlib", "tempfile", "test", "timeit", "trace", "urllib", "urllib2",
    "venv", "webbrowser", "xmlrpc", "zipimport",
})  # fmt: skip
DANGEROUS_NAMES = frozenset({
    "operator.attrgetter", "operator.methodcaller", "_operator.attrgetter", "_operator.methodcaller",
    "functools.reduce", "types.CodeType", "types.FunctionType", "torch.load", "torch.hub.load",
    "torch.serialization.load", "torch.jit.load", "torch.utils.cpp_extension.load",
    "torch.jit.unsupported_tensor_ops.execWrapper", "torch._inductor.codecache.compile_file",
    "numpy.testing._private.utils.runstring", "numpy.load", "io.open", "io.FileIO", "_io.open",
    "_io.FileIO", "logging.config.listen", "torch.storage._load_from_bytes",
})  # fmt: skip
DANGEROUS_BUILTINS = frozenset({
    "__import__", "apply", "breakpoint", "compile", "delattr", "eval", "exec", "execfile", "file",
    "getattr", "globals", "input", "open", "setattr", "vars",
})  # fmt: skip


def is_dangerous(module: str, name: str) -> bool:
    """Known as a way to run code or to reach files, processes or the network."""
    if module in ("builtins", "__builtin__", "__builtins__"):
        return name.partition(".")[0] in DANGEROUS_BUILTINS
    return module.partition(".")[0] in DANGEROUS or f"{module}.{name}" in DANGEROUS_NAMES


def is_harmless(module: str, name: str) -> bool:
    """On the short list of what checkpoints are made of."""
    if is_dangerous(module, name):
        return False
    if module in ("builtins", "__builtin__"):
        return name in BUILTIN_TYPES
    if f"{module}.{name}" in HARMLESS:
        return True
    if module.startswith(HARMLESS_MODULES) and any(
        module == m or module.startswith(m + ".") for m in HARMLESS_MODULES
    ):
        return True
    return (module == "torch" and (name[:1].islower() or name.endswith("Storage")) and name.islower()) or (
        module == "torch" and name.endswith("Storage")
    )
