// SPDX-License-Identifier: GPL-2.0-or-later

/**
 * The functions of libvirt.so that we call, as libvirt's headers declare them, in the order of its
 * manual (https://libvirt.org/html/index.html). No compiler checks these types: the C declaration
 * stands beside each parameter and `tests/ffi/ffi_test.ts` compares the table with libvirt-api.xml.
 *
 * What may ask the daemon is `nonblocking`: it runs on a thread of its own, so that a signal is
 * answered while the daemon is silent. What only touches memory of the library is not.
 */

type Handle<Brand extends string> = Deno.NativeTypedPointer<Deno.PointerObject<Brand>>;

const virConnectPtr = "pointer" as Handle<"virConnect">;
const virDomainPtr = "pointer" as Handle<"virDomain">;
const virNetworkPtr = "pointer" as Handle<"virNetwork">;
const virNWFilterPtr = "pointer" as Handle<"virNWFilter">;
const virNWFilterBindingPtr = "pointer" as Handle<"virNWFilterBinding">;
const virStoragePoolPtr = "pointer" as Handle<"virStoragePool">;
const virStorageVolPtr = "pointer" as Handle<"virStorageVol">;
const virStreamPtr = "pointer" as Handle<"virStream">;

/** All functions exist since libvirt 6.0.0, which is the oldest that we support. */
export const symbols = {
  // libvirt-host

  virConnectOpen: {
    parameters: [
      "buffer", // const char *name
    ],
    result: virConnectPtr, // NULL on error
    nonblocking: true,
  },
  virConnectClose: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
    ],
    result: "i32", // the references left, -1 on error
    nonblocking: true,
  },
  virConnectGetCapabilities: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
    ],
    result: "pointer", // char *, ours to free, NULL on error
    nonblocking: true,
  },

  virConnectGetLibVersion: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
      "buffer", // unsigned long *libVer
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virConnectGetVersion: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
      "buffer", // unsigned long *hvVer
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virConnectIsAlive: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
    ],
    result: "i32", // 1 alive, 0 dead, -1 on error
  },

  virNodeGetMemoryStats: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
      "i32", // int cellNum
      "buffer", // virNodeMemoryStatsPtr params
      "buffer", // int *nparams
      "u32", // unsigned int flags
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },

  // libvirt-domain

  virConnectGetAllDomainStats: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
      "u32", // unsigned int stats
      "buffer", // virDomainStatsRecordPtr **retStats
      "u32", // unsigned int flags
    ],
    result: "i32", // how many, -1 on error
    nonblocking: true,
  },
  virConnectListAllDomains: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
      "buffer", // virDomainPtr **domains
      "u32", // unsigned int flags
    ],
    result: "i32", // how many, -1 on error
    nonblocking: true,
  },
  virDomainAttachDeviceFlags: {
    parameters: [
      virDomainPtr, // virDomainPtr domain
      "buffer", // const char *xml
      "u32", // unsigned int flags
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virDomainUpdateDeviceFlags: {
    parameters: [
      virDomainPtr, // virDomainPtr domain
      "buffer", // const char *xml
      "u32", // unsigned int flags
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virDomainCreateXML: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
      "buffer", // const char *xmlDesc
      "u32", // unsigned int flags
    ],
    result: virDomainPtr, // NULL on error
    nonblocking: true,
  },
  virDomainDestroy: {
    parameters: [
      virDomainPtr, // virDomainPtr domain
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virDomainFree: {
    parameters: [
      virDomainPtr, // virDomainPtr domain
    ],
    result: "i32", // 0, -1 on error
  },
  virDomainGetInfo: {
    parameters: [
      virDomainPtr, // virDomainPtr domain
      "buffer", // virDomainInfoPtr info
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virDomainGetMetadata: {
    parameters: [
      virDomainPtr, // virDomainPtr domain
      "i32", // int type
      "buffer", // const char *uri
      "u32", // unsigned int flags
    ],
    result: "pointer", // char *, ours to free, NULL on error
    nonblocking: true,
  },
  virDomainGetName: {
    parameters: [
      virDomainPtr, // virDomainPtr domain
    ],
    result: "pointer", // const char *, the handle's, NULL on error
  },
  virDomainGetState: {
    parameters: [
      virDomainPtr, // virDomainPtr domain
      "buffer", // int *state
      "buffer", // int *reason
      "u32", // unsigned int flags
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virDomainGetXMLDesc: {
    parameters: [
      virDomainPtr, // virDomainPtr domain
      "u32", // unsigned int flags
    ],
    result: "pointer", // char *, ours to free, NULL on error
    nonblocking: true,
  },
  virDomainInterfaceAddresses: {
    parameters: [
      virDomainPtr, // virDomainPtr dom
      "buffer", // virDomainInterfacePtr **ifaces
      "u32", // unsigned int source
      "u32", // unsigned int flags
    ],
    result: "i32", // how many, -1 on error
    nonblocking: true,
  },
  virDomainInterfaceFree: {
    parameters: [
      "pointer", // virDomainInterfacePtr iface
    ],
    result: "void",
  },
  virDomainIsActive: {
    parameters: [
      virDomainPtr, // virDomainPtr dom
    ],
    result: "i32", // 1, 0, -1 on error
    nonblocking: true,
  },
  virDomainLookupByName: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
      "buffer", // const char *name
    ],
    result: virDomainPtr, // NULL on error
    nonblocking: true,
  },
  virDomainOpenConsole: {
    parameters: [
      virDomainPtr, // virDomainPtr dom
      "buffer", // const char *dev_name
      virStreamPtr, // virStreamPtr st
      "u32", // unsigned int flags
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virDomainRestoreFlags: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
      "buffer", // const char *from
      "buffer", // const char *dxml
      "u32", // unsigned int flags
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virDomainSaveFlags: {
    parameters: [
      virDomainPtr, // virDomainPtr domain
      "buffer", // const char *to
      "buffer", // const char *dxml
      "u32", // unsigned int flags
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virDomainScreenshot: {
    parameters: [
      virDomainPtr, // virDomainPtr domain
      virStreamPtr, // virStreamPtr stream
      "u32", // unsigned int screen
      "u32", // unsigned int flags
    ],
    result: "pointer", // char *, ours to free, NULL on error
    nonblocking: true,
  },
  virDomainSetMetadata: {
    parameters: [
      virDomainPtr, // virDomainPtr domain
      "i32", // int type
      "buffer", // const char *metadata
      "buffer", // const char *key
      "buffer", // const char *uri
      "u32", // unsigned int flags
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virDomainStatsRecordListFree: {
    parameters: [
      "pointer", // virDomainStatsRecordPtr *stats
    ],
    result: "void",
  },

  // libvirt-network

  virNetworkDHCPLeaseFree: {
    parameters: [
      "pointer", // virNetworkDHCPLeasePtr lease
    ],
    result: "void",
  },
  virNetworkFree: {
    parameters: [
      virNetworkPtr, // virNetworkPtr network
    ],
    result: "i32", // 0, -1 on error
  },
  virNetworkGetAutostart: {
    parameters: [
      virNetworkPtr, // virNetworkPtr network
      "buffer", // int *autostart
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virNetworkGetDHCPLeases: {
    parameters: [
      virNetworkPtr, // virNetworkPtr network
      "buffer", // const char *mac
      "buffer", // virNetworkDHCPLeasePtr **leases
      "u32", // unsigned int flags
    ],
    result: "i32", // how many, -1 on error
    nonblocking: true,
  },
  virNetworkGetXMLDesc: {
    parameters: [
      virNetworkPtr, // virNetworkPtr network
      "u32", // unsigned int flags
    ],
    result: "pointer", // char *, ours to free, NULL on error
    nonblocking: true,
  },
  virNetworkIsActive: {
    parameters: [
      virNetworkPtr, // virNetworkPtr net
    ],
    result: "i32", // 1, 0, -1 on error
    nonblocking: true,
  },
  virNetworkLookupByName: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
      "buffer", // const char *name
    ],
    result: virNetworkPtr, // NULL on error
    nonblocking: true,
  },
  virNetworkUpdate: {
    parameters: [
      virNetworkPtr, // virNetworkPtr network
      "u32", // unsigned int command
      "u32", // unsigned int section
      "i32", // int parentIndex
      "buffer", // const char *xml
      "u32", // unsigned int flags
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },

  // libvirt-nwfilter

  virConnectListAllNWFilters: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
      "buffer", // virNWFilterPtr **filters
      "u32", // unsigned int flags
    ],
    result: "i32", // how many, -1 on error
    nonblocking: true,
  },
  virNWFilterBindingDelete: {
    parameters: [
      virNWFilterBindingPtr, // virNWFilterBindingPtr binding
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virNWFilterBindingFree: {
    parameters: [
      virNWFilterBindingPtr, // virNWFilterBindingPtr binding
    ],
    result: "i32", // 0, -1 on error
  },
  virNWFilterBindingGetFilterName: {
    parameters: [
      virNWFilterBindingPtr, // virNWFilterBindingPtr binding
    ],
    result: "pointer", // const char *, the handle's, NULL on error
  },
  virNWFilterBindingLookupByPortDev: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
      "buffer", // const char *portdev
    ],
    result: virNWFilterBindingPtr, // NULL on error
    nonblocking: true,
  },
  virNWFilterDefineXML: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
      "buffer", // const char *xmlDesc
    ],
    result: virNWFilterPtr, // NULL on error
    nonblocking: true,
  },
  virNWFilterFree: {
    parameters: [
      virNWFilterPtr, // virNWFilterPtr nwfilter
    ],
    result: "i32", // 0, -1 on error
  },
  virNWFilterGetName: {
    parameters: [
      virNWFilterPtr, // virNWFilterPtr nwfilter
    ],
    result: "pointer", // const char *, the handle's, NULL on error
  },
  virNWFilterGetUUIDString: {
    parameters: [
      virNWFilterPtr, // virNWFilterPtr nwfilter
      "buffer", // char *buf
    ],
    result: "i32", // 0, -1 on error
  },
  virNWFilterLookupByName: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
      "buffer", // const char *name
    ],
    result: virNWFilterPtr, // NULL on error
    nonblocking: true,
  },
  virNWFilterUndefine: {
    parameters: [
      virNWFilterPtr, // virNWFilterPtr nwfilter
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },

  // libvirt-storage

  virStoragePoolBuild: {
    parameters: [
      virStoragePoolPtr, // virStoragePoolPtr pool
      "u32", // unsigned int flags
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virStoragePoolCreate: {
    parameters: [
      virStoragePoolPtr, // virStoragePoolPtr pool
      "u32", // unsigned int flags
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virStoragePoolCreateXML: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
      "buffer", // const char *xmlDesc
      "u32", // unsigned int flags
    ],
    result: virStoragePoolPtr, // NULL on error
    nonblocking: true,
  },
  virStoragePoolDestroy: {
    parameters: [
      virStoragePoolPtr, // virStoragePoolPtr pool
    ],
    result: "i32", // -1 on error
    nonblocking: true,
  },
  virStoragePoolDefineXML: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
      "buffer", // const char *xml
      "u32", // unsigned int flags
    ],
    result: virStoragePoolPtr, // NULL on error
    nonblocking: true,
  },
  virStoragePoolFree: {
    parameters: [
      virStoragePoolPtr, // virStoragePoolPtr pool
    ],
    result: "i32", // 0, -1 on error
  },
  virStoragePoolGetAutostart: {
    parameters: [
      virStoragePoolPtr, // virStoragePoolPtr pool
      "buffer", // int *autostart
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virStoragePoolGetXMLDesc: {
    parameters: [
      virStoragePoolPtr, // virStoragePoolPtr pool
      "u32", // unsigned int flags
    ],
    result: "pointer", // char *, ours to free, NULL on error
    nonblocking: true,
  },
  virStoragePoolIsActive: {
    parameters: [
      virStoragePoolPtr, // virStoragePoolPtr pool
    ],
    result: "i32", // 1, 0, -1 on error
    nonblocking: true,
  },
  virStoragePoolListAllVolumes: {
    parameters: [
      virStoragePoolPtr, // virStoragePoolPtr pool
      "buffer", // virStorageVolPtr **vols
      "u32", // unsigned int flags
    ],
    result: "i32", // how many, -1 on error
    nonblocking: true,
  },
  virStoragePoolLookupByName: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
      "buffer", // const char *name
    ],
    result: virStoragePoolPtr, // NULL on error
    nonblocking: true,
  },
  virStoragePoolRefresh: {
    parameters: [
      virStoragePoolPtr, // virStoragePoolPtr pool
      "u32", // unsigned int flags
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virStoragePoolSetAutostart: {
    parameters: [
      virStoragePoolPtr, // virStoragePoolPtr pool
      "i32", // int autostart
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virStorageVolCreateXML: {
    parameters: [
      virStoragePoolPtr, // virStoragePoolPtr pool
      "buffer", // const char *xmlDesc
      "u32", // unsigned int flags
    ],
    result: virStorageVolPtr, // NULL on error
    nonblocking: true,
  },
  virStorageVolCreateXMLFrom: {
    parameters: [
      virStoragePoolPtr, // virStoragePoolPtr pool
      "buffer", // const char *xmlDesc
      virStorageVolPtr, // virStorageVolPtr clonevol
      "u32", // unsigned int flags
    ],
    result: virStorageVolPtr, // NULL on error
    nonblocking: true,
  },
  virStorageVolDelete: {
    parameters: [
      virStorageVolPtr, // virStorageVolPtr vol
      "u32", // unsigned int flags
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virStorageVolDownload: {
    parameters: [
      virStorageVolPtr, // virStorageVolPtr vol
      virStreamPtr, // virStreamPtr stream
      "u64", // unsigned long long offset
      "u64", // unsigned long long length
      "u32", // unsigned int flags
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virStorageVolFree: {
    parameters: [
      virStorageVolPtr, // virStorageVolPtr vol
    ],
    result: "i32", // 0, -1 on error
  },
  virStorageVolGetInfo: {
    parameters: [
      virStorageVolPtr, // virStorageVolPtr vol
      "buffer", // virStorageVolInfoPtr info
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virStorageVolGetName: {
    parameters: [
      virStorageVolPtr, // virStorageVolPtr vol
    ],
    result: "pointer", // const char *, the handle's, NULL on error
  },
  virStorageVolGetPath: {
    parameters: [
      virStorageVolPtr, // virStorageVolPtr vol
    ],
    result: "pointer", // char *, ours to free, NULL on error
    nonblocking: true,
  },
  virStorageVolGetXMLDesc: {
    parameters: [
      virStorageVolPtr, // virStorageVolPtr vol
      "u32", // unsigned int flags
    ],
    result: "pointer", // char *, ours to free, NULL on error
    nonblocking: true,
  },
  virStorageVolLookupByName: {
    parameters: [
      virStoragePoolPtr, // virStoragePoolPtr pool
      "buffer", // const char *name
    ],
    result: virStorageVolPtr, // NULL on error
    nonblocking: true,
  },
  virStorageVolUpload: {
    parameters: [
      virStorageVolPtr, // virStorageVolPtr vol
      virStreamPtr, // virStreamPtr stream
      "u64", // unsigned long long offset
      "u64", // unsigned long long length
      "u32", // unsigned int flags
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },

  // libvirt-stream

  virStreamAbort: {
    parameters: [
      virStreamPtr, // virStreamPtr stream
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virStreamFinish: {
    parameters: [
      virStreamPtr, // virStreamPtr stream
    ],
    result: "i32", // 0, -1 on error
    nonblocking: true,
  },
  virStreamFree: {
    parameters: [
      virStreamPtr, // virStreamPtr stream
    ],
    result: "i32", // 0, -1 on error
  },
  virStreamNew: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
      "u32", // unsigned int flags
    ],
    result: virStreamPtr, // NULL on error
    nonblocking: true,
  },
  virStreamRecv: {
    parameters: [
      virStreamPtr, // virStreamPtr stream
      "buffer", // char *data
      "usize", // size_t nbytes
    ],
    result: "i32", // how many bytes, 0 at the end, -1 on error, -2 if it would wait
    nonblocking: true,
  },
  virStreamSend: {
    parameters: [
      virStreamPtr, // virStreamPtr stream
      "buffer", // const char *data
      "usize", // size_t nbytes
    ],
    result: "i32", // how many bytes, -1 on error, -2 if it would wait
    nonblocking: true,
  },

  // virterror

  virConnCopyLastError: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
      "buffer", // virErrorPtr to
    ],
    result: "i32", // 0 if there is none, -1 on error
  },
  virConnResetLastError: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
    ],
    result: "void",
  },
  virConnSetErrorFunc: {
    parameters: [
      virConnectPtr, // virConnectPtr conn
      "pointer", // void *userData
      "pointer", // virErrorFunc handler
    ],
    result: "void",
  },
  virResetError: {
    parameters: [
      "buffer", // virErrorPtr err
    ],
    result: "void",
  },
  virSetErrorFunc: {
    parameters: [
      "buffer", // void *userData
      "pointer", // virErrorFunc handler
    ],
    result: "void",
  },
  /** The address of the function, for {@linkcode symbols.virSetErrorFunc}. */
  virCopyLastError: { type: "pointer" },

  // The C library's, which libvirt.so is linked with: what libvirt allocated for us goes back to it.

  free: {
    parameters: [
      "pointer", // void *ptr
    ],
    result: "void",
  },
  /** The address of `free`, which does nothing with NULL: an error handler that is silent. */
  freeAddress: { type: "pointer", name: "free" },
} as const satisfies Deno.ForeignLibraryInterface;

/** The functions of {@linkcode symbols}, ready to call. */
export type Libvirt = Deno.DynamicLibrary<typeof symbols>["symbols"];

/** One of libvirt's handles, by the name of its C structure: a domain is no network. */
export type Pointer<Brand extends string> = Deno.PointerObject<Brand>;

let library: Libvirt | undefined;

/**
 * The library, loaded at the first call (21 ms), so that `--help` works without it. Throws Deno's
 * own error if it is missing or older than 6.0.0.
 */
export function loadLibvirt(): Libvirt {
  library ??= Deno.dlopen("libvirt.so.0", symbols).symbols;
  return library;
}
