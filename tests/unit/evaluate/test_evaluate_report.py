import json
import re
from html.parser import HTMLParser

import pytest

from zhlm.config.schema import RunConfig
from zhlm.evaluate.report import change_text, render

VOID = {"meta", "link"}


def run_config(**changes):
    streams = [
        {"name": "en", "paths": ["en.txt"], "role": "old", "weight": 0.25},
        {"name": "zh", "paths": ["zh.txt"], "role": "new", "weight": 0.75},
    ]
    return RunConfig.model_validate({"name": "a_run", "base": {"model": "org/base"}, "streams": streams, "train": {"steps": 10}} | changes)


def results(**changes):
    def score(value):
        return {"bits_per_byte": value, "bits_per_character": 2 * value, "documents": 20, "tokens": 3456}

    return {
        "base": {"en": score(0.7), "zh": score(4.0)},
        "adapted": {"en": score(0.714), "zh": score(1.0)},
        "entropy_bits_per_byte": None,
        "generations": [],
        "alerts": [],
    } | changes


METRICS = "\n".join(
    json.dumps({"step": s, "loss_nats": 5 - s / 4, "tokens": 100 * s, "tokens_per_s": 50.0, "seconds": 2.0 * s, "workers": 2})
    for s in range(1, 11)
)
VALIDATION = "\n".join(
    json.dumps({"step": s, "validation": {"zh": {"bits_per_byte": 4 - s / 4}, "en": {"bits_per_byte": 0.7}}}) for s in (0, 5, 10)
)


class Balance(HTMLParser):
    """Every element is closed in order, and nothing names an address."""

    def __init__(self, page):
        super().__init__()
        self.open, self.kinds, self.addresses = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.kinds.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "data", "action") and v != "data:,"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("metrics", ["", METRICS, VALIDATION, f"{VALIDATION}\n{METRICS}"])
@pytest.mark.parametrize("entropy", [None, {"zh": 0.9, "en": 0.65}])
def test_the_page_is_whole_and_self_contained(metrics, entropy):
    page = render(run_config(), results(entropy_bits_per_byte=entropy), metrics)
    found = Balance(page)
    assert found.open == [] and found.addresses == []
    assert not {"script", "img", "iframe", "object"} & set(found.kinds)
    assert "http://" not in page and "https://" not in page and "url(" not in page and "@import" not in page
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    assert page.count("<polyline") == 2 * ("validation" in metrics) + 2 * ("loss" in metrics)
    assert page.count('class="level c') == 2 * (entropy is not None and "validation" in metrics)
    assert page == render(run_config(), results(entropy_bits_per_byte=entropy), metrics)


def test_the_first_lines_say_how_it_went():
    page = render(run_config(), results(entropy_bits_per_byte={"zh": 0.9, "en": 0.65}), METRICS)
    text = re.sub("<[^>]+>", "", page)
    assert "zh fell from 4.000 to 1.000 bits per byte (\u221275.0%), 11.1% above the entropy" in text
    assert "en rose from 0.700 to 0.714 bits per byte (+2.0%)." in text
    assert "20 s" in text and "zh 75%, en 25%" in text and "10 of 16 blocks of 1,024 tokens" in text


def test_texts_are_escaped():
    bad = "<script>alert(1)</script>&\"'"
    config = run_config(base={"model": bad}, evaluate={"prompts": [bad]})
    page = render(config, results(generations=[{"prompt": bad, "base": bad, "adapted": bad}], alerts=[bad]), "")
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#x27;") >= 5
    assert Balance(page).open == []


def test_chinese_is_marked_as_chinese():
    samples = [{"prompt": "今天", "base": "a", "adapted": "很好"}, {"prompt": "Today", "base": "a", "adapted": "b"}]
    page = render(run_config(), results(generations=samples), "")
    assert page.count('lang="zh"') == 3


def test_changes_have_a_sign():
    assert change_text(-0.824) == "\u221282.4%"
    assert change_text(0.0123) == "+1.2%"


@pytest.mark.parametrize(
    ("stopped_by", "chosen", "lines", "why"),
    [("gain", 4, 2, "less than 0.005 of the tokens"), ("limit", 8, 1, "not asked for"), ("corpus", 8, 1, "occurs twice")],
)
def test_what_rows_of_the_vocabulary_brought(stopped_by, chosen, lines, why):
    curve = [[0, 2.0], [1, 1.5], [4, 1.2], [8, 1.1]]
    found = {"curve": curve, "chosen_rows": chosen, "stopped_by": stopped_by}
    config = run_config(vocab={"add_rows": 8, "min_gain": 0.005})
    page = render(config, results(vocabulary=found), "")
    assert Balance(page).open == [] and page.count("<polyline") == lines
    assert why in page and f"{chosen} learned pieces got a row" in page and "rows 1: 1.500 tokens per character" in page
    assert "<h2>Vocabulary" not in render(config, results(vocabulary=found | {"chosen_rows": 0}), "")
    assert "<h2>Vocabulary" not in render(run_config(), results(), "")
