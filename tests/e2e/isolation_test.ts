// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { call, command, e2eTest, type Settings, TESTBED, virsh } from "./bed.ts";
import { FLOOD, FRAME, hear } from "./packets.ts";

const GATEWAY = "192.168.213.1"; // of the test bed's network
const BRIDGE = "gcitb0";
const CLOSED_PORT = 28080;
const OPEN_PORT = 28081;
const CLIENTS_PORT = 40022;
const PACKETS_PORT = 28082;

/** Sends words by UDP, each three times. The arguments: the port, and WORD=ADDRESS for each. */
const PACKETS = `
use strict; use IO::Socket::INET;
my ($port, @words) = @ARGV;
for (1 .. 3) {
  for (@words) {
    my ($word, $to) = split /=/;
    my %way = (PeerAddr => $to, PeerPort => $port, Proto => "udp", Broadcast => 1);
    my $socket = IO::Socket::INET->new(%way) or next;
    $socket->send($word);
  }
  sleep 1;
}
`;

/** Another network of the host's. For the kernel its last address is a broadcast, and here its first too. */
const OTHER_BRIDGE = "gci-e2e";
const OTHER_NETWORK = ["198.51.100.1/24", "broadcast", "198.51.100.0"];

/** Addresses that the host gets once the machines are there: those that it has before are closed as its own. */
const METADATA = "169.254.169.254";
const BLOCKED = "198.18.7.1";
const BLOCKED_NETWORKS = ["169.254.0.0/16", "198.18.0.0/15"];
const ELSEWHERE = "203.0.113.1";

/** The words that a guest sends by UDP, and where to. */
const WORDS: Readonly<Record<string, string>> = {
  host_packet: GATEWAY,
  broadcast: "192.168.213.255",
  other_broadcast: "198.51.100.255",
  other_first_address: "198.51.100.0",
};

/** Root in the guest, as a job that wants to break out would be. */
function asRoot(settings: Settings): Settings {
  const lite = { ssh: { login: "template", key: TESTBED.key, user: "root" } };
  return { ...settings, templates: { lite } };
}

/** Connects by TCP. The arguments: its own port, the address, the port. */
const FROM_PORT = `
use strict; use IO::Socket::INET;
my ($own, $to, $port) = @ARGV;
my %way = (PeerAddr => $to, PeerPort => $port, LocalPort => $own, ReuseAddr => 1, Timeout => 3);
exit(IO::Socket::INET->new(%way) ? 0 : 1);
`;

/**
 * Says of each attempt whether it went through, but for words by UDP, which the host hears or not. The
 * arguments: the neighbour, another address of the host, the MAC address of its bridge, what to send.
 */
const ATTEMPTS = `
try() { local name=$1; shift; if "$@" >/dev/null 2>&1; then echo "$name through"; else echo "$name blocked"; fi; }
connect() { timeout 4 busybox nc "$@" </dev/null; }
ping_neighbour() { timeout 4 busybox ping -c 1 -W 3 "$1"; }
past_ports() { ip route add "$1" via ${GATEWAY} && connect -w 3 "$1" 22; local s=$?; ip route del "$1"; return $s; }
lie() { ip addr add 192.168.213.77/32 dev eth0; "$@"; local s=$?; ip addr del 192.168.213.77/32 dev eth0; return $s; }
other_address() { ip route add ${GATEWAY} dev eth0 src 192.168.213.77; connect -w 3 ${GATEWAY} 53; }
other_mac() { local mac=$(cat /sys/class/net/eth0/address); ip link set eth0 address 52:54:00:77:77:77; connect -w 3 ${GATEWAY} 53; local s=$?; ip link set eth0 address $mac; return $s; }
other_arp() { timeout 4 busybox arping -c 1 -w 3 -I eth0 -s 192.168.213.77 ${GATEWAY}; }
frame() { perl -e "$FRAME" eth0 "$(cat /sys/class/net/eth0/address)" "$1" "$own" "$2" ${PACKETS_PORT} "$3"; }
from_sshd_port() { pkill -o -x sshd; timeout 6 perl -e "$FROM_PORT" 22 ${GATEWAY} ${CLIENTS_PORT}; local s=$?; /usr/sbin/sshd; return $s; }
own=$(ip -4 -o addr show eth0 | sed 's/.*inet \\([0-9.]*\\).*/\\1/')
frame 01:80:c2:00:00:0e ${GATEWAY} link_local
frame "$3" 127.0.0.1 loopback
perl -e "$PACKETS" ${PACKETS_PORT} "\${@:4}"
try dns connect -w 3 ${GATEWAY} 53 &
try open_port connect -w 3 ${GATEWAY} ${OPEN_PORT} &
try neighbour_ping ping_neighbour "$1" &
try neighbour connect -w 3 "$1" 22 &
try host connect -w 3 ${GATEWAY} ${CLOSED_PORT} &
try host_other_address connect -w 3 "$2" ${CLOSED_PORT} &
try metadata connect -w 3 ${METADATA} ${CLOSED_PORT} &
try blocked_network connect -w 3 ${BLOCKED} ${CLOSED_PORT} &
try elsewhere connect -w 3 ${ELSEWHERE} ${CLOSED_PORT} &
wait
try neighbour_past_ports past_ports "$1"
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

/** Gives the host another network, until it is disposed of. */
async function addOtherNetwork(): Promise<AsyncDisposable> {
  await ip("link", "add", OTHER_BRIDGE, "type", "bridge");
  await ip("link", "set", OTHER_BRIDGE, "up");
  await ip("address", "add", ...OTHER_NETWORK, "dev", OTHER_BRIDGE);
  return { [Symbol.asyncDispose]: () => ip("link", "delete", OTHER_BRIDGE) };
}

async function ip(...args: readonly string[]): Promise<void> {
  const { status, stderr } = await command(["ip", ...args]);
  assert.equal(status, 0, stderr);
}

/** Has the host take packets from outside for 127.0.0.0/8, as kube-proxy does, until it is disposed of. */
async function routeLoopback(): Promise<AsyncDisposable> {
  const file = `/proc/sys/net/ipv4/conf/${BRIDGE}/route_localnet`;
  const before = await Deno.readTextFile(file);
  await Deno.writeTextFile(file, "1");
  return { [Symbol.asyncDispose]: () => Deno.writeTextFile(file, before) };
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

async function attempts(
  machine: string,
  neighbour: string,
  settings: Settings,
): Promise<Record<string, string>> {
  using heard = await hear(PACKETS_PORT);
  const script = `FRAME='${FRAME}'\nPACKETS='${PACKETS}'\nFROM_PORT='${FROM_PORT}'\n${ATTEMPTS}`;
  const mac = (await Deno.readTextFile(`/sys/class/net/${BRIDGE}/address`)).trim();
  const words = Object.entries(WORDS).map((word) => word.join("="));
  const args = ["bash", "-c", script, "x", neighbour, otherAddress(), mac, ...words];
  const { status, stdout, stderr } = await call(["run", "-m", machine, "--", ...args], {
    settings,
  });
  assert.equal(status, 0, stderr);
  const results = stdout.trim().split("\n").map((line) => line.split(" "));
  const sent = ["link_local", "loopback", ...Object.keys(WORDS)]
    .map((word) => [word, heard.words.has(word) ? "through" : "blocked"]);
  return Object.fromEntries([...results, ...sent]);
}

for (
  const [words, isolate, expected, start] of [
    ["reach neither each other nor the host, nor lie about who they are", true, "blocked", "cold"],
    ["do all of that where the settings turn isolation off", false, "through", "cold"],
    ["that are resumed from RAM are isolated as those that boot", true, "blocked", "warm"],
  ] as const
) {
  e2eTest(`machines ${words}`, async () => {
    const blocked = start === "warm" ? {} : { blocked: BLOCKED_NETWORKS };
    const network = { isolate, host_ports: [`tcp/${OPEN_PORT}`], ...blocked };
    const settings = asRoot({ start, network });
    const machines = ["gci-e2e-left", "gci-e2e-right"];
    await using undo = new AsyncDisposableStack();
    for (const port of [CLOSED_PORT, OPEN_PORT, CLIENTS_PORT]) undo.use(listen(port));
    undo.use(await addOtherNetwork());
    undo.use(await routeLoopback());
    if (start === "warm") {
      undo.defer(async () => void await call(["warm", "--remove", "lite"], { settings }));
      const { status, stderr } = await call(["warm", "lite"], { settings });
      assert.equal(status, 0, stderr);
    }
    undo.defer(async () => {
      for (const machine of machines) await call(["cleanup", "-m", machine], { settings });
    });
    const [, right = ""] = await prepareAll(machines, settings);
    for (const address of [METADATA, BLOCKED, ELSEWHERE]) {
      await ip("address", "add", `${address}/32`, "dev", OTHER_BRIDGE);
    }
    assert.deepEqual(await attempts("gci-e2e-left", right, settings), {
      link_local: expected,
      loopback: expected,
      host_packet: expected,
      broadcast: expected,
      other_broadcast: expected,
      other_first_address: expected,
      dns: "through",
      open_port: "through",
      neighbour_ping: expected,
      neighbour: expected,
      neighbour_past_ports: expected,
      host: expected,
      host_other_address: expected,
      metadata: expected,
      blocked_network: start === "warm" ? "through" : expected, // which is not in the default
      elsewhere: "through",
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
  }, { thorough: !isolate || start === "warm" });
}

e2eTest(
  "prepare isolates no machine of a host whose network is not the one it runs in",
  async () => {
    const args = ["prepare", "-d", "lite", "-m", "gci-e2e-left"];
    const settings = { network: { host_addresses: [] } };
    const { status, stderr } = await call(args, { settings, wrapper: ["unshare", "--net"] });
    assert.equal(status, 2, stderr);
    assert.match(stderr, /bridge "gcitb0" is not among the interfaces here.*\n.*host_addresses/s);
  },
  { thorough: true },
);

const TABLE = "/proc/net/nf_conntrack"; // which not every kernel has

e2eTest("a machine has no connection of one that had its address before", async () => {
  const settings = asRoot({});
  const machine = "gci-e2e-left";
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => void await call(["cleanup", "-m", machine], { settings }));
  const [before] = await prepareAll([machine], settings);
  const connect = ["perl", "-e", FROM_PORT, "28084", GATEWAY, "53"];
  await call(["run", "-m", machine, "--", ...connect], { settings });
  const connections = async (): Promise<number> =>
    (await Deno.readTextFile(TABLE)).split(`src=${before} dst=${GATEWAY} sport=28084 `).length - 1;
  assert.equal(await connections(), 1);
  await call(["cleanup", "-m", machine], { settings });
  assert.equal(await connections(), 1, "the kernel forgets it by itself");
  const [after] = await prepareAll([machine], settings);
  assert.equal(after, before, "it has another address");
  assert.equal(await connections(), 0);
}, { ignore: await Deno.stat(TABLE).then(() => false, () => true), thorough: true });

/** Declines the guest's address (RFC 2131), so that the DHCP server leases it to no client for a while. */
const DECLINE = `
use strict; use Socket;
my ($mac, $own, $server) = @ARGV;
(my $hex = $mac) =~ s/://g;
my $options = pack("N", 0x63825363) . pack("C3", 53, 1, 4) . pack("C2a4", 50, 4, inet_aton($own)) .
  pack("C2a4", 54, 4, inet_aton($server)) . pack("C", 255);
my $packet = pack("C4NnnN4H32x192", 1, 1, 6, 0, 7, 0, 0, 0, 0, 0, 0, $hex . "0" x 20) . $options;
socket(my $out, PF_INET, SOCK_DGRAM, 0) or die; setsockopt($out, SOL_SOCKET, SO_BROADCAST, 1) or die;
setsockopt($out, SOL_SOCKET, SO_REUSEADDR, 1); bind($out, sockaddr_in(68, INADDR_ANY)) or die "$!";
send($out, $packet, 0, sockaddr_in(67, inet_aton("255.255.255.255"))) or die "$!";
`;

e2eTest("an address that a job had declined fails one prepare at once, and no second", async () => {
  const settings = asRoot({});
  const machine = "gci-e2e-left";
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => void await call(["cleanup", "-m", machine], { settings }));
  const [own = ""] = await prepareAll([machine], settings);
  const script = `perl -e '${DECLINE}' "$(cat /sys/class/net/eth0/address)" ${own} ${GATEWAY}`;
  const declined = await call(["run", "-m", machine, "--", "sh", "-c", script], { settings });
  assert.equal(declined.status, 0, declined.stderr);
  await call(["cleanup", "-m", machine], { settings });
  const failed = await call(["prepare", "-d", "lite", "-m", machine], { settings });
  assert.equal(failed.status, 2, failed.stderr);
  assert.match(
    failed.stderr,
    new RegExp(
      `gave the machine the address \\S+, but its network filter allows only ${own}, which`,
    ),
  );
  const [other] = await prepareAll([machine], settings);
  assert.notEqual(other, own);
}, { thorough: true });

for (const isolate of [true, false]) {
  e2eTest(
    `a machine sends ${isolate ? "nothing past its filter" : "all it can"} while it is removed`,
    async () => {
      const settings = asRoot({ network: { isolate } });
      const machine = "gci-e2e-left";
      await using undo = new AsyncDisposableStack();
      undo.defer(async () => void await call(["cleanup", "-m", machine], { settings }));
      using heard = await hear(PACKETS_PORT);
      await prepareAll([machine], settings);
      const flood = ["perl", "-e", FLOOD, GATEWAY, String(PACKETS_PORT)];
      const { status, stderr } = await call(["run", "-m", machine, "--", ...flood], { settings });
      assert.equal(status, 0, stderr);
      await call(["cleanup", "-m", machine], { settings });
      assert.equal(heard.words.has("flood"), !isolate);
    },
    { thorough: true },
  );
}
