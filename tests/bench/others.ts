// SPDX-License-Identifier: GPL-2.0-or-later
import { Connection } from "../../src/libvirt/connection.ts";
import { prepare } from "../../src/machine/prepare_machine.ts";
import { removeMachine } from "../../src/machine/remove.ts";
import { compare, report } from "./measure.ts";
import { TestGuest } from "../fakes/test_guest.ts";
import { JOB, testStage } from "../fakes/test_stage.ts";

/** prepare and cleanup on libvirt's test driver, beside 500 other domains and volumes and beside 5. */
export async function measureOthers(runs: number): Promise<void> {
  await using guest = await TestGuest.start();
  const few = await hostWith(5);
  const many = await hostWith(500);
  const prepareAndCleanUp = async (connection: Connection): Promise<void> => {
    using stage = testStage(connection, guest);
    await prepare(JOB, {}, stage);
    await removeMachine(JOB.machine, stage);
  };
  await prepareAndCleanUp(few);
  const { ours, theirs, ratio } = await compare(
    runs,
    () => prepareAndCleanUp(many),
    () => prepareAndCleanUp(few),
  );
  report(
    "prepare and cleanup beside 500 others",
    `${ours.toFixed(0)} ms, beside 5 ${theirs.toFixed(0)} ms, ratio ${ratio.toFixed(2)}`,
    { goal: "1.2", met: ratio <= 1.2 },
  );
  await few.close();
  await many.close();
}

async function hostWith(count: number): Promise<Connection> {
  const host = await Deno.readTextFile(new URL("../data/host.xml", import.meta.url));
  const volumes = Array.from({ length: count }, (_, i) => `
    <volume type="file">
      <name>other-${i}.overlay.libvirt-gci</name>
      <capacity unit="MiB">1</capacity>
      <target>
        <path>/var/lib/libvirt/images/libvirt-gci/other-${i}.overlay.libvirt-gci</path>
        <format type="qcow2"/>
      </target>
    </volume>`);
  const domains = Array.from({ length: count }, (_, i) => `
  <domain type="test">
    <name>other-${i}</name>
    <memory>1024</memory>
    <os><type>hvm</type></os>
  </domain>`);
  const lastPool = host.lastIndexOf("  </pool>");
  const end = host.lastIndexOf("</node>");
  const xml = host.slice(0, lastPool) + volumes.join("") + host.slice(lastPool, end) +
    domains.join("") + host.slice(end);
  const file = await Deno.makeTempFile({ prefix: "libvirt-gci-bench-", suffix: ".xml" });
  await Deno.writeTextFile(file, xml);
  try {
    return await Connection.open(`test://${file}`);
  } finally {
    await Deno.remove(file);
  }
}
