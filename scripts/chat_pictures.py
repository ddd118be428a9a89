"""Takes docs/images/chat.png and chat-phone.png of a running server: `python -m scripts.chat_pictures URL`.

    min-llm serve smollm2-135m-instruct &
    python -m scripts.chat_pictures http://127.0.0.1:8000

Needs Chromium. The seed is fixed, so the same model on the same machine says the same.
"""

import sys
import tempfile
import time
from pathlib import Path

from tests.serve.browser import browser

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
SECONDS = 120  # for an answer
LIGHT = """
    localStorage.clear(); $('settings').reset(); messages = []; theme('light'); fold(true)
    const set = $('settings').elements
    set.shaded.checked = true; set.temperature.value = 0.3; set.seed.value = 7; set.max_tokens.value = 260
    settle(); draw(); $('input').focus()
"""
DARK = """
    hideTip(); $('new').click(); fold(false); theme('dark')
    $('settings').elements.shaded.checked = false; settle(); $('input').focus()
"""
DOUBTED = """messages[3].tokens.findIndex((t, i) =>
    i > 60 && t[0].startsWith(' ') && t[0].length > 4 && Math.exp(t[1]) < .5 && Math.exp(t[1]) > .1)"""


def main(url: str) -> None:
    with tempfile.TemporaryDirectory() as profile, browser(profile) as page:

        def ask(text: str, messages: int) -> None:
            page.type(text)
            page.press("Enter")
            page.until(f"!running && messages.length == {messages}", SECONDS)

        page.size(1280, 800)
        page.open(url)
        page.until("$('model').value", 20)
        page.run(LIGHT)
        ask("Give me three tips for a good night's sleep.", 2)
        ask("Thank you! Which of them should I try first?", 4)
        page.run("document.activeElement.blur()")
        token = page.run(DOUBTED)  # one that the model was unsure of
        page.point(
            f"[...document.querySelectorAll('.assistant')].at(-1).querySelector('.token[data-i=\"{token}\"]')"
        )
        time.sleep(0.5)
        (IMAGES / "chat.png").write_bytes(page.screenshot())

        page.run(DARK)
        page.send(
            "Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True
        )
        ask("Write a Python function that says if a number is even.", 2)
        page.run("document.activeElement.blur(); $('scroll').scrollTop = 0")
        time.sleep(0.5)
        (IMAGES / "chat-phone.png").write_bytes(page.screenshot())


if __name__ == "__main__":
    main(sys.argv[1])
