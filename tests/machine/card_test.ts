// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { SystemFailure } from "../../src/errors.ts";
import { addressNumber, addressOf } from "../../src/ipv4.ts";
import type { Connection } from "../../src/libvirt/connection.ts";
import { Domain } from "../../src/libvirt/domain.ts";
import { Network } from "../../src/libvirt/network.ts";
import { waitForAddress } from "../../src/machine/network/address.ts";
import { type Card, takeCard } from "../../src/machine/network/card.ts";
import { findDhcp } from "../../src/machine/network/network_info.ts";
import { openTestHost } from "../fakes/test_host.ts";

/** The entries by which the network `default` keeps addresses, whosever. */
async function kept(connection: Connection): Promise<string[]> {
  using network = await Network.lookup(connection, "default");
  return [...(await network.xml()).matchAll(/<host .*?>/g)].map(([host]) => host);
}

async function keepForOthers(connection: Connection, bytes: readonly number[]): Promise<void> {
  using network = await Network.lookup(connection, "default");
  for (const byte of bytes) {
    const mac = `52:54:01:00:00:${byte.toString(16).padStart(2, "0")}`;
    await network.addDhcpHost(`<host mac="${mac}" id="00:01" ip="127.99.0.${byte}"/>`, 0);
  }
}

/** As network filters do: what one has, no other takes. */
class Takers {
  readonly #taken = new Set<string>();

  take(connection: Connection, network = "default"): Promise<Card | null> {
    return takeCard(connection, network, (_, uuid) => {
      assert.match(uuid, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
      const isFree = !this.#taken.has(uuid);
      this.#taken.add(uuid);
      return Promise.resolve(isFree);
    });
  }

  giveAllBack(): void {
    this.#taken.clear();
  }
}

Deno.test("a card is kept for the next machine, and one more only for one more at once", async () => {
  const connection = await openTestHost();
  await keepForOthers(connection, [7]);
  const takers = new Takers();
  const first = await takers.take(connection);
  assert(first);
  assert.match(first.address, /^127\.99\.0\.\d+$/);
  assert.notEqual(first.address, "127.99.0.7");
  const [theirs, ours, ...more] = await kept(connection);
  assert.deepEqual([theirs?.includes("127.99.0.7"), more.length], [true, 0]);
  assert(ours?.startsWith(`<host mac='${first.mac}'`) && ours.endsWith(`ip='${first.address}'/>`));

  takers.giveAllBack();
  assert.deepEqual(await takers.take(connection), first);
  const second = await takers.take(connection);
  assert(second);
  assert.notEqual(second.address, first.address);
  assert.notEqual(second.mac, first.mac);
  assert.equal((await kept(connection)).length, 3);
  assert.equal(await connection.close(), 0, "a handle is left");
});

Deno.test("machines at once have a card each", async () => {
  await using connection = await openTestHost();
  const takers = new Takers();
  const cards = await Promise.all(Array.from({ length: 20 }, () => takers.take(connection)));
  assert.equal(new Set(cards.map((card) => card?.mac)).size, 20);
  assert.equal(new Set(cards.map((card) => card?.address)).size, 20);
});

Deno.test("the last free address is found, and without one it is the network's fault", async () => {
  await using connection = await openTestHost();
  const others = Array.from({ length: 253 }, (_, i) => i + 2).filter((byte) => byte !== 93);
  await keepForOthers(connection, others);
  const takers = new Takers();
  assert.equal((await takers.take(connection))?.address, "127.99.0.93");
  await assert.rejects(
    takers.take(connection),
    (error) => error instanceof SystemFailure && /"default" has no free addr/.test(error.message),
  );
});

Deno.test("a prepare whose every card another takes gives up, and adds ten addresses at most", async () => {
  await using connection = await openTestHost();
  await assert.rejects(
    takeCard(connection, "default", () => Promise.resolve(false)),
    (error) =>
      error instanceof SystemFailure &&
      error.message === 'Other clients took all reserved addresses of the network "default"' &&
      /^Retry the job/.test(error.advice ?? ""),
  );
  assert.equal((await kept(connection)).length, 10);
});

Deno.test("in a network without libvirt's DHCP, no address is known before", async () => {
  await using connection = await openTestHost();
  assert.equal(await new Takers().take(connection, "bridged"), null);
});

Deno.test("a machine with another address than its card's is not reached there", async () => {
  await using connection = await openTestHost();
  const mac = "52:54:00:00:00:01";
  using domain = await Domain.create(
    connection,
    "gci",
    `<domain type="test"><name>gci</name><memory>65536</memory><os><type>hvm</type></os><devices>
      <interface type="network"><mac address="${mac}"/><source network="default"/></interface>
    </devices></domain>`,
    0,
  );
  const limits = { timeoutSeconds: 2.1, signal: AbortSignal.timeout(5000), log: () => {} };
  const find = (card: Card | null): Promise<string> =>
    waitForAddress(domain, {
      mac,
      network: "default",
      hostAddresses: [],
      card,
      connection,
      watch: () => Promise.resolve(),
    }, limits);
  assert.match(await find(null), /^127\.99\./);
  await assert.rejects(
    find({ mac, address: "127.99.0.200", leasedUntil: null }),
    /its address is 127\.99\.\S+, but its network filter allows only 127.99.0.200/,
  );
});

Deno.test("a network's DHCP is read whatever stands before it", () => {
  const dhcp = findDhcp(`
    <network><name>n</name>
      <ip family="ipv6" address="fd00::1" prefix="64">
        <dhcp><range start="fd00::2" end="fd00::9"/></dhcp>
      </ip>
      <ip address="10.1.0.1" prefix="16"/>
      <ip address="192.168.1.1" netmask="255.255.255.0"><dhcp>
        <range start="192.168.1.250" end="192.168.1.254"/>
        <range start="192.168.1.2" end="192.168.1.3"/>
        <host mac="52:54:00:00:00:01" name="somebody" ip="192.168.1.3"/>
      </dhcp></ip>
    </network>`);
  const base = addressNumber("192.168.1.0");
  assert.deepEqual(dhcp, {
    host: "192.168.1.1",
    ipIndex: 2,
    ranges: [
      { first: base + 250, last: base + 254, leaseHours: 1 },
      { first: base + 2, last: base + 3, leaseHours: 1 },
    ],
    hosts: [{ mac: "52:54:00:00:00:01", id: "", ip: "192.168.1.3" }],
  });
  assert.equal(addressOf(addressNumber("255.168.1.254")), "255.168.1.254");
});
