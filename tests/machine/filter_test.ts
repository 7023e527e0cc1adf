// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { filterXml, type Isolation } from "../../src/machine/network/filter.ts";
import { readSubnets } from "../../src/machine/network/network_info.ts";

const SPDX = "<!-- SPDX-License-Identifier: GPL-2.0-or-later -->";

const NAT: Isolation = {
  subnets: [{ host: "192.168.122.1", prefix: 24 }],
  hostAddresses: ["192.168.122.1", "10.0.0.5"],
  closed: [
    { address: "10.0.0.255", prefix: 32 },
    { address: "10.0.0.0", prefix: 32 },
    // What needs no rule of its own.
    { address: "192.168.122.255", prefix: 32 },
    { address: "127.0.0.53", prefix: 32 },
  ],
  hostPorts: ["tcp/3142", "udp/123"],
  sshPort: 2222,
  uuid: "01234567-89ab-cdef-0123-456789abcdef",
};

const CASES: Readonly<Record<string, Isolation>> = {
  nat: NAT,
  blocked: {
    ...NAT,
    closed: [...NAT.closed, { address: "192.168.0.0", prefix: 16 }, {
      address: "10.0.0.0",
      prefix: 8,
    }],
  },
  bridged: { ...NAT, subnets: [], hostAddresses: ["10.0.0.5"], hostPorts: [], uuid: null },
};

for (const [name, isolation] of Object.entries(CASES)) {
  Deno.test(`the filter "${name}" is the XML in tests/data/filter_${name}.xml`, async () => {
    const file = new URL(`../data/filter_${name}.xml`, import.meta.url);
    // deno fmt may indent the template otherwise: only the elements count.
    const lines = filterXml("libvirt-gci-m", isolation).toString().split("\n")
      .map((line) => line.trim()).filter((line) => line !== "");
    const actual = [SPDX, ...lines, ""].join("\n");
    if (Deno.env.has("UPDATE")) await Deno.writeTextFile(file, actual);
    assert.equal(actual, await Deno.readTextFile(file));
  });
}

Deno.test("the ranges of a network are those that libvirt serves, whatever form they have", () => {
  const network = (addresses: string): string =>
    `<network><name>n</name><forward mode="nat"/>${addresses}</network>`;
  assert.deepEqual(
    readSubnets(network(`
      <ip address="192.168.122.1" netmask="255.255.255.0"><dhcp/></ip>
      <ip family="ipv4" address="10.1.0.1" prefix="16"/>
      <ip address="172.16.0.1" netmask="255.255.240.0"/>
      <ip family="ipv6" address="fd00::1" prefix="64"/>
    `)),
    [
      { host: "192.168.122.1", prefix: 24 },
      { host: "10.1.0.1", prefix: 16 },
      { host: "172.16.0.1", prefix: 20 },
    ],
  );
  assert.deepEqual(readSubnets(network("")), []);
});
