"""report.html: one file with everything a reader needs to judge a run; no script, nothing fetched."""

from collections.abc import Mapping
from html import escape
from statistics import median
from typing import Any

from zhlm.config.load import dump_config
from zhlm.config.schema import RunConfig, StreamConfig
from zhlm.evaluate.charts import Level, Line, bar, line_chart, number
from zhlm.evaluate.measure import continues, explained, in_words
from zhlm.evaluate.theme import CSS
from zhlm.evaluate.training_log import TrainingLog, read_log, smoothed

Results = Mapping[str, Any]
NUM_COLOURS = 5
UNIT = "bits per byte"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""The browser itself then refuses whatever would be fetched or run, should a corpus text ever get past the escaping."""


def render(config: RunConfig, results: Results, metrics: str) -> str:
    """The page for a run's results.json and metrics.jsonl."""
    log = read_log(metrics)
    colours = {s.name: f"c{i % NUM_COLOURS}" for i, s in enumerate(_new_first(config))}
    sections = [
        _header(config, results, log),
        _headline(config, results, colours),
        _training(config, results, log, colours),
        _numbers(config, results),
        _vocabulary(config, results),
        _generations(config, results),
        f"<details><summary>Settings of this run</summary><pre>{escape(dump_config(config))}</pre></details>",
        _footer(config, results),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(config.name)}: zhlm report</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(s for s in sections if s)
        + "\n</main>\n</body>\n</html>\n"
    )


def _new_first(config: RunConfig) -> list[StreamConfig]:
    """The streams in the order a reader asks for them."""
    return sorted(config.streams, key=lambda s: s.role != "new")


def change_text(share: float) -> str:
    """A relative change as it is read: -72.4%, +1.2%, with a real minus sign."""
    return f"{share:+.1%}".replace("-", "\u2212")


def _distance(value: float, limit: float) -> str:
    """17.1% above; a sample of documents can also lie a little below what is the mean of all."""
    share = value / limit - 1
    return f"{abs(share):.1%} {'above' if share >= 0 else 'below'}"


def _score(results: Results, model: str, stream: str, key: str = "bits_per_byte") -> float:
    return float(results[model][stream][key])


def _entropy(results: Results, stream: str) -> float | None:
    found = (results.get("entropy_bits_per_byte") or {}).get(stream)
    return None if found is None else float(found)


def _header(config: RunConfig, results: Results, log: TrainingLog) -> str:
    sentences = []
    for stream in _new_first(config):
        before, after = _score(results, "base", stream.name), _score(results, "adapted", stream.name)
        went = "fell" if after < before else "rose"
        change = change_text(after / before - 1)
        text = f"<b>{escape(stream.name)}</b> {went} from {number(before)} to <b>{number(after)}</b> {UNIT} ({change})"
        limit = _entropy(results, stream.name)
        if stream.role == "new" and limit:
            text += f", {_distance(after, limit)} the entropy of the grammar that wrote it"
        sentences.append(text + ".")
    alerts = "".join(f'<p class="alert" role="alert">{escape(a)}</p>' for a in results.get("alerts", []))
    return (
        f'<header><p class="eyebrow">zhlm report</p><h1>{escape(config.name)}</h1><p class="lead">{" ".join(sentences)}</p>'
        f"{alerts}{_facts(config, results, log)}</header>"
    )


def _facts(config: RunConfig, results: Results, log: TrainingLog) -> str:
    mix = sum(s.weight for s in config.streams)
    lora = config.train.lora
    beside = {"none": "", "new_rows": ", and the new rows", "all": ", and embeddings"}[config.train.embeddings]
    whole = "all parameters" + (", but for the frozen ones" if config.train.freeze else "")
    facts = {
        "Base model": config.base.model + (", with weights drawn anew" if config.base.from_scratch else ""),
        "Objective": config.objective.name.replace("_", " "),
        "Streams": ", ".join(f"{s.name} {s.weight / mix:.0%}" for s in _new_first(config)),
        "Trained": f"{'DoRA' if lora.dora else 'LoRA'}, rank {lora.r}{beside}" if lora else whole,
        "New vocabulary rows": _new_rows(config, results),
        "Steps": f"{log.steps:,} of {config.train.global_batch_blocks} blocks of {config.pack.block_tokens:,} tokens",
    }
    if (tokens := log.last("tokens")) is not None:
        facts["Tokens seen"] = f"{tokens:,.0f}"
    if speeds := log.curves.get("tokens_per_s"):
        workers = int(log.last("workers") or 1)
        facts["Speed"] = f"{median(v for _, v in speeds):,.0f} tokens/s, {workers} worker{'s' if workers > 1 else ''}"
    if (seconds := log.last("seconds")) is not None:
        facts["Training time"] = _duration(seconds)
    return '<dl class="facts">' + "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items()) + "</dl>"


def _new_rows(config: RunConfig, results: Results) -> str:
    vocab, facts = config.vocab, results.get("vocabulary") or {}
    if vocab is None:
        return "none"
    special = f", {len(vocab.special_tokens.texts)} special tokens" if vocab.special_tokens else ""
    if vocab.tokenizer is None:
        return f"at most {vocab.add_rows:,}{special}"
    counts = f", {facts['copied']:,} copied, {facts['made']:,} made" if "copied" in facts else ""
    return f"all, for the tokenizer {vocab.tokenizer}{counts}{special}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _headline(config: RunConfig, results: Results, colours: Mapping[str, str]) -> str:
    cards = "".join(_card(stream, results, colours[stream.name]) for stream in _new_first(config))
    measured = f"{UNIT.capitalize()} {in_words(config)}".strip()
    return (
        f'<h2>Before and after</h2><p class="note">{measured} on held-out documents, which training never saw; less is better. '
        f'Each card has its own scale.</p><div class="cards">{cards}</div>'
    )


def _card(stream: StreamConfig, results: Results, colour: str) -> str:
    before, after, entropy = _score(results, "base", stream.name), _score(results, "adapted", stream.name), _entropy(results, stream.name)
    limit = max(before, after, entropy or 0.0)
    rows = "".join(
        f"<span>{name}</span>{bar(value, limit, look, f'{stream.name}, {name}: {number(value)} {UNIT}', entropy)}<b>{number(value)}</b>"
        for name, value, look in (("base", before, "base"), ("adapted", after, colour))
    )
    mark = ""
    if entropy is not None:
        mark = f'<div class="entropy">entropy {number(entropy)}, adapted {_distance(after, entropy)}</div>'
    role = "the new language" if stream.role == "new" else "the old language"
    return (
        f'<section class="card"><h3>{escape(stream.name)} <span>{role}</span></h3>'
        f'<p class="big">{change_text(after / before - 1)} <small>{number(before)} \u2192 {number(after)}</small></p>'
        f'<div class="bars">{rows}{mark}</div></section>'
    )


def _training(config: RunConfig, results: Results, log: TrainingLog, colours: Mapping[str, str]) -> str:
    levels = [
        Level(f"{s.name} entropy", value, colours[s.name]) for s in _new_first(config) if (value := _entropy(results, s.name)) is not None
    ]
    held_out = [Line(s.name, log.validation.get(s.name, []), colours[s.name]) for s in _new_first(config)]
    losses, causal = log.curves.get("loss_nats", []), config.objective.name == "causal"
    loss_lines = [Line("loss", smoothed(losses), "ink")]
    if len(losses) > 50:
        loss_lines.append(Line("each step", losses, "ink", faint=True))
    small = [
        line_chart(
            title,
            [Line("", log.curves.get(key, []) if key == "learning_rate" else smoothed(log.curves.get(key, [])), "ink")],
            y_name=unit,
            small=True,
        )
        for key, title, unit in (
            ("learning_rate", "Learning rate", ""),
            ("grad_norm", "Gradient norm", ""),
            ("tokens_per_s", "Speed", "tokens per second"),
        )
    ]
    charts = [
        line_chart("Held-out blocks", held_out, levels, y_name=UNIT + ("" if causal else ", by the targets"), ratios=True),
        line_chart(
            "Training loss", loss_lines, y_name="nats per token, both streams mixed" if len(config.streams) == 2 else "nats per token"
        ),
        f'<div class="charts">{"".join(small)}</div>' if any(small) else "",
    ]
    if not any(charts):
        return ""
    note = " Dashed: the entropy of the grammar, which no model can go below on average." if levels and log.validation else ""
    return f'<h2>Through training</h2><p class="note">Step 0 is the model before its first update.{note}</p>{"".join(charts)}'


def _numbers(config: RunConfig, results: Results) -> str:
    rows = []
    masked = config.objective.name == "masked"
    for stream in _new_first(config):
        for model in ("base", "adapted"):
            score = results[model][stream.name]
            change = change_text(score["bits_per_byte"] / _score(results, "base", stream.name) - 1) if model == "adapted" else ""
            head = f'<tr><th scope="row">{escape(stream.name)}</th>' if model == "base" else '<tr class="more"><th></th>'
            cells = [
                number(score["bits_per_byte"]),
                change,
                number(score["bits_per_character"]),
                *([f"{score['masked_accuracy']:.1%}", f"{score['sampled_tokens']:,}"] if masked else []),
                f"{score['tokens']:,}",
                f"{score['documents']:,}",
            ]
            rows.append(f'{head}<td class="words">{model}</td>' + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
        if (limit := _entropy(results, stream.name)) is not None:
            rows.append(f'<tr class="more"><th></th><td class="words">entropy</td><td>{number(limit)}</td>{"<td></td>" * 4}</tr>')
    names = ("bits per byte", "change", "bits per character", *(("accuracy", "tokens masked") if masked else ()), "tokens", "documents")
    head = '<th>stream</th><th class="words">model</th>' + "".join(f"<th>{n}</th>" for n in names)
    return (
        f'<h2>Numbers</h2><p class="note">The same texts for both models: fewer tokens mean that the vocabulary fits better.</p>'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _vocabulary(config: RunConfig, results: Results) -> str:
    """What each row of the vocabulary brought, on the corpus that pieces were learned from, and why no more were added."""
    facts = results.get("vocabulary")
    if not facts or not config.vocab or not facts.get("chosen_rows"):
        return ""
    chosen, points = facts["chosen_rows"], [(float(rows), float(value)) for rows, value in facts["curve"]]
    lines = [Line(f"{chosen:,} rows", [p for p in points if p[0] <= chosen], "c0")]
    if points[-1][0] > chosen:
        lines.append(Line("not added", [p for p in points if p[0] >= chosen], "ink"))
    why = {
        "gain": f"The next one would have saved less than {config.vocab.min_gain:g} of the tokens.",
        "limit": "More were not asked for.",
        "corpus": "No further one occurs twice.",
    }[facts["stopped_by"]]
    chart = line_chart("Rows added", lines, y_name="tokens per character of what they were learned from", x_name="rows")
    return f'<h2>Vocabulary</h2><p class="note">{chosen:,} learned pieces got a row, the most useful first. {why}</p>{chart}'


def _generations(config: RunConfig, results: Results) -> str:
    samples = "".join(_sample(s["prompt"], s["base"], s["adapted"], continues(config)) for s in results.get("generations", []))
    if not samples:
        return ""
    how = config.evaluate.generate
    way = f"temperature {how.temperature:g}, top_p {how.top_p:g}, seed {how.seed}" if how.temperature > 0 else "greedy"
    note = f"The same prompts, at most {how.max_new_tokens} tokens; {way}."
    if config.objective.name == "masked":
        note = "The same prompts: the likeliest tokens for each mask, with their probabilities, the other masks as they are."
    return f'<h2>Side by side</h2><p class="note">{note}</p>{samples}'


def _sample(prompt: str, base: str, adapted: str, continued: bool) -> str:
    language, shown = _language(prompt), escape(prompt)
    head = f"<i>{shown}</i>" if continued else ""
    texts = "".join(
        f'<div class="{model}-text"><h4>{model}</h4><p class="text"{language}>{head}{escape(text)}</p></div>'
        for model, text in (("base", base), ("adapted", adapted))
    )
    return f'<section class="sample"><h3{language}><span>prompt</span>{shown}</h3><div class="pair">{texts}</div></section>'


def _language(text: str) -> str:
    """Han characters look different in Chinese and Japanese fonts; the browser chooses by this."""
    return ' lang="zh"' if any("\u4e00" <= c <= "\u9fff" for c in text) else ""


def _footer(config: RunConfig, results: Results) -> str:
    limits = " The entropy is computed from the grammar, not estimated." if results.get("entropy_bits_per_byte") else ""
    return f"<footer>{UNIT.capitalize()}: {escape(explained(config))}{limits}</footer>"
