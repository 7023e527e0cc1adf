// SPDX-License-Identifier: GPL-2.0-or-later
import { blocking as daemon, fn } from "./declare.ts";
import { loadLate } from "./load_late.ts";

/**
 * The functions of libvirt.so that we call, in the order of its manual
 * (https://libvirt.org/html/index.html). No compiler checks these types: a constant or a comment names
 * each C type, and `tests/ffi/ffi_test.ts` compares them with libvirt-api.xml. `daemon` marks the
 * functions that may wait for the daemon. They do not block the program, so it still handles signals.
 * The others only touch the library's memory.
 */

type Handle<Brand extends string> = Deno.NativeTypedPointer<Deno.PointerObject<Brand>>;

// The handles. As a result, NULL is an error.
const virConnectPtr = "pointer" as Handle<"virConnect">;
/** The handle of a domain, also for libvirt-qemu.so. */
export const virDomainPtr = "pointer" as Handle<"virDomain">;
const virNetworkPtr = "pointer" as Handle<"virNetwork">;
const virNWFilterPtr = "pointer" as Handle<"virNWFilter">;
const virNWFilterBindingPtr = "pointer" as Handle<"virNWFilterBinding">;
const virStoragePoolPtr = "pointer" as Handle<"virStoragePool">;
const virStorageVolPtr = "pointer" as Handle<"virStorageVol">;
const virStreamPtr = "pointer" as Handle<"virStream">;

// Other parameters.
const text = "buffer"; // const char *
const int = "i32";
const uint = "u32"; // unsigned int
const flags = "u32"; // unsigned int
const bytes = "u64"; // unsigned long long: an offset or a length
const size_t = "usize";
const longlong = "i64"; // long long
const ints = "buffer"; // int *
const ulongs = "buffer"; // unsigned long *
const virErrorFunc = "pointer";
const virErrorPtr = "buffer";
const virNodeMemoryStatsPtr = "buffer";
const virDomainPtrs = "buffer"; // virDomainPtr **
const virDomainInterfacePtrs = "buffer"; // virDomainInterfacePtr **
const virDomainStatsRecordPtrs = "buffer"; // virDomainStatsRecordPtr **
const virNetworkDHCPLeasePtrs = "buffer"; // virNetworkDHCPLeasePtr **
const virNWFilterPtrs = "buffer"; // virNWFilterPtr **
const virStorageVolPtrs = "buffer"; // virStorageVolPtr **

// Other results.
const status = "i32"; // int: 0, -1 on error
const count = "i32"; // int: how many, -1 on error
const yesNo = "i32"; // int: 1 or 0, -1 on error
const ownedString = "pointer"; // char *, ours to free, NULL on error
const borrowedString = "pointer"; // const char *, the handle's, NULL on error

/** All functions exist since libvirt 6.0.0, which is the oldest that we support. */
export const symbols = {
  // libvirt-host

  virConnectOpen: daemon(virConnectPtr, /* name */ text),
  virConnectClose: daemon(count, virConnectPtr), // of the references left
  virConnectGetCapabilities: daemon(ownedString, virConnectPtr),
  virConnectGetLibVersion: daemon(status, virConnectPtr, /* libVer */ ulongs),
  virConnectGetVersion: daemon(status, virConnectPtr, /* hvVer */ ulongs),
  virConnectIsAlive: fn(yesNo, virConnectPtr),
  virNodeGetMemoryStats: daemon(status, virConnectPtr, int, virNodeMemoryStatsPtr, ints, flags),

  // libvirt-domain

  virConnectGetAllDomainStats: daemon(count, virConnectPtr, uint, virDomainStatsRecordPtrs, flags),
  virConnectListAllDomains: daemon(count, virConnectPtr, virDomainPtrs, flags),
  virDomainAttachDeviceFlags: daemon(status, virDomainPtr, /* xml */ text, flags),
  virDomainUpdateDeviceFlags: daemon(status, virDomainPtr, /* xml */ text, flags),
  virDomainCreateXML: daemon(virDomainPtr, virConnectPtr, /* xmlDesc */ text, flags),
  virDomainDestroy: daemon(status, virDomainPtr),
  virDomainFree: fn(status, virDomainPtr),
  virDomainGetInfo: daemon(status, virDomainPtr, /* virDomainInfoPtr info */ "buffer"),
  virDomainGetMetadata: daemon(ownedString, virDomainPtr, /* type */ int, /* uri */ text, flags),
  virDomainGetName: fn(borrowedString, virDomainPtr),
  virDomainGetState: daemon(status, virDomainPtr, /* state */ ints, /* reason */ ints, flags),
  virDomainGetXMLDesc: daemon(ownedString, virDomainPtr, flags),
  virDomainInterfaceAddresses: daemon(count, virDomainPtr, virDomainInterfacePtrs, uint, flags),
  virDomainInterfaceFree: fn("void", /* virDomainInterfacePtr iface */ "pointer"),
  virDomainIsActive: daemon(yesNo, virDomainPtr),
  virDomainLookupByName: daemon(virDomainPtr, virConnectPtr, /* name */ text),
  virDomainOpenConsole: daemon(status, virDomainPtr, /* dev_name */ text, virStreamPtr, flags),
  virDomainRestoreFlags: daemon(status, virConnectPtr, /* from */ text, /* dxml */ text, flags),
  virDomainSaveFlags: daemon(status, virDomainPtr, /* to */ text, /* dxml */ text, flags),
  virDomainScreenshot: daemon(ownedString, virDomainPtr, virStreamPtr, /* screen */ uint, flags),
  /** The texts are the metadata, its key and its URI. */
  virDomainSetMetadata: daemon(status, virDomainPtr, /* type */ int, text, text, text, flags),
  virDomainStatsRecordListFree: fn("void", /* virDomainStatsRecordPtr *stats */ "pointer"),
  virDomainSuspend: daemon(status, virDomainPtr),

  // libvirt-network

  virNetworkDHCPLeaseFree: fn("void", /* virNetworkDHCPLeasePtr lease */ "pointer"),
  virNetworkFree: fn(status, virNetworkPtr),
  virNetworkGetAutostart: daemon(status, virNetworkPtr, /* autostart */ ints),
  virNetworkGetDHCPLeases: daemon(count, virNetworkPtr, text, virNetworkDHCPLeasePtrs, flags),
  virNetworkGetXMLDesc: daemon(ownedString, virNetworkPtr, flags),
  virNetworkIsActive: daemon(yesNo, virNetworkPtr),
  virNetworkLookupByName: daemon(virNetworkPtr, virConnectPtr, /* name */ text),
  /** The numbers are the command, the section and the parent's index. */
  virNetworkUpdate: daemon(status, virNetworkPtr, uint, uint, int, /* xml */ text, flags),

  // libvirt-nwfilter

  virConnectListAllNWFilters: daemon(count, virConnectPtr, virNWFilterPtrs, flags),
  virNWFilterBindingDelete: daemon(status, virNWFilterBindingPtr),
  virNWFilterBindingFree: fn(status, virNWFilterBindingPtr),
  virNWFilterBindingGetFilterName: fn(borrowedString, virNWFilterBindingPtr),
  virNWFilterBindingLookupByPortDev: daemon(virNWFilterBindingPtr, virConnectPtr, text),
  virNWFilterDefineXML: daemon(virNWFilterPtr, virConnectPtr, /* xmlDesc */ text),
  virNWFilterFree: fn(status, virNWFilterPtr),
  virNWFilterGetName: fn(borrowedString, virNWFilterPtr),
  virNWFilterGetUUIDString: fn(status, virNWFilterPtr, /* char *buf */ "buffer"),
  virNWFilterLookupByName: daemon(virNWFilterPtr, virConnectPtr, /* name */ text),
  virNWFilterUndefine: daemon(status, virNWFilterPtr),

  // libvirt-storage

  virStoragePoolBuild: daemon(status, virStoragePoolPtr, flags),
  virStoragePoolCreate: daemon(status, virStoragePoolPtr, flags),
  virStoragePoolCreateXML: daemon(virStoragePoolPtr, virConnectPtr, /* xmlDesc */ text, flags),
  virStoragePoolDestroy: daemon(status, virStoragePoolPtr),
  virStoragePoolDefineXML: daemon(virStoragePoolPtr, virConnectPtr, /* xml */ text, flags),
  virStoragePoolFree: fn(status, virStoragePoolPtr),
  virStoragePoolGetAutostart: daemon(status, virStoragePoolPtr, /* autostart */ ints),
  virStoragePoolGetXMLDesc: daemon(ownedString, virStoragePoolPtr, flags),
  virStoragePoolIsActive: daemon(yesNo, virStoragePoolPtr),
  virStoragePoolListAllVolumes: daemon(count, virStoragePoolPtr, virStorageVolPtrs, flags),
  virStoragePoolLookupByName: daemon(virStoragePoolPtr, virConnectPtr, /* name */ text),
  virStoragePoolRefresh: daemon(status, virStoragePoolPtr, flags),
  virStoragePoolSetAutostart: daemon(status, virStoragePoolPtr, /* autostart */ int),
  virStorageVolCreateXML: daemon(virStorageVolPtr, virStoragePoolPtr, /* xmlDesc */ text, flags),
  virStorageVolCreateXMLFrom: daemon(
    virStorageVolPtr,
    virStoragePoolPtr,
    /* xmlDesc */ text,
    virStorageVolPtr,
    flags,
  ),
  virStorageVolDelete: daemon(status, virStorageVolPtr, flags),
  virStorageVolDownload: daemon(status, virStorageVolPtr, virStreamPtr, bytes, bytes, flags),
  virStorageVolFree: fn(status, virStorageVolPtr),
  virStorageVolGetInfo: daemon(status, virStorageVolPtr, /* virStorageVolInfoPtr info */ "buffer"),
  virStorageVolGetName: fn(borrowedString, virStorageVolPtr),
  virStorageVolGetPath: daemon(ownedString, virStorageVolPtr),
  virStorageVolGetXMLDesc: daemon(ownedString, virStorageVolPtr, flags),
  virStorageVolLookupByName: daemon(virStorageVolPtr, virStoragePoolPtr, /* name */ text),
  virStorageVolUpload: daemon(status, virStorageVolPtr, virStreamPtr, bytes, bytes, flags),

  // libvirt-stream; sending and receiving give -2 if they would wait

  virStreamAbort: daemon(status, virStreamPtr),
  virStreamFinish: daemon(status, virStreamPtr),
  virStreamFree: fn(status, virStreamPtr),
  virStreamNew: daemon(virStreamPtr, virConnectPtr, flags),
  virStreamRecv: daemon(count, virStreamPtr, /* char *data */ "buffer", /* nbytes */ size_t),
  virStreamSend: daemon(count, virStreamPtr, /* data */ text, /* nbytes */ size_t),
  virStreamSendHole: daemon(status, virStreamPtr, /* length */ longlong, flags),

  // virterror

  virConnCopyLastError: fn("i32", virConnectPtr, /* to */ virErrorPtr), // its code
  virConnResetLastError: fn("void", virConnectPtr),
  virConnSetErrorFunc: fn("void", virConnectPtr, /* void *userData */ "pointer", virErrorFunc),
  virResetError: fn("void", virErrorPtr),
  virSetErrorFunc: fn("void", /* void *userData */ "buffer", virErrorFunc),
  /** The address of the function, for {@linkcode symbols.virSetErrorFunc}. */
  virCopyLastError: { type: "pointer" },

  // From the C library that libvirt.so uses: frees what libvirt allocated for us.

  free: fn("void", /* void *ptr */ "pointer"),
  /** The address of `free`, as a silent error handler: it does nothing with NULL. */
  freeAddress: { type: "pointer", name: "free" },
} as const satisfies Deno.ForeignLibraryInterface;

export type Libvirt = Deno.DynamicLibrary<typeof symbols>["symbols"];

/**
 * A handle of libvirt's, typed by the name of its C structure: a domain is not taken for a network.
 */
export type Pointer<Brand extends string> = Deno.PointerObject<Brand>;

let library: Libvirt | undefined;

/** The library, loaded at the first call (15 ms). Throws Deno's error if it is missing or too old. */
export function loadLibvirt(): Libvirt {
  return library ??= loadLate("libvirt.so.0", symbols);
}
