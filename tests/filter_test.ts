// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { filterXml, type Isolation } from "../src/machine/filter.ts";
import { broadcastsOf, readSubnets } from "../src/machine/network_info.ts";

const SPDX = "<!-- SPDX-License-Identifier: GPL-2.0-or-later -->";

const NAT: Isolation = {
  subnets: [{ host: "192.168.122.1", prefix: 24 }],
  hostAddresses: ["192.168.122.1", "10.0.0.5"],
  broadcasts: ["10.0.0.255"],
  hostPorts: ["tcp/3142", "udp/123"],
  sshPort: 2222,
  uuid: "01234567-89ab-cdef-0123-456789abcdef",
};

const CASES: Readonly<Record<string, Isolation>> = {
  nat: NAT,
  bridged: { ...NAT, subnets: [], hostAddresses: ["10.0.0.5"], hostPorts: [], uuid: null },
};

for (const [name, isolation] of Object.entries(CASES)) {
  Deno.test(`the filter "${name}" is the XML in tests/data/filter_${name}.xml`, async () => {
    const file = new URL(`data/filter_${name}.xml`, import.meta.url);
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

Deno.test("a network's broadcast address is its last, where it has more than two", () => {
  const own = (address: string, netmask: string) => ({ address, netmask });
  assert.deepEqual(
    broadcastsOf([
      ...[own("192.168.1.7", "255.255.255.0"), own("192.168.1.8", "255.255.255.0")],
      ...[own("10.20.30.40", "255.255.240.0"), own("203.0.113.9", "255.255.255.252")],
      ...[own("10.0.0.1", "255.255.255.255"), own("10.0.0.2", "255.255.255.254")],
    ]),
    ["10.20.31.255", "192.168.1.255", "203.0.113.11"],
  );
});
