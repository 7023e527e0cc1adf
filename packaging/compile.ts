// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * Makes the program of main.ts: one file that needs nothing but libvirt's library.
 *
 *     deno task compile [FILE]
 *
 * Bundled first, it starts twice as fast. Without the code cache, since that is a file in /tmp which
 * another user of the host could have put there.
 */
import denoJson from "../deno.json" with { type: "json" };
import { bundle } from "./bundle.ts";
import { deno, Failed, ROOT } from "./deno.ts";
import { PERMISSIONS } from "./permissions.ts";

/** Deno takes any file for the runtime that it is to put into the program, such as another version's. */
async function refuseWhatDoesNotRun(program: string): Promise<void> {
  const { stdout, stderr } = await new Deno.Command(await Deno.realPath(program), {
    args: ["--version"],
    env: { RUST_BACKTRACE: "0" },
  }).output();
  const decoder = new TextDecoder();
  if (decoder.decode(stdout).startsWith(`libvirt-gci ${denoJson.version} (`)) return;
  const words = decoder.decode(stderr).trim() || "it does not print its version";
  throw new Failed(
    `What was compiled does not run: ${words}\n` +
      `If DENORT_BIN is set, it must be the denort of Deno ${Deno.version.deno}`,
  );
}

const file = Deno.args[0] ?? `${ROOT}build/libvirt-gci`;
const compiled = `${file}.new`;
try {
  await deno(
    "compile",
    "--quiet",
    "--no-check",
    "--no-prompt",
    "--no-code-cache",
    "--v8-flags=--max-semi-space-size=1",
    ...PERMISSIONS,
    "-o",
    compiled,
    await bundle(`${ROOT}build/bundle`),
  );
  await refuseWhatDoesNotRun(compiled);
  await Deno.rename(compiled, file); // also in the place of one that runs
} catch (error) {
  if (!(error instanceof Failed)) throw error;
  await Deno.remove(compiled).catch(() => {}); // which the compiler may not have made
  console.error(`The program was not compiled: ${error.message}`);
  Deno.exitCode = 1;
}
