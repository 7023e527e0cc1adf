// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { loadProc } from "../../ffi/proc.ts";
import { explain, faultOf } from "../../src/errors.ts";
import { Connection } from "../../src/libvirt/connection.ts";
import { Domain } from "../../src/libvirt/domain.ts";
import { LibvirtError, VIR_ERR } from "../../src/libvirt/error.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import { newMetadata } from "../../src/machine/create.ts";
import type { DomainOnDisk } from "../../src/machine/domain_xml.ts";
import { reserveName } from "../../src/machine/name.ts";
import { takeCard } from "../../src/machine/network/card.ts";
import { createFilter } from "../../src/machine/network/filter.ts";
import { setFilter } from "../../src/machine/network/set_filter.ts";
import { newOwner } from "../../src/machine/owner.ts";
import { startMachine } from "../../src/machine/start.ts";
import { createDirPool } from "../../src/machine/storage/pools.ts";
import type { Template } from "../../src/machine/storage/template.ts";
import { DEFAULT_CONFIG } from "../../src/settings/settings.ts";
import { handle, HangUp, TestLibvirtd } from "../fakes/test_libvirtd.ts";
import { bareStage, JOB } from "../fakes/test_stage.ts";

loadProc(); // what is loaded in a test is taken for a leak of it

const TEMPLATE: Template = {
  pool: "base_imgs",
  volume: "lite.qcow2",
  path: "/nonexistent/lite.qcow2",
  format: "qcow2",
  capacityBytes: 1024 ** 3,
  modified: "",
};

async function newMachine(): Promise<DomainOnDisk> {
  const settings = { ...DEFAULT_CONFIG.machine, domainType: "qemu" };
  const login = { key: { privateKey: "", publicKey: "", file: "" }, hostKey: null };
  const ofMetadata = { template: "lite", login, settings, card: null };
  return {
    name: "m",
    metadata: newMetadata(await newOwner(JOB), ofMetadata),
    settings,
    filter: null,
    card: null,
    overlayPath: "/nonexistent/m",
    consolePath: "/nonexistent/c",
    seedPath: null,
    credentialPath: null,
    nvramPath: null,
  };
}

/** As libvirt 9.0 says it, with the errno that the kernel gave. */
function kernelSays(words: string, errno: number): LibvirtError {
  return new LibvirtError("virDomainCreateXML", `failed to load cgroup BPF prog: ${words}`, {
    code: VIR_ERR.SYSTEM_ERROR,
    errno,
  });
}

const AGAIN = kernelSays("Resource temporarily unavailable", 11);
const NO_MEMORY = kernelSays("Cannot allocate memory", 12);

/** Starts a machine where libvirt fails so first, and gives how often it was asked. */
async function start(
  errors: readonly LibvirtError[],
  signal = new AbortController().signal,
): Promise<{ readonly asked: number; readonly error: unknown }> {
  let asked = 0;
  await using libvirtd = new TestLibvirtd({
    DOMAIN_CREATE_XML: () => {
      const error = errors[asked++];
      if (error !== undefined) throw error;
      return handle("m", 1);
    },
  });
  await using connection = await Connection.open(libvirtd.uri);
  try {
    using _ = await startMachine(connection, await newMachine(), { template: TEMPLATE, signal });
    return { asked, error: null };
  } catch (error) {
    return { asked, error };
  }
}

Deno.test("a machine starts at last where the kernel tells libvirt to try again", async () => {
  assert.deepEqual(await start([AGAIN, AGAIN]), { asked: 3, error: null });
});

Deno.test("what the kernel says again and again fails the start, with its words", async () => {
  const { asked, error } = await start(Array(100).fill(AGAIN));
  assert.equal(asked, 5);
  assert.equal(faultOf(error), "start");
  assert.match(explain(error), /^Cannot start the machine "m"\nbecause: .* cgroup BPF prog: Res/);
});

Deno.test("a start is tried once where another failure comes, or nobody needs it any more", async () => {
  assert.equal((await start([NO_MEMORY])).asked, 1);
  assert.equal((await start([AGAIN, NO_MEMORY, AGAIN])).asked, 2);
  const { asked, error } = await start([AGAIN], AbortSignal.abort());
  assert.equal(asked, 1);
  assert.match(explain(error), /temporarily unavailable/);
});

type Answers = ConstructorParameters<typeof TestLibvirtd>[0];

const hangUp = (): never => {
  throw new HangUp();
};

const ISOLATION = {
  subnets: [],
  hostAddresses: [],
  closed: [],
  hostPorts: [],
  sshPort: 22,
  uuid: null,
};

/** What is lost while prepare does this, with the call of libvirt at which the daemon goes away. */
const LOST: readonly {
  readonly doing: string;
  readonly answers: Answers;
  readonly body: (connection: Connection) => Promise<unknown>;
}[] = [
  {
    doing: 'created the disks of the machine "m"',
    answers: {
      STORAGE_POOL_LOOKUP_BY_NAME: () => handle("disks"),
      STORAGE_VOL_CREATE_XML: hangUp,
    },
    body: async (connection) => {
      using pool = await StoragePool.lookup(connection, "disks");
      await reserveName(pool, "m", await newOwner(JOB));
    },
  },
  {
    doing: 'created the storage pool "disks"',
    answers: {
      STORAGE_POOL_LOOKUP_BY_NAME: () => {
        const code = VIR_ERR.NO_STORAGE_POOL;
        throw new LibvirtError("virStoragePoolLookupByName", "no such pool", { code });
      },
      STORAGE_POOL_DEFINE_XML: hangUp,
    },
    body: (connection) => createDirPool(connection, "disks"),
  },
  {
    doing: 'created the network filter of the machine "m"',
    answers: { NWFILTER_DEFINE_XML: hangUp },
    body: (connection) => createFilter(connection, "m", ISOLATION),
  },
  {
    doing: 'reserved an address in the network "default"',
    answers: { NETWORK_LOOKUP_BY_NAME: hangUp },
    body: (connection) => takeCard(connection, "default", () => Promise.resolve(true)),
  },
  {
    doing: 'started the machine "m"',
    answers: { DOMAIN_CREATE_XML: hangUp },
    body: async (connection) => {
      const { signal } = new AbortController();
      await startMachine(connection, await newMachine(), { template: TEMPLATE, signal });
    },
  },
  {
    doing: 'set the network filter of the machine "m"',
    answers: { DOMAIN_GET_XML_DESC: hangUp },
    body: async (connection) => {
      using domain = await Domain.lookup(connection, "m");
      const card = { mac: "52:54:00:01:02:03", address: "192.0.2.7", leasedUntil: null };
      const machine = { ...await newMachine(), filter: "libvirt-gci-m", card };
      const connect = () => Connection.open(connection.uri);
      await setFilter(domain, machine, bareStage(connection, { connect }).host);
    },
  },
];

for (const { doing, answers, body } of LOST) {
  Deno.test(`that libvirt went away while it ${doing} is its own fault`, async () => {
    await using libvirtd = new TestLibvirtd(answers);
    await using connection = await Connection.open(libvirtd.uri);
    await assert.rejects(body(connection), (error) => {
      assert.equal(faultOf(error), "libvirt");
      assert.match(
        explain(error),
        new RegExp(
          `^The connection to libvirt was lost before it had ${doing}\nbecause: libvirt: End of file .*\n` +
            "What to do: Check the libvirt daemon: systemctl status libvirtd [^\n]*$",
        ),
      );
      return true;
    });
  });
}

Deno.test("a daemon that does not answer the start of a machine is at fault, and nothing of the machine's", async () => {
  const { promise, reject } = Promise.withResolvers<Uint8Array<ArrayBuffer>>();
  await using libvirtd = new TestLibvirtd({ DOMAIN_CREATE_XML: () => promise });
  const { signal } = new AbortController();
  const connection = await Connection.open(libvirtd.uri, { callSeconds: 0.3 });
  const started = startMachine(connection, await newMachine(), { template: TEMPLATE, signal });
  await assert.rejects(started, (error) => {
    assert.equal(faultOf(error), "libvirt");
    assert.match(
      explain(error),
      /^The connection to libvirt was lost .*\n.* no answer from the daemon within 0.3 s/,
    );
    return true;
  });
  reject(new HangUp()); // for the call that was given up
});

Deno.test("an error of a connection that holds is no loss of it", async () => {
  await using libvirtd = new TestLibvirtd({});
  await using connection = await Connection.open(libvirtd.uri);
  await assert.rejects(StoragePool.lookup(connection, "p"), {
    name: "LibvirtError",
    isLost: false,
  });
});
