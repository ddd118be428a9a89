"""HTML and Markdown into text: what is kept to the byte, what goes, and pages that are no pages."""

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from min_llm.data.curate import html, markdown, tags
from min_llm.data.curate.document import Document, Drop
from min_llm.data.curate.extract import Extract

CODE = "def f(x):\n    # a comment, *not* emphasis\n\treturn {'a': x < 2}  &&  x[0](1)\n\n\nprint(f(1))\n"
ESCAPED = CODE.replace("&", "&amp;").replace("<", "&lt;")
PAGE = f"""<!DOCTYPE html><html class="has-sidebar"><head><title>A page | Site</title><style>p {{ x: y }}</style></head>
<body><!-- <p>a comment</p> -->
<div class="navbar"><ul><li><a href="/">Home</a></li><li><a href="/a">All articles</a></li></ul></div>
<nav>Where you are: <a href="/x">Somewhere</a></nav>
<main>
<h1>On finches<a class="headerlink" href="#top">¶</a></h1>
<p>The <b>beaks</b> of finches
   vary&nbsp;with what they eat, as <a href="/darwin">Darwin</a> saw in **1835**.<br>Drawings show it:
   <img src="f.png" alt="Four finches' heads"><img src="spacer.gif" alt="">.</p>
<pre><code class="python"><span class="k">{ESCAPED[:4]}</span>{ESCAPED[4:]}</code></pre>
<p>Call <code>__init__(self, *args)</code> first. The mean is <math alttext="\\bar{{x}}"><mi>x</mi></math>, and
<span class="katex"><math><semantics><mi>y</mi><annotation encoding="application/x-tex">y^2_i</annotation></semantics>
</math><span class="katex-html">y2</span></span> its square;
<script type="math/tex; mode=display">\\int_0^1 *f*</script></p>
<ul><li>Seeds<li>Insects</ul>
<table><tr><th>Bird<th>Size<tr><td>Small<td>1 cm</table>
<h2>See also</h2><ul><li><a href="/1">One thing to read</a></li><li><a href="/2">Another thing</a></li></ul>
<script>if (a < b) document.write("<p>no</p>")</script>
</main>
<aside>Buy seeds now!</aside>
<div id="cookie-consent">We value your privacy.</div>
<footer>© 2024 Site. <a href="/legal">Legal</a></footer></body></html>"""

TEXT = f"""On finches

The beaks of finches vary with what they eat, as Darwin saw in 1835.
Drawings show it: Four finches' heads .

{CODE}

Call __init__(self, *args) first. The mean is $\\bar{{x}}$, and $y^2_i$ its square; $$\\int_0^1 *f*$$

Seeds
Insects

Bird\tSize
Small\t1 cm"""


def test_a_page():
    assert html.extract(PAGE) == TEXT


def test_code_is_kept_to_the_byte():
    assert CODE in html.extract(PAGE)
    assert html.extract(f"<p>Some text.</p><pre>\n{ESCAPED}</pre>") == f"Some text.\n\n{CODE}"


def test_presentation_mathml_keeps_its_characters():
    page = "<p>So <math><mi>a</mi> <mo>+</mo> <mn>1</mn></math> it is, as we all know.</p>"
    assert html.extract(page) == "So a+1 it is, as we all know."


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        (r'<span class="math">\(a_i * b_i * c_i\)</span>', r"\(a_i * b_i * c_i\)"),  # Sphinx, pandoc
        (r'<img class="tex" alt="\frac{a_1}{b_1} *x* y">', r"$\frac{a_1}{b_1} *x* y$"),
        (r'<img class="mathjax-img equation" alt="$a_1*b*$">', "$a_1*b*$"),
        (
            r'<math><semantics><mi>y</mi><annotation encoding="LaTeX">y_1*z*</annotation></semantics></math>',
            "$y_1*z*$",
        ),
        ('<math><mi>y</mi><annotation-xml encoding="MathML-Content"><ci>y</ci></annotation-xml></math>', "y"),
        # MathJax 2 draws it and keeps the TeX, MathJax 3 hides MathML beside the drawing
        ('<span class="MathJax"><nobr>y2</nobr></span><script type="math/tex">y_1^2</script>', "$y_1^2$"),
        (
            '<mjx-container class="MathJax"><mjx-math></mjx-math><mjx-assistive-mml><math><mi>y</mi><mn>2</mn></math>'
            "</mjx-assistive-mml></mjx-container>",
            "y2",
        ),
        # Wikipedia: MathML with TeX, and an image for those who cannot show it
        (
            r'<span style="display: none"><math alttext="x^{2}"><mi>x</mi></math></span>'
            r'<img class="mwe-math-fallback-image-inline" alt="x^{2}">',
            "$x^{2}$",
        ),
    ],
)
def test_formulas_are_kept_once(formula, text):
    rest = "as all of us know from the lessons that we had."
    assert html.extract(f"<p>So {formula} is it, {rest}</p>") == f"So {text} is it, {rest}"


def test_classes_are_not_believed_when_little_is_left():
    page = "<div class='sidebar-content'><p>All of the text of this page is in here.</p></div><p>Hm.</p>"
    assert "All of the text" in html.extract(page)


def test_places_to_link_to_are_no_links():
    page = "<a name='top'><h1>Old page</h1><p>Its text is all inside of an anchor that is never closed.</p>"
    assert html.extract(page) == "Old page\n\nIts text is all inside of an anchor that is never closed."


@pytest.mark.parametrize(
    "page",
    [
        "<p>one <p>two",
        "<div><p>one</div></p></div><p>two",
        "<p>one</p></nav></aside><p>two</p>",
        "<p title='a > b'>one</p><p data-x=\"<p>\">two",
        "<p>one</p><!-- open <p>gone</p>--><p>two</p>",
        "<p>one</p><![CDATA[x]]><!x><?php y ?></ p><p>two</p>",
    ],
)
def test_broken_markup(page):
    assert html.extract(page).split() == ["one", "two"]


def test_unclosed_things_at_the_end_are_not_text():
    for end in ("<!-- x", "<p title='x", '<p title="x', "<p x", "<script>x", "</p x", "<!x"):
        assert html.extract("<p>one</p>" + end) == "one", end
    assert html.extract("<p>1 < 2 <3, a<b") == "1 < 2 <3, a"  # <b is a tag that never ends


@given(st.text(alphabet="<>/=\"'!-? apndvscriptmh&;#x1\n"))
def test_any_page_has_a_text(page):
    html.extract(page)
    joined = "".join(token for token in tags.tokens(page) if isinstance(token, str))
    assert tags.END not in joined or tags.END in page


@pytest.mark.parametrize(
    "piece",
    [
        "<a ",
        "<b>x<p></p>",
        "<a href=x>y<p>",
        "<a b='",
        "<!--",
        '<p title="',
        "<script>",
        "</",
        "<",
        "<p>",
        "&",
    ],
)
def test_hostile_pages_take_linear_time(piece):
    """100,000 repetitions: a quadratic parser would take minutes."""
    began = time.perf_counter()
    html.extract(piece * 100_000)
    assert time.perf_counter() - began < 30


INSTALLED = [
    path
    for pattern in ("*/html/*.html", "nodejs/api/[f-p]*.html")
    for path in sorted(Path("/usr/share/doc").glob(pattern))
][:30]


@pytest.mark.skipif(not INSTALLED, reason="no HTML documentation is installed in /usr/share/doc")
def test_installed_documentation_keeps_its_code_to_the_byte():
    import html as stdlib

    blocks = 0
    for path in INSTALLED:
        page = path.read_text(encoding="utf-8", errors="replace")
        text = html.extract(page)
        for inner in re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL):
            if "<button" in inner or "<input" in inner:
                continue
            code = stdlib.unescape(re.sub(r"<[^>]+>", "", inner)).removeprefix("\n")
            if code.strip():
                blocks += 1
                assert code in text, f"{path}: {code[:200]!r}"
        assert (
            not re.search(r"<(?:div|p|a|span)[\s>]", re.sub(r"(?s)<pre.*?</pre>", "", text)) or "&lt;" in page
        )
    assert blocks


NPM = Path("/usr/lib/node_modules/npm")
PAIRS = [
    (page, NPM / "docs" / "content" / page.parent.name / f"{page.stem}.md")
    for page in sorted((NPM / "docs" / "output" / "commands").glob("*.html"))
]


@pytest.mark.skipif(not PAIRS, reason="npm's documentation is not installed")
def test_a_page_and_the_markdown_it_was_made_from_have_the_same_text():
    """npm ships both. What differs: front matter, the table of contents, placeholders."""

    def shingles(text):
        spelled = re.findall(r"\w+", text)
        return {tuple(spelled[i : i + 5]) for i in range(len(spelled))}

    similar = []
    for page, source in PAIRS:
        if source.is_file():
            ours = shingles(html.extract(page.read_text(encoding="utf-8")))
            theirs = shingles(markdown.strip(source.read_text(encoding="utf-8")))
            similar.append(len(ours & theirs) / len(theirs))
    assert len(similar) > 20 and sorted(similar)[len(similar) // 2] >= 0.9, sorted(similar)


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        ("# Title #\n\ntext", "Title\n\ntext"),
        ("Title\n=====\ntext", "Title\ntext"),
        ("a **bold** and *it*, __b__ and _i_, ***both***", "a bold and it, b and i, both"),
        ("[text](http://x.y/(z) 'title') and [ref][1]\n\n[1]: http://x", "text and ref\n"),
        ("![alt *x*](a.png)", "alt x"),
        ("- one\n* two\n  + three\n- [x] done", "one\ntwo\n  three\ndone"),
        ("1. first\n2. second", "1. first\n2. second"),
        ("> quoted\n> > twice", "quoted\ntwice"),
        ("| a | b |\n|---|:-:|\n| 1 | 2 |", "a\tb\n1\t2"),
        ("x\n\n---\n\ny\n***\n", "x\n\n\ny\n"),
        ("`a*b*c` and ``x ` y``", "a*b*c and x ` y"),
        ("snake_case_name, 2 * 3 * 4, a*b", "snake_case_name, 2 * 3 * 4, a*b"),
        (r"\*not emphasis\*", "*not emphasis*"),
        (r"a \* b, *x\*y*", "a * b, x*y"),
        (
            r"*so* $a_1 \_ *b*$ and $$x_i_j$$, \(p_*q_*\), $5 and *6* $",
            r"so $a_1 \_ *b*$ and $$x_i_j$$, \(p_*q_*\), $5 and 6 $",
        ),
        ("~~gone~~", "gone"),
        ("```py\n# *kept* [a](b)\n\n```\nafter *it*", "# *kept* [a](b)\n\nafter it"),
        ("text\n\n    # code *x*\n\nmore", "text\n\n    # code *x*\n\nmore"),
    ],
)
def test_markdown(marked, plain):
    assert markdown.strip(marked) == plain


@given(st.text(alphabet="#*_[]()`>-|~= \\\nab"))
def test_any_markdown_has_a_text(text):
    assert len(markdown.strip(text)) <= len(text)


@pytest.mark.parametrize("piece", ["*a", "_", "**a ", "[", "![a](", "`a``", "__a ", "[a](b", "\\*"])
def test_hostile_markdown_ends(piece):
    began = time.perf_counter()
    markdown.strip(piece * 3000)
    assert time.perf_counter() - began < 30


def test_the_step_leaves_other_texts_alone():
    python, page = Document("a.py", CODE), Document("x", PAGE)
    readme = Document("README.md", "# *Title*"), Document("x", "# *Title*")
    kept, text, stripped, same = Extract()([python, page, *readme])
    assert kept is python and text.text == TEXT and stripped.text == "Title" and same is readme[1]
    (drop,) = Extract()([Document("x", "<html><body><nav>Home</nav><script>1</script></body></html>")])
    assert isinstance(drop, Drop) or drop.text == "Home"  # a page of nothing but a menu
    (empty,) = Extract()([Document("x", "<html><body><script>1</script></body></html>")])
    assert empty == Drop("no text in the page", "44 characters of markup")
