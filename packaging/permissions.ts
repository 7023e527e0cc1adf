// SPDX-License-Identifier: GPL-2.0-or-later

/** What Deno lets the compiled program do, see SECURITY.md. */
export const PERMISSIONS: readonly string[] = [
  ...["ffi", "env", "net", "read", "write", "run"].map((name) => `--allow-${name}`),
  "--allow-sys=homedir,networkInterfaces,uid",
];
