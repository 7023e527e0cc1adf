// SPDX-License-Identifier: GPL-2.0-or-later
import { command, type Settings, TESTBED, virsh } from "../bed.ts";
import type { Point } from "./killed_program.ts";
import { type Fault, faultTest, meetFault } from "./matrix.ts";
import { ONE_ADDRESS, startNetwork } from "./network.ts";
import { inWords, kill } from "./points.ts";
import { must, NAME, startPool } from "./pool.ts";

/** Has prepare meet a fault of the host, which is then mended, since cleanup could not work otherwise. */
async function meetInPrepare(
  fault: Pick<Fault, "fault" | "says">,
  settings: Settings,
  mend?: () => Promise<unknown>,
): Promise<void> {
  await meetFault(
    fault.fault,
    { ...fault, stage: "prepare", status: 2, then: "nothing" },
    async (attempt) => {
      const met = await attempt.prepare();
      await mend?.();
      return met;
    },
    { settings },
  );
}

faultTest("a storage pool fails", async (t) => {
  for (const kind of ["templates", "overlays"]) {
    await t.step(`pool of ${kind} missing`, () =>
      meetInPrepare(
        { fault: `no pool of ${kind}`, says: /The host has no storage pool "gci-e2e-faults"/ },
        { pools: { [kind]: NAME } },
      ));
    await t.step(`pool of ${kind} inactive`, async () => {
      await using _ = await startPool(null);
      await virsh("pool-destroy", NAME);
      await meetInPrepare(
        {
          fault: `pool of ${kind} inactive`,
          says: /The storage pool "gci-e2e-faults" is not active/,
        },
        { pools: { [kind]: NAME } },
        () => virsh("pool-start", NAME),
      );
    });
    await t.step(`the directory of ${kind} is gone`, async () => {
      await using pool = await startPool(null);
      await Deno.remove(pool.path, { recursive: true });
      await meetInPrepare(
        {
          fault: `directory of ${kind} gone`,
          says: /Cannot create the disks|cannot open directory/,
        },
        { pools: { [kind]: NAME } },
        async () => {
          await Deno.mkdir(pool.path);
          await command(["virsh", "-c", "qemu:///system", "pool-start", NAME]); // if libvirt stopped it
        },
      );
    });
  }
  await t.step("full", async () => {
    await using pool = await startPool("1M");
    await command(["dd", "if=/dev/zero", `of=${pool.path}/theirs`, "bs=4k"]);
    await meetInPrepare(
      { fault: "overlay pool full", says: /No space left on device|room|free/ },
      { pools: { overlays: NAME }, host: { queue_seconds: 3 } },
    );
  });
  await t.step("runs full while the script runs", async () => {
    await using _ = await startPool("64M");
    await meetFault(
      "overlay pool runs full",
      { stage: "run", status: 2, says: /is halted: the host could not write/, then: "cleanup" },
      async (attempt) => {
        await attempt.mustPrepare();
        return await attempt.run("dd if=/dev/zero of=$HOME/much bs=1M count=200; sync; sleep 600");
      },
      { settings: { pools: { overlays: NAME }, host: { reserve_disk_gib: 0 } } },
    );
  });
  await t.step("inactive at cleanup", async () => {
    await using _ = await startPool(null);
    await meetFault(
      "overlay pool inactive",
      { stage: "cleanup", status: 2, says: /"gci-e2e-faults" is not active/, then: "gc" },
      async (attempt) => {
        await attempt.mustPrepare();
        await virsh("pool-destroy", NAME);
        const met = await attempt.cleanup();
        await virsh("pool-start", NAME);
        return met;
      },
      { settings: { pools: { overlays: NAME } } },
    );
  });
});

faultTest("the network fails", async (t) => {
  await t.step("missing", () =>
    meetInPrepare(
      { fault: "no network", says: /has no network "gci-e2e-faults"/ },
      { network: { name: NAME } },
    ));
  await t.step("no free address", async () => {
    const dhcp = `${ONE_ADDRESS}<host mac="52:54:00:00:00:01" ip="192.168.214.2"/>`;
    await using _ = await startNetwork({ dhcp });
    await meetInPrepare(
      { fault: "no free address", says: /"gci-e2e-faults" has no free address/ },
      { network: { name: NAME } },
    );
  });
  await t.step("no lease", async () => {
    await using _ = await startNetwork({ option: "dhcp-ignore=tag:known" });
    await meetInPrepare(
      { fault: "no lease", says: /did not get an IP address .* no DHCP lease/ },
      { network: { name: NAME }, timeouts: { address_seconds: 10 } },
    );
  });
  await t.step("killed while it gets an address", async () => {
    for (const when of ["sent", "done"] as const) {
      await using _ = await startNetwork();
      const point: Point = { name: "virNetworkUpdate", count: 1, when };
      await meetFault(
        `SIGKILL ${inWords(point)}`,
        { stage: "prepare", status: null, says: /(?:)/, then: "gc" },
        (attempt) => attempt.prepare(kill(point)),
        { settings: { network: { name: NAME } } },
      );
    }
  });
  await t.step("inactive", async () => {
    await using _ = await startNetwork();
    await virsh("net-destroy", NAME);
    await meetInPrepare(
      { fault: "network inactive", says: /"gci-e2e-faults" is not active/ },
      { network: { name: NAME } },
    );
  });
});

faultTest("the template is corrupt", async (t) => {
  const template = await virsh("vol-path", "--pool", TESTBED.templatePool, "lite.qcow2");
  const corruptions: readonly (Pick<Fault, "fault" | "says"> & {
    /** Where in the file these bytes are written. */
    readonly at: number;
    readonly bytes: readonly number[];
  })[] = [
    {
      fault: "template's L1 table is nowhere", // a qcow2 header has its offset in bytes 40 to 47
      at: 47,
      bytes: [1],
      says: /Cannot (start the machine|create the disks)/,
    },
    {
      fault: "template's header is no qcow2's",
      at: 0,
      bytes: [0, 0, 0, 0],
      says: /"lite.qcow2" is not a qcow2 image/,
    },
    {
      fault: "template is cut off",
      at: -1,
      bytes: [],
      says: /did not start/,
    },
  ];
  for (const { fault, says, at, bytes } of corruptions) {
    await t.step(fault, async () => {
      await using pool = await startPool(null);
      const path = `${pool.path}/lite.qcow2`;
      await must("cp", "--reflink=auto", template, path);
      using file = await Deno.open(path, { write: true });
      if (at < 0) await file.truncate(4 * 1024 ** 2);
      await file.seek(Math.max(at, 0), Deno.SeekMode.Start);
      await file.write(new Uint8Array(bytes));
      await virsh("pool-refresh", NAME);
      await meetInPrepare({ fault, says }, {
        pools: { templates: NAME },
        timeouts: { address_seconds: 8 },
      });
    });
  }
});
