// SPDX-License-Identifier: GPL-2.0-or-later
import { Xml, xml } from "../../src/xml.ts";
import { type Bar, phaseNames, REST } from "./phases.ts";

/** Bars that belong together, one below the other. */
export interface BarGroup {
  readonly name: string;
  readonly bars: readonly Bar[];
}

const WIDTH = 760;
const LEFT = 90;
const RIGHT = 70;
const PLOT = WIDTH - LEFT - RIGHT;
const BAR = 20;
const LINE = 26;
/** Wide enough for a character of the font in any system's sans-serif. */
const CHARACTER = 7.5;

/** Told apart from each other, from white and from black. */
const COLOURS =
  ("#4e79a7 #f28e2b #59a14f #e15759 #b07aa1 #17a2b8 #d4a72c #9c755f #ff7f9f #7f7fd5 #8ca252 " +
    "#1b7f79 #a83279").split(" ");
const REST_COLOUR = "#8b949e";

const STYLE = new Xml(`
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 15px; }
.group { font-weight: 600; }
.value { stroke: #ffffff; stroke-width: 4px; paint-order: stroke; }
.paper { fill: #ffffff; }
.grid { stroke: #d0d7de; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .value { stroke: #0d1117; }
  .paper { fill: #0d1117; }
  .grid { stroke: #30363d; }
}
`);

/** Stacked horizontal bars as an SVG, with a paper of its own in light and in dark. */
export function plot(
  groups: readonly BarGroup[],
  { title, description }: { readonly title: string; readonly description: string },
): string {
  const longest = Math.max(...groups.flatMap(({ bars }) => bars.map(lengthOf)));
  const shown = groups.map(({ name, bars }) => ({ name, bars: bars.map(short(longest)) }));
  const colours = coloursOf(shown.flatMap(({ bars }) => bars));
  const legend = legendOf(colours, 44);
  const axis = axisOf(longest);
  const x = (seconds: number): number => round(seconds / axis.end * PLOT);
  const top = legend.bottom + 22;
  const { rows, bottom } = rowsOf(shown, { top, x, colours });
  const height = bottom + 34;
  const image = xml`
    <svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${height}"
      viewBox="0 0 ${WIDTH} ${height}" role="img" aria-labelledby="title description">
      <title id="title">${title}</title>
      <desc id="description">${description}</desc>
      <style>${STYLE}</style>
      <rect class="paper" width="${WIDTH}" height="${height}" rx="6"/>
      <text class="title" x="12" y="26">${title}</text>
      ${legend.items}
      ${axis.ticks.map((tick) => tickOf(tick, { x: LEFT + x(tick), top, bottom }))}
      ${rows}
    </svg>
  `;
  return withoutIndent(image);
}

/** A row for the name of each group and for each of its bars. */
function rowsOf(
  groups: readonly BarGroup[],
  { top, ...scale }: Scale & { readonly top: number },
): { readonly rows: Xml[]; readonly bottom: number } {
  let y = top;
  const rows: Xml[] = [];
  for (const { name, bars } of groups) {
    rows.push(xml`<text class="group" x="12" y="${y + 14}">${name}</text>`);
    for (const bar of bars) rows.push(barRow(bar, { ...scale, y: y += LINE }));
    y += LINE + 8;
  }
  return { rows, bottom: y };
}

function tickOf(
  seconds: number,
  { x, top, bottom }: { readonly x: number; readonly top: number; readonly bottom: number },
): Xml {
  return xml`
    <line class="grid" x1="${x}" x2="${x}" y1="${top - 6}" y2="${bottom}" />
    <text x="${x}" y="${bottom + 18}" text-anchor="middle">${seconds} s</text>
  `;
}

/** What all of its phases take together. */
function lengthOf({ phases }: Bar): number {
  return [...phases.values()].reduce((a, b) => a + b, 0);
}

/** The bar, with parts too small to see added to the rest. */
function short(longest: number): (bar: Bar) => Bar {
  return (bar) => {
    const phases = new Map([...bar.phases].filter(([, seconds]) => seconds >= longest / 100));
    phases.delete(REST);
    const rest = lengthOf(bar) - lengthOf({ ...bar, phases });
    return { ...bar, phases: new Map([...phases, [REST, rest]]) };
  };
}

/** How seconds become a length, and phases a colour. */
interface Scale {
  readonly x: (seconds: number) => number;
  readonly colours: ReadonlyMap<string, string>;
}

function barRow(
  { name, seconds, phases }: Bar,
  { y, x, colours }: Scale & { readonly y: number },
): Xml {
  let begin = 0;
  const parts = [...phases].map(([phase, length]) => {
    const [from, to] = [x(begin), x(begin + length)];
    begin += length;
    const width = round(to - from);
    return xml`
      <rect x="${LEFT +
        from}" y="${y}" width="${width}" height="${BAR}" fill="${colours.get(phase) ?? ""}">
        <title>${phase}: ${length.toFixed(2)} s</title>
      </rect>
    `;
  });
  return xml`
    <text x="${LEFT - 8}" y="${y + 15}" text-anchor="end">${name}</text>
    ${parts}
    <text class="value" x="${LEFT + x(begin) + 6}" y="${y + 15}">${seconds.toFixed(
      seconds < 10 ? 2 : 1,
    )} s</text>
  `;
}

function legendOf(
  colours: ReadonlyMap<string, string>,
  top: number,
): { readonly items: Xml[]; readonly bottom: number } {
  let [x, y] = [12, top];
  const items = [...colours].map(([phase, colour]) => {
    const width = 18 + phase.length * CHARACTER + 14;
    if (x + width > WIDTH - 12) [x, y] = [12, y + 20];
    const item = xml`
      <rect x="${x}" y="${y}" width="12" height="12" rx="2" fill="${colour}" />
      <text x="${x + 18}" y="${y + 11}">${phase}</text>
    `;
    x += round(width);
    return item;
  });
  return { items, bottom: y + 12 };
}

/** The phases in the order of the bars, the longest with the first colours. */
function coloursOf(bars: readonly Bar[]): ReadonlyMap<string, string> {
  const longest = (phase: string) => Math.max(...bars.map(({ phases }) => phases.get(phase) ?? 0));
  const names = phaseNames(bars);
  const byLength = names.filter((name) => name !== REST).sort((a, b) => longest(b) - longest(a));
  return new Map(names.map((name) => [
    name,
    name === REST ? REST_COLOUR : COLOURS[byLength.indexOf(name) % COLOURS.length] ?? "",
  ]));
}

/** Four to eight ticks at round numbers, the last at the end of the axis. */
function axisOf(longest: number): { readonly end: number; readonly ticks: readonly number[] } {
  const power = 10 ** Math.floor(Math.log10(longest / 4));
  const step = [1, 2, 5, 10].map((it) => it * power).find((it) => longest / it <= 7) ?? longest;
  const count = Math.ceil(longest / step);
  const ticks = Array.from({ length: count + 1 }, (_, i) => Number((i * step).toPrecision(3)));
  return { end: count * step, ticks };
}

function round(number: number): number {
  return Math.round(number * 10) / 10;
}

/** A line for each element, without the indent of this file. */
function withoutIndent(image: Xml): string {
  const lines = image.toString().split("\n").map((line) => line.trim());
  return lines.filter((line) => line !== "").join("\n") + "\n";
}
