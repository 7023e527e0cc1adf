// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { loadProc } from "../../ffi/proc.ts";
import { cidrText } from "../../src/ipv4.ts";
import {
  hostAddresses,
  type HostNetwork,
  readHostNetwork,
  readRoutes,
  whyUnseen,
} from "../../src/machine/network/host_addresses.ts";

loadProc(); // what is loaded in a test is taken for a leak of it

/** An address of the host, as `ip address` shows it. */
function own(cidr: string, { name = "eth0", mac = "52:54:00:00:00:01" } = {}) {
  return { name, mac, cidr, address: cidr.replace(/\/.*/, "") };
}

function closedBy(...cidrs: readonly string[]): readonly string[] {
  const host = { interfaces: cidrs.map((cidr) => own(cidr)), routes: [] };
  return hostAddresses(host, []).others.map(cidrText);
}

Deno.test("of every network of the host, the first and the last address are its own too", () => {
  assert.deepEqual(closedBy("192.168.1.7/24", "192.168.1.8/24"), [
    "192.168.1.0/32",
    "192.168.1.255/32",
  ]);
  assert.deepEqual(closedBy("10.20.30.40/20"), ["10.20.16.0/32", "10.20.31.255/32"]);
  assert.deepEqual(closedBy("203.0.113.9/30"), ["203.0.113.8/32", "203.0.113.11/32"]);
  assert.deepEqual(closedBy("255.255.255.1/1"), ["128.0.0.0/32", "255.255.255.255/32"]);
});

Deno.test("a network of two addresses or one has no broadcast, and loopback is none of the host's", () => {
  assert.deepEqual(closedBy("10.0.0.1/32", "10.0.0.2/31", "127.0.0.1/8"), []);
  const interfaces = ["127.0.0.1/8", "10.0.0.2/31", "10.0.0.1/32", "10.0.0.1/24"].map((cidr) =>
    own(cidr)
  );
  assert.deepEqual(hostAddresses({ interfaces, routes: [] }, []).addresses, [
    "10.0.0.1",
    "10.0.0.2",
  ]);
});

/** As the kernel prints it: the administrator chose a broadcast address, and 10.5.0.0/24 is local as a whole. */
const FIB_TRIE = `Main:
  +-- 0.0.0.0/1 2 0 2
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.0.0.0/12 2 1 2
        |-- 10.5.0.0
           /24 host LOCAL
        +-- 10.8.0.0/16 2 0 2
           |-- 10.8.0.0
              /16 link UNICAST
              /32 link BROADCAST
           |-- 10.8.0.1
              /32 host LOCAL
           |-- 10.8.7.255
              /32 link BROADCAST
     |-- 127.0.0.0
        /8 host LOCAL
     |-- 127.255.255.255
        /32 link BROADCAST
Local:
  +-- 0.0.0.0/1 2 0 2
        |-- 10.8.0.1
           /32 host LOCAL
Id 7:
        |-- 172.16.0.1
           /32 host LOCAL
`;

Deno.test("what the kernel takes for the host's own is closed, also in further routing tables", () => {
  const routes = readRoutes(FIB_TRIE);
  assert.deepEqual(routes.filter(({ type }) => type === "UNICAST").map(cidrText), [
    "0.0.0.0/0",
    "10.8.0.0/16",
  ]);
  const { addresses, others } = hostAddresses({ interfaces: [own("10.8.0.1/16")], routes }, []);
  assert.deepEqual(addresses, ["10.8.0.1", "172.16.0.1"]);
  assert.deepEqual(others.map(cidrText), [
    "10.8.0.0/32",
    "10.8.255.255/32",
    "10.5.0.0/24",
    "10.8.7.255/32",
  ]);
});

Deno.test("the kernel tells of this host's interfaces and routes", () => {
  const { interfaces, devices, routes } = readHostNetwork();
  assert(devices.includes("lo"));
  assert(interfaces.some(({ address }) => address === "127.0.0.1"));
  assert(routes.some((route) => cidrText(route) === "127.0.0.0/8" && route.type === "LOCAL"));
});

Deno.test("addresses that the settings name count as those that are seen", () => {
  const { addresses, others } = hostAddresses(
    { interfaces: [own("10.0.0.1/24")], routes: [] },
    ["192.0.2.7/24", "198.51.100.1", "10.0.0.1"],
  );
  assert.deepEqual(addresses, ["10.0.0.1", "192.0.2.7", "198.51.100.1"]);
  assert.deepEqual(others.map(cidrText), [
    "10.0.0.0/32",
    "10.0.0.255/32",
    "192.0.2.0/32",
    "192.0.2.255/32",
  ]);
});

const MAC = "52:54:00:aa:bb:cc";
const SERVED = `<network><name>n</name><forward mode="nat"/><bridge name="virbr0"/>
  <mac address="${MAC}"/><ip address="192.168.122.1" netmask="255.255.255.0"/></network>`;
const JOINED = `<network><name>n</name><forward mode="bridge"/><bridge name="br0"/></network>`;
const MACVTAP =
  `<network><name>n</name><forward mode="bridge"><interface dev="eth0"/></forward></network>`;
const HOST: HostNetwork = {
  interfaces: [own("192.0.2.7/24"), own("192.168.122.1/24", { name: "virbr0", mac: MAC })],
  devices: ["lo", "eth0", "virbr0", "br0"],
  routes: [],
  isInitial: true,
};

Deno.test("a host's addresses are seen only where its bridges are, outside of containers", () => {
  const why = (xml: string, host: Partial<HostNetwork> = {}, isLocal = true) =>
    whyUnseen(xml, { isLocal, host: { ...HOST, ...host } });
  assert.equal(why(SERVED), null);
  assert.equal(why(JOINED), null);
  assert.match(why(SERVED, {}, false) ?? "", /on another host/);
  assert.match(why(SERVED, { isInitial: false }) ?? "", /in a container/);
  assert.match(why(JOINED, { devices: ["lo", "eth0"] }) ?? "", /bridge "br0" is not among/);
  assert.match(why(MACVTAP) ?? "", /a bridge is not among/);
  for (
    const bridge of [
      own("192.168.122.1/24", { name: "virbr0" }), // another libvirt's, in the same place
      own("192.168.122.1/24", { name: "virbr1", mac: MAC }),
      own("10.0.0.1/24", { name: "virbr0", mac: MAC }),
    ]
  ) {
    const interfaces = [own("192.0.2.7/24"), bridge];
    assert.match(why(SERVED, { interfaces }) ?? "", /bridge "virbr0" is not among/);
  }
});
