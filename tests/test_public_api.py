"""The public surface: what `import ckptdoctor` offers is documented, loads lazily, and is offered once."""

import inspect
import re
from pathlib import Path

import pytest

import ckptdoctor

ROOT = Path(__file__).parents[1]
PUBLIC = [name for name in ckptdoctor.__all__ if not name.startswith("__")]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    thing = getattr(ckptdoctor, name)
    assert inspect.getdoc(thing), f"{name} has no docstring"
    assert name in dir(ckptdoctor)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    reference = (ROOT / "docs" / "api.md").read_text()
    assert re.search(rf"^#+ .*`(class )?{name}\b", reference, re.MULTILINE), (
        f"docs/api.md does not describe {name}"
    )


def test_the_reference_names_nothing_that_is_not_public() -> None:
    reference = (ROOT / "docs" / "api.md").read_text()
    described = re.findall(r"^#+ .*`(?:class )?(\w+)", reference, re.MULTILINE)
    assert set(described) == set(PUBLIC)


def test_every_public_name_is_offered_once() -> None:
    assert len(set(ckptdoctor.__all__)) == len(ckptdoctor.__all__)
    things = [getattr(ckptdoctor, name) for name in PUBLIC]
    assert len({id(thing) for thing in things}) == len(things)


def test_functions_have_annotated_signatures() -> None:
    for name in PUBLIC:
        thing = getattr(ckptdoctor, name)
        if inspect.isfunction(thing):
            signature = inspect.signature(thing)
            bare = [p.name for p in signature.parameters.values() if p.annotation is inspect.Parameter.empty]
            assert not bare, f"{name}({', '.join(bare)}) without annotations"
            assert signature.return_annotation is not inspect.Signature.empty, name


def test_public_methods_are_documented() -> None:
    silent = []
    for name in PUBLIC:
        thing = getattr(ckptdoctor, name)
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            for method, value in vars(thing).items():
                if not method.startswith("_") and callable(value) and not inspect.getdoc(value):
                    silent.append(f"{name}.{method}")
    assert not silent


def test_errors_form_one_tree() -> None:
    from ckptdoctor import errors

    raised = [e for e in vars(errors).values() if inspect.isclass(e) and issubclass(e, BaseException)]
    assert len(raised) > 5
    assert all(issubclass(e, ckptdoctor.CkptDoctorError) and inspect.getdoc(e) for e in raised)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        ckptdoctor.no_such_name  # noqa: B018  # asking for it is what raises
