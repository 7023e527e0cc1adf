// SPDX-License-Identifier: GPL-2.0-or-later
import { Failed } from "./deno.ts";

const OWN =
  `libvirt-gci is free software: you can redistribute it and/or modify it under the terms of
the GNU General Public License as published by the Free Software Foundation; either version 2 of
the License, or (at your option) any later version. It comes without any warranty.

Copyright: the authors of libvirt-gci

On Debian systems, the text of the license is in /usr/share/common-licenses/GPL-2.
`;

const DENO =
  `Deno, the runtime, with V8 and Rust libraries. Their licenses are in Deno's own sources,
https://github.com/denoland/deno. That of Deno is:

MIT License

Copyright 2018-2026 the Deno authors

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense,
and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so,
subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT
LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN
NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY,
WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE
SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
`;

const RULE = `\n${"-".repeat(100)}\n\n`;

/** What is in the program, and its licenses: ours, Deno's and those of the packages in this bundle. */
export async function copyrightText(bundle: string): Promise<string> {
  const packages = await packagesIn(bundle);
  if (packages.length === 0) throw new Failed(`${bundle} says nothing of the packages in it`);
  const texts = await Promise.all(packages.map(licenseOf));
  return [OWN, `The program /usr/bin/libvirt-gci contains:\n\n${DENO}`, ...texts].join(RULE);
}

/** The packages that comments of the bundle name, as `name@version`. */
async function packagesIn(bundle: string): Promise<string[]> {
  const found = new Set<string>();
  for await (const { name } of Deno.readDir(bundle)) {
    const text = await Deno.readTextFile(`${bundle}/${name}`);
    for (const [, id = ""] of text.matchAll(/^ *\/\/ \S*\/node_modules\/\.deno\/([^/]+)\//gm)) {
      found.add(id.replace("+", "/"));
    }
  }
  return [...found].sort();
}

/** The license of a package, from Deno's cache. */
async function licenseOf(id: string): Promise<string> {
  const { stdout } = await new Deno.Command(Deno.execPath(), { args: ["info", "--json"] }).output();
  const { npmCache } = JSON.parse(new TextDecoder().decode(stdout));
  const path = id.replace(/@(?=[^@/]*$)/, "/");
  for await (const registry of Deno.readDir(npmCache)) {
    const directory = `${npmCache}/${registry.name}/${path}`;
    const files = await Array.fromAsync(Deno.readDir(directory), ({ name }) => name).catch(
      () => [],
    );
    const file = files.find((name) => /^licen[cs]e(\.(md|txt))?$/i.test(name));
    if (file === undefined) continue;
    const text = await Deno.readTextFile(`${directory}/${file}`);
    return `${id}:\n\n${text.replaceAll("\r", "").trim()}\n`;
  }
  throw new Failed(`Deno's cache has no license of the package ${id}`);
}
