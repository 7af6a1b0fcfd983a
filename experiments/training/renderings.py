"""Python files written as other kinds of text, by the standard library alone and without importing them.

A rendering is a function of a file's name and source. None of them depends on when or where it runs, but what the
compiler and the parser give (`bytecode`, `syntax_tree`) changes with Python's version.
"""

import ast
import dis
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import escape

from experiments.training.corpus import MAX_EXCERPT_SHARE, Document, sample

Rendering = Callable[[str, str], str]
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of a code object: another one in every process


def rendered_sample(documents: list[Document], rendering: Rendering, num_bytes: int) -> tuple[bytes, list[str]]:
    """experiments.training.corpus.sample of the documents as `rendering` writes them, of no more than it needs.

    Raises ValueError naming a file that this version of Python cannot read.
    """
    rendered: list[Document] = []
    remaining = num_bytes
    for document in sorted(documents, key=lambda document: document.hash):
        if remaining <= 0:
            break
        try:
            content = rendering(document.name, document.content.decode()).encode()
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{document.name} is no Python source to render: {error}") from error
        rendered.append(replace(document, content=content))
        remaining -= min(len(content), int(num_bytes * MAX_EXCERPT_SHARE))
    return sample(rendered, num_bytes)


def python(name: str, source: str) -> str:
    """The file as it is."""
    return source


def html_page(name: str, source: str) -> str:
    """A page of the module's documentation: a heading and a paragraph for each class and function."""
    module = ast.parse(source)
    title = escape(name)
    head = f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<title>{title}</title>\n</head>\n<body>\n<h1>{title}</h1>\n'
    return f"{head}{paragraph(module)}{''.join(html_sections(module, '', 2))}</body>\n</html>\n"


def html_sections(parent: ast.Module | Definition, prefix: str, level: int) -> Iterator[str]:
    for node in definitions(parent):
        anchor = f"{prefix}{node.name}"
        yield f'<h{level} id="{anchor}"><code>{escape(signature(node))}</code></h{level}>\n{paragraph(node)}'
        if isinstance(node, ast.ClassDef):
            yield from html_sections(node, f"{anchor}.", level + 1)


def paragraph(node: ast.Module | Definition) -> str:
    text = ast.get_docstring(node)
    return f"<p>{escape(text)}</p>\n" if text else ""


def json_outline(name: str, source: str) -> str:
    """The module's classes and functions, with their lines, arguments and the first line of their docstrings."""
    module = ast.parse(source)
    outline = {"module": name, "num_lines": source.count("\n"), "definitions": [*map(outlined, definitions(module))]}
    return json.dumps(outline, indent=1) + "\n"


def outlined(node: Definition) -> dict[str, object]:
    text = ast.get_docstring(node)
    entry = {
        "name": node.name,
        "type": "class" if isinstance(node, ast.ClassDef) else "function",
        "first_line": node.lineno,
        "last_line": node.end_lineno,
        "summary": text.partition("\n")[0] if text else None,
    }
    if isinstance(node, ast.ClassDef):
        return entry | {"bases": [*map(ast.unparse, node.bases)], "methods": [*map(outlined, definitions(node))]}
    return entry | {"arguments": [argument.arg for argument in node.args.posonlyargs + node.args.args]}


def bytecode(name: str, source: str) -> str:
    """What `python -m dis` prints, without the addresses of code objects."""
    listing = io.StringIO()
    dis.dis(compile(source, name, "exec", dont_inherit=True), file=listing)
    return ADDRESS.sub("", listing.getvalue())


def syntax_tree(name: str, source: str) -> str:
    """What `python -m ast` prints, indented by one space per level."""
    return ast.dump(ast.parse(source), indent=1) + "\n"


def definitions(parent: ast.Module | Definition) -> list[Definition]:
    return [node for node in parent.body if isinstance(node, Definition)]


def signature(node: Definition) -> str:
    inner = ", ".join(map(ast.unparse, node.bases)) if isinstance(node, ast.ClassDef) else ast.unparse(node.args)
    return f"{node.name}({inner})"
