// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { makeKeyPair } from "../../src/guest/key.ts";
import { isKeyFileOf, keyFile, removeKeyFile, writeKeyFile } from "../../src/guest/key_file.ts";
import { tmpfilesCredential } from "../../src/machine/login.ts";
import { withDirectory } from "../fakes/with_directory.ts";

async function keygen(...args: string[]): Promise<string> {
  const { stdout, code } = await new Deno.Command("ssh-keygen", { args }).output();
  assert.equal(code, 0);
  return new TextDecoder().decode(stdout).trim();
}

Deno.test("OpenSSH reads our keys and knows them by the same fingerprint", () =>
  withDirectory(async (directory) => {
    for (let i = 0; i < 20; i++) {
      const { privateKey, publicKey, fingerprint } = await makeKeyPair();
      const file = await writeKeyFile(directory, `m${i}`, privateKey);
      const [type, blob] = publicKey.split(" ");
      assert((await keygen("-y", "-f", file)).startsWith(`${type} ${blob}`));
      assert.equal(
        (await keygen("-l", "-f", file)).split(" ")[1],
        `SHA256:${fingerprint}`.replace("=", ""),
      );
    }
  }));

Deno.test("no two keys are the same", async () => {
  const keys = await Promise.all(Array.from({ length: 500 }, makeKeyPair));
  assert.equal(new Set(keys.map(({ privateKey }) => privateKey)).size, 500);
  assert.equal(new Set(keys.map(({ fingerprint }) => fingerprint)).size, 500);
});

Deno.test("a key's file is for this user alone, and so is a directory made for it", () =>
  withDirectory(async (directory) => {
    const file = await writeKeyFile(`${directory}/a/b`, "m", "secret");
    assert.equal((await Deno.stat(file)).mode! & 0o777, 0o600);
    assert.equal((await Deno.stat(`${directory}/a/b`)).mode! & 0o777, 0o700);
    assert.equal(await Deno.readTextFile(file), "secret");
    assert.equal(await removeKeyFile(file), true);
    assert.equal(await removeKeyFile(file), false);
    assert.equal(await removeKeyFile("/nonexistent/key"), false);
  }));

Deno.test("a key is written over no file and through no link", () =>
  withDirectory(async (directory) => {
    await Deno.writeTextFile(`${directory}/theirs`, "");
    await Deno.symlink(`${directory}/theirs`, keyFile(directory, "m"));
    await assert.rejects(writeKeyFile(directory, "m", "secret"), /Cannot write the key/);
    assert.equal(await Deno.readTextFile(`${directory}/theirs`), "");
  }));

Deno.test("a key is not kept where others can exchange it", () =>
  withDirectory(async (directory) => {
    await Deno.chmod(directory, 0o777);
    await assert.rejects(writeKeyFile(directory, "m", "secret"), /Cannot write the key/);
    await Deno.chmod(directory, 0o700);
    await Deno.chown(directory, 65534, 65534);
    await assert.rejects(writeKeyFile(directory, "m", "secret"), /Cannot write the key/);
    assert.deepEqual([...Deno.readDirSync(directory)], []);
  }));

Deno.test("only the file of a machine's own key is taken for one", () => {
  assert(isKeyFileOf("m", "/tmp/attempt/m.libvirt-gci-key"));
  assert(!isKeyFileOf("m", "/root/.ssh/id_ed25519"));
  assert(!isKeyFileOf("m", "/tmp/attempt/mm.libvirt-gci-key"));
  assert(!isKeyFileOf("m", ""));
});

Deno.test("a credential is tmpfiles.d lines, in base64 what could be more than a word", async () => {
  const hostKey = await makeKeyPair();
  const { publicKey } = await makeKeyPair();
  const text = new TextDecoder().decode(
    tmpfilesCredential({ user: "builder", publicKey, hostKey }),
  );
  const lines = text.trimEnd().split("\n").map((line) => line.split(" "));
  assert.deepEqual(lines.map((words) => words.slice(0, 5).join(" ")), [
    "f+~ /etc/ssh/ssh_host_ed25519_key 0600 root root",
    "f+~ /etc/ssh/ssh_host_ed25519_key.pub 0644 root root",
    "d /home/builder/.ssh 0700 builder builder",
    "f+~ /home/builder/.ssh/authorized_keys 0600 builder builder",
  ]);
  assert.equal(atob(lines[0]?.[6] ?? ""), hostKey.privateKey);
  assert.equal(atob(lines[3]?.[6] ?? ""), `${publicKey}\n`);
});
