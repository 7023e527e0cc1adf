// SPDX-License-Identifier: GPL-2.0-or-later
import type { Pointer } from "../../ffi/libvirt.ts";
import { borrowedString, OutCell, pointerAt } from "../../ffi/memory.ts";
import type { Connection } from "./connection.ts";
import { orNull, VIR_ERR } from "./error.ts";

const VIR_DOMAIN_STATS_BALLOON = 4; // virDomainStatsTypes
// virConnectGetAllDomainStatsFlags: domains that run, without waiting for one that is busy or hangs.
const VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE = 1;
const VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT = 1 << 29;
const VIR_NODE_MEMORY_STATS_ALL_CELLS = -1; // of all NUMA nodes together

export interface DomainMemory {
  readonly name: string;
  /** The memory that it may take, without QEMU's own; 0 if the driver does not tell. */
  readonly maximumMib: number;
  /** The memory that its process takes now; 0 if unknown. */
  readonly residentMib: number;
}

const TYPED_PARAMETER_BYTES = 96;
const NAME_BYTES = 80; // VIR_TYPED_PARAM_FIELD_LENGTH, also VIR_NODE_MEMORY_STATS_FIELD_LENGTH
const NODE_PARAMETER_BYTES = NAME_BYTES + 8;

/** The domains that run and their memory, in one call, which waits for none that is busy. */
export async function domainMemory(connection: Connection): Promise<DomainMemory[]> {
  const list = new OutCell();
  const count = await connection.ask(
    "virConnectGetAllDomainStats",
    VIR_DOMAIN_STATS_BALLOON,
    list.buffer,
    VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT,
  );
  const records = list.pointer;
  if (records === null) return [];
  const pointers = Array.from({ length: count }, (_, i) => pointerAt(records, i * 8));
  const domains = pointers.filter((record) => record !== null)
    .map((record) => readDomainMemory(record, connection));
  connection.local.virDomainStatsRecordListFree(records);
  return domains;
}

/**
 * Reads a `virDomainStatsRecord` (libvirt-domain.h): dom at 0, params at 8, nparams at 16. A
 * `virTypedParameter` (libvirt-common.h) has its name at 0, its type at 80 and its value at 88.
 */
function readDomainMemory(record: Deno.PointerObject, { local }: Connection): DomainMemory {
  const view = new Deno.UnsafePointerView(record);
  const domain = view.getPointer(0) as Pointer<"virDomain"> | null;
  const kib = new Map<string, number>();
  const parameters = view.getPointer(8);
  for (let i = 0; parameters !== null && i < view.getInt32(16); i++) {
    const parameter = new Deno.UnsafePointerView(parameters);
    const at = i * TYPED_PARAMETER_BYTES;
    kib.set(parameter.getCString(at), Number(parameter.getBigUint64(at + NAME_BYTES + 8)));
  }
  return {
    name: (domain && borrowedString(local.virDomainGetName(domain))) ?? "",
    maximumMib: (kib.get("balloon.maximum") ?? 0) / 1024,
    residentMib: (kib.get("balloon.rss") ?? 0) / 1024,
  };
}

/**
 * The host's memory in MiB: `total`, `free`, `buffers` and `cached`; null where the driver does not
 * say. Reads `virNodeMemoryStats` (libvirt-host.h): name at 0, value in KiB at 80.
 */
export async function nodeMemory(connection: Connection): Promise<Map<string, number> | null> {
  const count = new Int32Array([4]); // Linux has four, and takes no other number
  const buffer = new Uint8Array(4 * NODE_PARAMETER_BYTES);
  const cells = VIR_NODE_MEMORY_STATS_ALL_CELLS;
  const asked = connection.ask("virNodeGetMemoryStats", cells, buffer, count, 0);
  const answered = await orNull(VIR_ERR.NO_SUPPORT, orNull(VIR_ERR.INVALID_ARG, asked));
  if (answered === null) return null;
  const numbers = new DataView(buffer.buffer);
  const mib = new Map<string, number>();
  for (let at = 0; at < buffer.length; at += NODE_PARAMETER_BYTES) {
    const name = new TextDecoder().decode(buffer.subarray(at, at + NAME_BYTES));
    const kib = numbers.getBigUint64(at + NAME_BYTES, true);
    mib.set(name.replace(/\0.*$/s, ""), Number(kib) / 1024);
  }
  return mib;
}
