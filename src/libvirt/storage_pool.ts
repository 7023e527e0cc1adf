// SPDX-License-Identifier: GPL-2.0-or-later
import type { Pointer } from "../../ffi/libvirt.ts";
import { borrowedString, cString } from "../../ffi/memory.ts";
import type { Connection } from "./connection.ts";
import { isLibvirtError, orNull, VIR_ERR } from "./error.ts";
import { Volume } from "./volume.ts";

/** virStorageVolCreateFlags: share the blocks of the source. */
const VIR_STORAGE_VOL_CREATE_REFLINK = 2;

/** A handle of a storage pool. Whoever gets it disposes of it. */
export class StoragePool implements Disposable {
  readonly name: string;
  /** The URI of its hypervisor. */
  readonly uri: string;
  readonly #connection: Connection;
  readonly #pointer: Pointer<"virStoragePool">;

  constructor(connection: Connection, pointer: Pointer<"virStoragePool">, name: string) {
    this.#connection = connection;
    this.uri = connection.uri;
    this.#pointer = pointer;
    this.name = name;
  }

  /** Whether it is started. */
  async isActive(): Promise<boolean> {
    return (await this.#connection.call("virStoragePoolIsActive", this.#pointer)) === 1;
  }

  /** Makes its target directory, starts it, and has libvirt start it with the host. */
  async buildAndStart(): Promise<void> {
    await this.#connection.call("virStoragePoolBuild", this.#pointer, 0);
    await this.#connection.call("virStoragePoolCreate", this.#pointer, 0);
    await this.#connection.call("virStoragePoolSetAutostart", this.#pointer, 1);
  }

  /** Has libvirt use it no more; what is in it stays. */
  async stop(): Promise<void> {
    await this.#connection.call("virStoragePoolDestroy", this.#pointer);
  }

  /** Whether libvirt starts it with the host. */
  async autostarts(): Promise<boolean> {
    const autostart = new Int32Array(1);
    await this.#connection.call("virStoragePoolGetAutostart", this.#pointer, autostart);
    return autostart[0] === 1;
  }

  /** Has libvirt look for volumes that others put there. It fails while a volume is being made. */
  async refresh(): Promise<void> {
    await this.#connection.call("virStoragePoolRefresh", this.#pointer, 0);
  }

  /** Its XML, with the path of its target, and its size as libvirt saw it at the last refresh. */
  xml(): Promise<string> {
    return this.#connection.callForString("virStoragePoolGetXMLDesc", this.#pointer, 0);
  }

  /** The volume of this name. Throws LibvirtError if there is none. */
  async lookupVolume(name: string): Promise<Volume> {
    const pointer = await this.#connection.call(
      "virStorageVolLookupByName",
      this.#pointer,
      cString(name),
    );
    return new Volume(this.#connection, pointer, name);
  }

  /** The volume of this name, or null if there is none. */
  findVolume(name: string): Promise<Volume | null> {
    return orNull(VIR_ERR.NO_STORAGE_VOL, this.lookupVolume(name));
  }

  /** Makes the volume that the XML describes. The caller disposes of the handle. */
  async createVolume(name: string, volumeXml: string): Promise<Volume> {
    const pointer = await this.#connection.call(
      "virStorageVolCreateXML",
      this.#pointer,
      cString(volumeXml),
      0,
    );
    return new Volume(this.#connection, pointer, name);
  }

  /**
   * Makes the volume that the XML describes with what is in another. Where the file system can, they
   * share their blocks until one of them is written to. The caller disposes of the handle.
   */
  async copyVolume(name: string, volumeXml: string, source: Volume): Promise<Volume> {
    const copy = async (flags: number): Promise<Volume> => {
      const pointer = await this.#connection.call(
        "virStorageVolCreateXMLFrom",
        this.#pointer,
        cString(volumeXml),
        source.pointer,
        flags,
      );
      return new Volume(this.#connection, pointer, name);
    };
    try {
      return await copy(VIR_STORAGE_VOL_CREATE_REFLINK);
    } catch (error) {
      if (!isLibvirtError(error, VIR_ERR.SYSTEM_ERROR)) throw error;
      return await copy(0); // a file system that cannot
    }
  }

  /** The names of its volumes, as libvirt knows them without a refresh. */
  async volumeNames(): Promise<string[]> {
    const list = "virStoragePoolListAllVolumes";
    const pointers = await this.#connection.callForList(list, this.#pointer, 0);
    return pointers.map((pointer) => {
      const name = borrowedString(this.#connection.local.virStorageVolGetName(pointer)) ?? "";
      this.#connection.release("virStorageVolFree", pointer);
      return name;
    });
  }

  [Symbol.dispose](): void {
    this.#connection.release("virStoragePoolFree", this.#pointer);
  }
}
