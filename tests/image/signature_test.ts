// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { explain } from "../../src/errors.ts";
import { isClearsigned, signedText } from "../../src/image/signature.ts";
import { HAS_GPG, TestKey } from "../fakes/test_key.ts";

const ignore = !HAS_GPG;
const TEXT = "the checksums\n";

/** A directory with a text and its signatures by a key, with its keyring. */
class SignedFiles implements AsyncDisposable {
  readonly dir = Deno.makeTempDirSync({ prefix: "libvirt-gci-test-" });
  readonly path = `${this.dir}/SUMS`;
  readonly keyring = `${this.dir}/keyring`;

  async sign(key: TestKey): Promise<void> {
    await Deno.writeTextFile(this.path, TEXT);
    await key.sign(this.path, `${this.path}.gpg`, "--detach-sign");
    await key.sign(this.path, `${this.path}.clear`, "--clearsign");
    await key.sign(this.path, `${this.path}.whole`, "--sign");
    await key.export(this.keyring, { armor: false });
  }

  /** The text that is signed, by the file with the text and that with its signature. */
  async read(file = "SUMS", signature: string | null = "SUMS.gpg", keyring = this.keyring) {
    const signed = {
      name: '"SUMS"',
      bytes: await Deno.readFile(`${this.dir}/${file}`),
      signature: signature === null ? null : await Deno.readFile(`${this.dir}/${signature}`),
    };
    return await signedText(signed, {
      keyring,
      directory: `${this.dir}/cache`,
      env: Deno.env.toObject(),
      signal: new AbortController().signal,
    });
  }

  async refusalOf(...args: Parameters<SignedFiles["read"]>): Promise<string> {
    return await this.read(...args).then((text) => assert.fail(text), explain);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Deno.remove(this.dir, { recursive: true });
  }
}

Deno.test("text that a key of the keyring signed is read, and only that", { ignore }, async () => {
  await using files = new SignedFiles();
  await using key = await TestKey.create();
  await files.sign(key);
  const armored = await key.export(`${files.dir}/keyring.asc`, { armor: true });
  for (const keyring of [files.keyring, armored]) {
    assert.equal(await files.read("SUMS", "SUMS.gpg", keyring), TEXT);
    assert.equal(await files.read("SUMS.clear", null, keyring), TEXT);
  }
  const clear = await Deno.readTextFile(`${files.path}.clear`);
  assert(isClearsigned(clear) && !isClearsigned(TEXT));
  await Deno.writeTextFile(`${files.path}.around`, `before\n${clear}\nafter\n`);
  assert.equal(await files.read("SUMS.around", null), TEXT);
  assert.deepEqual([...Deno.readDirSync(`${files.dir}/cache`)], []);
});

Deno.test("text that was changed, or that another key signed, is refused", { ignore }, async () => {
  await using files = new SignedFiles();
  await using key = await TestKey.create();
  await using stranger = await TestKey.create();
  await files.sign(key);
  await Deno.writeTextFile(`${files.path}.changed`, "other checksums\n");
  assert.match(await files.refusalOf("SUMS.changed"), /"SUMS" .*\n.*was changed after/);
  const clear = await Deno.readTextFile(`${files.path}.clear`);
  await Deno.writeTextFile(`${files.path}.changed`, clear.replace("the", "The"));
  assert.match(await files.refusalOf("SUMS.changed", null), /was changed after/);
  // A signature that has a text of its own says nothing of the file.
  assert.match(await files.refusalOf("SUMS.changed", "SUMS.whole"), /is good by the keyring/);
  assert.match(await files.refusalOf("SUMS", "SUMS"), /it has no signature/);
  const other = await stranger.export(`${files.dir}/other`, { armor: false });
  assert.match(await files.refusalOf("SUMS", "SUMS.gpg", other), /key that signed it is not in/);
  assert.match(await files.refusalOf("SUMS.clear", null, other), /key that signed it is not in/);
  const missing = await files.refusalOf("SUMS", "SUMS.gpg", "/nonexistent");
  assert.match(missing, /Cannot read the keyring "\/nonexistent"/);
  assert.deepEqual([...Deno.readDirSync(`${files.dir}/cache`)], []);
});

Deno.test("text that an expired key signed is refused", { ignore }, async () => {
  await using files = new SignedFiles();
  await using key = await TestKey.create({ expires: "1d", now: "20240101T000000!" });
  await files.sign(key);
  assert.match(await files.refusalOf(), /the key that signed it has expired/);
});

Deno.test("one good signature is enough beside those of unknown keys", { ignore }, async () => {
  await using files = new SignedFiles();
  await using key = await TestKey.create();
  await using stranger = await TestKey.create();
  await files.sign(key);
  await stranger.sign(files.path, `${files.path}.other`, "--detach-sign");
  const both = [".other", ".gpg"].map((ending) => Deno.readFileSync(files.path + ending));
  await Deno.writeFile(`${files.path}.both`, new Uint8Array(await new Blob(both).arrayBuffer()));
  assert.equal(await files.read("SUMS", "SUMS.both"), TEXT);
});

Deno.test("without gpgv, the message says how to install it", async () => {
  await using files = new SignedFiles();
  await Deno.writeTextFile(files.keyring, "");
  const options = {
    keyring: files.keyring,
    directory: files.dir,
    env: { PATH: files.dir },
    signal: new AbortController().signal,
  };
  const signed = { name: '"SUMS"', bytes: new Uint8Array(), signature: null };
  const failure = await signedText(signed, options).then(() => assert.fail(), explain);
  assert.match(failure, /there is no program "gpgv"\nWhat to do: Install it/);
});
