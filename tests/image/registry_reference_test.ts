// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { explain, UsageError } from "../../src/errors.ts";
import { isReference, parseReference, referenceText } from "../../src/image/registry/reference.ts";

const HEX = "0123456789abcdef".repeat(4);

for (
  const [source, registry, repository, tag, digest] of [
    ["oci://registry.example.org/fedora", "registry.example.org", "fedora", "latest", null],
    ["oci://r.example.org:5050/ci/fedora:40", "r.example.org:5050", "ci/fedora", "40", null],
    [`oci://host/a/b__c/d--e.f_g@sha256:${HEX}`, "host", "a/b__c/d--e.f_g", "latest", HEX],
    [`oci://host:1/a:_T.a-g@sha256:${HEX}`, "host:1", "a", "_T.a-g", HEX],
    ["oci://Registry.Example.ORG/a", "registry.example.org", "a", "latest", null],
    ["oci://[2001:db8::1]:5000/a:b", "[2001:db8::1]:5000", "a", "b", null],
    [`oci://host/a:${"t".repeat(128)}`, "host", "a", "t".repeat(128), null],
  ] as const
) {
  Deno.test(`${source.slice(0, 60)} is read, and written the same`, () => {
    const reference = parseReference(source);
    const expected = { registry, repository, tag, digest: digest && `sha256:${digest}` };
    assert.deepEqual(reference, { ...expected, isPlain: false });
    assert.deepEqual(parseReference(referenceText(reference)), reference);
  });
}

for (const host of ["localhost", "localhost:5000", "127.0.0.1:5000", "127.1.2.3", "[::1]:5000"]) {
  Deno.test(`a registry on ${host} may be without TLS if that is said`, () => {
    assert.equal(parseReference(`oci+http://${host}/a`).isPlain, true);
    assert.equal(parseReference(`oci://${host}/a`).isPlain, false);
    assert.match(referenceText(parseReference(`oci+http://${host}/a`)), /^oci\+http:/);
  });
}

for (
  const [source, why] of [
    ["fedora:40", /does not begin with oci:/],
    ["docker://host/a", /does not begin with oci:/],
    ["OCI://host/a", /does not begin with oci:/],
    ["oci://host", /no path/],
    ["oci://host/", /path has other/],
    ["oci:///a", /no valid host/],
    ["oci://host_name/a", /no valid host/],
    ["oci://host:/a", /no valid host/],
    ["oci://host:99999/a", /no valid host/],
    ["oci://-host/a", /no valid host/],
    ["oci://ho%41st/a", /no valid host/],
    ["oci://[::g]/a", /no valid host/],
    ["oci://host/Fedora", /path has other/],
    ["oci://host/a//b", /path has other/],
    ["oci://host/a/", /path has other/],
    ["oci://host/../a", /path has other/],
    ["oci://host/a___b", /path has other/],
    ["oci://host/a..b", /path has other/],
    ["oci://host/a?x=1", /path has other/],
    ["oci://host/a#x", /path has other/],
    ["oci://host/a b", /path has other/],
    ["oci://host/a\n", /path has other/],
    [`oci://host/${"a".repeat(251)}`, /more than 255/],
    ["oci://host/a:", /tag is not valid/],
    ["oci://host/a:.b", /tag is not valid/],
    ["oci://host/a:b:c", /tag is not valid/],
    ["oci://host/a:b/c", /tag is not valid/],
    [`oci://host/a:${"t".repeat(129)}`, /tag is not valid/],
    ["oci://host/a@sha256:12", /digest is not/],
    [`oci://host/a@sha256:${HEX.toUpperCase()}`, /digest is not/],
    [`oci://host/a@sha512:${HEX}${HEX}`, /digest is not/],
    ["oci+http://registry.example.org/a", /without TLS/],
    ["oci+http://127.evil.example.org/a", /without TLS/],
    ["oci+http://localhost.example.org/a", /without TLS/],
    ["oci+http://10.0.0.1/a", /without TLS/],
  ] as const
) {
  Deno.test(`${JSON.stringify(source).slice(0, 60)} is refused`, () => {
    assert.throws(() => parseReference(source), (error) => {
      assert(error instanceof UsageError);
      assert.match(error.message, why);
      assert.match(error.advice ?? "", /oci:\/\/HOST/);
      return true;
    });
  });
}

for (
  const source of [
    "oci://user:hunter2@host/a",
    `oci://user:hunter2@host/a@sha256:${HEX}`,
    "oci://user:hunter2/x@host/a",
    "oci://user:hun@ter2@host/A",
    "https://user:hunter2@host/a",
    "user:hunter2@host/a",
  ]
) {
  Deno.test(`a login in ${source.slice(0, 40)} is refused, and not shown`, () => {
    assert.throws(() => parseReference(source), (error) => {
      assert.doesNotMatch(explain(error), /user|hun|ter2/);
      assert.match(explain(error), /host\/[aA]/);
      return true;
    });
  });
}

Deno.test("only oci:// and oci+http:// are sources in a registry", () => {
  const sources = ["oci://a/b", "oci+http://localhost/b", "https://a/b", "/oci://a", "a.qcow2"];
  assert.deepEqual(sources.map(isReference), [true, true, false, false, false]);
});
