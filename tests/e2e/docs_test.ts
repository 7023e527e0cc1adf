// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { command, e2eTest, PROGRAM, type Settings, settingsFile } from "./bed.ts";

const ROOT = new URL("../../", import.meta.url);

/** The template of the manual, which is the test bed's `lite`. Only a guest that boots has no cloud-init. */
const settingsFor = (login: "template" | "cloud-init"): Settings => ({
  templates: { "fedora-40": { volume: "lite.qcow2", ssh: { login } } },
});

/** Blocks for a shell that only call libvirt-gci, but for `doctor`, which finds fault with the test bed. */
async function blocksIn(page: string): Promise<string[]> {
  const text = await Deno.readTextFile(new URL(page, ROOT));
  return [...text.matchAll(/^( *)```sh\n([^]*?)^ *```$/gm)].map(([, , block = ""]) => block)
    .filter((block) => /^( *(libvirt-gci (?!doctor)|export CUSTOM_ENV_).*\n)+$/.test(block));
}

/** A directory with a `libvirt-gci` that is the program under test with these settings, and a script. */
async function workplace(settings: string): Promise<string> {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-e2e-docs-" });
  const shim = `#!/bin/bash
set -e
program=(${[...PROGRAM, "--config", settings].map((word) => `'${word}'`).join(" ")})
case " $* " in
  *" ssh "* | *" console "*) ;; # at a terminal: console_test.ts and keep_test.ts
  *" prepare "*"--machine mine "*)
    "\${program[@]}" "$@"
    "\${program[@]}" run --machine mine -- sh -c \\
      'printf "#!/bin/sh\\n" | sudo tee /usr/bin/make >/dev/null && sudo chmod +x /usr/bin/make' ;;
  *) "\${program[@]}" "$@" ;;
esac
`;
  await Deno.writeTextFile(`${directory}/libvirt-gci`, shim, { mode: 0o755 });
  await Deno.writeTextFile(`${directory}/build.sh`, "echo built\n");
  return directory;
}

async function runBlock(block: string): Promise<void> {
  const login = block.includes("libvirt-gci warm") ? "cloud-init" : "template";
  using file = settingsFile(settingsFor(login));
  const directory = await workplace(file.path);
  const env = { PATH: `${directory}:${Deno.env.get("PATH") ?? ""}` };
  try {
    const ran = await command(["bash", "-euc", `cd ${directory}\n${block}`], env);
    assert.equal(ran.status, 0, `${block}\n${ran.stdout}${ran.stderr}`);
    if (block.includes("build.sh")) assert.match(ran.stdout, /^built$/m);
  } finally {
    await command([`${directory}/libvirt-gci`, "cleanup", "--machine", "mine"], env);
    await Deno.remove(directory, { recursive: true });
  }
}

for (
  const [page, count] of [
    ["README.md", 1],
    ["docs/commands.md", 2],
    ["docs/debugging.md", 1],
    ["docs/fast-starts.md", 3],
  ] as const
) {
  e2eTest(`the commands of ${page} do what it says, in its order`, async () => {
    const blocks = await blocksIn(page);
    assert.equal(blocks.length, count, blocks.join("\n"));
    for (const block of blocks) await runBlock(block);
  }, { thorough: true });
}
