// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { virsh, virshXml } from "../bed.ts";
import type { Point } from "./killed_program.ts";
import { type Fault, meetFault } from "./matrix.ts";
import { kill } from "./points.ts";
import { killQemuAt } from "./strikes.ts";

const SETS_FILTER: Point = { name: "virDomainUpdateDeviceFlags", count: 1, when: "midway" };

/** libvirt puts the rules back that there were, none, and so binds the filter "(null)". */
const LEAVES_ONE: Fault = {
  fault: "QEMU killed while libvirt sets the filter",
  stage: "prepare",
  status: 2,
  says: /ended: it powered off/,
  then: "nothing",
};

/** It is what an earlier machine left, whose card had the device. */
const MEETS_ONE: Fault = {
  fault: "a dead binding of the card's device",
  stage: "prepare",
  status: 0,
  says: /is ready at/,
  then: "cleanup",
};

/** What binds a filter that is not there to a device of the host's. */
export async function meetDeadBindings(): Promise<void> {
  await meetFault(
    LEAVES_ONE.fault,
    LEAVES_ONE,
    (it) => it.prepare({ strike: killQemuAt(SETS_FILTER, it) }),
  );
  await assertNone();
  await meetFault(MEETS_ONE.fault, MEETS_ONE, async (attempt) => {
    await attempt.prepare(kill(SETS_FILTER));
    const [, number] = /\bvnet(\d+)\b/.exec(await virsh("domiflist", attempt.machine)) ?? [];
    assert.equal((await attempt.cleanup()).status, 0);
    await virshXml(
      ["nwfilter-binding-create"],
      `<filterbinding>
         <owner><name>gone</name><uuid>${crypto.randomUUID()}</uuid></owner>
         <portdev name="vnet${Number(number) + 1}"/><mac address="52:54:00:00:00:02"/>
         <filterref filter="(null)"/>
       </filterbinding>`,
    );
    return await attempt.prepare();
  });
  await assertNone();
}

async function assertNone(): Promise<void> {
  assert.doesNotMatch(await virsh("nwfilter-binding-list"), /\(null\)/);
}
