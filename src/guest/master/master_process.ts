// SPDX-License-Identifier: GPL-2.0-or-later
import { keepConnection, type MasterTask } from "./master.ts";

/**
 * Reads a connection master's task from the standard input, and does it. The task is empty if prepare
 * ends before it writes one.
 */
export async function runMaster(
  input: ReadableStream<Uint8Array>,
  signal: AbortSignal,
): Promise<void> {
  const text = await new Response(input).text();
  if (text !== "") await keepConnection(JSON.parse(text) as MasterTask, signal);
}
