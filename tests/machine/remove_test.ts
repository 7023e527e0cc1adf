// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { Connection } from "../../src/libvirt/connection.ts";
import { LibvirtError, VIR_ERR } from "../../src/libvirt/error.ts";
import { EMPTY_METADATA, metadataXml } from "../../src/machine/metadata.ts";
import { removeMachine } from "../../src/machine/remove.ts";
import { within } from "../../src/wait.ts";
import { HangUp, TestLibvirtd, xdr } from "../fakes/test_libvirtd.ts";
import { bareStage } from "../fakes/test_stage.ts";

const CARD = `<interface type="network"><target dev="vnet1"/></interface>`;
const METADATA = { ...EMPTY_METADATA, job: "1", project: "grp/a", created: Date.UTC(2024, 0) };

const CALL_SECONDS = 8;
const GIVE_UP_MS = 12_000;

function none(code: number): never {
  throw new LibvirtError("test", "there is none", { code });
}

for (const late of ["DOMAIN_SUSPEND", "NWFILTER_BINDING_DELETE"] as const) {
  Deno.test(`a machine is destroyed although ${late} gives no answer before`, async () => {
    const asked: string[] = [];
    const destroyed = Promise.withResolvers<void>();
    const answer = (name: string) => async (): Promise<Uint8Array<ArrayBuffer>> => {
      asked.push(name);
      if (name === "DOMAIN_DESTROY") destroyed.resolve();
      if (name !== late) return xdr();
      await within(destroyed.promise, GIVE_UP_MS);
      throw new HangUp(); // nobody closes a connection whose call is late
    };
    await using libvirtd = new TestLibvirtd({
      DOMAIN_GET_METADATA: () => xdr(`${metadataXml(METADATA)}`),
      DOMAIN_GET_XML_DESC: () => xdr(`<domain><devices>${CARD}</devices></domain>`),
      DOMAIN_SUSPEND: answer("DOMAIN_SUSPEND"),
      DOMAIN_DESTROY: answer("DOMAIN_DESTROY"),
      NWFILTER_BINDING_LOOKUP_BY_PORT_DEV: () => xdr("vnet1", "a filter"),
      NWFILTER_BINDING_DELETE: answer("NWFILTER_BINDING_DELETE"),
      NWFILTER_LOOKUP_BY_NAME: () => none(VIR_ERR.NO_NWFILTER),
      STORAGE_POOL_LOOKUP_BY_NAME: () => none(VIR_ERR.NO_STORAGE_POOL),
    });
    const connect = (callSeconds = CALL_SECONDS) => Connection.open(libvirtd.uri, { callSeconds });
    await using connection = await connect();
    assert(await removeMachine("m", bareStage(connection, { connect })));
    const rulesFirst = ["DOMAIN_SUSPEND", "NWFILTER_BINDING_DELETE", "DOMAIN_DESTROY"];
    const hung = ["DOMAIN_SUSPEND", "DOMAIN_DESTROY"];
    assert.deepEqual(asked.toSorted(), (late === "DOMAIN_SUSPEND" ? hung : rulesFirst).toSorted());
    assert.equal(asked[0], "DOMAIN_SUSPEND"); // or the guest would send without a filter
  });
}

Deno.test("what cannot be removed of a machine is said, though its domain is destroyed", async () => {
  await using libvirtd = new TestLibvirtd({
    DOMAIN_GET_METADATA: () => xdr(`${metadataXml(METADATA)}`),
    DOMAIN_GET_XML_DESC: () => xdr("<domain><devices/></domain>"),
    DOMAIN_DESTROY: () => xdr(),
    NWFILTER_LOOKUP_BY_NAME: () => {
      throw new LibvirtError("test", "not for you", { code: VIR_ERR.ACCESS_DENIED });
    },
    STORAGE_POOL_LOOKUP_BY_NAME: () => none(VIR_ERR.NO_STORAGE_POOL),
  });
  const connect = (callSeconds = CALL_SECONDS) => Connection.open(libvirtd.uri, { callSeconds });
  await using connection = await connect();
  await assert.rejects(removeMachine("m", bareStage(connection, { connect })), /not for you/);
});
