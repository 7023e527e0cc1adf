// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { command, virsh } from "../bed.ts";

/** The name of what a fault needs for itself: a pool, or a network. */
export const NAME = "gci-e2e-faults";

/** A pool of this test alone, on a file system of so many bytes, or on none. */
export async function startPool(
  size: string | null,
): Promise<AsyncDisposable & { readonly path: string }> {
  const path = await Deno.makeTempDir({ prefix: "libvirt-gci-faults-" });
  await Deno.chmod(path, 0o755);
  if (size !== null) await must("mount", "-t", "tmpfs", "-o", `size=${size},mode=755`, NAME, path);
  await virsh("pool-define-as", NAME, "dir", "--target", path);
  await virsh("pool-start", NAME);
  return {
    path,
    [Symbol.asyncDispose]: async () => {
      await command(["virsh", "-c", "qemu:///system", "pool-destroy", NAME]); // which it may be
      await virsh("pool-undefine", NAME);
      if (size !== null) await must("umount", path);
      await Deno.remove(path, { recursive: true });
    },
  };
}

/** Runs a program of this host that must not fail. */
export async function must(...args: string[]): Promise<void> {
  const { status, stderr } = await command(args);
  assert.equal(status, 0, stderr);
}
