"""The report's style sheet. It loads nothing: fonts are the reader's own, colours follow the reader's light or dark."""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfc; --ink: #1c2024; --soft: #5b646d; --line: #dcdfe3; --panel: #f3f4f5; --accent: #a44200;
}
@media (prefers-color-scheme: dark) {
  :root {
  --paper: #15181b; --ink: #e6e8ea; --soft: #a3acb5; --line: #33393f; --panel: #1f2327;
  --accent: #ff9d5c;
}
figure img { filter: brightness(.88); } /* white paper, without the glare */
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 1.0625rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 {
  font-size: 1.35rem; line-height: 1.3; margin: 3rem 0 .75rem; padding-top: 1rem;
  border-top: 1px solid var(--line);
}
h3 { font-size: 1.0625rem; margin: 1.75rem 0 .5rem; }
p { margin: .75rem 0; max-width: 46rem; }
.kind { color: var(--accent); font-weight: 600; letter-spacing: .02em; margin: 0 0 .5rem; }
.summary { font-size: 1.125rem; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem;
  margin: 1.5rem 0; padding: 0;
}
.tiles div { background: var(--panel); border-radius: .5rem; padding: .75rem .9rem; }
.tiles dt { color: var(--soft); font-size: .875rem; line-height: 1.35; }
.tiles dd { margin: .15rem 0 0; font-size: 1.4rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9375rem; line-height: 1.4; }
caption { max-width: 46rem; text-align: left; color: var(--soft); padding-bottom: .4rem; font-size: .9375rem; }
th, td {
  padding: .4rem .9rem .4rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line);
}
thead th, thead td { color: var(--soft); font-weight: 600; border-bottom-width: 2px; vertical-align: bottom; }
tbody th { font-weight: 500; }
td.n, th.n {
  text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; padding-left: .9rem;
  padding-right: 0;
}
td.gloss, th.gloss { padding-left: 1.5rem; color: var(--soft); }
tr.own { background: var(--panel); }
tr.own th { font-weight: 650; padding-left: .4rem; }
.facts th { white-space: nowrap; color: var(--soft); }
.facts td { overflow-wrap: anywhere; }
.figures {
  display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.75rem 1.75rem;
  margin: 1.25rem 0;
}
figure { margin: 0; }
figure.wide { grid-column: 1 / -1; max-width: 46rem; }
figure h3 { margin: 0 0 .5rem; overflow-wrap: anywhere; }
figure img {
  display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: .375rem;
}
figcaption { color: var(--soft); font-size: .9375rem; line-height: 1.5; margin-top: .6rem; max-width: 46rem; }
.missing { border-left: 3px solid var(--accent); padding: .1rem 0 .1rem .9rem; color: var(--soft); }
code, pre {
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: .875em;
}
code { overflow-wrap: anywhere; }
pre { background: var(--panel); border-radius: .5rem; padding: 1rem; overflow-x: auto; line-height: 1.5; }
summary { cursor: pointer; font-weight: 600; padding: .35rem 0; }
@media (max-width: 44rem) {
  body { padding: 1.5rem 1rem 3rem; font-size: 1rem; }
  h1 { font-size: 1.6rem; }
  .summary { font-size: 1.0625rem; }
  .tiles { grid-template-columns: repeat(2, 1fr); }
  .figures { grid-template-columns: minmax(0, 1fr); }
  figure img { width: calc(100% + 1.5rem); margin: 0 -.75rem; }
  table { font-size: .875rem; }
  caption { max-width: calc(100vw - 2rem); }
  thead th.n { white-space: normal; }
  td.n, th.n { padding-left: .6rem; }
  tbody th { padding-right: 0; }
  td.gloss, th.gloss { display: none; } /* the caption of the baselines' figure says the same */
  .facts th, .facts td { display: block; border: 0; padding: 0; }
  .facts td { border-bottom: 1px solid var(--line); padding-bottom: .4rem; margin-bottom: .4rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  figure, table { break-inside: avoid; }
}
"""
