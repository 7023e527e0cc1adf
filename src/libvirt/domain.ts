// SPDX-License-Identifier: GPL-2.0-or-later
import { borrowedString, cBytes, cString, OutCell, pointerAt } from "../../ffi/memory.ts";
import type { Connection } from "./connection.ts";
import { orNull, VIR_ERR } from "./error.ts";
import { Handle, type Handles, together } from "./handle.ts";
import { Stream } from "./stream.ts";

// virDomainCreateFlags.
export const VIR_DOMAIN_START_VALIDATE = 16; // check the XML against libvirt's schema
export const VIR_DOMAIN_START_RESET_NVRAM = 32; // make the firmware's variables anew (8.1.0)
// virDomainSaveRestoreFlags.
export const VIR_DOMAIN_SAVE_RESET_NVRAM = 8; // the same
// virConnectListAllDomainsFlags.
const VIR_CONNECT_LIST_DOMAINS_ACTIVE = 1;
// virDomainModificationImpact.
const VIR_DOMAIN_AFFECT_LIVE = 1; // change what runs
// virDomainMetadataType.
const VIR_DOMAIN_METADATA_TITLE = 1;
const VIR_DOMAIN_METADATA_ELEMENT = 2; // one of our own
// virDomainState.
export const VIR_DOMAIN_PAUSED = 3;
export const VIR_DOMAIN_SHUTOFF = 5;
export const VIR_DOMAIN_CRASHED = 6;
// virDomainPausedReason.
const VIR_DOMAIN_PAUSED_IOERROR = 5; // a disk could not be written
export const VIR_DOMAIN_PAUSED_CRASHED = 10;
// virStreamFlags.
export const VIR_STREAM_NONBLOCK = 1; // a call that would wait gives WOULD_BLOCK
const WOULD_BLOCK = -2;
// virDomainConsoleFlags.
export const VIR_DOMAIN_CONSOLE_FORCE = 1; // end another session
const CONSOLE_BYTES = 64 * 1024;
/**
 * For an answer of a guest agent. libvirt takes megabytes, which are a hundred times that as objects.
 */
const MOST_AGENT_BYTES = 64 * 1024;

/** A crashed domain is kept as it was. A halted one waits for space for its disk. */
export type DomainState = "active" | "crashed" | "halted" | "gone";

/** A session at a domain's serial console. It waits for nothing. */
export interface ConsoleSession {
  /**
   * Gives the bytes that have come since the last call: none if nothing came yet, null at the end.
   */
  readonly receive: () => Promise<Uint8Array | null>;
  /** Sends as many of these bytes as possible now, and gives how many. */
  readonly send: (bytes: Uint8Array<ArrayBuffer>) => Promise<number>;
}

/** The sources of addresses: virDomainInterfaceAddressesSource. */
export const ADDRESS_SOURCE = {
  LEASE: 0, // the network's DHCP server
  AGENT: 1,
  ARP: 2, // the host's table
} as const;

/** A handle of a domain. The caller disposes of it, which leaves the domain as it is. */
export class Domain extends Handle<"virDomain"> {
  static async lookup(connection: Connection, name: string): Promise<Domain> {
    const pointer = await connection.ask("virDomainLookupByName", cString(name));
    return new Domain(connection, "virDomain", pointer, name);
  }

  static find(connection: Connection, name: string): Promise<Domain | null> {
    return orNull(VIR_ERR.NO_DOMAIN, Domain.lookup(connection, name));
  }

  /** Starts a transient domain of this name and XML. `flags` are of virDomainCreateFlags. */
  static async create(
    connection: Connection,
    name: string,
    domainXml: string,
    flags: number,
  ): Promise<Domain> {
    const pointer = await connection.ask("virDomainCreateXML", cString(domainXml), flags);
    return new Domain(connection, "virDomain", pointer, name);
  }

  /** Starts the domain that {@linkcode save} has written. `flags`: virDomainSaveRestoreFlags. */
  static async restore(connection: Connection, path: string, flags: number): Promise<void> {
    await connection.ask("virDomainRestoreFlags", cString(path), null, flags);
  }

  static listActive(connection: Connection): Promise<Handles<Domain>> {
    return Domain.#list(connection, VIR_CONNECT_LIST_DOMAINS_ACTIVE);
  }

  static listAll(connection: Connection): Promise<Handles<Domain>> {
    return Domain.#list(connection, 0);
  }

  static async #list(connection: Connection, flags: number): Promise<Handles<Domain>> {
    const pointers = await connection.askForList("virConnectListAllDomains", flags);
    return together(pointers.map((pointer) => {
      const name = borrowedString(connection.local.virDomainGetName(pointer)) ?? "";
      return new Domain(connection, "virDomain", pointer, name);
    }));
  }

  /** Whether it runs: false too if it has ended, since a transient domain is gone then. */
  async isActive(): Promise<boolean> {
    return await orNull(VIR_ERR.NO_DOMAIN, this.call("virDomainIsActive")) === 1;
  }

  /** Its state. A transient domain that has ended is gone. */
  async state(): Promise<DomainState> {
    const state = new Int32Array(1);
    const reason = new Int32Array(1);
    const call = this.call("virDomainGetState", state, reason, 0);
    if (await orNull(VIR_ERR.NO_DOMAIN, call) === null) return "gone";
    if (state[0] === VIR_DOMAIN_SHUTOFF) return "gone"; // it is about to be
    if (state[0] === VIR_DOMAIN_CRASHED) return "crashed";
    if (state[0] !== VIR_DOMAIN_PAUSED) return "active";
    if (reason[0] === VIR_DOMAIN_PAUSED_CRASHED) return "crashed";
    return reason[0] === VIR_DOMAIN_PAUSED_IOERROR ? "halted" : "active";
  }

  /** Ends it as a power cut does. Nothing happens to one that has ended already. */
  async destroy(): Promise<void> {
    const destroyed = this.call("virDomainDestroy");
    await orNull(VIR_ERR.NO_DOMAIN, orNull(VIR_ERR.OPERATION_INVALID, destroyed));
  }

  /** Pauses its CPUs. Once it resolves, nothing of the guest leaves QEMU any more. */
  async suspend(): Promise<void> {
    await this.call("virDomainSuspend");
  }

  async memoryMib(): Promise<number> {
    // virDomainInfo (libvirt-domain.h): state at 0, maxMem in KiB at 8, 40 bytes in all.
    const info = new BigUint64Array(5);
    await this.call("virDomainGetInfo", info);
    return Number(info[1]) / 1024;
  }

  /** The element of this namespace in its `<metadata>`, as XML, or null if there is none. */
  metadata(namespace: string): Promise<string | null> {
    const [type, uri] = [VIR_DOMAIN_METADATA_ELEMENT, cString(namespace)];
    const read = this.callForString("virDomainGetMetadata", type, uri, 0);
    return orNull(VIR_ERR.NO_DOMAIN_METADATA, read);
  }

  async setMetadata(namespace: string, prefix: string, element: string): Promise<void> {
    const [type, flags] = [VIR_DOMAIN_METADATA_ELEMENT, VIR_DOMAIN_AFFECT_LIVE];
    const texts = [cString(element), cString(prefix), cString(namespace)] as const;
    await this.call("virDomainSetMetadata", type, ...texts, flags);
  }

  async setTitle(title: string): Promise<void> {
    const [type, flags] = [VIR_DOMAIN_METADATA_TITLE, VIR_DOMAIN_AFFECT_LIVE];
    await this.call("virDomainSetMetadata", type, cString(title), null, null, flags);
  }

  /** The `return` of the guest agent's answer. The guest chooses it, within 64 KiB. */
  async agentCommand(command: object, timeoutSeconds: number): Promise<unknown> {
    const text = cString(JSON.stringify(command));
    const name = "virDomainQemuAgentCommand";
    const answer = await this.lend((pointer) =>
      this.connection.callForShortString(name, MOST_AGENT_BYTES, pointer, text, timeoutSeconds, 0)
    );
    return JSON.parse(answer).return;
  }

  /**
   * Gives the body a session at its first serial console. libvirt reads the console only during other
   * calls of this connection: ask for the {@linkcode state} again and again. Throws LibvirtError if
   * another session has the console, unless `force` ends it.
   */
  withConsole<T>(
    { force }: { readonly force: boolean },
    body: (session: ConsoleSession) => Promise<T>,
  ): Promise<T> {
    const flags = force ? VIR_DOMAIN_CONSOLE_FORCE : 0;
    return Stream.with(this.connection, async (stream) => {
      await stream.lend((pointer) => this.call("virDomainOpenConsole", null, pointer, flags));
      return await body({
        receive: async () => {
          const bytes = new Uint8Array(CONSOLE_BYTES);
          const count = await stream.receive(bytes);
          return count === 0 ? null : bytes.subarray(0, count === WOULD_BLOCK ? 0 : count);
        },
        send: async (bytes) => {
          const count = await stream.send(bytes);
          return count === WOULD_BLOCK ? 0 : count;
        },
      });
    }, VIR_STREAM_NONBLOCK);
  }

  /** A picture of its first screen. Throws Error if it has more bytes than `most`. */
  async screenshot(most: number): Promise<{ mimeType: string; bytes: Uint8Array<ArrayBuffer> }> {
    return await Stream.with(this.connection, async (stream) => ({
      mimeType: await stream.lend((pointer) =>
        this.callForString("virDomainScreenshot", pointer, 0, 0)
      ),
      bytes: await stream.receiveAll(most),
    }));
  }

  /** Writes its RAM and XML to this file of the hypervisor's host, and ends it. */
  async save(path: string): Promise<void> {
    await this.call("virDomainSaveFlags", cString(path), null, 0);
  }

  async attachDevice(deviceXml: string): Promise<void> {
    await this.call("virDomainAttachDeviceFlags", cString(deviceXml), VIR_DOMAIN_AFFECT_LIVE);
  }

  async updateDevice(deviceXml: string): Promise<void> {
    await this.call("virDomainUpdateDeviceFlags", cString(deviceXml), VIR_DOMAIN_AFFECT_LIVE);
  }

  xml(): Promise<string> {
    return this.callForString("virDomainGetXMLDesc", 0);
  }

  /** Its network interfaces as this source knows them; none where it knows nothing yet. */
  async interfaceAddresses(
    source: typeof ADDRESS_SOURCE[keyof typeof ADDRESS_SOURCE],
  ): Promise<Interface[]> {
    const list = new OutCell();
    const count = await this.call("virDomainInterfaceAddresses", list.buffer, source, 0);
    return this.connection.takeArray(list, count).map((pointer) => {
      const found = readInterface(pointer);
      this.connection.local.virDomainInterfaceFree(pointer);
      return found;
    });
  }
}

/** A network interface of a guest. */
interface Interface {
  /** Lower case, with colons; empty if unknown. */
  readonly mac: string;
  /** IPv4 and IPv6, as the source lists them. A guest's agent may give any text. */
  readonly addresses: readonly string[];
}

const MAC_BYTES = 17;
const MOST_ADDRESS_BYTES = 46; // INET6_ADDRSTRLEN: longer text is no address

/**
 * Reads a `virDomainInterface` (libvirt-domain.h): name at 0, hwaddr at 8, naddrs at 16, addrs at
 * 24, an array of `virDomainIPAddress` of 24 bytes: type at 0, addr at 8, prefix at 16.
 */
function readInterface(pointer: Deno.PointerObject): Interface {
  const view = new Deno.UnsafePointerView(pointer);
  const mac = shortText(view.getPointer(8), MAC_BYTES);
  const count = view.getUint32(16);
  const array = view.getPointer(24);
  const addresses: string[] = [];
  for (let i = 0; array !== null && i < count; i++) {
    addresses.push(shortText(pointerAt(array, i * 24 + 8), MOST_ADDRESS_BYTES));
  }
  return { mac: mac.toLowerCase(), addresses };
}

function shortText(pointer: Deno.PointerValue, mostBytes: number): string {
  return pointer === null ? "" : new TextDecoder().decode(cBytes(pointer, mostBytes));
}
