// SPDX-License-Identifier: GPL-2.0-or-later
import type { Pointer } from "../../ffi/libvirt.ts";
import { borrowedString, cString } from "../../ffi/memory.ts";
import type { Connection } from "./connection.ts";
import { isLibvirtError, orNull, VIR_ERR } from "./error.ts";
import { Handle } from "./handle.ts";
import { Volume } from "./volume.ts";

/** virStorageVolCreateFlags: share the blocks of the source. */
const VIR_STORAGE_VOL_CREATE_REFLINK = 2;

/** A handle of a storage pool. The caller disposes of it. */
export class StoragePool extends Handle<"virStoragePool"> {
  get uri(): string {
    return this.connection.uri;
  }

  static async lookup(connection: Connection, name: string): Promise<StoragePool> {
    const pointer = await connection.ask("virStoragePoolLookupByName", cString(name));
    return new StoragePool(connection, "virStoragePool", pointer, name);
  }

  static find(connection: Connection, name: string): Promise<StoragePool | null> {
    return orNull(VIR_ERR.NO_STORAGE_POOL, StoragePool.lookup(connection, name));
  }

  /** Makes and starts a storage pool of this name and XML that is gone when it is stopped. */
  static async create(connection: Connection, name: string, poolXml: string): Promise<StoragePool> {
    const pointer = await connection.ask("virStoragePoolCreateXML", cString(poolXml), 0);
    return new StoragePool(connection, "virStoragePool", pointer, name);
  }

  /** Defines a persistent storage pool of this name and XML, inactive at first. */
  static async define(connection: Connection, name: string, poolXml: string): Promise<StoragePool> {
    const pointer = await connection.ask("virStoragePoolDefineXML", cString(poolXml), 0);
    return new StoragePool(connection, "virStoragePool", pointer, name);
  }

  async isActive(): Promise<boolean> {
    return (await this.call("virStoragePoolIsActive")) === 1;
  }

  /** Creates its target directory, starts the pool, and lets libvirt start it with the host. */
  async buildAndStart(): Promise<void> {
    await this.call("virStoragePoolBuild", 0);
    await this.call("virStoragePoolCreate", 0);
    await this.call("virStoragePoolSetAutostart", 1);
  }

  /** Stops the pool. Its content stays. */
  async stop(): Promise<void> {
    await this.call("virStoragePoolDestroy");
  }

  async autostarts(): Promise<boolean> {
    const autostart = new Int32Array(1);
    await this.call("virStoragePoolGetAutostart", autostart);
    return autostart[0] === 1;
  }

  /** Lets libvirt look for volumes that others put there. It fails while a volume is being made. */
  async refresh(): Promise<void> {
    await this.call("virStoragePoolRefresh", 0);
  }

  /** Its XML, with the path of its target, and its size as libvirt saw it at the last refresh. */
  xml(): Promise<string> {
    return this.callForString("virStoragePoolGetXMLDesc", 0);
  }

  async lookupVolume(name: string): Promise<Volume> {
    const pointer = await this.call("virStorageVolLookupByName", cString(name));
    return new Volume(this.connection, "virStorageVol", pointer, name);
  }

  findVolume(name: string): Promise<Volume | null> {
    return orNull(VIR_ERR.NO_STORAGE_VOL, this.lookupVolume(name));
  }

  async createVolume(name: string, volumeXml: string): Promise<Volume> {
    const pointer = await this.call("virStorageVolCreateXML", cString(volumeXml), 0);
    return new Volume(this.connection, "virStorageVol", pointer, name);
  }

  /** Makes a volume with the content of another. They share blocks where the file system can. */
  async copyVolume(name: string, volumeXml: string, source: Volume): Promise<Volume> {
    const pointer = await source.lend(async (original) => {
      const copy = (flags: number): Promise<Pointer<"virStorageVol">> =>
        this.call("virStorageVolCreateXMLFrom", cString(volumeXml), original, flags);
      try {
        return await copy(VIR_STORAGE_VOL_CREATE_REFLINK);
      } catch (error) {
        if (!isLibvirtError(error, VIR_ERR.SYSTEM_ERROR)) throw error;
        return await copy(0); // a file system that cannot
      }
    });
    return new Volume(this.connection, "virStorageVol", pointer, name);
  }

  /** The names of its volumes, as libvirt knows them without a refresh. */
  async volumeNames(): Promise<string[]> {
    const list = "virStoragePoolListAllVolumes";
    const pointers = await this.lend((pool) => this.connection.callForList(list, pool, 0));
    return pointers.map((pointer) => {
      const name = borrowedString(this.connection.local.virStorageVolGetName(pointer)) ?? "";
      this.connection.release("virStorageVolFree", pointer);
      return name;
    });
  }
}
