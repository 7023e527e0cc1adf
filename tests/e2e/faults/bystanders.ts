// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { type Called, letGo, TESTBED, UNTIL_LET_GO, virsh, virshXml } from "../bed.ts";
import { Attempt } from "./matrix.ts";

const THEIRS = "gci-e2e-bystander";

/**
 * What no fault of another job may touch: a job that runs all the time, and a foreign domain, volume,
 * network filter and address.
 */
export class Bystanders {
  readonly #attempt: Attempt;
  readonly #job: Promise<Called>;
  readonly #before: string;

  private constructor(attempt: Attempt, job: Promise<Called>, before: string) {
    this.#attempt = attempt;
    this.#job = job;
    this.#before = before;
  }

  static async begin(): Promise<Bystanders> {
    await virshXml(
      ["create", "--paused"],
      `<domain type="qemu"><name>${THEIRS}</name><memory unit="MiB">64</memory>
         <os><type>hvm</type></os></domain>`,
    );
    await virshXml(["nwfilter-define"], `<filter name="${THEIRS}" chain="root"/>`);
    await virsh("vol-create-as", TESTBED.overlayPool, `${THEIRS}.qcow2`, "1M");
    await Deno.writeTextFile(await pathOfVolume(), "their data");
    await virsh(...updateHosts("add-last"));
    const attempt = await Attempt.begin();
    await attempt.mustPrepare();
    const job = attempt.run(`${UNTIL_LET_GO}; echo the job has passed`);
    return new Bystanders(attempt, job, await state());
  }

  /** Throws if any of them is not as it was. */
  async end(): Promise<void> {
    try {
      assert.equal(await state(), this.#before);
      await letGo(this.#attempt.machine);
      const { status, stdout, stderr } = await this.#job;
      assert.deepEqual([status, stdout, stderr], [0, "the job has passed\n", ""]);
    } finally {
      await this.#attempt.cleanup();
      await this.#attempt.end();
      this.#attempt[Symbol.dispose]();
      await virsh("destroy", THEIRS);
      await virsh("nwfilter-undefine", THEIRS);
      await virsh(...updateHosts("delete"));
      await virsh("vol-delete", "--pool", TESTBED.overlayPool, `${THEIRS}.qcow2`);
    }
  }
}

async function state(): Promise<string> {
  return [
    await virsh("domstate", "--reason", THEIRS),
    await virsh("domid", THEIRS),
    await virsh("nwfilter-dumpxml", THEIRS),
    await Deno.readTextFile(await pathOfVolume()),
    (await virsh("net-dumpxml", TESTBED.network)).split("\n").find((it) => it.includes(THEIRS)),
  ].join("\n");
}

function updateHosts(command: "add-last" | "delete"): string[] {
  const host = `<host mac='52:54:00:00:00:01' name='${THEIRS}' ip='192.168.213.200'/>`;
  return ["net-update", TESTBED.network, command, "ip-dhcp-host", host, "--live"];
}

function pathOfVolume(): Promise<string> {
  return virsh("vol-path", "--pool", TESTBED.overlayPool, `${THEIRS}.qcow2`);
}
