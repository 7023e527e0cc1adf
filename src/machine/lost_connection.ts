// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import { isLibvirtError } from "../libvirt/error.ts";

/**
 * Throws SystemFailure if something failed because the connection to libvirt was lost: nothing else is
 * at fault then. `done` ends the sentence "The connection to libvirt was lost before it had …".
 */
export function throwIfLost(cause: unknown, done: string): void {
  if (!isLibvirtError(cause) || !cause.isLost) return;
  throw new SystemFailure({
    what: `The connection to libvirt was lost before it had ${done}`,
    cause,
  });
}
