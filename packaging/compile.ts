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

/** A processor that the program is compiled for, as Deno calls it. */
export type Arch = typeof Deno.build.arch;

/** Where `bundle()` puts what is compiled. The path is in the program. */
export const BUNDLE = `${ROOT}build/bundle`;

/** What a program for the processor has in its ELF header. */
const ELF_MACHINES: Readonly<Record<Arch, number>> = { x86_64: 62, aarch64: 183 };

/**
 * Compiles the bundle that this module starts, as this file, for this processor. The runtime that goes into
 * the program is the file that `DENORT_BIN` names or, for another processor than this host's,
 * `DENORT_BIN_AARCH64` or `DENORT_BIN_X86_64`; without it, Deno downloads its own. Throws
 * {@linkcode Failed}, and leaves the file as it was.
 */
export async function compile(
  main: string,
  file: string,
  { arch }: { readonly arch: Arch },
): Promise<void> {
  const compiled = `${file}.new`;
  const { DENORT_BIN: own, ...env } = Deno.env.toObject();
  const runtime = arch === Deno.build.arch ? own : env[`DENORT_BIN_${arch.toUpperCase()}`];
  try {
    await deno([
      "compile",
      "--quiet",
      "--no-check",
      "--no-prompt",
      "--no-code-cache",
      "--target",
      `${arch}-unknown-linux-gnu`,
      "--v8-flags=--max-semi-space-size=1",
      ...PERMISSIONS,
      "-o",
      compiled,
      main,
    ], runtime === undefined ? env : { ...env, DENORT_BIN: runtime });
    if (arch === Deno.build.arch) await refuseWhatDoesNotRun(compiled);
    else await refuseOtherProcessor(compiled, arch);
    await Deno.rename(compiled, file); // also in the place of one that runs
  } catch (error) {
    await Deno.remove(compiled).catch(() => {}); // which the compiler may not have made
    throw error;
  }
}

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

async function refuseOtherProcessor(program: string, arch: Arch): Promise<void> {
  using file = await Deno.open(program);
  const header = new Uint8Array(20);
  await file.read(header);
  if (new DataView(header.buffer).getUint16(18, true) === ELF_MACHINES[arch]) return;
  const variable = `DENORT_BIN_${arch.toUpperCase()}`;
  throw new Failed(`What was compiled is not for ${arch}\n${variable} must be a denort for it`);
}

if (import.meta.main) {
  const file = Deno.args[0] ?? `${ROOT}build/libvirt-gci`;
  try {
    await compile(await bundle(BUNDLE), file, { arch: Deno.build.arch });
  } catch (error) {
    if (!(error instanceof Failed)) throw error;
    console.error(`The program was not compiled: ${error.message}`);
    Deno.exitCode = 1;
  }
}
