"""The chat page in a real browser, against a server whose engine needs no model."""

import contextlib
import json
import math
import re

import pytest

from min_llm.serve.page import PAGE, policy
from tests.serve.browser import CHROMIUM, Failed, browser
from tests.serve.fake import FakeEngine, logprobs
from tests.serve.servers import request, serving, until

SCRIPT = b"""A **bold** word, *leaning* `code` and <b>no tag</b>:

1. one
2. two
   - inner

```python
x = 1 * 2 * 3
```

\xe6\x97\xa5\xe6\x9c\xac"""
ANSWER = "document.querySelector('.assistant .text')"


class Engine(FakeEngine):
    """Remembers what it was asked."""

    def __init__(self, **named) -> None:
        super().__init__(**{"script": SCRIPT, "model_len": 4000} | named)
        self.asked: list = []

    def add(self, prompt, sampling, adapter=None, salt=""):
        self.asked.append((bytes(i for i in prompt if i < 256).decode(), sampling))
        return super().add(prompt, sampling, adapter, salt)


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture
def visit(tab):
    """visit(engine, **settings) gives the running server, with its page open."""
    with contextlib.ExitStack() as stack:

        def start(engine=None, **settings):
            running = stack.enter_context(serving(engine or Engine(), **settings))
            tab.size(1100, 800)
            tab.logged.clear()
            tab.open(running.url)
            if "keys" not in settings:
                tab.until("$('model').value === 'toy'")
            return running

        yield start
        assert tab.logged == []


def send(tab, text):
    tab.run("$('input').focus()")
    tab.type(text)
    tab.press("Enter")


def answered(tab, number=1):
    tab.until(f"!running && document.querySelectorAll('.assistant').length === {number}")


def test_a_conversation(tab, visit):
    engine = Engine()
    running = visit(engine)
    engine.gate.clear()
    tab.run("$('input').focus()")
    tab.type("first")
    tab.press("Enter", shift=True)
    tab.type("<img src=x onerror='document.title=1'>")
    tab.press("Enter")
    tab.until("document.querySelector('.writing') && $('go').ariaLabel === 'Stop'")
    engine.gate.set()
    answered(tab)
    assert tab.run("document.querySelector('.user .text').textContent") == (
        "first\n<img src=x onerror='document.title=1'>"
    )
    assert engine.asked[0][0] == "<user>first\n<img src=x onerror='document.title=1'><a>"
    shape = f"[...{ANSWER}.querySelectorAll('*')].map(e => e.tagName).filter(t => t !== 'SPAN').join(' ')"
    assert tab.run(shape) == "P STRONG EM CODE OL LI LI UL LI DIV DIV BUTTON svg use PRE CODE P"
    words = (
        f"[...{ANSWER}.querySelectorAll('strong, em, p code, pre code, li li, p')].map(e => e.textContent)"
    )
    assert tab.run(words) == [
        "A bold word, leaning code and <b>no tag</b>:",
        "bold", "leaning", "code", "inner", "x = 1 * 2 * 3", "日本",
    ]  # fmt: skip
    facts = tab.run("document.querySelector('.facts').innerText.replaceAll('\u00a0', ' ')")
    assert re.match(
        rf"{len(SCRIPT)} tokens · [\d.]+ tokens/s · .* · prompt {len(engine.asked[0][0].encode())}", facts
    )
    assert tab.run("$('said').textContent").startswith("Answer: A **bold**")

    tab.open(running.url)  # the conversation is still there
    tab.until("$('model').value === 'toy'")
    assert tab.run(words)[0].startswith("A bold word")
    send(tab, "second")
    answered(tab, 2)
    assert engine.asked[1][0] == engine.asked[0][0].replace(
        "<a>", f"<assistant>{SCRIPT.decode()}<user>second<a>"
    )

    tab.click("[...document.querySelectorAll('.small')].find(b => b.textContent === 'Regenerate')")
    until(lambda: len(engine.asked) == 3)
    answered(tab, 2)
    assert engine.asked[2][0] == engine.asked[1][0]
    tab.click("[...document.querySelectorAll('.small')].find(b => b.textContent === 'Edit')")
    assert tab.run("document.activeElement.value") == "second"
    tab.run("document.activeElement.value = 'third'")
    tab.press("Enter")
    until(lambda: len(engine.asked) == 4)
    answered(tab, 2)
    assert engine.asked[3][0] == engine.asked[1][0].replace("second", "third")
    tab.click("$('new')")
    assert tab.run("document.querySelectorAll('article').length") == 0
    assert tab.run("localStorage.getItem('min_llm.chat')") == "[]"


def test_an_answer_appears_as_it_is_written_and_stops(tab, visit):
    engine = Engine(script=b"", pace=0.005)
    visit(engine)
    send(tab, "hello")
    tab.until(f"{ANSWER}?.textContent.length > 10")
    tab.press("Escape")
    answered(tab)
    until(lambda: engine.aborted == [1])
    length = tab.run(f"{ANSWER}.textContent.length")
    assert 10 < length < 3000
    assert tab.run("document.querySelector('.facts').textContent").endswith("stopped")
    send(tab, "more")
    tab.until("running && messages.at(-1).content")
    tab.click("$('go')")
    answered(tab, 2)
    assert f"<assistant>{engine.asked[1][0].split('<assistant>')[1][:length]}<user>more" in engine.asked[1][0]


def test_probabilities_of_a_token(tab, visit):
    engine = Engine()
    visit(engine)
    send(tab, "hello")
    answered(tab)
    place = SCRIPT.index(b"leaning")
    table = logprobs([*b"<user>hello<a>", *SCRIPT[:place]])
    tab.point(f"document.querySelector('.token[data-i=\"{place}\"]')")
    tab.until("!$('tip').hidden")
    rows = tab.run(
        "[...$('tip').querySelectorAll('div')].map(r => [r.firstChild.textContent, r.lastChild.textContent])"
    )
    best = sorted(table)[::-1][:5]
    assert [share for _, share in rows[:5]] == [shown(p) for p in best]
    assert rows[-1] == ["l", shown(table[ord("l")])]
    tab.run("$('settings').elements.shaded.click()")
    colour = "getComputedStyle(document.querySelector('.token:not(.at)')).backgroundColor"
    assert tab.run(colour) != "rgba(0, 0, 0, 0)"
    tab.run("$('settings').elements.shaded.click()")
    assert tab.run(colour) == "rgba(0, 0, 0, 0)"
    tab.run(f"{ANSWER}.focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        tab.press(key)
    assert tab.run("document.querySelector('.token.at').dataset.i") == str(place + 1)
    assert tab.run("$('said').textContent").count("%") >= 5
    tab.press("Escape")
    assert tab.run("$('tip').hidden")


def shown(logprob):
    percent = 100 * math.exp(logprob)
    return "<0.1 %" if percent < 0.1 else f"{percent:.1f} %"


def test_settings_reach_the_engine_and_stay(tab, visit):
    engine = Engine()
    running = visit(engine)
    tab.click("$('fold')")
    tab.type("Be brief.")
    values = {"temperature": 1.25, "top_p": 0.5, "min_p": 0.1, "top_k": 7, "seed": 11, "max_tokens": 5}
    for name, value in values.items():
        tab.run(f"$('settings').elements.{name}.value = {value}; settle()")
    tab.open(running.url)
    tab.until("$('model').value === 'toy'")
    send(tab, "hello")
    answered(tab)
    prompt, sampling = engine.asked[0]
    assert prompt == "<system>Be brief.<user>hello<a>"
    assert {name: getattr(sampling, name) for name in values} == values
    assert "cut\u00a0at" in tab.run("document.querySelector('.facts').textContent")
    tab.run("$('settings').elements.top_k.value = -3")
    send(tab, "more")
    assert tab.run("$('input').value") == "more" and len(engine.asked) == 1  # nothing is sent, nothing lost
    tab.run("$('settings').reset()")
    tab.until("$('settings').elements.temperature.previousElementSibling.textContent === '0.70'")


def test_a_busy_server_is_asked_again(tab, visit):
    engine = Engine(slots=1)
    running = visit(engine, max_queue=1)
    engine.gate.clear()
    asked = {"messages": [{"role": "user", "content": "a"}], "stream": True}
    first = running.raw(request("/v1/chat/completions", asked))
    until(lambda: len(engine.choices) == 1)
    send(tab, "hello")
    tab.until(
        "document.querySelector('.below .facts')?.textContent === 'The server is busy; asking again in 1 s'"
    )
    engine.gate.set()
    answered(tab)
    assert tab.run("messages[1].content") == SCRIPT.decode()
    first.close()
    forgive(tab, "429")


def forgive(tab, expected):
    """Takes what the browser itself says of a failed request out of the log."""
    assert any(expected in line for line in tab.logged)
    tab.logged[:] = [line for line in tab.logged if expected not in line]


def test_errors_are_told_and_can_be_tried_again(tab, visit):
    engine = Engine(pace=0.005)
    running = visit(engine)
    send(tab, "hello")
    tab.until("messages[1]?.content.length > 5")
    engine.fail = 2
    answered(tab)
    assert "injected" in tab.run("document.querySelector('.error').textContent")
    assert tab.run("messages[1].content").startswith("A **b")
    tab.click("document.querySelector('.error button')")
    answered(tab)
    assert tab.run("messages[1].content") == SCRIPT.decode() and not tab.run(
        "document.querySelector('.error')"
    )
    running.server.finish()
    running.server.finish()
    until(lambda: closed(running))
    send(tab, "more")
    answered(tab, 2)
    assert "does not answer" in tab.run("document.querySelector('.error').textContent")
    forgive(tab, "ERR_CONNECTION_REFUSED")


def closed(running):
    try:
        running.raw().close()
    except OSError:
        return True
    return False


def test_a_key_is_asked_for_and_kept_in_the_tab(tab, visit):
    visit(keys=["secret"])
    tab.until("$('door').open")
    tab.type("wrong")
    tab.press("Enter")
    tab.until("$('door').open && $('door').querySelector('input').value === ''")
    tab.type("secret")
    tab.press("Enter")
    tab.until("$('model').value === 'toy'")
    send(tab, "hello")
    answered(tab)
    assert tab.run("messages[1].content") == SCRIPT.decode()
    assert tab.run("JSON.stringify(sessionStorage)") == json.dumps(
        {"min_llm.key": '"secret"'}, separators=(",", ":")
    )
    assert "secret" not in tab.run("JSON.stringify(localStorage)")
    tab.run("sessionStorage.clear()")
    forgive(tab, "401")


def test_events_in_any_pieces(tab, visit):
    visit()
    text = 'data: {"a": "日本"}\r\n\r\n: ping\n\ndata: one\ndata: two\n\ndata: [DONE]\n\n'
    read = """async (size) => {
        const bytes = new TextEncoder().encode(TEXT), found = [];
        const body = new ReadableStream({ start(to) {
            for (let i = 0; i < bytes.length; i += size) to.enqueue(bytes.slice(i, i + size));
            to.close();
        } });
        for await (const data of events({ body })) found.push(data);
        return found;
    }""".replace("TEXT", json.dumps(text))
    for size in (1, 2, 3, 5, 1000):
        assert tab.run(f"({read})({size})") == ['{"a": "日本"}', "one\ntwo", "[DONE]"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a * b * c and snake_case_name", "P:a * b * c and snake_case_name"),
        ("**open and `open", "P:**open and `open"),
        ("## Title\ntext\nmore", "H4:Title P:text\nmore"),
        ("```\n# no title\n* no list", "PRE:# no title\n* no list"),
        ("- a\n\n- b\n  - c\n- d", "UL:abcd LI:a LI:bc UL:c LI:c LI:d"),
        ("3. c\n4. d\n\ntext", "OL:cd LI:c LI:d P:text"),
        ("> said\n\n---\n\nend", "BLOCKQUOTE:said HR: P:end"),
        ("`` a`b `` and ***both***", "P: a`b  and both"),
        ("<script>1</script>", "P:<script>1</script>"),
    ],
)
def test_markdown(tab, visit, text, shown):
    if tab.run("typeof write") != "function":
        visit()
    script = f"""(() => {{
        const home = el("div"), message = {{ content: "" }}, all = {json.dumps(text)};
        for (const letter of all) {{ message.content += letter; write(home, message); }}  // as it streams
        const whole = el("div");
        write(whole, {{ content: all, tokens: [...all].map((letter) => [letter, 0, []]) }});
        if (whole.textContent !== home.textContent) throw new Error(home.textContent);
        const tags = "p, h4, pre, ul, ol, li, blockquote, hr";
        return [...whole.querySelectorAll(tags)].map((e) => `${{e.tagName}}:${{e.textContent}}`).join(" ");
    }})()"""
    assert tab.run(script) == shown


def test_themes_and_a_phone(tab, visit, tmp_path):
    visit()
    send(tab, "hello " + "long" * 60)
    answered(tab)
    background = "getComputedStyle(document.body).backgroundColor"
    light = tab.run(background)
    tab.click("$('theme')")
    dark = tab.run(background)
    assert brightness(light) > 200 > 60 > brightness(dark)
    tab.open(tab.run("location.href"))
    assert tab.run(background) == dark
    for width in (360, 390):
        tab.size(width, 740, phone=True)
        assert tab.run("document.documentElement.scrollWidth") == width
        assert tab.run(
            "[...document.querySelectorAll('#log *')].every(e => e.getBoundingClientRect().right <= innerWidth)"
        )
    tab.click("$('fold')")
    panel = "$('panel').getBoundingClientRect()"
    assert tab.run(f"{panel}.right === innerWidth && {panel}.width < 340")
    (tmp_path / "phone.png").write_bytes(picture := tab.screenshot())
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
    tab.press("Escape")
    assert tab.run("$('panel').hidden")
    tab.run("localStorage.clear()")


def brightness(colour):
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


def test_everything_has_a_name_and_a_place_in_the_order(tab, visit):
    visit()
    send(tab, "hello")
    answered(tab)
    tab.run("fold(true)")
    tree = tab.send("Accessibility.getFullAXTree")["nodes"]
    controls = [
        n
        for n in tree
        if n.get("role", {}).get("value")
        in ("button", "textbox", "slider", "spinbutton", "combobox", "checkbox")
    ]
    assert len(controls) > 12
    assert [n for n in controls if not n.get("name", {}).get("value")] == []
    tab.run("fold(false)")


def test_nothing_comes_from_outside_and_no_text_becomes_html(tab, visit):
    running = visit()
    text = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert running.client.get("/").headers["content-security-policy"] == policy(text)
    with pytest.raises(Failed, match="TrustedHTML"):
        tab.run("document.body.innerHTML = '<b>x</b>'")
    with pytest.raises(Failed, match="Failed to fetch"):
        tab.run(f"fetch('http://localhost:{running.port}/v1/models')")
    tab.logged.clear()  # the browser tells of both


def test_the_page_is_served_without_a_browser():
    with serving() as running:
        reply = running.client.get("/")
        assert reply.status_code == 200 and "<title>" in reply.text
        assert "'unsafe" not in reply.headers["content-security-policy"]
