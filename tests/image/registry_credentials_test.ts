// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { explain } from "../../src/errors.ts";
import { findCredentials } from "../../src/image/registry/credentials.ts";
import { parseReference } from "../../src/image/registry/reference.ts";

const SECRET = "hunter2";

/** What a login of this user is in such a file. */
function login(user: string): string {
  return btoa(`${user}:${SECRET}`);
}

/** A directory with these files, and how to look for credentials there. */
async function openHome(files: Readonly<Record<string, unknown>>) {
  const home = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  for (const [path, content] of Object.entries(files)) {
    await Deno.mkdir(`${home}/${path}`.replace(/\/[^/]*$/, ""), { recursive: true });
    const text = typeof content === "string" ? content : JSON.stringify(content);
    await Deno.writeTextFile(`${home}/${path}`, text, { mode: 0o600 });
  }
  return {
    home,
    /** Whose login it is, or what else there is to say. */
    async find(source: string, env: Record<string, string> = {}): Promise<string | null> {
      const places = { env: { HOME: home, XDG_RUNTIME_DIR: `${home}/run`, ...env }, uid: 0 };
      const { basic, unused } = await findCredentials(parseReference(source), places);
      if (basic === null) return unused;
      const login = atob(basic);
      assert(login.endsWith(`:${SECRET}`));
      return login.slice(0, -SECRET.length - 1);
    },
    [Symbol.asyncDispose]: () => Deno.remove(home, { recursive: true }),
  };
}

function auths(...keys: readonly string[]) {
  return { auths: Object.fromEntries(keys.map((key) => [key, { auth: login(key) }])) };
}

Deno.test("the entry with the longest path counts, as containers-auth.json(5) has it", async () => {
  await using home = await openHome({
    "run/containers/auth.json": auths("r.org/foo/bar/image", "r.org/foo", "r.org", "r.org:5000"),
  });
  for (
    const [source, user] of [
      ["oci://r.org/foo/bar/image:1", "r.org/foo/bar/image"],
      ["oci://r.org/foo/bar/other", "r.org/foo"],
      ["oci://r.org/foobar", "r.org"],
      ["oci://R.org/x/y", "r.org"],
      ["oci://r.org:5000/foo", "r.org:5000"],
      ["oci://r.org:5001/foo", null],
      ["oci://sub.r.org/foo", null],
      ["oci://example.org/r.org", null],
    ] as const
  ) assert.equal(await home.find(source), user, source);
});

Deno.test("the first file with an entry counts, and REGISTRY_AUTH_FILE alone if it is set", async () => {
  await using home = await openHome({
    "run/containers/auth.json": { auths: { "a.org": { auth: login("runtime") } } },
    ".config/containers/auth.json": {
      auths: { "a.org": { auth: login("no") }, "b.org": { auth: login("config") } },
    },
    ".docker/config.json": {
      auths: { "b.org": { auth: login("no") }, "c.org": { auth: login("docker") } },
    },
    "mine.json": { auths: { "b.org": { auth: login("mine") } } },
    "xdg/containers/auth.json": { auths: { "b.org": { auth: login("xdg") } } },
    "dot/config.json": { auths: { "c.org": { auth: login("dot") } } },
  });
  assert.equal(await home.find("oci://a.org/x"), "runtime");
  assert.equal(await home.find("oci://b.org/x"), "config");
  assert.equal(await home.find("oci://c.org/x"), "docker");
  assert.equal(await home.find("oci://d.org/x"), null);
  assert.equal(await home.find("oci://b.org/x", { XDG_CONFIG_HOME: `${home.home}/xdg` }), "xdg");
  assert.equal(await home.find("oci://c.org/x", { DOCKER_CONFIG: `${home.home}/dot` }), "dot");
  const env = { REGISTRY_AUTH_FILE: `${home.home}/mine.json` };
  assert.equal(await home.find("oci://b.org/x", env), "mine");
  assert.equal(await home.find("oci://a.org/x", env), null);
});

Deno.test("without any variable, no file is looked for in the working directory", async () => {
  const places = { env: {}, uid: null };
  const found = await findCredentials(parseReference("oci://a.org/x"), places);
  assert.deepEqual(found, { basic: null, unused: null });
});

Deno.test("entries that docker writes as URLs are found", async () => {
  await using home = await openHome({
    ".docker/config.json": auths(
      "https://index.docker.io/v1/",
      "https://R.org",
      "http://p.org/v2/",
    ),
  });
  assert.equal(await home.find("oci://docker.io/library/x"), "https://index.docker.io/v1/");
  assert.equal(await home.find("oci://r.org/x"), "https://R.org");
  assert.equal(await home.find("oci://p.org/x"), "http://p.org/v2/");
});

Deno.test("a user and a password in clear are taken, and colons in a password kept", async () => {
  const places = (home: string) => ({ env: { HOME: home }, uid: null });
  await using home = await openHome({
    ".docker/config.json": {
      auths: {
        "a.org": { username: "me", password: "a:b:é" },
        "b.org": { auth: btoa("me:a:b\0") },
        "c.org": { auth: "no base64!" },
        "d.org": { auth: btoa("no colon") },
        "e.org": 5,
      },
    },
  });
  const found = async (host: string) => {
    const { basic } = await findCredentials(parseReference(`oci://${host}/x`), places(home.home));
    return basic && new TextDecoder().decode(Uint8Array.fromBase64(basic));
  };
  assert.equal(await found("a.org"), "me:a:b:é");
  assert.equal(await found("b.org"), "me:a:b");
  assert.equal(await found("c.org"), null);
  assert.equal(await found("d.org"), null);
  assert.equal(await found("e.org"), null);
});

Deno.test("no credential helper is run, and it is said which was left", async () => {
  await using home = await openHome({
    "bin/docker-credential-evil": `#!/bin/sh\ntouch "$HOME/was-run"\n`,
    "run/containers/auth.json": { auths: {}, credHelpers: { "a.org": "evil" } },
    ".docker/config.json": {
      auths: {
        "a.org": { auth: login("docker") },
        "b.org": {},
        "t.org": { identitytoken: SECRET },
      },
      credsStore: "evil",
    },
  });
  await Deno.chmod(`${home.home}/bin/docker-credential-evil`, 0o700);
  const env = { PATH: `${home.home}/bin` };
  assert.equal(await home.find("oci://a.org/x", env), "docker"); // a later file has a login
  assert.match(
    await home.find("oci://b.org/x", env) ?? "",
    /config\.json" names .*"evil".*not run/,
  );
  assert.match(await home.find("oci://t.org/x", env) ?? "", /token for "t\.org".*not supported/);
  assert.equal(await home.find("oci://c.org/x", env), null);
  await assert.rejects(Deno.stat(`${home.home}/was-run`), Deno.errors.NotFound);
});

for (
  const [content, why] of [
    [`{"auths":{"a.org":{"auth":"${SECRET}"`, /are no JSON object/],
    [`"${SECRET}"`, /are no JSON object/],
    [`["${SECRET}"]`, /are no JSON object/],
    [`{"auths":"${SECRET.repeat(200_000)}"}`, /no file of at most 1 MiB/],
  ] as const
) {
  Deno.test(`credentials that are ${content.slice(0, 30)}… are an error that shows nothing of them`, async () => {
    await using home = await openHome({ ".docker/config.json": content });
    await assert.rejects(home.find("oci://a.org/x"), (error) => {
      assert.match(explain(error), why);
      assert.match(explain(error), /config\.json/);
      assert.match(explain(error), /podman login/);
      assert.doesNotMatch(explain(error), new RegExp(SECRET));
      return true;
    });
  });
}

Deno.test("a file that REGISTRY_AUTH_FILE names must be there, and be readable", async () => {
  await using home = await openHome({ "dir/x": "" });
  for (const [name, why] of [["none", /no file/], ["dir", /no file of at most/]] as const) {
    const env = { REGISTRY_AUTH_FILE: `${home.home}/${name}` };
    await assert.rejects(home.find("oci://a.org/x", env), (error) => why.test(explain(error)));
  }
});
