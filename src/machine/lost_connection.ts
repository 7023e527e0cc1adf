// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import { isLibvirtError } from "../libvirt/error.ts";

/**
 * Throws SystemFailure if something failed because the connection to libvirt was lost: nothing else is
 * at fault then. `doing` ends the sentence "Lost the connection to libvirt while it …".
 */
export function throwIfLost(cause: unknown, doing: string): void {
  if (!isLibvirtError(cause) || !cause.isLost) return;
  throw new SystemFailure({ what: `Lost the connection to libvirt while it ${doing}`, cause });
}
