"""Settings of the documentation: `sphinx-build -n -W --keep-going docs DIR` builds it into DIR."""

from __future__ import annotations

import abc
import ast
import enum
import inspect
import io
import sys
import textwrap
import tokenize
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

project = "jaxtrader"
author = "The jaxtrader authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]

html_theme = "furo"
html_title = "jaxtrader"
html_show_copyright = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the outputs are committed, and tests/test_examples.py runs the cells

default_role = "code"  # docstrings write `name` as Markdown does
autodoc_default_options = {"members": True, "exclude-members": "replace", "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the comments give shapes, which say more than `Array`

# Other libraries have no page here, and a build asks no network where theirs are. autodoc also
# takes the quoted annotations of `Literal["a", "b"]` and `dict[str, X]` apart at the comma.
nitpick_ignore_regex = [
    (r"py:.*", r"(jax|jnp|flax|optax|np|numpy|pd|pandas|pa|pyarrow|torch|tyro|rich|gymnasium)\b.*"),
    (r"py:.*", rf"({'|'.join(sys.stdlib_module_names)})\..*"),
    (r"py:.*", r"(.*\[.*|Path|ArrayTree|Positional|(.*\.)?(StateT|ParamsT|ArrayT))"),
    (r"py:exc", r".*"),
]

_PROSE = ("attribute", "data", "property")  # what documents itself in a sentence
_originals: dict[str, list[str]] = {}


def before_napoleon(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Adds the fields of a class, and keeps prose from being taken for types.

    Napoleon reads `Returns: rows: one an episode` as a value of type "rows".
    """
    if what in _PROSE:
        _originals[name] = lines[:]
        return
    if "Returns:" in lines:
        start = lines.index("Returns:")
        end = next((i for i in range(start + 1, len(lines)) if lines[i][:1].strip()), len(lines))
        said = textwrap.dedent("\n".join(lines[start + 1 : end])).strip().splitlines()
        lines[start:end] = [f":returns: {said[0]}", *(f"    {line}" for line in said[1:]), ""]
    if inspect.isclass(obj) and ("__dataclass_fields__" in vars(obj) or issubclass(obj, enum.Enum)):
        lines += ["", "Attributes:", *(f"    {n}: {said}" for n, said in _fields(obj)), ""]


def after_napoleon(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Puts prose back as it was."""
    if what in _PROSE:
        lines[:] = _originals.pop(name)


def _fields(cls: type) -> list[tuple[str, str]]:
    """Fields or members of a class with their comments and defaults.

    The comments stand beside the fields (or above them) for whoever reads the code.
    """
    source = textwrap.dedent(inspect.getsource(cls))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    above = {row: text for (row, column), text in comments.items() if column == 4}
    beside = {row: text for (row, column), text in comments.items() if column > 4}
    [definition] = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    fields = []
    for node in definition.body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.Assign):
            target = node.targets[0]
        if not isinstance(target, ast.Name) or target.id.startswith("_"):
            continue
        said = [beside.get(node.end_lineno or node.lineno, "")]
        row = node.lineno - 1
        while row in above:
            said.insert(0, above[row])
            row -= 1
        text = " ".join(said).strip()
        if isinstance(node, ast.Assign):
            text = f"``{ast.unparse(node.value)}`` {text}"
        elif node.value is not None:
            text += f"; default ``{ast.unparse(node.value)}``" if text else ""
        fields.append((target.id, text.replace("|", "\\|")))
    return fields


class Table(SphinxDirective, abc.ABC):
    """A table of what the code registers, so that none has to be kept."""

    @abc.abstractmethod
    def rows(self) -> list[tuple[str, ...]]:
        """The heads, and a row for each thing."""

    def run(self) -> list[nodes.Node]:
        lines = [".. list-table::", "   :header-rows: 1", ""]
        for row in self.rows():
            lines += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(row)]
        return self.parse_text_to_nodes("\n".join(lines))


class FeatureTable(Table):
    """Every registered feature, by its own docstring."""

    def rows(self) -> list[tuple[str, ...]]:
        from jaxtrader.data.features import FEATURE_NAMES, FEATURES

        rows = [("feature", "group", "by default", "warm-up, bars of 1Hour", "series", "formula")]
        for name, each in FEATURES.items():
            default = "yes" if name in FEATURE_NAMES else ""
            warm_up, series = str(each.warm_up("1Hour")), ", ".join(each.macro)
            formula = each.formula.replace("*", "\\*")
            rows.append((f"``{name}``", each.group, default, warm_up, series, formula))
        return rows


class ReleaseTable(Table):
    """Every series of the economy whose days of publication are known."""

    def rows(self) -> list[tuple[str, ...]]:
        from jaxtrader.data.macro import RELEASES

        rows = [("series", "what", "published after, days", "by", "out of date after, days")]
        for name, each in RELEASES.items():
            days = (str(each.days), each.source, str(each.patience))
            rows.append((f"``{name}``", each.what, *days))
        return rows


def setup(app: Sphinx) -> None:
    """Goes around napoleon, and adds the tables."""
    app.add_directive("feature-table", FeatureTable)
    app.add_directive("release-table", ReleaseTable)
    app.connect("autodoc-process-docstring", before_napoleon, priority=100)
    app.connect("autodoc-process-docstring", after_napoleon, priority=900)
