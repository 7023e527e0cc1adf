// SPDX-License-Identifier: GPL-2.0-or-later
import fc from "fast-check";
import assert from "node:assert/strict";
import { parseAnyLine } from "../../src/cli/any_line.ts";
import { GLOBAL_OPTIONS, readFields } from "../../src/cli/arguments.ts";
import { type Line, readPlainLine } from "../../src/cli/plain_line.ts";
import { COMMANDS } from "../../src/program.ts";

const ALL = await Promise.all(
  Object.values(COMMANDS).map(async (load) => (await load()).command),
);

/** What the command line says, by the names that the program has for it. */
function meaning({ global, command, ofCommand }: Line): unknown {
  return {
    command: command.name,
    global: readFields(GLOBAL_OPTIONS, global),
    own: readFields(command.fields, ofCommand),
  };
}

/** The same from the whole parser; what it says instead, if it ends the program. */
function meaningOfAny(args: readonly string[], command: Line["command"]): unknown {
  class Said extends Error {}
  const said: string[] = [];
  const end = (): never => {
    throw new Said(said.join("\n"));
  };
  const say = (text: string): void => void said.push(text);
  const output = { stdout: say, stderr: say, exit: end };
  const options = { commands: [command], about: "1", aboveError: "none", output } as const;
  try {
    return meaning(parseAnyLine(args, { ...options, onError: end }));
  } catch (error) {
    if (error instanceof Said) return error.message;
    throw error;
  }
}

/** Words that command lines of this command are made of, and some that may be anything. */
function wordsOf({ name, fields }: Line["command"]): fc.Arbitrary<string[]> {
  const names = [fields, GLOBAL_OPTIONS].flatMap((all) => Object.values(all))
    .flatMap(({ names }) => names);
  const word = fc.oneof(
    { weight: 3, arbitrary: fc.constantFrom(...names, ...names.map((it) => `${it}=a`)) },
    { weight: 3, arbitrary: fc.constantFrom("a", "b c", "/x/y", "2h", "a=b") },
    {
      weight: 1,
      arbitrary: fc.constantFrom(
        "",
        "é\n",
        name,
        ..."- -x --x --x=1 --debug= --config= -mx --mach 0h = --help --version".split(" "),
        ..."help version completions completion __proto__".split(" "),
      ),
    },
  );
  const some = fc.array(word, { maxLength: 4 });
  const before = fc.constantFrom<string[]>([], [], ["--debug"], ["--config", "f"], ["--config=f"]);
  return fc.tuple(before, some).map(([first, rest]) => [...first, name, ...rest]);
}

for (const command of ALL.filter(({ commands }) => commands === undefined)) {
  Deno.test(`a plain line of ${command.name} means what it means to the whole parser`, () => {
    let plain = 0;
    fc.assert(
      fc.property(wordsOf(command), (args) => {
        const line = readPlainLine(args, command);
        if (line === null) return;
        plain++;
        assert.deepEqual(meaning(line), meaningOfAny(args, command));
      }),
      { numRuns: 400 },
    );
    assert(plain > 10, String(plain));
  });
}

for (
  const line of [
    ["config"],
    ["--config", "/etc/x.yaml", "--debug", "config", "--distro", "debian-12"],
    ["--config=/etc/x.yaml", "prepare", "-d", "debian-12", "--ssh-key-file=/root/key"],
    ["run", "/tmp/script", "build_script"],
    ["run", "--script", "/tmp/script", "step_a=b"],
    ["--debug", "run", "--machine", "a", "--script", "/tmp/script", "after_script"],
    ["cleanup"],
    ["cleanup", "--machine=a"],
    ["--config", "cleanup", "cleanup", "-m", "cleanup"],
  ]
) {
  Deno.test(`the stages need no other parser for ${line.join(" ")}`, () => {
    const plain = ALL.filter(({ name }) => line.includes(name))
      .map((command) => readPlainLine(line, command)).filter((it) => it !== null);
    assert.deepEqual(plain.map(meaning), plain.map(({ command }) => meaningOfAny(line, command)));
    assert.equal(plain.length, 1);
  });
}

Deno.test("mistakes and help are for the whole parser", () => {
  const lines = [
    "",
    "--debug",
    "run --help",
    "run --script",
    "--version",
    "list a",
    "list --json --json",
    "keep",
    "keep a b",
    "keep a --extend 3",
    "cleanup -m",
    "cleanup -m -x",
    "cleanup --all=yes",
    "template list",
  ].map((line) => line.split(" "));
  const plain = lines.filter((line) => ALL.some((it) => readPlainLine(line, it) !== null));
  assert.deepEqual(plain, [["run", "--script"]]); // whose script may follow --
});
