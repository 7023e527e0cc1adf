// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { call, e2eTest, type Settings, TESTBED, virsh } from "./bed.ts";

const GATEWAY = "192.168.213.1"; // of the test bed's network
const CLOSED_PORT = 28080;
const OPEN_PORT = 28081;
const CLIENTS_PORT = 40022;

/** Root in the guest, as a job that wants to break out would be. */
function asRoot(settings: Settings): Settings {
  const lite = { login: "template", key: TESTBED.key, user: "root" };
  return { ...settings, templates: { lite } };
}

/** Says of each attempt whether it went through. $1 is the neighbour, $2 another address of the host. */
const ATTEMPTS = `
try() { local name=$1; shift; if "$@" >/dev/null 2>&1; then echo "$name through"; else echo "$name blocked"; fi; }
connect() { timeout 4 busybox nc "$@" </dev/null; }
ping_neighbour() { timeout 4 busybox ping -c 1 -W 3 "$1"; }
past_ports() { ip route add "$1" via ${GATEWAY} && connect -w 3 "$1" 22; local s=$?; ip route del "$1"; return $s; }
lie() { ip addr add 192.168.213.77/32 dev eth0; "$@"; local s=$?; ip addr del 192.168.213.77/32 dev eth0; return $s; }
other_address() { ip route add ${GATEWAY} dev eth0 src 192.168.213.77; connect -w 3 ${GATEWAY} 53; }
other_mac() { local mac=$(cat /sys/class/net/eth0/address); ip link set eth0 address 52:54:00:77:77:77; connect -w 3 ${GATEWAY} 53; local s=$?; ip link set eth0 address $mac; return $s; }
other_arp() { timeout 4 busybox arping -c 1 -w 3 -I eth0 -s 192.168.213.77 ${GATEWAY}; }
from_sshd_port() { pkill -o -x sshd; connect -w 3 -p 22 ${GATEWAY} ${CLIENTS_PORT}; local s=$?; /usr/sbin/sshd; return $s; }
try dns connect -w 3 ${GATEWAY} 53
try open_port connect -w 3 ${GATEWAY} ${OPEN_PORT}
try neighbour_ping ping_neighbour "$1"
try neighbour connect -w 3 "$1" 22
try neighbour_past_ports past_ports "$1"
try host connect -w 3 ${GATEWAY} ${CLOSED_PORT}
try host_other_address connect -w 3 "$2" ${CLOSED_PORT}
try host_from_sshd_port from_sshd_port
try other_address lie other_address
try other_mac other_mac
try other_arp lie other_arp
`;

/** The host's address that is not of the test bed's network. */
function otherAddress(): string {
  const found = Deno.networkInterfaces().find(({ family, address }) =>
    family === "IPv4" && !address.startsWith("127.") && address !== GATEWAY
  );
  assert(found, "this host has no address besides the test bed's");
  return found.address;
}

/** Listens until it is disposed of, and closes what connects. */
function listen(port: number): Disposable {
  const listener = Deno.listen({ hostname: "0.0.0.0", port });
  (async () => {
    for await (const connection of listener) connection.close();
  })();
  return { [Symbol.dispose]: () => listener.close() };
}

async function prepareAll(machines: readonly string[], settings: Settings): Promise<string[]> {
  const prepared = await Promise.all(
    machines.map((machine) => call(["prepare", "-d", "lite", "-m", machine], { settings })),
  );
  return prepared.map(({ status, stdout, stderr }) => {
    assert.equal(status, 0, stderr);
    return stdout.match(/is ready at ([\d.]+)/)?.[1] ?? "";
  });
}

async function attempts(machine: string, neighbour: string, settings: Settings) {
  const args = ["run", "-m", machine, "--", "bash", "-c", ATTEMPTS, "x", neighbour, otherAddress()];
  const { status, stdout, stderr } = await call(args, { settings });
  assert.equal(status, 0, stderr);
  const results = stdout.trim().split("\n").map((line) => line.split(" "));
  return Object.fromEntries(results) as Record<string, string>;
}

for (
  const [words, isolate, expected, start] of [
    ["reach neither each other nor the host, nor lie about who they are", true, "blocked", "cold"],
    ["do all of that where the settings turn isolation off", false, "through", "cold"],
    ["that are resumed from RAM are isolated as those that boot", true, "blocked", "warm"],
  ] as const
) {
  e2eTest(`machines ${words}`, async () => {
    const settings = asRoot({ isolate, start, host_ports: [`tcp/${OPEN_PORT}`] });
    const machines = ["gci-e2e-left", "gci-e2e-right"];
    await using undo = new AsyncDisposableStack();
    for (const port of [CLOSED_PORT, OPEN_PORT, CLIENTS_PORT]) undo.use(listen(port));
    if (start === "warm") {
      undo.defer(async () => void await call(["warm", "--drop", "lite"], { settings }));
      const { status, stderr } = await call(["warm", "lite"], { settings });
      assert.equal(status, 0, stderr);
    }
    undo.defer(async () => {
      for (const machine of machines) await call(["cleanup", "-m", machine], { settings });
    });
    const [, right = ""] = await prepareAll(machines, settings);
    assert.deepEqual(await attempts("gci-e2e-left", right, settings), {
      dns: "through",
      open_port: "through",
      neighbour_ping: expected,
      neighbour: expected,
      neighbour_past_ports: expected,
      host: expected,
      host_other_address: expected,
      host_from_sshd_port: expected,
      other_address: expected,
      other_mac: expected,
      other_arp: expected,
    });
    const xml = await virsh("dumpxml", "gci-e2e-left");
    assert.equal(/<genid>/.test(xml), start === "warm", "it was not started as it should");
    assert.equal(/<port isolated='yes'\/>/.test(xml), isolate);
    assert.equal(/<filterref filter='libvirt-gci-gci-e2e-left'>/.test(xml), isolate);
    const filters = await virsh("nwfilter-list");
    assert.equal(filters.includes("libvirt-gci-gci-e2e-left"), isolate);
  });
}
