"""Plans as programs and mappings, for people without ckptdoctor: ``plan --format python`` and others."""

from __future__ import annotations

from ckptdoctor.errors import PlanError
from ckptdoctor.plan.expand import expand
from ckptdoctor.plan.export.moves import only_names, sort_moves
from ckptdoctor.plan.export.program import hook, script
from ckptdoctor.plan.export.regexes import mmengine, transformers
from ckptdoctor.plan.marks import tree_mark
from ckptdoctor.plan.model import Plan
from ckptdoctor.trees import ParamTree

FORMS = ("python", "hook", "mmengine", "transformers")


def export(plan: Plan, source: ParamTree, target: ParamTree, form: str) -> str:
    """The plan in another form, which does exactly the same or is refused.

    ``python`` is a script and ``hook`` a module for a model's source; both need torch only and refuse every
    checkpoint that the plan was not made for. ``mmengine`` and ``transformers`` are tables of renames. Raises
    :class:`PlanError` when the form cannot say what the plan does.
    """
    moves = sort_moves(expand(plan, source, target), source, target)
    before, after = tree_mark(source.specs), tree_mark(target.specs)
    if target.extra:
        raise PlanError(
            f"the model has extra state that is no tensor ({min(target.extra)!a}); use the plan itself"
        )
    if form == "python":
        return script(moves, before, after, plan.source.state_dict)
    if form == "hook" and not plan.step:
        raise PlanError("the checkpoint loads as it is, so a hook would have nothing to do")
    if form == "hook":
        return hook(moves, before, after)
    plain = only_names(moves, form)
    return (mmengine if form == "mmengine" else transformers)(plain, plan.source.state_dict)
