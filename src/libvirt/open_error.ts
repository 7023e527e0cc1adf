// SPDX-License-Identifier: GPL-2.0-or-later
import { LibvirtError, VIR_ERR } from "./error.ts";

/** Loads a library of libvirt's, and says which package has it if it is missing. */
export function loadWithAdvice<T>(load: () => T): T {
  try {
    return load();
  } catch (error) {
    const words = error instanceof Error ? error.message : String(error);
    const tooOld = /symbol/i.test(words) && !/cannot open/i.test(words);
    throw new LibvirtError("dlopen", words, {
      code: VIR_ERR.NO_SUPPORT,
      advice: tooOld
        ? "Install libvirt 6.1.0 or newer: this one lacks functions that libvirt-gci calls"
        : "Install libvirt's libraries: the package libvirt0 on Debian and Ubuntu, " +
          "libvirt-libs on Fedora and RHEL, libvirt on Arch",
    });
  }
}

/** The error of a failed open, with what to do about it. */
export function openError(uri: string, error: LibvirtError): LibvirtError {
  const words = `Cannot connect to "${uri}": ${error.words}`;
  return new LibvirtError("virConnectOpen", words, {
    code: error.code,
    advice: openAdvice(uri, error),
  });
}

function openAdvice(uri: string, { code, message }: LibvirtError): string {
  const denied: readonly number[] = [
    VIR_ERR.AUTH_FAILED,
    VIR_ERR.AUTH_CANCELLED,
    VIR_ERR.AUTH_UNAVAILABLE,
    VIR_ERR.ACCESS_DENIED,
  ];
  if (denied.includes(code) || /permission denied/i.test(message)) {
    return "Add this user to the group libvirt: usermod -aG libvirt USER, then log in again";
  }
  if (/no such file|connection refused|failed to connect socket/i.test(message)) {
    return "Start libvirt: systemctl enable --now libvirtd.socket (or virtqemud.socket); " +
      "if it is missing, install libvirt-daemon-system (Debian, Ubuntu) or libvirt-daemon-kvm (Fedora)";
  }
  return `Check the connection: virsh -c ${uri} version; "libvirt.uri" sets the URI`;
}
