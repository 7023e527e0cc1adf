// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";

async function isThere(program: string): Promise<boolean> {
  try {
    const args = ["--version"];
    return (await new Deno.Command(program, { args, stdout: "null" }).output()).success;
  } catch {
    return false;
  }
}

/** Whether this host has what {@linkcode TestKey} needs. */
export const HAS_GPG = await isThere("gpg") && await isThere("gpgv");

/** A key that signs files, in a directory of its own. */
export class TestKey implements AsyncDisposable {
  readonly #home: string;
  readonly #time: readonly string[];

  private constructor(home: string, time: readonly string[]) {
    this.#home = home;
    this.#time = time;
  }

  /** Creates one that expires after some time, if it does. `now` is the time that gpg is told, if any. */
  static async create(
    { expires = "never", now }: { expires?: string; now?: string } = {},
  ): Promise<TestKey> {
    const home = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
    const key = new TestKey(home, now === undefined ? [] : ["--faked-system-time", now]);
    await key.#gpg("--quick-gen-key", "tests@libvirt-gci.example", "ed25519", "sign", expires);
    return key;
  }

  async #gpg(...args: readonly string[]): Promise<void> {
    const all = ["--homedir", this.#home, "--batch", "--yes", "--quiet", "--passphrase", ""];
    const { success, stderr } = await new Deno.Command("gpg", {
      args: [...all, ...this.#time, ...args],
    }).output();
    assert(success, new TextDecoder().decode(stderr));
  }

  /** Writes a file with the public key. */
  async export(path: string, { armor }: { readonly armor: boolean }): Promise<string> {
    await this.#gpg("--output", path, ...(armor ? ["--armor"] : []), "--export");
    return path;
  }

  /** Writes a signature of the file, or the file with its signature in it. */
  async sign(path: string, to: string, how: "--detach-sign" | "--clearsign" | "--sign") {
    await this.#gpg("--output", to, how, path);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const args = ["--homedir", this.#home, "--kill", "all"];
    await new Deno.Command("gpgconf", { args }).output();
    await Deno.remove(this.#home, { recursive: true });
  }
}
