// SPDX-License-Identifier: GPL-2.0-or-later

/** Runs a test with a directory that is removed after it. */
export async function withDirectory(test: (directory: string) => Promise<void>): Promise<void> {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  try {
    await test(directory);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}
