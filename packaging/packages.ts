// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * Makes the packages in build/packages, and the program for this host as build/libvirt-gci.
 *
 *     deno task packages
 *
 * Without the runtime for the other processor, that one's packages are skipped.
 */
import { bundle } from "./bundle.ts";
import { type Arch, BUNDLE, compile } from "./compile.ts";
import { Failed, ROOT } from "./deno.ts";
import { installNfpm, makePackages } from "./nfpm.ts";
import { writeFiles } from "./package_files.ts";
import { readSource } from "./source.ts";

const OUTPUT = `${ROOT}build/packages`;
const FILES = `${ROOT}build/package-files`;
const HOST = Deno.build.arch;
const OTHER: Arch = HOST === "x86_64" ? "aarch64" : "x86_64";

/** The packages of these processors. Throws {@linkcode Failed}. */
async function main(): Promise<void> {
  const nfpm = await installNfpm();
  const { time } = await readSource();
  const start = await bundle(BUNDLE);
  await Deno.remove(OUTPUT, { recursive: true }).catch(() => {}); // there may be none
  await Deno.mkdir(OUTPUT, { recursive: true });
  await writeFiles(FILES, { bundle: BUNDLE, time });
  const program = `${FILES}/libvirt-gci`;
  const packaging = { files: FILES, output: OUTPUT, time };
  await compile(start, program, { arch: HOST });
  await Deno.copyFile(program, `${ROOT}build/libvirt-gci.new`);
  await Deno.rename(`${ROOT}build/libvirt-gci.new`, `${ROOT}build/libvirt-gci`);
  await makePackages(nfpm, { ...packaging, arch: HOST });
  try {
    await compile(start, program, { arch: OTHER });
  } catch (error) {
    if (!(error instanceof Failed)) throw error;
    return console.error(
      `Skipped: the packages for ${OTHER}, since there is no program: ${error.message}`,
    );
  }
  await makePackages(nfpm, { ...packaging, arch: OTHER });
}

try {
  await main();
  for (const { name } of Deno.readDirSync(OUTPUT)) console.log(`build/packages/${name}`);
} catch (error) {
  if (!(error instanceof Failed)) throw error;
  console.error(`The packages were not made: ${error.message}`);
  Deno.exitCode = 1;
}
