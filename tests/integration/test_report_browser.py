"""report.html in a real browser: it shows everything, asks the network for nothing, and holds together from a phone to a wide screen."""

import json
import math
import re
import subprocess
from html import escape, unescape
from pathlib import Path

import pytest

from zhlm.config.schema import RunConfig
from zhlm.evaluate.report import render

ROOT = Path(__file__).parents[2]
WIDTHS = (360, 620, 1200, 1900)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    "--no-default-browser-check",
    "--hide-scrollbars",
]
PROBE = """
<!doctype html><meta charset="utf-8"><body>%s<pre id="found"></pre><script>
const box = e => e.getBoundingClientRect();
const touch = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, all = (s, inside = page) => [...inside.querySelectorAll(s)];
    const clashes = all(".plot").flatMap(plot => {
      const labels = all("span", plot);
      return labels.flatMap((a, i) => labels.slice(i + 1).filter(b => touch(box(a), box(b))).map(b => a.innerText + " / " + b.innerText));
    });
    return {
      width: frame.clientWidth, page_width: page.documentElement.scrollWidth, clashes, text: page.body.innerText,
      outside: all("span, p, h1, h2, h3, dd, figcaption, svg").filter(e => !e.closest(".scroll") && box(e).right > frame.clientWidth + 1)
        .map(e => e.outerHTML.slice(0, 80)),
      cut: all(".end i").filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.innerText),
      curves: all("svg.curves polyline").map(e => [box(e).width, box(e).height]),
      bars: all("svg.bar rect").map(e => box(e).width),
    };
  });
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""


@pytest.fixture(scope="module")
def browser():
    answer = subprocess.run([ROOT / "scripts" / "browser"], capture_output=True, text=True, timeout=110)
    if answer.returncode:
        pytest.skip(answer.stderr.strip())
    return answer.stdout.strip()


def run_config(name="sample", own_text=False):
    start = "data" if own_text else "sample://corpus"
    streams = [
        {"name": "en", "paths": [f"{start}/en.txt"], "role": "old", "weight": 0.25},
        {"name": "zh", "paths": [f"{start}/zh.jsonl"], "role": "new", "weight": 0.75},
    ]
    data = {"name": name, "base": {"model": "somewhere/a-base"}, "streams": streams, "train": {"steps": 400}}
    if not own_text:
        data["sample"] = {"corpus": {}}
    return RunConfig.model_validate(data)


def results(entropy=None, alerts=()):
    def score(value, tokens):
        return {"bits_per_byte": value, "bits_per_character": value * 2, "documents": 200, "tokens": tokens}

    return {
        "base": {"en": score(0.7413, 31822), "zh": score(4.6127, 88211)},
        "adapted": {"en": score(0.7529, 31901), "zh": score(0.8118, 24110)},
        "entropy_bits_per_byte": entropy,
        "generations": [
            {
                "prompt": "今天早上，",
                "base": "\ufffd<script>console.error('run')</script><img src=x>",
                "adapted": "王小明去图书馆看了两本书。" * 4,
            },
            {"prompt": "In the evening ", "base": "they & we met.", "adapted": "Anna went home."},
        ],
        "alerts": list(alerts),
    }


def metrics(steps=400, every=5):
    rows = []
    for step in range(0, steps + 1, every):
        fall = math.exp(-8 * step / steps)
        row = {
            "step": step,
            "loss_nats": 1 + 4 * fall + 0.1 * math.sin(step),
            "tokens": 16384 * step,
            "tokens_per_s": 5000 + 300 * math.sin(step),
        }
        row |= {"learning_rate": 3e-4 * (1 - step / steps), "grad_norm": 0.5 + fall, "seconds": step, "workers": 2}
        if step * 8 % steps == 0:
            row["validation"] = {"zh": {"bits_per_byte": 0.8 + 3.5 * fall}, "en": {"bits_per_byte": 0.75 - 0.01 * fall}}
        rows.append(json.dumps(row))
    return "\n".join(rows)


REPORTS = {
    "sample": lambda: render(run_config(), results({"en": 0.7021, "zh": 0.7640}), metrics()),
    "long": lambda: render(
        run_config("wenzhong-gpt2-110m_lora_zero2_a100-80g_with.a.long.name", own_text=True),
        results(alerts=["Forgetting: en rose from 0.741 to 0.853 bits per byte (+15.0%), more than the 5% allowed."]),
        metrics(120_000, 500),
    ),
    "no_metrics": lambda: render(run_config(own_text=True), results(), ""),
}


def open_page(browser, folder, page):
    """The page's DOM after loading, the console's lines and the addresses that the page, not the browser itself, asked for."""
    net_log = folder / "net.json"
    command = [
        browser,
        *FLAGS,
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={net_log}",
    ]
    command += ["--enable-logging=stderr", "--window-size=2000,1200", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    starts = [e.get("params", {}) for e in json.loads(net_log.read_text())["events"]]
    asked = [p["url"] for p in starts if p.get("initiator") == "null"]
    return done.stdout, console, asked


def test_the_check_sees_console_errors_and_requests(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text('<script>console.error("boom")</script><img src="http://example.invalid/a.png">')
    _, console, asked = open_page(browser, tmp_path, page)
    assert "boom" in console[0]
    assert asked == ["http://example.invalid/a.png"]


@pytest.mark.parametrize("kind", REPORTS)
def test_nothing_is_fetched_or_run_and_no_error_is_logged(browser, tmp_path, kind):
    page = tmp_path / "report.html"
    page.write_text(REPORTS[kind](), encoding="utf-8")
    dom, console, asked = open_page(browser, tmp_path, page)
    assert console == []
    assert asked == []
    assert "<script" not in dom
    assert "<img" not in dom


@pytest.mark.parametrize("kind", REPORTS)
def test_the_layout_holds_at_every_width(browser, tmp_path, kind):
    page = tmp_path / "probe.html"
    frame = escape(REPORTS[kind]())
    page.write_text(
        PROBE % "".join(f'<iframe style="border:0;width:{w}px;height:900px" srcdoc="{frame}"></iframe>' for w in WIDTHS), encoding="utf-8"
    )
    dom, console, _ = open_page(browser, tmp_path, page)
    assert console == []
    found = json.loads(unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.S).group(1)))
    assert [f["width"] for f in found] == list(WIDTHS)
    for seen in found:
        assert seen["page_width"] <= seen["width"]
        assert seen["outside"] == []
        assert seen["clashes"] == []
        assert seen["cut"] == []
        assert all(width > 20 for width in seen["bars"]) and len(seen["bars"]) == 4
        for number in ("4.613", "0.812", "0.741", "0.753", "88,211", "24,110", "王小明", "Anna went home."):
            assert number in seen["text"]
        assert ("entropy 0.764" in seen["text"]) == (kind == "sample")
        assert ("Forgetting" in seen["text"]) == (kind == "long")
        if kind != "no_metrics":
            assert len(seen["curves"]) == 7  # two streams; the loss, raw and smoothed; rate, norm, speed
            assert all(width > 90 and height > 0 for width, height in seen["curves"])
