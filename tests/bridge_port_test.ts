// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { cardDevices } from "../src/machine/bridge_port.ts";

Deno.test("the devices of a machine's cards are those that libvirt made, and no path", () => {
  const card = (target: string): string => `<interface type="network">${target}</interface>`;
  const targets = ["vnet0", "br-vm.1", "../../x", "..", ""].map((dev) => `<target dev="${dev}"/>`);
  const cards = [...targets, ""].map(card).join("");
  assert.deepEqual(cardDevices(`<domain><devices>${cards}</devices></domain>`), [
    "vnet0",
    "br-vm.1",
  ]);
  assert.deepEqual(cardDevices("<domain/>"), []);
});
