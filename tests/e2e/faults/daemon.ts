// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { meetDeadBindings } from "./dead_binding.ts";
import type { Point } from "./killed_program.ts";
import { type Fault, faultTest, meetFault } from "./matrix.ts";
import { BOOTING, kill, SCRIPT_RUNS } from "./points.ts";
import { PROCEDURE, StallingProxy } from "./stalling_proxy.ts";
import { killDaemonAt, killQemuAt, untilLibvirtAnswers } from "./strikes.ts";

faultTest("libvirtd is killed and starts again", async (t) => {
  const inPrepare: Point[] = [
    { name: "virStorageVolLookupByName", count: 1, when: "done" },
    { name: "virStorageVolCreateXML", count: 1, when: "done" },
    { name: "virStorageVolUpload", count: 1, when: "done" },
    { name: "virStorageVolCreateXML", count: 2, when: "done" },
    { name: "virDomainCreateXML", count: 1, when: "midway" },
    { name: "virDomainCreateXML", count: 1, when: "done" },
    BOOTING,
  ];
  for (const point of inPrepare) {
    const isMidway = point.when === "midway";
    const fault = `libvirtd killed ${isMidway ? "in" : "after"} ${point.name}`;
    const says = isMidway
      ? /The connection to libvirt was lost before it had started the machine [^]*Check the libvirt daemon/
      : /libvirt: .*/;
    await t.step(fault, () =>
      meetFault(
        fault,
        { stage: "prepare", status: 2, says, then: "cleanup" },
        async (attempt) => {
          const met = await attempt.prepare({ strike: killDaemonAt(point) });
          await untilLibvirtAnswers();
          return met;
        },
      ));
  }
  await t.step("QEMU is killed while libvirt sets the filter", meetDeadBindings);
  const inRun: Fault = {
    fault: "libvirtd killed while the script runs",
    stage: "run",
    status: 0,
    says: /^end$/m,
    then: "cleanup",
  };
  await t.step(inRun.fault, () =>
    meetFault(inRun.fault, inRun, async (attempt) => {
      await attempt.mustPrepare();
      return await attempt.run("sleep 8; echo end", { strike: killDaemonAt(SCRIPT_RUNS) });
    }));
  const inCleanup: Point[] = [
    { name: "virDomainLookupByName", count: 1, when: "done" },
    { name: "virDomainDestroy", count: 1, when: "midway" },
    { name: "virDomainDestroy", count: 1, when: "done" },
    { name: "virStorageVolDelete", count: 1, when: "done" },
  ];
  for (const point of inCleanup) {
    const fault = `libvirtd killed ${point.when === "midway" ? "in" : "after"} ${point.name}`;
    await t.step(fault, () =>
      meetFault(
        fault,
        { stage: "cleanup", status: 0, says: /Removed/, then: "nothing" },
        async (attempt) => {
          await attempt.mustPrepare();
          const met = await attempt.cleanup({ strike: killDaemonAt(point) });
          await untilLibvirtAnswers();
          return met;
        },
      ));
  }
});

faultTest("QEMU is killed", async (t) => {
  await t.step("prepare", () =>
    meetFault(
      "QEMU killed while the guest boots",
      { stage: "prepare", status: 2, says: /ended/, then: "nothing" },
      (attempt) => attempt.prepare({ strike: killQemuAt(BOOTING, attempt) }),
    ));
  await t.step("run", () =>
    meetFault(
      "QEMU killed while the script runs",
      { stage: "run", status: 2, says: /ended: it powered off/, then: "cleanup" },
      async (attempt) => {
        await attempt.mustPrepare();
        return await attempt.run("sleep 60", { strike: killQemuAt(SCRIPT_RUNS, attempt) });
      },
    ));
  await t.step("cleanup", () =>
    meetFault(
      "QEMU killed in virDomainDestroy",
      { stage: "cleanup", status: 0, says: /Removed/, then: "nothing" },
      async (attempt) => {
        await attempt.prepare(kill(BOOTING));
        const point: Point = { name: "virDomainDestroy", count: 1, when: "sent" };
        return await attempt.cleanup({ strike: killQemuAt(point, attempt) });
      },
    ));
});

const CALL_SECONDS = 6;

faultTest("the daemon hangs", async (t) => {
  const says = new RegExp(`no answer from the daemon within ${CALL_SECONDS} s`);
  for (
    const name of [
      "CONNECT_OPEN",
      "STORAGE_VOL_CREATE_XML",
      "DOMAIN_CREATE_XML",
      "DOMAIN_INTERFACE_ADDRESSES",
    ] as const
  ) {
    await t.step(`prepare: ${name}`, async () => {
      await using proxy = new StallingProxy(PROCEDURE[name]);
      const settings = { libvirt: { uri: proxy.uri, call_seconds: CALL_SECONDS } };
      const fault = `libvirtd hangs in ${name}`;
      await meetFault(
        fault,
        { stage: "prepare", status: 2, says, then: "cleanup" },
        async (attempt) => {
          const met = await attempt.prepare();
          assert(proxy.hasStalled);
          proxy.recover();
          return met;
        },
        { settings },
      );
    });
  }
  await t.step("run", async () => {
    await using proxy = new StallingProxy(PROCEDURE.DOMAIN_LOOKUP_BY_NAME, Infinity);
    const settings = { libvirt: { uri: proxy.uri, call_seconds: CALL_SECONDS } };
    const fault = "libvirtd hangs while the script runs";
    await meetFault(
      fault,
      { stage: "run", status: 0, says: /^end$/m, then: "cleanup" },
      async (attempt) => {
        await attempt.mustPrepare();
        proxy.stallAtCall(2); // one finds the machine, the second watches it
        const met = await attempt.run("sleep 8; echo end");
        assert(proxy.hasStalled);
        proxy.recover();
        return met;
      },
      { settings },
    );
  });
  for (const name of ["DOMAIN_DESTROY", "STORAGE_VOL_DELETE"] as const) {
    await t.step(`cleanup: ${name}`, async () => {
      await using proxy = new StallingProxy(PROCEDURE[name], Infinity);
      const settings = { libvirt: { uri: proxy.uri, call_seconds: CALL_SECONDS } };
      const fault = `libvirtd hangs in ${name}`;
      await meetFault(
        fault,
        { stage: "cleanup", status: 2, says, then: "gc" },
        async (attempt) => {
          await attempt.prepare(kill(BOOTING));
          proxy.stallAtCall(1);
          const met = await attempt.cleanup();
          assert(proxy.hasStalled);
          proxy.recover();
          return met;
        },
        { settings },
      );
    });
  }
});
