// SPDX-License-Identifier: GPL-2.0-or-later
import fc from "fast-check";
import assert from "node:assert/strict";
import { openConsole } from "../../src/commands/console.ts";
import { consoleEnd } from "../../src/guest/console_text.ts";
import { Connection } from "../../src/libvirt/connection.ts";
import { EMPTY_METADATA, metadataXml } from "../../src/machine/metadata.ts";
import { sleep } from "../../src/wait.ts";
import { TestLibvirtd, xdr } from "../fakes/test_libvirtd.ts";
import { bareStage } from "../fakes/test_stage.ts";

/** The lines behind the bars. */
function linesOf(text: string, lines = 30): string[] {
  const [heading, ...rest] = consoleEnd(text, lines).split("\n");
  assert.equal(heading, "The end of its serial console:");
  return rest.map((line) => {
    assert(line.startsWith("  | "), line);
    return line.slice("  | ".length);
  });
}

Deno.test("each line of the console stands behind a bar", () => {
  assert.equal(
    consoleEnd("Booting\nlogin: \n", 30),
    "The end of its serial console:\n  | Booting\n  | login:",
  );
});

Deno.test("only the last lines are given", () => {
  const text = Array.from({ length: 50 }, (_, i) => `line ${i}\r\n`).join("");
  assert.deepEqual(linesOf(text, 3), ["line 47", "line 48", "line 49"]);
});

for (
  const [what, text] of [
    ["nothing", ""],
    ["line ends only", "\r\n\n\r\n"],
    ["blanks only", "   \n\t\n"],
    ["colours only", "\x1b[0m\n\x1b[2J"],
  ] as const
) {
  Deno.test(`a console of ${what} is empty`, () => {
    assert.equal(consoleEnd(text, 30), "Its serial console is empty.");
  });
}

Deno.test("empty lines are left out and do not count", () => {
  assert.deepEqual(linesOf("a\n\n\r\n \nb\n\n", 2), ["a", "b"]);
});

Deno.test("what a carriage return would overwrite stays to be seen", () => {
  assert.deepEqual(linesOf("10 %\r20 %\r30 %\n"), ["10 %", "20 %", "30 %"]);
});

for (
  const [what, text, printed] of [
    ["colours", "\x1b[1;31mFailed\x1b[0m to start", "Failed to start"],
    ["movements of the cursor", "\x1b[2J\x1b[1;1H\x1b[?25lGRUB\x1bM", "GRUB"],
    ["the mark of a section of GitLab's log", "section_start:1:x\r\x1b[0Kforged", "forged"],
    ["the title of the window", "\x1b]0;forged\x07x", "0;forged\ufffdx"],
    ["a sequence in a sequence", "\x1b\x1b[0m[31mred", "\ufffd[31mred"],
    ["half a sequence", "\x1b[31", "\ufffd[31"],
    ["a sequence of one byte", "\x9b31mred", "\ufffd31mred"],
    ["bells and backspaces", "a\x07\x08\x00b", "a\ufffd\ufffd\ufffdb"],
    ["characters that turn the direction of text", "a\u202eb\u2066c", "a\ufffdb\ufffdc"],
    ["half a character", "a\ud83d", "a\ufffd"],
    ["tabs", "a\tb", "a b"],
  ] as const
) {
  Deno.test(`of ${what}, nothing is left that a terminal would obey`, () => {
    assert.equal(linesOf(text).at(-1), printed);
  });
}

Deno.test("characters beyond ASCII stay as they are", () => {
  assert.deepEqual(linesOf("Gerät 🙂 日本"), ["Gerät 🙂 日本"]);
});

Deno.test("whatever the guest prints, no control character is left and every line has its bar", () => {
  const part = fc.oneof(
    fc.string({ unit: "binary" }),
    fc.string(),
    fc.constantFrom(
      "\x1b",
      "[",
      "\x1b[",
      "\x9b",
      "m",
      "31m",
      "\r",
      "\n",
      "\r\n",
      "\x1b]0;",
      "\x07",
    ),
  );
  fc.assert(
    fc.property(fc.array(part), fc.integer({ min: 1, max: 5 }), (parts, lines) => {
      const end = consoleEnd(parts.join(""), lines);
      assert.doesNotMatch(end.replaceAll("\n", ""), /\p{C}/u);
      if (end !== "Its serial console is empty.") {
        assert(linesOf(parts.join(""), lines).length <= lines);
      }
    }),
    { numRuns: 5000 },
  );
});

/** What a person types at a terminal, part by part. */
async function* typing(
  parts: readonly Uint8Array[],
  start: Promise<void>,
): AsyncGenerator<Uint8Array> {
  await start;
  for (const part of parts) {
    yield part;
    await sleep(1); // as from a terminal, no two parts come at once
  }
}

/** What becomes of a console at whose terminal this is typed, once the guest has said its words. */
async function typeAtConsole(parts: readonly Uint8Array[], words: string): Promise<{
  readonly receivedBytes: number;
  readonly modes: readonly boolean[];
  /** What came, one after another: lines of ours, and what the guest sent. */
  readonly shown: readonly string[];
}> {
  await using libvirtd = new TestLibvirtd({
    DOMAIN_GET_METADATA: () => xdr(`${metadataXml(EMPTY_METADATA)}`),
    DOMAIN_OPEN_CONSOLE: () => xdr(),
  }, { console: new TextEncoder().encode(words) });
  await using connection = await Connection.open(libvirtd.uri);
  const modes: boolean[] = [];
  const shown: string[] = [];
  const heard = Promise.withResolvers<void>();
  const stdout = (bytes: Uint8Array): Promise<void> => {
    shown.push(new TextDecoder().decode(bytes));
    heard.resolve();
    return Promise.resolve();
  };
  await openConsole(
    "m",
    {
      force: false,
      terminal: { input: typing(parts, heard.promise), setRaw: (raw) => modes.push(raw) },
      stdout,
    },
    bareStage(connection, {
      signal: AbortSignal.timeout(5000),
      log: (line) => void shown.push(`log: ${line}`),
      warn: (line) => void shown.push(`warn: ${line}`),
    }),
  );
  return { receivedBytes: libvirtd.receivedBytes, modes, shown };
}

Deno.test("after a paste of 200 kB into the console, all of it is sent and ^] leaves", async () => {
  const paste = new Uint8Array(200_000).fill(0x61);
  const typed = [paste, Uint8Array.of(0x62, 0x1d, 0x63)];
  const { receivedBytes, modes } = await typeAtConsole(typed, "login: ");
  assert.equal(receivedBytes, paste.length + 1);
  assert.deepEqual(modes, [true, false]);
});

Deno.test("console says first how to leave, that the terminal obeys the guest, and what makes it visible", async () => {
  const words = "\x1b[8mlogin: ";
  const { shown } = await typeAtConsole([Uint8Array.of(0x1d)], words);
  const [first, ...others] = shown;
  assert.match(
    first ?? "",
    /^warn: .* press \^\] .* control this terminal: "libvirt-gci logs m" shows it/,
  );
  assert.deepEqual(others, [words, "\n", 'log: Left the console of "m"']);
});
