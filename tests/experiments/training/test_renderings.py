"""Renderings to the letter, that the same file is always the same text, and how much is rendered."""

import json

import pytest

from experiments.training.corpus import Document
from experiments.training.renderings import bytecode, html_page, json_outline, python, rendered_sample, syntax_tree

SOURCE = '''"""Shapes & sizes."""

class Square(Shape):
    """Four equal sides."""

    def area(self, scale=1):
        return scale * self.side ** 2

async def draw(shape): ...
'''
HTML = """\
<!DOCTYPE html>
<html lang="en">
<head>
<title>shapes.py</title>
</head>
<body>
<h1>shapes.py</h1>
<p>Shapes &amp; sizes.</p>
<h2 id="Square"><code>Square(Shape)</code></h2>
<p>Four equal sides.</p>
<h3 id="Square.area"><code>area(self, scale=1)</code></h3>
<h2 id="draw"><code>draw(shape)</code></h2>
</body>
</html>
"""


def test_html_page():
    assert html_page("shapes.py", SOURCE) == HTML


def test_json_outline():
    outline = json.loads(json_outline("shapes.py", SOURCE))
    square, draw = outline.pop("definitions")
    assert outline == {"module": "shapes.py", "num_lines": 9}
    (area,) = square.pop("methods")
    place = {"name": "Square", "type": "class", "first_line": 3, "last_line": 7}
    assert square == place | {"summary": "Four equal sides.", "bases": ["Shape"]}
    assert (area["name"], area["arguments"], area["summary"]) == ("area", ["self", "scale"], None)
    assert (draw["name"], draw["type"], draw["first_line"]) == ("draw", "function", 9)


def test_syntax_tree():
    assert syntax_tree("one.py", "x = 1").splitlines()[:5] == [
        *("Module(", " body=[", "  Assign(", "   targets=[", "    Name(id='x', ctx=Store())],"),
    ]


def test_bytecode_is_the_same_in_every_process():
    listing = bytecode("shapes.py", SOURCE)
    assert "Disassembly of <code object area, file" in listing.replace('"', "").replace(" at", "")
    assert "0x" not in listing
    assert listing == bytecode("shapes.py", SOURCE)


def documents(*sources):
    return [Document(f"{index}.py", source.encode(), 0.1 * index) for index, source in enumerate(sources)]


def test_no_more_is_rendered_than_the_sample_needs():
    rendered = []

    def upper(name, source):
        rendered.append(name)
        return source.upper()

    text, names = rendered_sample(documents(*["one line\n" * 9] * 40), upper, 400)
    assert text.startswith(b"\0ONE LINE\n")
    assert 300 < len(text) <= 400
    assert names == rendered[: len(names)]
    assert len(names) <= len(rendered) < 12


def test_python_is_the_file_itself():
    assert rendered_sample(documents("x = 1\n", "y = 2\n"), python, 100) == (b"\0x = 1\n\0y = 2\n", ["0.py", "1.py"])


@pytest.mark.parametrize("rendering", [html_page, json_outline, bytecode, syntax_tree])
def test_what_is_no_python_is_named(rendering):
    with pytest.raises(ValueError, match=r"1\.py is no Python source to render: .*invalid syntax"):
        rendered_sample(documents("x = 1\n", "x = = 1\n"), rendering, 1000)
