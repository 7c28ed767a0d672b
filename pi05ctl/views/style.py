"""How the report looks: one style sheet, light and dark, from a phone to a desk."""

STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #1c1e21; --quiet: #646a73; --rule: #dcdee2;
  --accent: #1f5fd0; --good: #18794e; --bad: #c0392b; --goal: #b7791f; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --ink: #e6e7e9; --quiet: #9aa1ab; --rule: #33373d;
  --accent: #7ea9ff; --good: #5fc694; --bad: #ff8a7a; --goal: #e0b050; } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 46rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem }
header p { margin: .2rem 0 } .quiet { color: var(--quiet); font-size: .9rem }
.big { font-size: 3rem; line-height: 1.1; font-weight: 650; margin: 0; font-variant-numeric: tabular-nums }
svg { width: 100%; height: auto; display: block } .scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--rule); white-space: nowrap }
th { color: var(--quiet); font-weight: 500 }
pre { background: color-mix(in srgb, var(--ink) 6%, transparent); padding: .8rem; font-size: .85rem;
  white-space: pre-wrap; overflow-wrap: anywhere }
details { margin-top: 2rem } summary { cursor: pointer }
.grid-of { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: .8rem; margin-bottom: 1rem }
figure { margin: 0; border: 1px solid var(--rule); border-radius: .4rem; overflow: hidden }
figcaption { font-size: .8rem; padding: .1rem .5rem .3rem; color: var(--quiet) }
.bars { list-style: none; margin: 1rem 0; padding: 0 }
.bars li { display: grid; grid-template-columns: minmax(9rem, 15rem) 1fr 4rem; gap: .8rem; align-items: center;
  padding: .3rem 0 }
.bars li > :last-child { text-align: right; font-variant-numeric: tabular-nums }
.bars small { color: var(--quiet); display: block; line-height: 1.3 }
.track { position: relative; height: .55rem; border-radius: .3rem;
  background: color-mix(in srgb, var(--ink) 9%, transparent) }
.track i { position: absolute; top: 0; bottom: 0; left: 0; border-radius: .3rem }
.theirs { background: var(--quiet); opacity: .65 } .bad-bar { background: var(--bad); opacity: .8 }
.ours { font-weight: 600 } .ours .track { height: .8rem } .range { background: var(--accent); opacity: .4 }
.track .dot { width: .8rem; margin-left: -.4rem; border-radius: 50%; background: var(--accent) }
.films { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: .8rem }
video { display: block; width: 100%; aspect-ratio: 448 / 230; background: #111 }
.good { color: var(--good) } .bad { color: var(--bad); font-weight: 600 }
.grid { stroke: var(--rule) } .tick { fill: var(--quiet); font-size: 12px }
.line { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round }
.by-hand { fill: none; stroke: var(--goal); stroke-width: 1.5; stroke-dasharray: 5 4; stroke-linejoin: round }
.held-out { fill: none; stroke: var(--good); stroke-width: 1.5; stroke-linejoin: round }
.held-out-key { color: var(--good) } .line-key { color: var(--accent) } .by-hand-key { color: var(--goal) }
.line-1 { stroke: var(--goal) } .line-2 { stroke: var(--good) } .line-3 { stroke: var(--bad) }
.line-4 { stroke: var(--quiet) } .line-5 { stroke: var(--ink) }
.keys b { margin-right: 1rem; padding-left: 1.6rem; position: relative; font-weight: 500 }
.keys svg { position: absolute; left: 0; top: .3rem; width: 1.2rem }
.hover { fill: transparent } .hover:hover { fill: var(--accent) }
.tcp { fill: none; stroke: var(--quiet); stroke-width: 1; opacity: .7 } .tcp-key { color: var(--quiet) }
.object { fill: none; stroke: var(--accent); stroke-width: 2 } .object-key { color: var(--accent) }
.start { fill: var(--paper); stroke: var(--accent); stroke-width: 1.5 } .end { fill: var(--accent) }
.goal { fill: none; stroke: var(--goal); stroke-width: 2 } .goal-key { color: var(--goal) }
@media (max-width: 34rem) {
  .bars li { grid-template-columns: 1fr 4rem; gap: .1rem .8rem }
  .bars .track { grid-column: 1 / -1; grid-row: 2 }
  .tick { font-size: 20px }
}
"""
