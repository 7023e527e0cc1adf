// SPDX-License-Identifier: GPL-2.0-or-later
import { parseXml, XmlElement } from "@rgrove/parse-xml";
import assert from "node:assert/strict";
import { withKsm } from "./ksm.ts";
import { parseOptions } from "./options.ts";
import { type Bar, barOf, phaseNames, phaseTable, stepsOf } from "./phases.ts";
import { plot } from "./plot.ts";

const PARTS = ["run", "warm"] as const;

Deno.test("deno task bench measures the parts that are named, or all", () => {
  assert.deepEqual(parseOptions([], PARTS).parts, PARTS);
  assert.deepEqual(
    parseOptions(
      ["warm", "--runs", "3", "--template", "a", "--template", "b", "--svg", "c"],
      PARTS,
    ),
    { parts: ["warm"], runs: 3, templates: ["a", "b"], svg: "c" },
  );
});

Deno.test("deno task bench says which parts and options there are to who asks for others", () => {
  for (const args of [["cold"], ["--run", "3"], ["--runs", "many"], ["--runs", "0"], ["--runs"]]) {
    assert.throws(() => parseOptions(args, PARTS), /The parts are run, warm; .* --runs NUMBER/);
  }
});

Deno.test("KSM's settings are as before it was measured, also if that fails", async () => {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  const settings = { run: "0", pages_to_scan: "100", sleep_millisecs: "20" };
  const pages = {
    pages_sharing: "512",
    pages_shared: "2",
    pages_unshared: "4",
    pages_volatile: "6",
  };
  const files = { ...settings, ...pages };
  const write = (name: string, text: string) => Deno.writeTextFile(`${directory}/${name}`, text);
  try {
    for (const [name, text] of Object.entries(files)) await write(name, `${text}\n`);
    let scans = 0;
    const timer = setInterval(() => write("full_scans", String(scans += 8)), 300);
    try {
      await write("full_scans", "0");
      await assert.rejects(
        withKsm(async ({ savedMib, guestMib, isSettled }) => {
          assert.deepEqual([savedMib, guestMib, isSettled], [2, 524 / 256, true]);
          assert.equal(await Deno.readTextFile(`${directory}/run`), "1");
          throw new Error("on purpose");
        }, directory),
        /on purpose/,
      );
    } finally {
      clearInterval(timer);
    }
    for (const [name, text] of Object.entries(files)) {
      assert.equal((await Deno.readTextFile(`${directory}/${name}`)).trim(), text);
    }
    assert.equal(await withKsm(() => Promise.resolve(1), `${directory}/none`), null);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});

const LOG = 'Started\nThe machine "m" is ready at 10.0.0.2 after 0.8 s (turn 9 ms, start 0.7 s)\n';

Deno.test("what prepare says of its steps becomes medians, a rest and a table", () => {
  const runs = [1, 3, 2].map((seconds) => ({ seconds, steps: stepsOf(LOG) }));
  const cold = barOf("cold", runs);
  assert.deepEqual([...cold.phases.keys()], ["turn", "start", "other"]);
  assert.equal(cold.seconds, 2);
  assert.equal(cold.phases.get("other")?.toFixed(3), "1.291");
  const phases = new Map([["turn", 0.1], ["RAM", 0.8], ["other", 0.1]]);
  const warm: Bar = { name: "warm", seconds: 1, phases };
  assert.deepEqual(phaseTable([cold, warm]).split("\n").slice(2), [
    "| turn | 0.01 | 0.10 |",
    "| start | 0.70 |  |",
    "| RAM |  | 0.80 |",
    "| other | 1.29 | 0.10 |",
    "| all | 2.00 | 1.00 |",
  ]);
});

Deno.test("phases of several starts have an order that is that of each", () => {
  const bars = ["abz", "acdz", "cez"].map((names) => ({
    ...{ name: names, seconds: 1, phases: new Map([...names].map((name) => [name, 1])) },
  }));
  assert.deepEqual(phaseNames(bars).join(""), "abcdez");
});

Deno.test("the plot is XML whatever it names, and its bars are as long as they say", () => {
  const phases = new Map([["<a>", 6], ["b&", 3.9], ["short", 0.01], ["other", 0.09]]);
  const groups = [{ name: '"', bars: [{ name: "cold", seconds: 10, phases }] }];
  const image = parseXml(plot(groups, { title: "a < b", description: "'" })).root;
  assert(image);
  const parts = elements(image).filter(({ name, children }) => name === "rect" && children.length);
  assert.deepEqual(
    parts.map(({ text }) => text.trim()),
    ["<a>: 6.00 s", "b&: 3.90 s", "other: 0.10 s"],
  );
  assert.deepEqual(parts.map(({ attributes }) => attributes["width"]), ["360", "234", "6"]);
  assert.match(image.text, /a < b/);
});

function elements(element: XmlElement): XmlElement[] {
  const children = element.children.filter((child) => child instanceof XmlElement);
  return children.flatMap((child) => [child, ...elements(child)]);
}
