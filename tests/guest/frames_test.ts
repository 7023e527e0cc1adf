// SPDX-License-Identifier: GPL-2.0-or-later
import fc from "fast-check";
import assert from "node:assert/strict";
import { BuildFailure, explain, faultOf, SystemFailure } from "../../src/errors.ts";
import { FrameReader, FrameWriter, KIND, MOST_BYTES } from "../../src/guest/master/frames.ts";
import { endOf, errorOf, parseEnd } from "../../src/guest/master/script_end.ts";
import { GuestFull, GuestSilent } from "../../src/guest/script.ts";

/** What is written to it is read from it, so many bytes at a time. */
class Pipe {
  readonly #bytes: number[] = [];
  readonly #most: number;

  constructor(most: number) {
    this.#most = most;
  }

  write(bytes: Uint8Array): Promise<number> {
    const part = bytes.subarray(0, this.#most);
    this.#bytes.push(...part);
    return Promise.resolve(part.length);
  }

  read(into: Uint8Array): Promise<number | null> {
    const part = this.#bytes.splice(0, Math.min(into.length, this.#most));
    into.set(part);
    return Promise.resolve(part.length === 0 ? null : part.length);
  }
}

async function readAll(source: Pipe): Promise<[number, Uint8Array][]> {
  const reader = new FrameReader(source);
  const frames: [number, Uint8Array][] = [];
  for (let frame = await reader.next(); frame !== null; frame = await reader.next()) {
    frames.push([frame.kind, frame.bytes.slice()]);
  }
  return frames;
}

Deno.test("what one side writes in frames, the other reads, however it is cut on the way", () =>
  fc.assert(
    fc.asyncProperty(
      fc.array(fc.uint8Array({ maxLength: 300 })),
      fc.integer({ min: 1, max: 400 }),
      async (parts, most) => {
        const pipe = new Pipe(most);
        const writer = new FrameWriter(pipe);
        await Promise.all(parts.map((bytes) => writer.send(KIND.stdout, bytes)));
        assert.deepEqual(await readAll(pipe), parts.map((bytes) => [KIND.stdout, bytes]));
      },
    ),
  ));

Deno.test("what is longer than a frame goes in several", async () => {
  const pipe = new Pipe(100_000);
  const bytes = crypto.getRandomValues(new Uint8Array(MOST_BYTES)); // which is all it fills at once
  await new FrameWriter(pipe).send(KIND.script, new Uint8Array([...bytes, ...bytes, 7]));
  const frames = await readAll(pipe);
  assert.deepEqual(frames.map(([, { length }]) => length), [MOST_BYTES, MOST_BYTES, 1]);
  assert.deepEqual(frames[1]?.[1], bytes);
});

for (
  const [what, bytes, message] of [
    ["is longer than it may be", [KIND.stdout, 0, 1, 0, 1], /too long/],
    ["ends amid its head", [KIND.stdout, 0], /amid a frame/],
    ["ends amid its bytes", [KIND.stdout, 0, 0, 0, 2, 1], /amid a frame/],
  ] as const
) {
  Deno.test(`a frame that ${what} is refused`, async () => {
    const pipe = new Pipe(100);
    await pipe.write(new Uint8Array(bytes));
    await assert.rejects(new FrameReader(pipe).next(), message);
  });
}

/** The error as it arrives. */
function sent(error: unknown): unknown {
  const end = parseEnd(JSON.parse(JSON.stringify(endOf(error))));
  assert(end !== null && "failure" in end);
  return errorOf(end.failure);
}

Deno.test("a failure arrives with its class, fault, words, causes and advice", () => {
  const cause = new Error("read ECONNRESET", { cause: new TypeError("deep\nwords") });
  for (
    const error of [
      new SystemFailure({ fault: "lost", what: 'The "guest" is lost', cause, advice: "Look" }),
      new GuestFull({ fault: "template", what: "full", advice: "Free some" }),
      new Error("no class of ours"),
    ]
  ) {
    const arrived = sent(error);
    assert.equal(explain(arrived), explain(error));
    assert.equal(faultOf(arrived), faultOf(error));
    assert.equal(arrived instanceof GuestFull, error instanceof GuestFull);
    assert.equal(arrived instanceof SystemFailure, error instanceof SystemFailure);
  }
});

Deno.test("a failure with a guest's megabytes, or with causes without end, is short", () => {
  const error: Error = new Error("\u0000".repeat(1e6));
  error.cause = error;
  assert(JSON.stringify(endOf(error)).length < MOST_BYTES);
});

Deno.test("what is no end of a script is none, and no failure of the job", () => {
  for (const json of [{}, { status: "0" }, { status: null }, { failure: null }, { status: 0.5 }]) {
    assert.equal(parseEnd(json), null);
  }
  assert.deepEqual(parseEnd({ status: 0 }), { status: 0 });
  assert.deepEqual(endOf(new GuestSilent(null)), { cancelled: true, answered: false });
  assert(!(sent(new BuildFailure({ what: "x" })) instanceof BuildFailure));
});
