// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import type { Finding } from "../../src/doctor/finding.ts";
import { checkReach } from "../../src/doctor/reachable.ts";
import type { Route } from "../../src/machine/network/host_addresses.ts";
import { allOk, HOST_NETWORK, type HostDifferences, look, only } from "../fakes/test_doctor.ts";

function reach(differences: HostDifferences): Promise<Finding[]> {
  return look(checkReach, differences);
}

function about(findings: readonly Finding[], words: RegExp): Finding[] {
  return findings.filter(({ subject }) => words.test(subject));
}

Deno.test("doctor says what isolated machines reach of the host", async () => {
  const closed = await reach({});
  allOk(closed);
  only(
    about(closed, /On the host/),
    "ok",
    /reach DHCP and DNS of their network, and no other port/,
  );
  const network = { hostPorts: ["tcp/3142"], hostAddresses: ["198.51.100.7/24"] };
  only(
    about(await reach({ machine: { network } }), /On the host/),
    "ok",
    /and tcp\/3142 \("network\.host_ports"\) at 127\.99\.0\.1, 192\.0\.2\.7, 198\.51\.100\.7$/,
  );
});

Deno.test("doctor says so where machines are not isolated, or have no network", async () => {
  only(
    await reach({ machine: { network: { isolate: false } } }),
    "warning",
    /^Machines without isolation/,
  );
  assert.deepEqual(await reach({ machine: { network: { name: "none" } } }), []);
});

Deno.test("doctor warns of a cloud's metadata that jobs reach", async () => {
  only(about(await reach({}), /metadata/), "ok", /cannot reach 169\.254\.169\.254/);
  for (const blocked of [[], ["10.0.0.0/8"], ["169.254.169.0/25"]]) {
    const found = about(await reach({ machine: { network: { blocked } } }), /metadata/);
    assert.match(
      only(found, "warning", /machines can reach 169\.254\.169\.254/).meaning,
      /credentials .*\. Add 169\.254\.0\.0\/16 to "network\.blocked"/,
    );
  }
});

Deno.test("doctor warns of private networks that jobs reach, but for those that are blocked", async () => {
  const to = (address: string, prefix: number, type = "UNICAST"): Route => (
    { address, prefix, type }
  );
  const routes = [
    to("0.0.0.0", 0),
    to("192.0.2.0", 24),
    to("127.99.0.0", 24),
    to("10.9.9.9", 32, "LOCAL"),
    to("192.168.1.0", 24),
    to("172.17.0.0", 16),
    to("10.0.0.0", 8),
  ];
  const hostNetwork = () => ({ ...HOST_NETWORK, routes });
  const found = (blocked: readonly string[]) =>
    reach({ hostNetwork, machine: { network: { blocked } } }).then((all) =>
      about(all, /private net/)
    );
  const open = only(
    await found(["169.254.0.0/16"]),
    "warning",
    /networks: 192\.168\.1\.0\/24, 172\.17\.0\.0\/16, 10\.0\.0\.0\/8$/,
  );
  assert.match(open.meaning, /"network\.blocked"/);
  only(
    await found(["192.168.0.0/16", "172.16.0.0/12", "10.1.0.0/16"]),
    "warning",
    /: 10.0.0.0\/8$/,
  );
  only(
    await found(["192.168.0.0/16", "172.16.0.0/12", "10.0.0.0/8"]),
    "ok",
    /cannot reach the private/,
  );
});

Deno.test("a host whose addresses doctor cannot see is a problem, unless the settings name them", async () => {
  const hostNetwork = () => ({ ...HOST_NETWORK, isInitial: false });
  const unknown = about(await reach({ hostNetwork }), /Cannot tell/);
  const { meaning, remedy } = only(unknown, "problem", /machines in "default": .* in a container/);
  assert.match(meaning, /"network\.host_addresses"/);
  assert.match(remedy ?? "", /^ip -4 address #/);
  allOk(await reach({ hostNetwork, machine: { network: { hostAddresses: ["192.0.2.7/24"] } } }));
});
