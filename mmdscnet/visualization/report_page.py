"""The frame of a report: one HTML file that asks nothing of anybody, by its own policy.

The style follows the reader's light or dark setting and the width of the window. The script only
adds the choice of class and order to the gallery; without it everything is there, worst first.
"""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1f2328;--faint:#656d76;--rule:#d8dee4;
--field:#f3f5f7;--run0:#0072b2;--run1:#d55e00;--better:#1a7f37;--worse:#b3261e}
@media (prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#dfe3e8;--faint:#98a2ad;
--rule:#333a42;--field:#1e2329;--run0:#56b4e9;--run1:#f0a044;--better:#56c271;--worse:#ff8a80}}
*{box-sizing:border-box}
[hidden]{display:none!important}
body{margin:0 auto;max-width:88rem;padding:1.5rem clamp(.75rem,2.5vw,2rem) 4rem;
background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,
'DejaVu Sans',sans-serif;overflow-wrap:anywhere}
.bars+.wide{margin-top:1rem}
main{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:0 3rem}
section{grid-column:1/-1}
@media (min-width:68rem){#facts{grid-column:1}#threshold{grid-column:2}
.halves{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:0 3rem;align-items:start}
.bars+.wide{margin-top:0}}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .5rem}
h2{font-size:1.2rem;margin:2.5rem 0 .75rem;padding-top:.75rem;border-top:1px solid var(--rule)}
h3{font-size:.95rem;margin:0 0 .25rem}
p{margin:.4rem 0;max-width:48rem}
a{color:inherit}
nav{display:flex;flex-wrap:wrap;gap:.25rem 1rem;color:var(--faint);font-size:.9rem}
.note,figcaption{color:var(--faint);font-size:.85rem}
.cards{display:flex;flex-wrap:wrap;gap:.75rem;margin:1rem 0}
.card{background:var(--field);border-left:4px solid var(--rule);border-radius:4px;
padding:.6rem 1rem;min-width:11rem}
.card b{display:block;font-size:1.7rem;line-height:1.2;font-variant-numeric:tabular-nums}
.card.run0{border-color:var(--run0)}
.card.run1{border-color:var(--run1)}
.better{color:var(--better)}
.worse{color:var(--worse)}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top;
border-bottom:1px solid var(--rule)}
.numbers th,.numbers td{text-align:right;padding:.2rem .5rem;overflow-wrap:break-word}
.numbers td{white-space:nowrap}
.numbers [colspan]{text-align:center}
.numbers th.name{text-align:left;padding-left:0}
.numbers .first{border-left:1px solid var(--rule)}
.numbers tfoot{font-weight:600}
.facts th{font-weight:400;color:var(--faint);white-space:nowrap}
.facts thead th{font-weight:600;color:inherit}
.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.4em;
border:1px solid rgb(128 128 128/.5)}
.key.run0{background:var(--run0)}
.key.run1{background:var(--run1)}
.keys{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;margin:.5rem 0;padding:0;
font-size:.88rem}
.heat{display:inline-block;width:6rem;height:.8em;margin-right:.4em;border-radius:2px}
svg{display:block;width:100%;height:auto}
svg text{fill:currentColor;font-size:11px;font-family:inherit}
.grid,.axis{fill:none;stroke:var(--rule)}
.axis{stroke:var(--faint)}
.line{fill:none;stroke-width:1.7;stroke-linejoin:round}
.line.run0,.square.run0{stroke:var(--run0)}
.line.run1,.square.run1{stroke:var(--run1)}
.dot.run0{fill:var(--run0)}
.dot.run1{fill:var(--run1)}
.square{fill:var(--paper);stroke-width:2}
.curve{max-width:36rem}
.losses>div{max-width:24rem}
.losses{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(19rem,100%),1fr));
gap:1.25rem}
.bars{display:grid;grid-template-columns:fit-content(35%) minmax(7rem,1fr) max-content;
gap:.5rem .75rem;align-items:center;max-width:60rem;font-size:.88rem;
font-variant-numeric:tabular-nums}
.bar{display:grid;grid-template-columns:1fr 2.6rem;gap:.5rem;align-items:center;line-height:1.25}
.bar span{text-align:right}
.track{display:flex;height:.75rem;background:var(--field);border-radius:2px;overflow:hidden}
.run0 .track{--run:var(--run0)}
.run1 .track{--run:var(--run1)}
.track i{display:block;background:var(--run)}
.track i+i,.sample{background:repeating-linear-gradient(135deg,var(--run,var(--faint)) 0 1.5px,
transparent 1.5px 4.5px)}
.delta{text-align:right}
.item{margin:0 0 1.5rem}
.item h3{font-weight:400}
.item h3 b{margin-right:.6rem}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.5rem .75rem}
.panels figure{margin:0;max-width:220px}
.panels img,.blank{display:block;max-width:100%;height:auto;border-radius:3px}
.blank{display:flex;align-items:center;justify-content:center;background:var(--field);
color:var(--faint);font-size:.85rem}
.controls{display:flex;flex-wrap:wrap;gap:.5rem 1.25rem;align-items:center;margin:.75rem 0}
select{font:inherit;font-size:.9rem;color:inherit;background:var(--field);
border:1px solid var(--rule);border-radius:4px;padding:.15rem .4rem}
@media print{.controls,nav{display:none}.item{break-inside:avoid}}
"""

SCRIPT = """
(() => {
  const controls = document.getElementById('controls');
  if (!controls) return;
  const items = [...document.querySelectorAll('.item')];
  const [pick, order] = controls.querySelectorAll('select');
  const shown = controls.querySelector('output');
  const update = () => {
    const known = items.filter(item => item.dataset.iou !== '');
    const unknown = items.filter(item => item.dataset.iou === '');
    if (order.value === 'best') known.reverse();
    items[0].parentNode.append(...known, ...unknown);
    let count = 0;
    for (const item of items) {
      item.hidden = pick.value !== '' && !item.dataset.classes.split(' ').includes(pick.value);
      count += item.hidden ? 0 : 1;
    }
    shown.textContent = count + ' of ' + items.length + ' images';
  };
  pick.addEventListener('change', update);
  order.addEventListener('change', update);
  controls.hidden = false;
  update();
})();
"""


class Section(NamedTuple):
    """A part of the page that its contents name.

    Attributes:
        anchor: Its id.
        heading: Its heading, plain text.
        pieces: Its HTML, in pieces.
    """

    anchor: str
    heading: str
    pieces: Sequence[str]


def write_page(title: str, summary: str, sections: Sequence[Section]) -> Iterator[str]:
    """Give the pieces of a page, in order.

    Args:
        title: Title of the page, plain text.
        summary: HTML under the title.
        sections: The parts of the page.

    Yields:
        Pieces of HTML. The page's own policy forbids any request and any script but its own.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    yield (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n'
        f'<header>\n<h1>{escape(title)}</h1>\n'
    )
    links = (f'<a href="#{s.anchor}">{escape(s.heading)}</a>' for s in sections)
    yield f'<nav>{" ".join(links)}</nav>\n{summary}</header>\n<main>\n'
    for section in sections:
        yield f'<section id="{section.anchor}">\n<h2>{escape(section.heading)}</h2>\n'
        yield from section.pieces
        yield '</section>\n'
    yield f'</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n'
