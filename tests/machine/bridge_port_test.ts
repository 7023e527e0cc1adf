// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { cardDevices } from "../../src/machine/network/filter.ts";
import { isNetworkAdmin } from "../../src/machine/network/set_filter.ts";
import { asNobody, canBeNobody } from "../fakes/test_nobody.ts";

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

/** Runs a command where nothing is but a bridge and a port of it, then shows the port's mask. */
const BESIDE_BRIDGE = `
mount -t sysfs sysfs /sys # of these devices
ip link add bridge0 type bridge
ip link add port0 type veth peer name other0
ip link set port0 master bridge0
"$@"
cat /sys/class/net/port0/brport/group_fwd_mask
`;

/** In a network of its own, so that the host's is as it was. */
const APART = ["unshare", "--net", "--mount", "sh", "-ec"];

const SET_ALL = `
import { setGroupForwardMask } from "ffi/bridge_port.ts";
for (const device of ["port0", "other0", "none0"]) {
  console.log(device, setGroupForwardMask(device, 0xfffd));
}
`;

const canMakeBridges = canBeNobody && (await new Deno.Command(APART[0] ?? "", {
  args: [...APART.slice(1), BESIDE_BRIDGE, "sh", "true"],
  stdout: "null",
  stderr: "null",
}).output()).success;

for (
  const [name, capabilities, expected] of [
    [
      "with CAP_NET_ADMIN alone, a bridge forwards the link-local frames of a port",
      ["net_admin"],
      "port0 true\nother0 false\nnone0 false\n0xfffd",
    ],
    [
      "without a capability, a bridge forwards what it did before",
      [],
      "port0 false\nother0 false\nnone0 false\n0x0",
    ],
  ] as const
) {
  Deno.test({
    name,
    ignore: !canMakeBridges,
    fn: async () => {
      const around = [...APART, BESIDE_BRIDGE, "sh"];
      assert.equal(await asNobody(SET_ALL, { capabilities, around }), expected);
    },
  });
}

Deno.test("who is a network administrator is known by what the process may do now", () => {
  const status = (effective: string): string =>
    `Name:\tdeno\nCapInh:\t0\nCapPrm:\t000001ffffffffff\nCapEff:\t${effective}\nCapBnd:\t0\n`;
  const administrators = ["000001ffffffffff", "0000000000001000"];
  const others = ["0000000000000000", "000001ffffffefff", "0000000000002000"];
  assert.deepEqual(administrators.map(status).map(isNetworkAdmin), [true, true]);
  assert.deepEqual(others.map(status).map(isNetworkAdmin), [false, false, false]);
  assert.equal(isNetworkAdmin(""), false);
});
