// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { parseChallenges } from "../../src/image/registry/challenge.ts";

for (
  const [header, expected] of [
    [
      'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"',
      [["bearer", {
        realm: "https://auth.docker.io/token",
        service: "registry.docker.io",
        scope: "repository:a/b:pull,push",
      }]],
    ],
    ['Basic realm="a b"', [["basic", { realm: "a b" }]]],
    ["BASIC Realm=x", [["basic", { realm: "x" }]]],
    [
      'Negotiate, Basic realm="x, Bearer realm=y", BEARER realm = "z" , service=s',
      [["negotiate", {}], ["basic", { realm: "x, Bearer realm=y" }], ["bearer", {
        realm: "z",
        service: "s",
      }]],
    ],
    ["Negotiate YII/+a==, Basic realm=x", [["negotiate", {}], ["basic", { realm: "x" }]]],
    [String.raw`Basic realm="a\"b\\c"`, [["basic", { realm: String.raw`a"b\c` }]]],
    ["Basic", [["basic", {}]]],
    ["", []],
    [" , ,", []],
    ["realm=x", []],
    ['Basic realm="open', [["basic", {}]]],
    ["Basic realm=x; Bearer realm=y", [["basic", { realm: "x" }]]],
    ["\u00e9", []],
  ] as const
) {
  Deno.test(`WWW-Authenticate: ${header.slice(0, 60)}`, () => {
    const read = parseChallenges(header).map(({ scheme, parameters }) => [
      scheme,
      Object.fromEntries(parameters),
    ]);
    assert.deepEqual(read, expected);
  });
}

Deno.test("a header of 64 KiB is read in no time, whatever it is", () => {
  const start = performance.now();
  for (const part of ["a", "a ", "a=", 'a="', "a,", "\\", "a =", "a -/=", '"\\']) {
    parseChallenges(`Basic ${part.repeat(64 * 1024 / part.length)}`);
  }
  assert(performance.now() - start < 5000);
});
