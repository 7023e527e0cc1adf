// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";

/** Who is on each host and owns nothing. */
const NOBODY = 65534;

/** Reading our own files, wherever they are. */
const READING = "dac_read_search";

/** Whether tests may become another user. */
export const canBeNobody = Deno.uid() === 0;

/**
 * What this code of a module prints, run by nobody with no capability but these, and that of reading
 * any file. `around` is a command that the process is run by, as root. `ffi/` is where the code finds
 * the modules of that folder.
 */
export async function asNobody(
  code: string,
  { capabilities, around = [] }: {
    readonly capabilities: readonly string[];
    readonly around?: readonly string[];
  },
): Promise<string> {
  const cache = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  try {
    await Deno.chown(cache, NOBODY, NOBODY);
    const only = [READING, ...capabilities].map((name) => `+${name}`).join();
    const user = [`--reuid=${NOBODY}`, `--regid=${NOBODY}`, "--clear-groups"];
    const rights = [`--inh-caps=-all,${only}`, `--ambient-caps=-all,${only}`];
    const module = code.replaceAll(`"ffi/`, `"${new URL("../../ffi/", import.meta.url)}`);
    const [command = "", ...args] = [
      ...around,
      "setpriv",
      ...user,
      ...rights,
      `--bounding-set=-all,${only}`,
      Deno.execPath(),
      "eval",
      "--quiet",
      module,
    ];
    return await printedBy(command, args, { DENO_DIR: cache, HOME: cache });
  } finally {
    await Deno.remove(cache, { recursive: true });
  }
}

/** Has the process be nobody from now on, with no capability. */
const BECOME_NOBODY = `
  const { symbols } = Deno.dlopen("libc.so.6", {
    setresgid: { parameters: ["u32", "u32", "u32"], result: "i32" },
    setresuid: { parameters: ["u32", "u32", "u32"], result: "i32" },
  });
  const nobody = [${NOBODY}, ${NOBODY}, ${NOBODY}];
  if (symbols.setresgid(...nobody) !== 0 || symbols.setresuid(...nobody) !== 0) Deno.exit(1);
`;

/**
 * What this code prints, run by nobody, who may read what every user may. What it imports is loaded
 * before; `src/` is where it finds the modules of that folder.
 */
export async function printedByNobody(
  { imports, code }: { readonly imports: string; readonly code: string },
): Promise<string> {
  const root = new URL("../../", import.meta.url);
  const module = imports.replaceAll(`"src/`, `"${root}src/`) + BECOME_NOBODY + code;
  const args = ["eval", "--quiet", "--config", `${root.pathname}deno.json`, module];
  return await printedBy(Deno.execPath(), args);
}

async function printedBy(
  program: string,
  args: string[],
  env: Record<string, string> = {},
): Promise<string> {
  const output = await new Deno.Command(program, { args, cwd: "/", env }).output();
  assert(output.success, new TextDecoder().decode(output.stderr));
  return new TextDecoder().decode(output.stdout).trim();
}
