// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { explain } from "../../src/errors.ts";
import { findCredentials } from "../../src/image/registry/credentials.ts";
import { parseReference } from "../../src/image/registry/reference.ts";
import { RegistryClient } from "../../src/image/registry/registry_client.ts";
import type { LoginOptions } from "../../src/image/registry/registry_login.ts";
import { NONE } from "../fakes/hostile_registry.ts";
import { PASSWORD, TestRegistry, WITHOUT_REGISTRY } from "../fakes/test_registry.ts";

const ignore = WITHOUT_REGISTRY;
const signal = new AbortController().signal;

/** A client for an image of the registry, with its user's login or a wrong one, or without. */
async function openClient(
  registry: TestRegistry,
  path: string,
  options: { readonly password?: string | null; readonly access?: LoginOptions["access"] } = {},
): Promise<RegistryClient> {
  const { password = PASSWORD, access = "pull" } = options;
  const reference = parseReference(`oci://${registry.host}/${path}`);
  const credentials = password === null
    ? NONE
    : await findCredentials(reference, await registry.login(password));
  return new RegistryClient(reference, { env: registry.env, signal, credentials, access });
}

async function failureOf(task: Promise<unknown>): Promise<string> {
  const words = await task.then(() => assert.fail("it did not fail"), explain);
  assert(!words.includes(PASSWORD), words);
  return words;
}

for (const auth of ["none", "htpasswd", "token"] as const) {
  Deno.test({
    name: `a registry with the login "${auth}" gives a manifest, by its tag and its digest`,
    ignore,
    async fn() {
      await using registry = await TestRegistry.start(auth);
      const { digest, mediaType } = await registry.putImage("private/image", "40", []);
      for (const suffix of [":40", `@${digest}`, `:other@${digest}`]) {
        const client = await openClient(registry, `private/image${suffix}`);
        assert.equal(await client.digest(), digest);
        const manifest = await client.manifest();
        assert.equal(manifest.digest, digest);
        assert.equal(manifest.mediaType, mediaType);
        assert.equal(JSON.parse(new TextDecoder().decode(manifest.bytes)).schemaVersion, 2);
      }
    },
  });
}

Deno.test({
  name: "a token is asked for once, for one repository and for what is done there",
  ignore,
  async fn() {
    await using registry = await TestRegistry.start("token");
    await registry.putImage("private/image", "40", []);
    await registry.putImage("image", "40", []);
    const client = await openClient(registry, "private/image:40");
    await client.digest();
    await client.manifest();
    const scopes = () => registry.tokenRequests.map((url) => url.searchParams.get("scope"));
    assert.deepEqual(scopes(), ["repository:private/image:pull"]);
    assert.equal(registry.tokenRequests[0]?.searchParams.get("service"), "the registry");
    await (await openClient(registry, "image:40", { password: null })).manifest();
    assert.equal(scopes()[1], "repository:image:pull");
  },
});

for (
  const [auth, password, why] of [
    [
      "htpasswd",
      null,
      /^Cannot pull the image "private\/image" .* without a login\n.*podman login 127/,
    ],
    [
      "token",
      null,
      /^Cannot pull the image "private\/image" .* without a login\n.*podman login 127/,
    ],
    ["htpasswd", "wrong", /^The login for .* may not pull .*\n.*401.*\n.*podman login 127/],
    ["token", "wrong", /^The login for .* may not pull .*\n.*401.*\n.*podman login 127/],
  ] as const
) {
  Deno.test({
    name:
      `a registry with the login "${auth}" refuses the password ${password}, and what to do is said`,
    ignore,
    async fn() {
      await using registry = await TestRegistry.start(auth);
      await registry.putImage("private/image", "40", []);
      const client = await openClient(registry, "private/image:40", { password });
      assert.match(await failureOf(client.manifest()), why);
      assert.match(await failureOf(client.digest()), why);
    },
  });
}

Deno.test({
  name: "an image that is not there is named, with how to list those that are",
  ignore,
  async fn() {
    await using registry = await TestRegistry.start();
    await registry.putImage("image", "40", []);
    for (const path of ["image:41", "other:40", `image@sha256:${"0".repeat(64)}`]) {
      const client = await openClient(registry, path);
      const words = await failureOf(client.manifest());
      assert.match(words, new RegExp(`^There is no image "${path}" in the registry "127`));
      assert.match(words, /skopeo list-tags docker:\/\/127\.0\.0\.1:\d+\/(image|other)$/);
    }
    assert.match(await failureOf((await openClient(registry, "image:41")).digest()), /no image/);
  },
});

Deno.test({
  name: "a registry whose certificate nobody trusts is refused",
  ignore,
  async fn() {
    await using registry = await TestRegistry.start();
    const reference = parseReference(`oci://${registry.host}/image`);
    const options = { env: {}, signal, credentials: NONE, access: "pull" } as const;
    assert.match(
      await failureOf(new RegistryClient(reference, options).manifest()),
      /certificate.*UnknownIssuer/,
    );
  },
});
