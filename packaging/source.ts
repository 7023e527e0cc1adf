// SPDX-License-Identifier: GPL-2.0-or-later
import { ROOT } from "./deno.ts";

/** What the program is built from. */
export interface Source {
  /** Its commit in words, such as `commit 0123456789ab`. */
  readonly commit: string;
  /** When it was made: what is built carries this time, so that two builds are identical. */
  readonly time: Date;
}

/** The source in this clone. `SOURCE_DATE_EPOCH` replaces its time. A source archive has no commit. */
export async function readSource(): Promise<Source> {
  const head = await git("log", "-1", "--format=%H %ct");
  const [hash = "", seconds] = head?.split(" ") ?? [];
  const changes = await git("status", "--porcelain", "--untracked-files=no");
  const commit = hash === ""
    ? "unknown commit"
    : `commit ${hash.slice(0, 12)}${changes === "" ? "" : " with changes"}`;
  const epoch = Number(Deno.env.get("SOURCE_DATE_EPOCH") ?? seconds);
  return { commit, time: new Date(Number.isNaN(epoch) ? Date.now() : epoch * 1000) };
}

/** What Git prints; null without Git or a clone. A clone may belong to another user. */
async function git(...args: readonly string[]): Promise<string | null> {
  const command = new Deno.Command("git", {
    args: ["-C", ROOT, "-c", "safe.directory=*", ...args],
    stderr: "null",
  });
  const { success, stdout } = await command.output().catch(() => ({
    success: false,
    stdout: null,
  }));
  return success && stdout ? new TextDecoder().decode(stdout).trim() : null;
}
