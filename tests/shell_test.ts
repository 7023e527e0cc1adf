// SPDX-License-Identifier: GPL-2.0-or-later
import fc from "fast-check";
import assert from "node:assert/strict";
import { execScript } from "../src/shell.ts";

/** What a shell that reads this script from a file prints, and its status. */
async function runScript(
  shell: string,
  script: string,
): Promise<{ readonly stdout: string; readonly code: number }> {
  const file = await Deno.makeTempFile();
  try {
    await Deno.writeTextFile(file, script);
    const command = new Deno.Command(shell, { args: [file], stdin: "null" });
    const { stdout, stderr, code } = await command.output();
    assert.equal(new TextDecoder().decode(stderr), "");
    return { stdout: new TextDecoder("utf-8", { ignoreBOM: true }).decode(stdout), code };
  } finally {
    await Deno.remove(file);
  }
}

/** The arguments that a program gets from a shell that runs the command line. */
async function argumentsThrough(shell: string, args: readonly string[]): Promise<string[]> {
  // A format that takes one argument is used again for each.
  const { stdout, code } = await runScript(shell, execScript(["printf", "%s\\0", ...args]));
  assert.equal(code, 0);
  return stdout.split("\0").slice(0, -1);
}

const HOSTILE = [
  "",
  " ",
  "'; exit 3; '",
  "\n",
  "a\nb",
  "\r\n",
  "\t",
  "a b",
  "x".repeat(10_000),
  ..."' '' '\\'' \" \\ \\\\' $HOME ${x} $(id) `id` $'\\n' * ? [a-z] ~ #x !! {a,b} ^".split(" "),
  ..."; & && | <x >x ( ) -n -- %s x=1 =x if ä 🙂".split(" "),
  ..."\u2028 \ufeff \x01 \x1b[31m \x1e \x7f".split(" "),
];

for (const shell of ["sh", "bash"]) {
  const ignore = !await new Deno.Command(shell, { args: ["-c", ":"] }).output()
    .then(() => true, () => false);

  Deno.test({
    name: `hostile arguments arrive through ${shell} as they are`,
    ignore,
    fn: async () => assert.deepEqual(await argumentsThrough(shell, HOSTILE), HOSTILE),
  });
}

Deno.test("any arguments that a program can have arrive through sh as they are", async () => {
  const argument = fc.oneof(
    fc.constantFrom(...HOSTILE),
    fc.string({ unit: "grapheme" }),
    fc.string({ unit: "binary" }),
    fc.array(fc.constantFrom("'", '"', "\\", "$", "`", "\n", " ", "a"), { maxLength: 12 })
      .map((characters) => characters.join("")),
  ).map((text) => text.replaceAll("\0", "")); // C's strings end there
  await fc.assert(
    fc.asyncProperty(fc.array(argument, { minLength: 1, maxLength: 40 }), async (args) => {
      assert.deepEqual(await argumentsThrough("sh", args), args);
    }),
    { numRuns: 600 },
  );
});

Deno.test("the command's status is the script's", async () => {
  assert.equal((await runScript("sh", execScript(["sh", "-c", "exit 7"]))).code, 7);
});

Deno.test("the command takes the place of the shell", async () => {
  const script = `echo $$\n${execScript(["sh", "-c", "echo $$"])}`;
  const [shell, command] = (await runScript("sh", script)).stdout.trim().split("\n");
  assert.equal(command, shell);
});

Deno.test("a command that looks like a word of the shell's is one all the same", async () => {
  const { stdout } = await runScript("sh", execScript(["env", "if=1", "sh", "-c", "echo done"]));
  assert.equal(stdout, "done\n");
});
