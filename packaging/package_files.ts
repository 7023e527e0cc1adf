// SPDX-License-Identifier: GPL-2.0-or-later
import { gzipSync } from "node:zlib";
import denoJson from "../deno.json" with { type: "json" };
import { copyrightText } from "./copyright.ts";
import { Failed, ROOT } from "./deno.ts";
import { commandsPage, settingsPage } from "./man_pages.ts";
import { MAINTAINER } from "./nfpm.ts";

/**
 * Writes into this directory, which is made anew, what the packages have besides the program and the
 * sources' own files: pages of the manual, completions, changelogs, licenses. Throws {@linkcode Failed}.
 */
export async function writeFiles(
  directory: string,
  { bundle, time, version = denoJson.version }: {
    readonly bundle: string;
    readonly time: Date;
    readonly version?: string;
  },
): Promise<void> {
  await Deno.remove(directory, { recursive: true }).catch(() => {}); // there may be none
  for (const below of ["man1", "man5", "completions"]) {
    await Deno.mkdir(`${directory}/${below}`, { recursive: true });
  }
  const compressed = {
    "man1/libvirt-gci.1.gz": await commandsPage(time),
    "man5/libvirt-gci.yaml.5.gz": await settingsPage(time),
    "changelog.gz": await Deno.readTextFile(`${ROOT}CHANGELOG.md`),
    "changelog.Debian.gz": debianChangelog(version, time),
  };
  for (const [name, text] of Object.entries(compressed)) {
    await Deno.writeFile(`${directory}/${name}`, gzipSync(text, { level: 9 }));
  }
  for (const shell of ["bash", "fish", "zsh"]) {
    await Deno.writeTextFile(`${directory}/completions/${shell}`, await completions(shell));
  }
  await Deno.writeTextFile(`${directory}/copyright`, await copyrightText(bundle));
  await copyForAll(`${ROOT}docs`, `${directory}/docs`, time);
}

/** Copies a directory for everybody to read, as of this time: nfpm takes a tree's modes and times. */
async function copyForAll(from: string, to: string, time: Date): Promise<void> {
  await Deno.mkdir(to);
  for await (const { name, isDirectory } of Deno.readDir(from)) {
    const [source, copy] = [`${from}/${name}`, `${to}/${name}`];
    if (isDirectory) {
      await copyForAll(source, copy, time);
      continue;
    }
    await Deno.copyFile(source, copy);
    await Deno.chmod(copy, 0o644);
    await Deno.utime(copy, time, time);
  }
  await Deno.chmod(to, 0o755);
  await Deno.utime(to, time, time);
}

/** The package's own, which tells nothing: what users notice is in CHANGELOG.md. */
function debianChangelog(version: string, time: Date): string {
  const debian = version.replace("-", "~");
  const date = time.toUTCString().replace("GMT", "+0000");
  return `libvirt-gci (${debian}-1) unstable; urgency=medium

  * See /usr/share/doc/libvirt-gci/changelog.gz.

 -- ${MAINTAINER}  ${date}
`;
}

/** What the program prints as completions. Throws {@linkcode Failed}. */
async function completions(shell: string): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--no-check", "--allow-all", "main.ts", "completions", shell],
    cwd: ROOT,
  }).output();
  const decoder = new TextDecoder();
  if (!success) throw new Failed(`No completions for ${shell}: ${decoder.decode(stderr)}`);
  return decoder.decode(stdout);
}
