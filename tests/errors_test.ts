// SPDX-License-Identifier: GPL-2.0-or-later
import fc from "fast-check";
import assert from "node:assert/strict";
import { exitStatus, reportScriptStatus } from "../src/cli/exit_status.ts";
import {
  BuildFailure,
  explain,
  faultOf,
  ScriptFailure,
  SystemFailure,
  UsageError,
} from "../src/errors.ts";
import { LibvirtError } from "../src/libvirt/error.ts";
import { withDirectory } from "./fakes/with_directory.ts";

const RUNNER = { BUILD_FAILURE_EXIT_CODE: "41", SYSTEM_FAILURE_EXIT_CODE: "42" };

Deno.test("the statuses are GitLab Runner's: one for the job's fault, one for the host's", () => {
  assert.equal(exitStatus(new BuildFailure({ what: "x" }), RUNNER), 41);
  assert.equal(exitStatus(new ScriptFailure(7), RUNNER), 41);
  assert.equal(exitStatus(new SystemFailure({ what: "x" }), RUNNER), 42);
});

Deno.test("by hand, the job's fault is the status 1 and the host's is 2", () => {
  assert.equal(exitStatus(new BuildFailure({ what: "x" }), {}), 1);
  assert.equal(exitStatus(new ScriptFailure(7), {}), 1);
  assert.equal(exitStatus(new SystemFailure({ what: "x" }), {}), 2);
});

Deno.test("an error that nobody expected is the host's fault, whatever it is", () => {
  const cause = new BuildFailure({ what: "x" });
  for (
    const error of [new TypeError("x"), new Error("x", { cause }), "x", 0, null, undefined, {}]
  ) {
    assert.equal(exitStatus(error, RUNNER), 42);
  }
});

Deno.test("faultOf() takes the word of the first error that says one, and no other's", () => {
  const libvirt = new LibvirtError("virDomainCreateXML", "no", { code: 1 });
  const cause = new SystemFailure({ what: "x", cause: libvirt, fault: "start" });
  assert.equal(faultOf(cause), "start");
  assert.equal(faultOf(new SystemFailure({ what: "x", cause })), "start");
  assert.equal(faultOf(new SystemFailure({ what: "x", cause: libvirt })), "libvirt");
  assert.equal(faultOf(new BuildFailure({ what: "x" })), "request");
  assert.equal(faultOf(new BuildFailure({ what: "x", fault: "template" })), "template");
  assert.equal(faultOf(new ScriptFailure(7)), "script");
  const strange = Object.assign(new Error("x"), { fault: "the job's own words" });
  for (const error of [strange, new Error("x"), new UsageError({ what: "x" }), "x", null]) {
    assert.equal(faultOf(error), "other");
  }
});

for (
  const [error, env, status] of [
    [new ScriptFailure(7), {}, 7],
    [new ScriptFailure(256), {}, 255], // which the kernel would take for 0
    [new BuildFailure({ what: "x" }), {}, 255],
    [new SystemFailure({ what: "x" }), {}, 255],
    [null, {}, 255],
    [new UsageError({ what: "x" }), {}, 2],
    [new ScriptFailure(7), RUNNER, 41],
    [new SystemFailure({ what: "x" }), RUNNER, 42],
  ] as const
) {
  const where = env === RUNNER ? "under GitLab Runner" : "by hand";
  Deno.test(`run ends with the status ${status} ${where}, for ${error}`, () => {
    assert.equal(exitStatus(error, env, { passesStatus: true }), status);
  });
}

Deno.test("a wrong call is the status 2, as of any program", () => {
  assert.equal(exitStatus(new UsageError({ what: "x" }), RUNNER), 2);
});

for (const value of ["", " ", "0", "-1", "256", "1.5", "one", "NaN", "Infinity", "0x0", "1\n2"]) {
  Deno.test(`a variable that holds ${JSON.stringify(value)} leaves a failure its own status`, () => {
    const env = { BUILD_FAILURE_EXIT_CODE: value, SYSTEM_FAILURE_EXIT_CODE: value };
    assert.equal(exitStatus(new BuildFailure({ what: "x" }), env), 1);
    assert.equal(exitStatus(new SystemFailure({ what: "x" }), env), 2);
  });
}

Deno.test("no value of the variables makes a failure look like success", () => {
  const errors = [new BuildFailure({ what: "x" }), new SystemFailure({ what: "x" }), null];
  const value = fc.oneof(fc.string(), fc.integer().map(String), fc.double().map(String));
  fc.assert(
    fc.property(value, fc.constantFrom(...errors), (value, error) => {
      const env = { BUILD_FAILURE_EXIT_CODE: value, SYSTEM_FAILURE_EXIT_CODE: value };
      const status = exitStatus(error, env);
      assert(Number.isInteger(status) && status > 0 && status < 256, String(status));
    }),
    { numRuns: 2000 },
  );
});

/** Runs with the path of a BUILD_EXIT_CODE_FILE that does not exist yet. */
function withStatusFile(use: (file: string) => Promise<void>): Promise<void> {
  return withDirectory((directory) => use(`${directory}/build_exit_code`));
}

for (const status of [1, 7, 137, 255]) {
  Deno.test(`the file of the script's status holds ${status} and nothing else`, async () => {
    await withStatusFile(async (file) => {
      await Deno.writeTextFile(file, "the status of an earlier stage\n");
      await reportScriptStatus(new ScriptFailure(status), { BUILD_EXIT_CODE_FILE: file });
      assert.deepEqual(await Deno.readFile(file), new TextEncoder().encode(`${status}\n`));
    });
  });
}

for (
  const [what, error] of [
    ["success", null],
    ["the job's fault before any script", new BuildFailure({ what: "x" })],
    ["the host's fault", new SystemFailure({ what: "x" })],
    ["an error that a script's failure caused", new Error("x", { cause: new ScriptFailure(1) })],
  ] as const
) {
  Deno.test(`${what} removes the status that an earlier stage left`, async () => {
    await withStatusFile(async (file) => {
      await Deno.writeTextFile(file, "3\n");
      await reportScriptStatus(error, { BUILD_EXIT_CODE_FILE: file });
      await assert.rejects(Deno.stat(file), Deno.errors.NotFound);
    });
  });
}

Deno.test("that there is no status to remove is no error", async () => {
  await withStatusFile((file) => reportScriptStatus(null, { BUILD_EXIT_CODE_FILE: file }));
});

Deno.test("without BUILD_EXIT_CODE_FILE, a script's status goes nowhere", async () => {
  await reportScriptStatus(new ScriptFailure(7), {});
});

Deno.test("a status that cannot be written, or removed, is an error", async () => {
  await withStatusFile(async (file) => {
    const env = { BUILD_EXIT_CODE_FILE: `${file}/below` };
    await assert.rejects(reportScriptStatus(new ScriptFailure(7), env), SystemFailure);
    await Deno.mkdir(env.BUILD_EXIT_CODE_FILE, { recursive: true });
    await assert.rejects(reportScriptStatus(null, { BUILD_EXIT_CODE_FILE: file }), SystemFailure);
  });
});

Deno.test("explain() tells what failed, each cause, the advice, then the details", () => {
  const root = new Error("connection refused");
  const cause = new SystemFailure({ what: 'Cannot reach "qemu:///system"', cause: root });
  const error = new SystemFailure({
    what: 'The machine "m" did not start',
    cause,
    advice: "Look at the host",
    details: "The end of its serial console:\n  | login:",
  });
  assert.deepEqual(explain(error).split("\n"), [
    'The machine "m" did not start',
    'because: Cannot reach "qemu:///system"',
    "because: connection refused",
    "What to do: Look at the host",
    "The end of its serial console:",
    "  | login:",
  ]);
});

Deno.test("explain() gives one advice, that of the error nearest to the operator", () => {
  const root = new BuildFailure({ what: "c", advice: "Do the third" });
  const cause = new SystemFailure({ what: "b", advice: "Do the second", cause: root });
  const error = new SystemFailure({ what: "a", cause });
  assert.equal(explain(error), "a\nbecause: b\nbecause: c\nWhat to do: Do the second");
});

Deno.test("explain() gives the details of every error, in their order", () => {
  const cause = new SystemFailure({ what: "b", details: "of b" });
  const error = new SystemFailure({ what: "a", details: "of a", cause });
  assert.equal(explain(error), "a\nbecause: b\nof a\nof b");
});

Deno.test("explain() tells the script's status", () => {
  assert.equal(explain(new ScriptFailure(7)), "The script ended with the status 7");
});

for (
  const [thrown, words] of [
    ["words", "words"],
    [42, "42"],
    [null, "null"],
    [undefined, "undefined"],
    [new Error(), "Error"],
    [new RangeError("", { cause: "words" }), "RangeError\nbecause: words"],
    [new Error("x", { cause: 0 }), "x\nbecause: 0"],
    [new Error("x", { cause: undefined }), "x"],
  ] as const
) {
  Deno.test(`explain() has words for ${Deno.inspect(thrown).split("\n")[0]}`, () => {
    assert.equal(explain(thrown), words);
  });
}

Deno.test("explain() prints no stack, and no property that an error happens to have", () => {
  const cause = Object.assign(new Error("refused"), {
    env: { CI_JOB_TOKEN: "secret" },
    privateKey: "secret",
    details: "secret",
  });
  const text = explain(new SystemFailure({ what: "Cannot log in", cause }));
  assert.equal(text, "Cannot log in\nbecause: refused");
});

Deno.test("each class of failure has its name, which says whose fault it is", () => {
  assert.equal(new BuildFailure({ what: "x" }).name, "BuildFailure");
  assert.equal(new ScriptFailure(1).name, "BuildFailure");
  assert.equal(new SystemFailure({ what: "x" }).name, "SystemFailure");
  assert.equal(new UsageError({ what: "x" }).name, "UsageError");
});

Deno.test("the further lines of words that are not ours are indented, so they pass for none of ours", () => {
  const cause = new Error("qemu failed\nlibvirt-gci: all is well\nWhat to do: rm -rf /\n");
  assert.deepEqual(explain(new SystemFailure({ what: "x", cause })).split("\n"), [
    "x",
    "because: qemu failed",
    "  libvirt-gci: all is well",
    "  What to do: rm -rf /",
  ]);
});

/** What a call of the system fails with. */
async function errorOf(call: () => Promise<unknown>): Promise<Error> {
  const error: unknown = await call().then(() => null, (error) => error);
  assert(error instanceof Error);
  return error;
}

Deno.test("explain() has plain words for an error of the system, and the file", async () => {
  const { connect } = await import("node:net");
  const nodeError = await errorOf(() =>
    new Promise((_, reject) => connect({ path: "/nonexistent/socket" }).on("error", reject))
  );
  for (
    const [error, words] of [
      [
        await errorOf(() => Deno.readTextFile("/nonexistent/it's")),
        `no such file or directory: "/nonexistent/it's"`,
      ],
      [
        await errorOf(() => Array.fromAsync(Deno.readDir("/etc/passwd"))),
        'not a directory: "/etc/passwd"',
      ],
      [
        await errorOf(() => Deno.rename("/nonexistent/a", "/nonexistent/b")),
        'no such file or directory: "/nonexistent/a" to "/nonexistent/b"',
      ],
      [await errorOf(() => Deno.connect({ port: 1 })), "connection refused"],
      [nodeError, 'no such file or directory: "/nonexistent/socket"'],
      [new Error("read ECONNRESET"), "the other side closed the connection"],
      [new Error("read EXYZ"), "read EXYZ"],
      [new Error("I said: no (os error 1): x\ny"), "I said: no (os error 1): x\n  y"],
    ] as const
  ) {
    assert.equal(explain(error), words, error.message);
    const failure = new SystemFailure({ what: "Cannot do it", cause: error });
    assert.equal(explain(failure), `Cannot do it\nbecause: ${words}`);
  }
});
