// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { noPaint, paintFor, Printer } from "../../src/cli/printer.ts";
import type { Env } from "../../src/job/job.ts";

const XTERM = { TERM: "xterm" };

/** A printer on a terminal of this width, and all that it wrote there, on both streams. */
function onTerminal(
  { columns = 80, env = XTERM, isTerminal = true }: {
    readonly columns?: number;
    readonly env?: Env;
    readonly isTerminal?: boolean;
  } = {},
): { readonly printer: Printer; readonly written: () => string } {
  let written = "";
  const write = (text: string): void => void (written += text);
  const stream = {
    isTerminal: () => isTerminal,
    printLine: (text: string) => write(`${text}\n`),
    write,
    columns: () => columns,
  };
  return { printer: new Printer({ stdout: stream, stderr: stream }, env), written: () => written };
}

const ERASED = "\r\x1b[K";

Deno.test("progress is one line that is rewritten, and gone before any other line", () => {
  const prints: readonly [(printer: Printer) => void, string][] = [
    [(printer) => printer.print("Started"), "Started\n"],
    [(printer) => printer.printVisible("Started"), "Started\n"],
    [(printer) => printer.warn("Slow"), "Slow\n"],
    [(printer) => printer.debug("virConnectOpen 1 ms"), "debug: virConnectOpen 1 ms\n"],
    [(printer) => printer.fail("p", "It failed"), "p: It failed\n"],
  ];
  for (const [print, printed] of prints) {
    const { printer, written } = onTerminal({ env: { ...XTERM, NO_COLOR: "1" } });
    printer.progress?.("1 s");
    printer.progress?.("2 s");
    print(printer);
    assert.equal(written(), `${ERASED}1 s${ERASED}2 s${ERASED}${printed}`);
  }
});

Deno.test("progress writes nothing where nothing changes", () => {
  const { printer, written } = onTerminal();
  printer.progress?.(null);
  printer.print("a line");
  printer.progress?.("1 s");
  printer.progress?.("1 s");
  printer.progress?.(null);
  printer.progress?.(null);
  assert.equal(written(), `a line\n${ERASED}1 s${ERASED}`);
});

Deno.test("progress keeps to its line, whatever is in it and however wide it is", () => {
  const { printer, written } = onTerminal({ columns: 10 });
  printer.progress?.("a\nb\x1b[2J");
  assert.equal(written(), `${ERASED}a b\\u001b`);
  printer.progress?.("漢字漢字漢字");
  assert.equal(written().split(ERASED).at(-1), "漢字漢字", "two columns each, of nine");
  const unknown = onTerminal({ columns: 0 });
  unknown.printer.progress?.("x".repeat(100));
  assert.equal(unknown.written(), ERASED + "x".repeat(79));
});

Deno.test("there is no progress without a terminal, nor on one that only prints", () => {
  assert.equal(onTerminal({ isTerminal: false }).printer.progress, null);
  for (const env of [{ TERM: "dumb" }, { TERM: "" }, {}]) {
    assert.equal(onTerminal({ env }).printer.progress, null, JSON.stringify(env));
  }
});

Deno.test("colour is for terminals that have it and users who want it", () => {
  const terminal = { isTerminal: () => true };
  assert.equal(paintFor(terminal, XTERM)("red", "x"), "\x1b[31mx\x1b[0m");
  assert.equal(paintFor(terminal, { ...XTERM, NO_COLOR: "" })("green", "x"), "\x1b[32mx\x1b[0m");
  for (const env of [{ ...XTERM, NO_COLOR: "0" }, { TERM: "dumb" }, { TERM: "" }, {}]) {
    assert.equal(paintFor(terminal, env), noPaint, JSON.stringify(env));
  }
  assert.equal(paintFor({ isTerminal: () => false }, XTERM), noPaint);
});

Deno.test("an error has our name in red and a warning is yellow, without what a terminal obeys", () => {
  const { printer, written } = onTerminal();
  printer.fail("libvirt-gci", "It\x1b[2J failed");
  printer.warn("a \x1b[2J warning");
  assert.equal(
    written(),
    "\x1b[31mlibvirt-gci:\x1b[0m It\\u001b[2J failed\n\x1b[33ma \\u001b[2J warning\x1b[0m\n",
  );
});

Deno.test("each stream has its own colours", () => {
  let written = "";
  const printLine = (text: string): void => void (written += text);
  const printer = new Printer({
    stdout: { isTerminal: () => true, printLine, write: printLine, columns: () => 80 },
    stderr: { isTerminal: () => false, printLine },
  }, XTERM);
  printer.warn("plain");
  printer.printVisible(printer.paint("green", "x"));
  assert.equal(written, "plain\x1b[32mx\x1b[0m");
});
