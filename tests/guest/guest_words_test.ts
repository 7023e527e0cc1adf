// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { loadProc } from "../../ffi/proc.ts";
import { explain } from "../../src/errors.ts";
import { Connection } from "../../src/libvirt/connection.ts";
import { ADDRESS_SOURCE, Domain } from "../../src/libvirt/domain.ts";
import type { LibvirtError } from "../../src/libvirt/error.ts";
import { waitForAddress } from "../../src/machine/network/address.ts";
import type { Card } from "../../src/machine/network/card.ts";
import { handle, TestLibvirtd, xdr, xdrString } from "../fakes/test_libvirtd.ts";

loadProc(); // what is loaded in a test is taken for a leak of it

type Answers = ConstructorParameters<typeof TestLibvirtd>[0];

/** Gives the test a domain whose guest says this, through libvirt. */
async function withDomain(
  answers: Answers,
  test: (domain: Domain) => Promise<void>,
): Promise<void> {
  await using libvirtd = new TestLibvirtd(answers);
  await using connection = await Connection.open(libvirtd.uri);
  using domain = await Domain.lookup(connection, "m");
  await test(domain);
}

const FORGED = "192.0.2.7\nlibvirt-gci: all is well\x1b[8m";

/** An answer of the agent, of arrays in arrays. */
function nested(depth: number): Uint8Array<ArrayBuffer> {
  return xdr(1, `{"return":${"[".repeat(depth)}${"]".repeat(depth)}}`);
}

Deno.test("an agent's answer of megabytes is none, and costs no memory", async () => {
  await withDomain({ QEMU_AGENT_COMMAND: () => nested(1_900_000) }, async (domain) => {
    const before = Deno.memoryUsage().heapUsed;
    await assert.rejects(domain.agentCommand({ execute: "guest-info" }, 1), {
      name: "LibvirtError",
      message: /the answer has more than 65536 bytes/,
    });
    assert(Deno.memoryUsage().heapUsed - before < 16 * 1024 ** 2);
  });
});

Deno.test("an agent's answer of 64 KiB is what it says", async () => {
  const answerOf = (bytes: number): string => `{"return":"${"a".repeat(bytes - 13)}"}`;
  for (const [bytes, fits] of [[65_536, true], [65_537, false]] as const) {
    const answer = () => xdr(1, answerOf(bytes));
    await withDomain({ QEMU_AGENT_COMMAND: answer }, async (domain) => {
      const asked = domain.agentCommand({ execute: "guest-info" }, 1);
      if (fits) assert.equal(await asked, "a".repeat(bytes - 13));
      else await assert.rejects(asked);
    });
  }
});

Deno.test("an agent's refusal of megabytes is an error in few words, none of which looks like ours", async () => {
  const refuse = (): never => {
    throw new Error(`unable to execute QEMU agent command: ${FORGED.repeat(50_000)}`);
  };
  await withDomain({ QEMU_AGENT_COMMAND: refuse }, async (domain) => {
    const asked = domain.agentCommand({ execute: "guest-info" }, 1);
    await assert.rejects(asked, (error: LibvirtError) => {
      assert(error.words.length <= 4096);
      const [first, ...further] = explain(error).split("\n").slice(0, -1); // without our advice
      assert.match(first ?? "", /^libvirt: unable to execute QEMU agent command/);
      assert(further.length > 1 && further.every((line) => line.startsWith("  ")));
      assert(explain(error).length < 3000);
      return true;
    });
  });
});

const MAC = "52:54:00:00:00:01";
const SERVED = `<network><name>n</name>
  <ip address="192.0.2.1" prefix="24" />
  <ip family="ipv6" address="2001:db8::1" prefix="64" />
</network>`;
const BRIDGED = "<network><name>n</name><forward mode='bridge'/><bridge name='br0'/></network>";

/** The address that is found where the agent says that its card has these. */
async function foundAmong(
  addresses: readonly (string | Uint8Array)[],
  { networkXml = SERVED, hostAddresses = [], card = null }: {
    readonly networkXml?: string;
    readonly hostAddresses?: readonly string[];
    readonly card?: Card | null;
  } = {},
): Promise<string> {
  const byAgent = (payload: Uint8Array): Uint8Array<ArrayBuffer> => {
    const source = new DataView(payload.buffer, payload.byteOffset).getUint32(payload.length - 8);
    if (source !== ADDRESS_SOURCE.AGENT) return xdr(0);
    const own = addresses.map((address) =>
      xdr(0, address instanceof Uint8Array ? xdrString(address) : address, 24)
    );
    return xdr(1, "eth0", 1, MAC, own.length, ...own);
  };
  await using libvirtd = new TestLibvirtd({
    DOMAIN_INTERFACE_ADDRESSES: byAgent,
    NETWORK_LOOKUP_BY_NAME: () => handle("n"),
    NETWORK_GET_XML_DESC: () => xdr(networkXml),
    NETWORK_GET_DHCP_LEASES: () => xdr(0, 0),
  });
  await using connection = await Connection.open(libvirtd.uri);
  using domain = await Domain.lookup(connection, "m");
  const limits = { timeoutSeconds: 2.5, signal: new AbortController().signal, log: () => {} };
  const watch = () => Promise.resolve();
  const machine = { mac: MAC, network: "n", hostAddresses, card };
  return await waitForAddress(domain, { ...machine, connection, watch }, limits);
}

Deno.test("of what a guest's agent calls its addresses, only one of the network is tried", async () => {
  const others = [
    FORGED,
    "9".repeat(1_000_000),
    "",
    Uint8Array.of(0xff, 0xfe),
    ..."1.2.3 ::ffff:192.0.2.9 fe80::7%eth0 127.0.0.1 169.254.169.254".split(" "),
    ..."198.51.100.7 192.0.2.1 2001:db8:0:1::7 ::1 2001:db8::1".split(" "),
  ];
  const found = await Promise.all([
    foundAmong([...others, "192.0.2.7"]),
    foundAmong([...others, "2001:db8::7"]),
    assert.rejects(foundAmong(others), {
      message: /no DHCP lease, guest agent or ARP entry yet$/,
    }),
  ]);
  assert.deepEqual(found.slice(0, 2), ["192.0.2.7", "2001:db8::7"]);
});

Deno.test("in a network that libvirt does not serve, a guest's agent names no address of a host's own", async () => {
  const own = Deno.networkInterfaces().map(({ address }) => address);
  const others = [
    ...own,
    FORGED,
    ..."127.0.0.53 169.254.169.254 0.0.0.0 224.0.0.1 255.255.255.255".split(" "),
    ..."203.0.113.9 203.0.113.255 203.0.113.99 :: ::1 ::ffff:10.1.2.3 fe80::7 ff02::1".split(" "),
  ];
  const hostAddresses = ["203.0.113.9/24", "203.0.113.99"]; // of another host, as the settings say
  const options = { networkXml: BRIDGED, hostAddresses };
  const found = await Promise.all([
    foundAmong([...others, "198.51.100.7"], options),
    foundAmong([...others, "2001:db8::7"], options),
    assert.rejects(foundAmong(others, options), /no DHCP lease, guest agent or ARP entry yet/),
  ]);
  assert.deepEqual(found.slice(0, 2), ["198.51.100.7", "2001:db8::7"]);
});

Deno.test("an agent's address other than the card's own is shown if it is one, and not tried", async () => {
  const card = { mac: MAC, address: "192.0.2.7", leasedUntil: null };
  await Promise.all([
    assert.rejects(foundAmong(["192.0.2.8"], { card }), /its address is 192\.0\.2\.8, but/),
    assert.rejects(foundAmong([FORGED], { card }), /agent or ARP entry yet$/),
  ]);
});
