// SPDX-License-Identifier: GPL-2.0-or-later

/** Signals for others than the program: libvirt's daemon, which the bed starts again, and QEMU. */
import { dirname } from "node:path";
import { command, TESTBED, until } from "../bed.ts";
import type { Point, Strike } from "./killed_program.ts";
import type { Attempt } from "./matrix.ts";

const LIBVIRTD = `${dirname(TESTBED.key)}/libvirtd.pid`;

/** Kills the daemon; whatever started it starts it again. */
export async function killDaemon(): Promise<void> {
  Deno.kill(Number(await Deno.readTextFile(LIBVIRTD)), "SIGKILL");
}

export function killDaemonAt(point: Point): Strike {
  return { ...point, signal: "SIGKILL", pidFile: LIBVIRTD };
}

export function killQemuAt(point: Point, { machine }: Attempt): Strike {
  return { ...point, signal: "SIGKILL", pidFile: `/run/libvirt/qemu/${machine}.pid` };
}

export async function untilLibvirtAnswers(): Promise<void> {
  const answers = async () =>
    (await command(["virsh", "-c", "qemu:///system", "version"])).status === 0;
  await until(answers, {
    what: "libvirtd starts again",
    instead: () =>
      `Its log ends with ${Deno.readTextFileSync(LIBVIRTD.replace(/pid$/, "log")).slice(-1000)}`,
  });
}
