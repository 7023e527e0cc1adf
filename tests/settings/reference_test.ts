// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { FILE } from "../../src/settings/file_table.ts";
import { parseConfig } from "../../src/settings/read.ts";
import { settingsIn } from "../../src/settings/setting.ts";
import { DEFAULT_CONFIG } from "../../src/settings/settings.ts";
import { exampleFile, settingsPage } from "./reference.ts";

const ROOT = new URL("../../", import.meta.url);

for (
  const [file, text] of [["config.example.yaml", exampleFile], [
    "docs/settings.md",
    settingsPage,
  ]] as const
) {
  Deno.test(`${file} is as the table of settings says, or UPDATE=1 writes it anew`, async () => {
    const url = new URL(file, ROOT);
    if (Deno.env.has("UPDATE")) await Deno.writeTextFile(url, text());
    assert.equal(await Deno.readTextFile(url), text());
  });
}

Deno.test("the example as it stands is valid, and its values are the defaults", () => {
  assert.deepEqual(parseConfig(exampleFile(), "example"), { ...DEFAULT_CONFIG, file: "example" });
});

Deno.test("the example is valid with all that its comments show switched on", () => {
  const config = parseConfig(exampleFile().replace(/^( *)#(?=\w| {2,}\S)/gm, "$1"), "example");
  const basic = settingsIn(FILE).filter(([, { basic }]) => basic);
  assert.equal(basic.length, 10);
  assert.equal(config.host.maxMachines, 8);
  assert.equal(config.templates.get("fedora-40")?.machine.ssh.login, "systemd");
});

Deno.test("each setting that a message names in double quotes is one", async () => {
  const keys = new Set(settingsIn(FILE).map(([key]) => key));
  const groups = Object.entries(FILE).filter(([, member]) => "members" in member).map(([key]) =>
    key
  );
  const named = new RegExp(`"((?:${groups.join("|")})\\.[a-z_.]+)"`, "g");
  let count = 0;
  for (const file of await sources(new URL("src/", ROOT))) {
    for (const [, key = ""] of (await Deno.readTextFile(file)).matchAll(named)) {
      assert(keys.has(key), `${file.pathname} names "${key}"`);
      count++;
    }
  }
  assert(count > 30, `only ${count}`);
});

async function sources(folder: URL): Promise<URL[]> {
  const found: URL[] = [];
  for await (const { name, isDirectory } of Deno.readDir(folder)) {
    if (isDirectory) found.push(...await sources(new URL(`${name}/`, folder)));
    else found.push(new URL(name, folder));
  }
  return found;
}
