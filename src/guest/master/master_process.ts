// SPDX-License-Identifier: GPL-2.0-or-later
import { keepConnection, type MasterTask } from "./master.ts";

/**
 * Reads from the standard input what there is to do, and does it. That is nothing if whoever started it
 * ends before it says so.
 */
export async function runMaster(
  input: ReadableStream<Uint8Array>,
  signal: AbortSignal,
): Promise<void> {
  const text = await new Response(input).text();
  if (text !== "") await keepConnection(JSON.parse(text) as MasterTask, signal);
}
