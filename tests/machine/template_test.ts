// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { SystemFailure } from "../../src/errors.ts";
import type { Connection } from "../../src/libvirt/connection.ts";
import { Domain } from "../../src/libvirt/domain.ts";
import { LibvirtError, VIR_ERR } from "../../src/libvirt/error.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import { prepare } from "../../src/machine/prepare_machine.ts";
import {
  findTemplate,
  requireUnchanged,
  type Template,
} from "../../src/machine/storage/template.ts";
import { explainLock } from "../../src/machine/storage/template_writer.ts";
import { DEFAULT_CONFIG } from "../../src/settings/settings.ts";
import { TestGuest } from "../fakes/test_guest.ts";
import { openTestHost } from "../fakes/test_host.ts";
import { JOB, testStage } from "../fakes/test_stage.ts";

const PATH = "/var/lib/libvirt/base_imgs/debian-12.qcow2";

/** What virDomainCreateXML says if QEMU cannot lock a file. */
function lockError(words: string): LibvirtError {
  const before =
    "internal error: qemu unexpectedly closed the monitor: 2026-11-24T12:09:54.861606Z " +
    'qemu-system-x86_64: -blockdev {"node-name":"libvirt-2-format","driver":"qcow2"}: ';
  return new LibvirtError("virDomainCreateXML", before + words, { code: VIR_ERR.INTERNAL_ERROR });
}

const LOCKED = lockError(
  `Failed to get shared "write" lock\nIs another process using the image [${PATH}]?`,
);

function debian(connection: Connection): Promise<Template> {
  const choice = { name: "debian-12", volumes: ["debian-12.qcow2"], isPromised: false };
  return findTemplate({ connection, config: DEFAULT_CONFIG }, choice, () => "");
}

/** Starts a domain with this disk, which ends with the host. */
async function startDomain(connection: Connection, source: string, more = ""): Promise<void> {
  const disk = `<source ${source}/><target dev="vda"/>${more}`;
  const type = source.startsWith("pool") ? "volume" : "file";
  using _ = await Domain.create(
    connection,
    "install",
    `<domain type="test"><name>install</name><memory>65536</memory><os><type>hvm</type></os>
      <devices><disk type="${type}">${disk}</disk></devices></domain>`,
    0,
  );
}

async function replace(connection: Connection, gib: number): Promise<void> {
  using pool = await StoragePool.lookup(connection, "base_imgs");
  using old = await pool.lookupVolume("debian-12.qcow2");
  await old.delete();
  const xml = `<volume><name>debian-12.qcow2</name><capacity unit="GiB">${gib}</capacity>
    <target><path>${PATH}</path><format type="qcow2"/></target></volume>`;
  using _ = await pool.createVolume("debian-12.qcow2", xml);
}

for (const source of [`file="${PATH}"`, 'pool="base_imgs" volume="debian-12.qcow2"']) {
  Deno.test(`a template that is locked names the domain whose disk is ${source}`, async () => {
    const connection = await openTestHost();
    await startDomain(connection, source);
    const failure = await explainLock(LOCKED, await debian(connection), connection);
    assert.equal(
      failure?.message,
      `The domain "install" has the disk ${PATH} of the template "debian-12.qcow2" open for writing, so no ` +
        "machine can use it",
    );
    assert.match(
      failure.advice ?? "",
      /^Shut it down: virsh -c test:\S+ shutdown install, and give/,
    );
    assert.equal(failure.cause, LOCKED);
    assert.equal(await connection.close(), 0, "a handle is left");
  });
}

Deno.test("a template that is locked by no domain names none that only reads it", async () => {
  await using connection = await openTestHost();
  await startDomain(connection, `file="${PATH}"`, "<readonly/>");
  const failure = await explainLock(LOCKED, await debian(connection), connection);
  assert.match(
    failure?.message ?? "",
    /^Another process has the disk \/var.*debian-12.qcow2" open for/,
  );
  assert.match(failure?.advice ?? "", new RegExp(`^End the .*: fuser -v ${PATH}$`));
});

Deno.test("a lock is recognised where QEMU does not name the file, and on one below", async () => {
  await using connection = await openTestHost();
  const template = await debian(connection);
  const silent = await explainLock(lockError('Failed to get "write" lock'), template, connection);
  assert.match(silent?.message ?? "", new RegExp(PATH));
  const below = lockError(
    'Failed to get shared "write" lock\nIs another process using the image [/srv/base [1].img]?',
  );
  const failure = await explainLock(below, template, connection);
  assert.match(
    failure?.message ?? "",
    /the disk \/srv\/base \[1\]\.img of the template "debian-12/,
  );
});

Deno.test("a start that fails for another reason is no lock", async () => {
  await using connection = await openTestHost();
  const template = await debian(connection);
  for (
    const cause of [lockError("Could not open '/x': Permission denied"), new Error(LOCKED.message)]
  ) {
    assert.equal(await explainLock(cause, template, connection), null);
  }
});

Deno.test("a template that was replaced or modified is refused, and no other", async () => {
  await using connection = await openTestHost();
  const template = await debian(connection);
  await requireUnchanged(connection, template);
  const written = { ...template, modified: "1795512107.088253705" };
  await assert.rejects(requireUnchanged(connection, written), /"debian-12.qcow2" was replaced or/);
  await replace(connection, 5);
  await assert.rejects(requireUnchanged(connection, template), SystemFailure);
  await requireUnchanged(connection, await debian(connection));
});

Deno.test("a machine of a template that was replaced meanwhile is the host's fault", async () => {
  let replacing: Promise<void> | null = null;
  let created = 0;
  const connection = await openTestHost({
    onCall: (name) => {
      if (name !== "virStorageVolCreateXML" || ++created < 2) return; // the first is the owner's
      replacing ??= replace(connection, 5);
    },
  });
  {
    await using guest = await TestGuest.start();
    using stage = testStage(connection, guest);
    await assert.rejects(
      prepare(JOB, {}, stage),
      (error) => error instanceof SystemFailure && /was replaced or modified/.test(error.message),
    );
    await replacing;
    assert.equal(await Domain.find(connection, JOB.machine), null);
    using pool = await StoragePool.lookup(connection, "libvirt-gci");
    assert.deepEqual(await pool.volumeNames(), ["somebody.qcow2"]);
    await prepare(JOB, {}, stage); // as GitLab Runner does
    using domain = await Domain.lookup(connection, JOB.machine);
    await domain.destroy();
  }
  assert.equal(await connection.close(), 0, "a handle is left");
});
