// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { confines } from "../../src/machine/warm/restore.ts";

Deno.test("libvirt says in its capabilities whether it confines machines", () => {
  const capabilities = (...models: string[]): string => {
    const secmodels = models.map((it) => `<secmodel><model>${it}</model><doi>0</doi></secmodel>`);
    return `<capabilities><host><uuid/>${secmodels.join("")}</host><guest/></capabilities>`;
  };
  assert.equal(confines(capabilities("apparmor", "dac")), true);
  assert.equal(confines(capabilities("selinux", "dac")), true);
  assert.equal(confines(capabilities("none", "dac")), false);
  assert.equal(confines(capabilities()), false);
});
