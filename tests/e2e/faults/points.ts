// SPDX-License-Identifier: GPL-2.0-or-later
import type { Called } from "../bed.ts";
import type { Point, Strike } from "./killed_program.ts";

/** While the guest boots: prepare has asked for its lease for a second. */
export const BOOTING: Point = { name: "virNetworkGetDHCPLeases", count: 15, when: "done" };

/** One lookup finds the machine; the second is to see whether it is still there. */
export const SCRIPT_RUNS: Point = { name: "virDomainLookupByName", count: 2, when: "done" };

/** Whether the call is one that a stage repeats while it waits. */
export function isOfWait({ name }: Point): boolean {
  return /^virDomain(InterfaceAddresses|GetState|IsActive|QemuAgentCommand)$/.test(name) ||
    /^virNetwork(LookupByName|GetDHCPLeases)$/.test(name);
}

/** The calls of libvirt that a stage makes, in their order, the repeated ones of a wait but once. */
export function pointsOf({ stderr }: Called): Point[] {
  const names = [...stderr.matchAll(/^debug: (vir\w+) /gm)].map(([_, name]) => name ?? "");
  const counts = new Map<string, number>();
  const points = names.map((name): Point => {
    const count = (counts.get(name) ?? 0) + 1;
    counts.set(name, count);
    return { name, count, when: "done" };
  });
  return points.filter((point) => !isOfWait(point) || point.count <= 3);
}

/** As {@linkcode pointsOf}, and before the daemon has answered those that change something. */
export function allPointsOf(called: Called): Point[] {
  return pointsOf(called).flatMap((point) => {
    if (!/Create|Define|Upload|Delete|Destroy|Undefine|SetMetadata|Update/.test(point.name)) {
      return [point];
    }
    const isLong = /virDomain(CreateXML|Destroy)/.test(point.name);
    return [
      { ...point, when: "sent" as const },
      ...(isLong ? [{ ...point, when: "midway" as const }] : []),
      point,
    ];
  });
}

/** Such as `after virStorageVolDelete 2`. */
export function inWords({ name, count, when }: Point): string {
  const words = { sent: "at", midway: "in", done: "after" };
  return `${words[when]} ${name}${count === 1 ? "" : ` ${count}`}`;
}

/** What kills the stage there. */
export function kill(point: Point): { readonly strike: Strike } {
  return { strike: { ...point, signal: "SIGKILL", pidFile: null } };
}

/** What cancels the stage there. */
export function cancel(point: Point): { readonly strike: Strike } {
  return { strike: { ...point, signal: "SIGTERM", pidFile: null } };
}
