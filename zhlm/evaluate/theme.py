"""The style sheet of report.html."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #fbfaf8; --card: #ffffff; --ink: #1d1c1a; --soft: #67635c; --rule: #e4e0d9; --grid: #eceae5;
  --base: #a9a49b; --c0: #c43d22; --c1: #1f66ad; --c2: #2b7d4e; --c3: #7a4bb0; --c4: #99690a; --warn: #fff3dc; --warn-ink: #7a4a00;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC",
    "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", "Noto Sans Mono CJK SC", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #16171a; --card: #1e2024; --ink: #eceae6; --soft: #a19d95; --rule: #33363c; --grid: #2b2e33;
    --base: #77746e; --c0: #ff8a6b; --c1: #76b2f7; --c2: #74cf9b; --c3: #c19bf2; --c4: #e3b756; --warn: #3a2f1a; --warn-ink: #ffd48a;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 var(--sans); }
main { max-width: 68rem; margin: 0 auto; padding: 3rem 1.5rem 4rem; }
header { margin-bottom: 2rem; }
.eyebrow { color: var(--soft); font-size: .8125rem; letter-spacing: .06em; text-transform: uppercase; margin: 0; }
h1 { font-size: clamp(1.75rem, 4vw, 2.5rem); line-height: 1.15; letter-spacing: -.02em; margin: .25rem 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; letter-spacing: -.01em; margin: 3rem 0 .25rem; }
h2 + p { margin: 0 0 1rem; }
p { max-width: 46rem; text-wrap: pretty; }
.lead { font-size: 1.125rem; margin: .5rem 0 0; }
.note { color: var(--soft); font-size: .875rem; }
.card, .chart, .sample, .facts, details { background: var(--card); border: 1px solid var(--rule); border-radius: .75rem; }
.alert { background: var(--warn); color: var(--warn-ink); border-radius: .75rem;
  padding: .75rem 1rem; margin: 1.25rem 0 0; max-width: none; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
.card { padding: 1.25rem 1.25rem 1.1rem; }
.card h3 { display: flex; flex-wrap: wrap; align-items: baseline; gap: .1rem .6rem; margin: 0; font-size: 1rem; }
.card h3 span { color: var(--soft); font-weight: 400; font-size: .875rem; }
.big { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 .6rem;
  margin: .1rem 0 .8rem; font-size: 2.5rem; line-height: 1.2; font-weight: 650;
  letter-spacing: -.03em; font-variant-numeric: tabular-nums; }
.big small { font-size: .9375rem; font-weight: 400; letter-spacing: 0; color: var(--soft); }
.bars { display: grid; grid-template-columns: auto 1fr auto; gap: .3rem .75rem; align-items: center; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
.bar { width: 100%; height: 1.4rem; display: block; overflow: visible; }
.bars .entropy { grid-column: 2 / -1; color: var(--soft); font-size: .8125rem; margin-top: .1rem; }
.bars .entropy::before { content: ""; display: inline-block; height: .9em; border-left: 1.5px dashed var(--ink); margin-right: .5em;
  vertical-align: -.1em; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 1fr)); gap: 1rem; }
.chart { margin: 0 0 1rem; padding: 1rem 1.25rem .75rem; }
.charts .chart { margin: 0; }
figcaption span { color: var(--soft); font-size: .875rem; margin-left: .25rem; }
.plot { position: relative; height: 17rem; margin: 1rem 9rem 1.6rem 2.75rem; }
.small .plot { height: 7.5rem; margin: .9rem 4.25rem 1.6rem 3rem; }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.axis { color: var(--soft); font-size: .75rem; text-align: right; margin: -.4rem 9rem 0 0; }
.small .axis { margin-right: 4.25rem; }
.tick { position: absolute; color: var(--soft); font-size: .75rem;
  line-height: 1; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tick.y { right: calc(100% + .5rem); transform: translateY(-50%); }
.tick.x { top: calc(100% + .5rem); transform: translateX(-50%); }
.end { position: absolute; left: calc(100% + .6rem); transform: translateY(-50%); font-size: .8125rem; line-height: 1; white-space: nowrap;
  display: flex; gap: .35em; max-width: 8.6rem; color: var(--k); font-variant-numeric: tabular-nums; }
.end i { font-style: normal; overflow: hidden; text-overflow: ellipsis; padding: 2px 0; margin: -2px 0; }
.end i:empty { display: none; }
.c0 { --k: var(--c0); } .c1 { --k: var(--c1); } .c2 { --k: var(--c2); } .c3 { --k: var(--c3); } .c4 { --k: var(--c4); }
.base { --k: var(--base); } .ink { --k: var(--ink); } .soft { --k: var(--soft); }
svg path, svg polyline { fill: none; vector-effect: non-scaling-stroke; }
svg rect { fill: var(--k); }
.grid { stroke: var(--grid); stroke-width: 1; }
.curve { stroke: var(--k); stroke-width: 2.25; stroke-linejoin: round; stroke-linecap: round; }
.faint { stroke-width: 1; opacity: .35; }
.level { stroke: var(--k); stroke-width: 1.5; stroke-dasharray: 5 4; }
.dot { stroke: var(--k); stroke-width: 8; stroke-linecap: round; }
.hit { stroke: transparent; stroke-width: 14; stroke-linecap: round; pointer-events: stroke; }
.hit:hover { stroke: var(--k); stroke-width: 9; }
.scroll { overflow-x: auto; border: 1px solid var(--rule); border-radius: .75rem; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .9375rem; font-variant-numeric: tabular-nums; }
th, td { padding: .55rem 1rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--rule); }
thead th { border-top: 0; color: var(--soft); font-weight: 500; font-size: .8125rem; }
th:first-child, td:first-child, .words { text-align: left; }
tbody th { font-weight: 600; }
tr.more th, tr.more td { border-top-color: transparent; }
.sample { margin: 0 0 1rem; overflow: hidden; }
.sample h3 { margin: 0; padding: .7rem 1.25rem; font-size: .9375rem; border-bottom: 1px solid var(--rule); overflow-wrap: anywhere; }
.sample h3 span { color: var(--soft); font-weight: 400; margin-right: .4rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; }
.pair > div { padding: .8rem 1.25rem 1rem; min-width: 0; }
.pair > div + div { border-left: 1px solid var(--rule); }
.pair h4 { margin: 0 0 .25rem; font-size: .8125rem; font-weight: 600; color: var(--soft); }
.adapted-text h4 { color: var(--c0); }
.text { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; max-width: none; line-height: 1.7; }
.text i { font-style: normal; color: var(--soft); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .9rem 1.5rem;
  margin: 1rem 0 0; padding: 1rem 1.25rem; }
.facts div { min-width: 0; }
.facts dt { color: var(--soft); font-size: .8125rem; }
.facts dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
details { padding: .75rem 1.25rem; margin-top: 1rem; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font: .8125rem/1.5 var(--mono); margin: .75rem 0 .25rem; }
footer { margin-top: 3rem; color: var(--soft); font-size: .875rem; border-top: 1px solid var(--rule); padding-top: 1rem; }
@media (max-width: 40rem) {
  main { padding: 1.75rem 1rem 3rem; }
  .plot { height: 14rem; margin-right: 8rem; margin-left: 2rem; }
  .axis { margin-right: 8rem; }
  .tick.minor { display: none; }
  .end { font-size: .75rem; max-width: 8rem; left: calc(100% + .4rem); }
  .small .plot { margin-right: 4.25rem; margin-left: 3rem; height: 7.5rem; }
  .small .axis { margin-right: 4.25rem; }
  .chart, .card { padding-left: 1rem; padding-right: 1rem; }
  .pair { grid-template-columns: 1fr; }
  .pair > div + div { border-left: 0; border-top: 1px solid var(--rule); }
}
@media print { main { max-width: none; } .chart, .card, .sample { break-inside: avoid; } }
"""
