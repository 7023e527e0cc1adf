// SPDX-License-Identifier: GPL-2.0-or-later
import { directoryOf } from "../files.ts";
import { isKeyFileOf } from "../guest/key_file.ts";
import { endMaster } from "../guest/master/client.ts";
import { controlSocket } from "../guest/master/control_socket.ts";
import type { MachineMetadata } from "./metadata.ts";

/** Ends the master of a machine, which listens in its attempt's directory. It never fails. */
export async function endMasterOf(
  machine: string,
  { attemptDir, key }: Pick<MachineMetadata, "attemptDir" | "key">,
): Promise<void> {
  const ofKey = isKeyFileOf(machine, key) ? directoryOf(key) : "";
  const directories = [...new Set([attemptDir, ofKey])].filter((directory) => directory !== "");
  await Promise.all(directories.map((directory) => endMaster(controlSocket(directory), machine)));
}
