// SPDX-License-Identifier: GPL-2.0-or-later
import { blocking as daemon, fn } from "./declare.ts";
import { loadLate } from "./load_late.ts";

/**
 * The functions of libvirt.so that we call, as libvirt's headers declare them, in the order of its
 * manual (https://libvirt.org/html/index.html). No compiler checks these types: each parameter has its
 * C declaration in a comment, or a constant below that stands for one C type, and
 * `tests/ffi/ffi_test.ts` compares all with libvirt-api.xml.
 *
 * What may ask the daemon is declared with `daemon`: a signal is answered while it is silent. What only
 * touches memory of the library is not.
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
const flags = "u32"; // unsigned int

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

  virConnectGetLibVersion: daemon(status, virConnectPtr, /* unsigned long *libVer */ "buffer"),
  virConnectGetVersion: daemon(status, virConnectPtr, /* unsigned long *hvVer */ "buffer"),
  virConnectIsAlive: fn(yesNo, virConnectPtr),

  virNodeGetMemoryStats: daemon(
    status,
    virConnectPtr,
    /* int cellNum */ "i32",
    /* virNodeMemoryStatsPtr params */ "buffer",
    /* int *nparams */ "buffer",
    flags,
  ),

  // libvirt-domain

  virConnectGetAllDomainStats: daemon(
    count,
    virConnectPtr,
    /* unsigned int stats */ "u32",
    /* virDomainStatsRecordPtr **retStats */ "buffer",
    flags,
  ),
  virConnectListAllDomains: daemon(
    count,
    virConnectPtr,
    /* virDomainPtr **domains */ "buffer",
    flags,
  ),
  virDomainAttachDeviceFlags: daemon(status, virDomainPtr, /* xml */ text, flags),
  virDomainUpdateDeviceFlags: daemon(status, virDomainPtr, /* xml */ text, flags),
  virDomainCreateXML: daemon(virDomainPtr, virConnectPtr, /* xmlDesc */ text, flags),
  virDomainDestroy: daemon(status, virDomainPtr),
  virDomainFree: fn(status, virDomainPtr),
  virDomainGetInfo: daemon(status, virDomainPtr, /* virDomainInfoPtr info */ "buffer"),
  virDomainGetMetadata: daemon(
    ownedString,
    virDomainPtr,
    /* int type */ "i32",
    /* uri */ text,
    flags,
  ),
  virDomainGetName: fn(borrowedString, virDomainPtr),
  virDomainGetState: daemon(
    status,
    virDomainPtr,
    /* int *state */ "buffer",
    /* int *reason */ "buffer",
    flags,
  ),
  virDomainGetXMLDesc: daemon(ownedString, virDomainPtr, flags),
  virDomainInterfaceAddresses: daemon(
    count,
    virDomainPtr,
    /* virDomainInterfacePtr **ifaces */ "buffer",
    /* unsigned int source */ "u32",
    flags,
  ),
  virDomainInterfaceFree: fn("void", /* virDomainInterfacePtr iface */ "pointer"),
  virDomainIsActive: daemon(yesNo, virDomainPtr),
  virDomainLookupByName: daemon(virDomainPtr, virConnectPtr, /* name */ text),
  virDomainOpenConsole: daemon(status, virDomainPtr, /* dev_name */ text, virStreamPtr, flags),
  virDomainRestoreFlags: daemon(status, virConnectPtr, /* from */ text, /* dxml */ text, flags),
  virDomainSaveFlags: daemon(status, virDomainPtr, /* to */ text, /* dxml */ text, flags),
  virDomainScreenshot: daemon(
    ownedString,
    virDomainPtr,
    virStreamPtr,
    /* unsigned int screen */ "u32",
    flags,
  ),
  virDomainSetMetadata: daemon(
    status,
    virDomainPtr,
    /* int type */ "i32",
    /* metadata */ text,
    /* key */ text,
    /* uri */ text,
    flags,
  ),
  virDomainStatsRecordListFree: fn("void", /* virDomainStatsRecordPtr *stats */ "pointer"),

  // libvirt-network

  virNetworkDHCPLeaseFree: fn("void", /* virNetworkDHCPLeasePtr lease */ "pointer"),
  virNetworkFree: fn(status, virNetworkPtr),
  virNetworkGetAutostart: daemon(status, virNetworkPtr, /* int *autostart */ "buffer"),
  virNetworkGetDHCPLeases: daemon(
    count,
    virNetworkPtr,
    /* mac */ text,
    /* virNetworkDHCPLeasePtr **leases */ "buffer",
    flags,
  ),
  virNetworkGetXMLDesc: daemon(ownedString, virNetworkPtr, flags),
  virNetworkIsActive: daemon(yesNo, virNetworkPtr),
  virNetworkLookupByName: daemon(virNetworkPtr, virConnectPtr, /* name */ text),
  virNetworkUpdate: daemon(
    status,
    virNetworkPtr,
    /* unsigned int command */ "u32",
    /* unsigned int section */ "u32",
    /* int parentIndex */ "i32",
    /* xml */ text,
    flags,
  ),

  // libvirt-nwfilter

  virConnectListAllNWFilters: daemon(
    count,
    virConnectPtr,
    /* virNWFilterPtr **filters */ "buffer",
    flags,
  ),
  virNWFilterBindingDelete: daemon(status, virNWFilterBindingPtr),
  virNWFilterBindingFree: fn(status, virNWFilterBindingPtr),
  virNWFilterBindingGetFilterName: fn(borrowedString, virNWFilterBindingPtr),
  virNWFilterBindingLookupByPortDev: daemon(
    virNWFilterBindingPtr,
    virConnectPtr,
    /* portdev */ text,
  ),
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
  virStoragePoolGetAutostart: daemon(status, virStoragePoolPtr, /* int *autostart */ "buffer"),
  virStoragePoolGetXMLDesc: daemon(ownedString, virStoragePoolPtr, flags),
  virStoragePoolIsActive: daemon(yesNo, virStoragePoolPtr),
  virStoragePoolListAllVolumes: daemon(
    count,
    virStoragePoolPtr,
    /* virStorageVolPtr **vols */ "buffer",
    flags,
  ),
  virStoragePoolLookupByName: daemon(virStoragePoolPtr, virConnectPtr, /* name */ text),
  virStoragePoolRefresh: daemon(status, virStoragePoolPtr, flags),
  virStoragePoolSetAutostart: daemon(status, virStoragePoolPtr, /* int autostart */ "i32"),
  virStorageVolCreateXML: daemon(virStorageVolPtr, virStoragePoolPtr, /* xmlDesc */ text, flags),
  virStorageVolCreateXMLFrom: daemon(
    virStorageVolPtr,
    virStoragePoolPtr,
    /* xmlDesc */ text,
    virStorageVolPtr,
    flags,
  ),
  virStorageVolDelete: daemon(status, virStorageVolPtr, flags),
  virStorageVolDownload: daemon(
    status,
    virStorageVolPtr,
    virStreamPtr,
    /* unsigned long long offset */ "u64",
    /* unsigned long long length */ "u64",
    flags,
  ),
  virStorageVolFree: fn(status, virStorageVolPtr),
  virStorageVolGetInfo: daemon(status, virStorageVolPtr, /* virStorageVolInfoPtr info */ "buffer"),
  virStorageVolGetName: fn(borrowedString, virStorageVolPtr),
  virStorageVolGetPath: daemon(ownedString, virStorageVolPtr),
  virStorageVolGetXMLDesc: daemon(ownedString, virStorageVolPtr, flags),
  virStorageVolLookupByName: daemon(virStorageVolPtr, virStoragePoolPtr, /* name */ text),
  virStorageVolUpload: daemon(
    status,
    virStorageVolPtr,
    virStreamPtr,
    /* unsigned long long offset */ "u64",
    /* unsigned long long length */ "u64",
    flags,
  ),

  // libvirt-stream: what sends and receives gives -2 if it would wait

  virStreamAbort: daemon(status, virStreamPtr),
  virStreamFinish: daemon(status, virStreamPtr),
  virStreamFree: fn(status, virStreamPtr),
  virStreamNew: daemon(virStreamPtr, virConnectPtr, flags),
  virStreamRecv: daemon(
    count,
    virStreamPtr,
    /* char *data */ "buffer",
    /* size_t nbytes */ "usize",
  ),
  virStreamSend: daemon(count, virStreamPtr, /* data */ text, /* size_t nbytes */ "usize"),

  // virterror

  virConnCopyLastError: fn("i32", virConnectPtr, /* virErrorPtr to */ "buffer"), // its code
  virConnResetLastError: fn("void", virConnectPtr),
  virConnSetErrorFunc: fn(
    "void",
    virConnectPtr,
    /* void *userData */ "pointer",
    /* virErrorFunc handler */ "pointer",
  ),
  virResetError: fn("void", /* virErrorPtr err */ "buffer"),
  virSetErrorFunc: fn("void", /* void *userData */ "buffer", /* virErrorFunc handler */ "pointer"),
  /** The address of the function, for {@linkcode symbols.virSetErrorFunc}. */
  virCopyLastError: { type: "pointer" },

  // The C library's, which libvirt.so is linked with: what libvirt allocated for us goes back to it.

  free: fn("void", /* void *ptr */ "pointer"),
  /** The address of `free`, which does nothing with NULL: an error handler that is silent. */
  freeAddress: { type: "pointer", name: "free" },
} as const satisfies Deno.ForeignLibraryInterface;

/** The functions of {@linkcode symbols}, ready to call. */
export type Libvirt = Deno.DynamicLibrary<typeof symbols>["symbols"];

/** One of libvirt's handles, by the name of its C structure: a domain is no network. */
export type Pointer<Brand extends string> = Deno.PointerObject<Brand>;

let library: Libvirt | undefined;

/**
 * The library, loaded at the first call (15 ms), so that `--help` works without it. Throws Deno's own
 * error if it is missing or older than 6.0.0.
 */
export function loadLibvirt(): Libvirt {
  library ??= loadLate("libvirt.so.0", symbols);
  return library;
}
