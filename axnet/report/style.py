"""The style sheet of a report."""

STYLE = """
:root { color-scheme: light; --ink: #212529; --quiet: #6b747d; --line: #dee2e6; --pale: #f8f9fa; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 60rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .5rem; font-weight: 650; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 3rem 0 .35rem; font-weight: 650; }
h3 { font-size: 1rem; margin: 0; font-weight: 650; }
p { margin: .35rem 0 .75rem; max-width: 44rem; }
.quiet, figcaption .quiet { color: var(--quiet); font-weight: 400; }
.note { color: var(--quiet); font-size: .875rem; }
.models { display: flex; flex-wrap: wrap; gap: .75rem 2.75rem; margin: 1.75rem 0 1rem; }
.models div { border-left: 4px solid var(--line); padding-left: .9rem; }
.models b { display: block; font-size: 2.25rem; line-height: 1.15; font-weight: 600; letter-spacing: -.02em; }
.models span { display: block; font-size: .875rem; }
.key, .models div { max-width: 100%; }
.key, .models div, .forest thead th, .measures th[colspan], h1, h3 { overflow-wrap: anywhere; }
.key { display: inline-block; margin-right: 1.25rem; font-size: .875rem; font-weight: 600; }
.key::before { content: ""; display: inline-block; width: .7rem; height: .7rem; border-radius: 50%;
  background: currentColor; margin-right: .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: middle; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { font-weight: 500; }
thead th { color: var(--quiet); font-size: .8125rem; vertical-align: bottom; }
.forest td.plot, .forest th.plot { width: 40%; padding: 0 .9rem; }
.forest td { white-space: nowrap; }
.forest td b { font-weight: 600; }
.forest tr.mean th, .forest tr.mean td { border-top: 2px solid var(--ink); font-weight: 650; }
.forest small { color: var(--quiet); font-size: .8125rem; font-weight: 400; }
.forest th small { display: block; line-height: 1.2; }
.measures th[colspan] { border-bottom: 0; font-weight: 600; }
.measures thead td { border: 0; }
.plain { width: auto; min-width: 24rem; }
.strip { display: block; width: 100%; overflow: visible; }
svg text { font-size: 10px; fill: var(--quiet); }
svg .grid { stroke: #edf0f2; }
svg .chance { stroke: #adb5bd; stroke-dasharray: 3 3; }
figure { margin: 0; }
figcaption { font-size: .8125rem; font-weight: 550; line-height: 1.35; }
.rocs { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1.1rem 1.25rem; }
.roc svg { display: block; width: 100%; }
.roc .frame { fill: none; stroke: var(--line); }
.roc polyline { fill: none; stroke-width: 1.75; stroke-linejoin: round; }
.roc .auc { font-size: 12px; font-weight: 600; fill: currentColor; }
.boxes th, .boxes td { padding: .35rem .25rem; }
.boxes tbody th, .measures tbody th { white-space: nowrap; }
.measures td { white-space: nowrap; }
.scroll th:first-child { position: sticky; left: 0; background: #fff; }
.few { color: #adb5bd; }
.none { color: var(--quiet); text-align: left; }
.warning { border-left: 3px solid #e67700; padding-left: .7rem; font-size: .875rem; margin-top: .75rem; }
.wrong { color: #c2255c; font-weight: 600; }
td small, small.block { display: block; color: inherit; opacity: .75; font-weight: 400; white-space: nowrap; }
details { margin: .75rem 0; }
summary { cursor: pointer; font-size: .875rem; font-weight: 550; }
h2 + h3, p + h3, div + h3 { margin: 1.25rem 0 .35rem; }
.card { border-top: 1px solid var(--line); padding: 1.1rem 0 1.6rem; break-inside: avoid; }
.card header { display: flex; flex-wrap: wrap; gap: .1rem 1.25rem; align-items: baseline; margin-bottom: .7rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .75rem; }
.pictures svg { display: block; width: 100%; background: #000; }
.pictures figcaption { margin-top: .3rem; }
.bars { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: .2rem 2rem; padding: 0;
  margin: .9rem 0 0; list-style: none; font-size: .8125rem; }
.bars li { display: grid; grid-template-columns: 9.5rem 1fr 2.2rem; gap: .5rem; align-items: center; }
.bars .present { font-weight: 650; }
.bars svg { width: 100%; height: .5rem; background: #edf0f2; }
.bars span:last-child { text-align: right; }
.scale { display: inline-block; width: 6rem; height: .6rem; vertical-align: baseline; margin: 0 .4rem; }
.facts { margin: .5rem 0; font-size: .875rem; columns: 2 22rem; column-gap: 2.5rem; }
.facts div { display: flex; justify-content: space-between; gap: 1rem; border-bottom: 1px solid var(--line);
  padding: .25rem 0; break-inside: avoid; }
.facts dt { color: var(--quiet); flex: none; max-width: 50%; }
.facts dd { margin: 0; text-align: right; min-width: 0; overflow-wrap: anywhere; }
footer { margin-top: 3.5rem; padding-top: 1rem; border-top: 2px solid var(--ink); font-size: .875rem; }
@media (max-width: 40rem) {
  body { padding-top: 1.5rem; }
  .forest thead th:not(.plot) { display: none; }
  .forest, .forest thead, .forest tbody, .forest td, .forest th { display: block; }
  .forest tr { display: grid; grid-template-columns: 1fr 1fr; border-bottom: 1px solid var(--line); padding: .5rem 0; }
  .forest th, .forest td, .forest tr.mean th, .forest tr.mean td { border: 0; padding: .1rem 0; text-align: left; }
  .forest tr.mean { border-top: 2px solid var(--ink); }
  .forest th:first-child, .forest td.plot, .forest th.plot, .forest td.none { grid-column: 1 / -1; width: auto;
    padding: .1rem 0; }
  .forest thead tr { border: 0; padding: 0; }
  .forest th small { display: inline; margin-left: .5rem; }
  .plain { min-width: 0; width: 100%; }
  .rocs, .pictures { grid-template-columns: 1fr 1fr; }
}
@media print {
  body { padding: 0; max-width: none; font-size: 10.5pt; }
  h2 { break-after: avoid; }
  tr, figure { break-inside: avoid; }
  .scroll { overflow: visible; }
  .scroll table { font-size: 7.5pt; }
  .scroll th, .scroll td { padding: .2rem .25rem; position: static; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
