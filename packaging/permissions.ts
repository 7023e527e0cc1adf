// SPDX-License-Identifier: GPL-2.0-or-later

/** The permissions of the compiled program, see SECURITY.md. */
export const PERMISSIONS: readonly string[] = [
  ...["ffi", "env", "net", "read", "write", "run"].map((name) => `--allow-${name}`),
  "--allow-sys=homedir,networkInterfaces,uid",
];
