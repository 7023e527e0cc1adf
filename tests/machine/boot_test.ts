// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { explain } from "../../src/errors.ts";
import { NewMaster } from "../../src/guest/master/new_master.ts";
import type { Connection } from "../../src/libvirt/connection.ts";
import { Network } from "../../src/libvirt/network.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import { newMetadata } from "../../src/machine/create.ts";
import { createLogin, volumeContents } from "../../src/machine/login.ts";
import type { NewMachine } from "../../src/machine/machine.ts";
import { findDhcp } from "../../src/machine/network/network_info.ts";
import { isNetworkAdmin } from "../../src/machine/network/set_filter.ts";
import { newOwner } from "../../src/machine/owner.ts";
import { prepare } from "../../src/machine/prepare_machine.ts";
import { removeMachine } from "../../src/machine/remove.ts";
import { boot } from "../../src/machine/start.ts";
import { createVolumes } from "../../src/machine/storage/disks.ts";
import { findTemplate } from "../../src/machine/storage/template.ts";
import { chooseTemplate } from "../../src/policy/template_choice.ts";
import { sleep } from "../../src/wait.ts";
import { TestGuest } from "../fakes/test_guest.ts";
import { openTestHost } from "../fakes/test_host.ts";
import { spawnMaster } from "../fakes/test_master.ts";
import { JOB, type TestStage, testStage, toStage } from "../fakes/test_stage.ts";

/** A machine of which everything exists but its disk and its domain. */
async function newMachine(
  pool: StoragePool,
  stage: TestStage,
  differences: Partial<NewMachine> = {},
): Promise<NewMachine> {
  const { config } = stage;
  const { machine: name } = JOB;
  const { machine: settings } = config;
  const choice = chooseTemplate(config, "debian-12", { isOperator: true });

  const login = await createLogin(name, { keys: "own", settings }, stage.host);
  const ofMetadata = { template: choice.name, login, settings, card: null };
  const metadata = newMetadata(await newOwner(JOB), ofMetadata);
  return {
    name,
    metadata,
    settings,
    filter: null,
    card: null,
    master: null,
    login,
    template: await findTemplate(stage.host, choice, () => ""),
    ...await createVolumes(pool, name, volumeContents(name, login, settings)),
    ...differences,
  };
}

Deno.test("a machine that could not be resumed boots with another MAC, which has no lease yet", async () => {
  await using connection = await openTestHost();
  await using guest = await TestGuest.start();
  using stage = testStage(connection, guest);
  using pool = await StoragePool.lookup(connection, "libvirt-gci");
  const machine = await newMachine(pool, stage); // as the attempt to resume it had it
  using started = await boot(machine, pool, stage);
  const { mac, address } = await started?.reach(stage) ?? assert.fail();
  await removeMachine(machine.name, stage);
  assert.notEqual(mac, machine.metadata.mac);
  assert.match(address, /^127\.99\./);
});

for (
  const [what, letIn] of [
    ["serves the job where it answers after the filter", 1],
    ["is made anew where it does not answer after the filter", 2],
  ] as const
) {
  Deno.test(
    `a master's login that was faster than the filter ${what}`,
    { ignore: !isNetworkAdmin(Deno.readTextFileSync("/proc/self/status")) }, // to set anything
    async () => {
      await using connection = await openTestHost();
      await using guest = await TestGuest.start();
      using stage = testStage(connection, guest);
      using pool = await StoragePool.lookup(connection, "libvirt-gci");
      const child = spawnMaster();
      using master = new NewMaster(() => child);
      master.start();
      const machine = await newMachine(pool, stage, { filter: "late", master });
      const connect = async (): Promise<Connection> => {
        while (!guest.commands.includes("exit 0")) await sleep(20);
        await sleep(200); // SSH is done
        if (letIn === 2) guest.standStill();
        return await stage.connect();
      };
      using started = await boot(machine, pool, stage);
      await started?.reach(toStage({ ...stage, connect }));
      assert.equal(guest.letIn, letIn);
      assert.deepEqual(guest.commands, ["exit 0", "exit 0"]);
      await removeMachine(machine.name, stage);
    },
  );
}

/**
 * What libvirt's test driver lacks, until it is disposed of: filters, and a lease, which is there once a
 * machine has its card, as of a guest that was resumed.
 */
function haveFiltersAndLease(connection: Connection, until: number): Disposable {
  let hasFilter = false;
  const { call } = connection;
  connection.call = ((...args: Parameters<typeof call>) => {
    if (args[0] === "virDomainUpdateDeviceFlags") return Promise.resolve(0);
    if (args[0] !== "virNWFilterDefineXML") return call.apply(connection, args);
    hasFilter = true;
    return Promise.resolve(null); // a handle that libvirt takes back and does nothing with
  }) as typeof call;
  const { dhcpLeases } = Network.prototype;
  Network.prototype.dhcpLeases = async function (this: Network) {
    const [host] = findDhcp(await this.xml())?.hosts ?? [];
    return host && hasFilter ? [{ mac: host.mac, address: host.ip, until }] : [];
  };
  return {
    [Symbol.dispose]() {
      Network.prototype.dhcpLeases = dhcpLeases;
    },
  };
}

Deno.test("the lease of a guest that could not be resumed is not that of the one that boots", async () => {
  await using connection = await openTestHost();
  await using guest = await TestGuest.start();
  const hostAddresses = ["192.0.2.7/24"]; // the test driver has none
  const network = { isolate: true, hostAddresses };
  const machine = { network, start: "auto", timeouts: { addressSeconds: 1 } } as const;
  using stage = testStage(connection, guest, { machine });
  using _ = haveFiltersAndLease(connection, 1_900_000_000);
  await assert.rejects(prepare(JOB, {}, stage), (error) => {
    assert.match(
      explain(error),
      /did not get an IP address .* within 1 s: no DHCP lease for its card/,
    );
    return true;
  });
});
