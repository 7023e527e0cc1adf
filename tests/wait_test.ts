// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { SystemFailure } from "../src/errors.ts";
import {
  allOf,
  type Goal,
  type Limits,
  NotYet,
  retry,
  sleep,
  together,
  waitFor,
} from "../src/wait.ts";

function limits(changes: Partial<Limits> = {}): Limits {
  return {
    timeoutSeconds: 5,
    signal: new AbortController().signal,
    log: (line) => assert.fail(`logged: ${line}`),
    ...changes,
  };
}

function goalOf<T>(probe: Goal<T>["probe"]): Goal<T> {
  return {
    goal: "get ready",
    awaited: "it",
    advice: "Look at the machine",
    fault: "address",
    probe,
  };
}

/** Runs with a clock that only goes by hand: a probe that moves it on makes the wait a short one. */
async function withClock(use: (pass: (ms: number) => void) => Promise<void>): Promise<void> {
  const now = performance.now;
  let time = 0;
  performance.now = () => time;
  try {
    await use((ms) => time += ms);
  } finally {
    performance.now = now;
  }
}

Deno.test("waitFor() gives what the first probe gives, without a pause", async () => {
  let probes = 0;
  const result = await waitFor(
    goalOf(() => {
      probes++;
      return Promise.resolve("192.0.2.1");
    }),
    limits(),
  );
  assert.equal(result, "192.0.2.1");
  assert.equal(probes, 1);
});

Deno.test("waitFor() takes null, false and undefined for results", async () => {
  for (const value of [null, false, undefined]) {
    assert.equal(await waitFor(goalOf(() => Promise.resolve(value)), limits()), value);
  }
});

Deno.test("waitFor() probes until the condition holds, fast at first", async () => {
  let probes = 0;
  const start = performance.now();
  await waitFor(
    goalOf(() => Promise.resolve(++probes === 4 ? "ready" : new NotYet("not ready"))),
    limits(),
  );
  const elapsed = performance.now() - start;
  assert.equal(probes, 4);
  assert(elapsed >= 40 && elapsed < 200, `${elapsed} ms: pauses of 10, 15 and 22 ms`);
});

Deno.test("waitFor() does not probe more than about ten times a second in the long run", async () => {
  const times: number[] = [];
  await waitFor(
    goalOf(() => {
      times.push(performance.now());
      return Promise.resolve(times.length === 9 ? "ready" : new NotYet("not ready"));
    }),
    limits(),
  );
  const lastPause = (times.at(-1) ?? 0) - (times.at(-2) ?? 0);
  assert(lastPause > 90, `${lastPause} ms`);
});

Deno.test("waitFor() fails with the last reason when the time is over", async () => {
  let probes = 0;
  const wait = waitFor(
    goalOf(() => Promise.resolve(new NotYet(`reason ${++probes}`))),
    limits({ timeoutSeconds: 0.03 }),
  );
  const error = await wait.then(() => null, (error) => error);
  assert(error instanceof SystemFailure);
  assert.equal(
    error.message,
    `The machine did not get ready within 0.03 s: reason ${probes}`,
  );
  assert.deepEqual([error.advice, error.fault], ["Look at the machine", "address"]);
});

Deno.test("waitFor() still takes what a probe gives after the time is over", async () => {
  await withClock(async (pass) => {
    let probes = 0;
    const probe = (): Promise<string | NotYet> => {
      if (++probes === 1) return Promise.resolve(new NotYet("not ready"));
      pass(6000);
      return Promise.resolve("ready");
    };
    assert.equal(await waitFor(goalOf(probe), limits()), "ready");
  });
});

Deno.test("waitFor() throws at once what a probe throws", async () => {
  let probes = 0;
  const gone = new SystemFailure({ what: "The machine is gone" });
  const probe = (): Promise<never> => {
    probes++;
    return Promise.reject(gone);
  };
  await assert.rejects(waitFor(goalOf(probe), limits()), gone);
  assert.equal(probes, 1);
});

Deno.test("waitFor() does not probe for a signal that has aborted, and throws its reason", async () => {
  const reason = new SystemFailure({ what: "Cancelled by SIGTERM" });
  const probe = (): Promise<never> => assert.fail("probed");
  await assert.rejects(
    waitFor(goalOf(probe), limits({ signal: AbortSignal.abort(reason) })),
    reason,
  );
});

Deno.test("waitFor() ends its pause when the signal aborts, and throws its reason", async () => {
  const controller = new AbortController();
  const reason = new SystemFailure({ what: "Cancelled by SIGTERM" });
  let probes = 0;
  const probe = (): Promise<NotYet> => {
    if (++probes === 8) setTimeout(() => controller.abort(reason), 5); // in a pause of 100 ms
    return Promise.resolve(new NotYet("not ready"));
  };
  await assert.rejects(waitFor(goalOf(probe), limits({ signal: controller.signal })), reason);
  assert.equal(probes, 8);
});

Deno.test("waitFor() throws the signal's reason rather than that the time is over", async () => {
  const controller = new AbortController();
  const reason = new SystemFailure({ what: "Cancelled by SIGTERM" });
  const wait = waitFor(
    goalOf(() => {
      controller.abort(reason);
      return Promise.resolve(new NotYet("not ready"));
    }),
    limits({ signal: controller.signal }),
  );
  await assert.rejects(wait, reason);
});

Deno.test("waitFor() tells every ten seconds what it still waits for", async () => {
  await withClock(async (pass) => {
    const lines: string[] = [];
    let seconds = 0;
    const probe = (): Promise<string | NotYet> => {
      seconds += 4;
      pass(4000);
      return Promise.resolve(seconds === 36 ? "ready" : new NotYet(`only ${seconds} s old`));
    };
    await waitFor(
      goalOf(probe),
      limits({ timeoutSeconds: 100, log: (line) => lines.push(line) }),
    );
    assert.deepEqual(lines, [
      "Waiting for it (12 s): only 12 s old",
      "Waiting for it (24 s): only 24 s old",
    ]);
  });
});

Deno.test("waitFor() tells once, not several times in a row, after a probe that took long", async () => {
  await withClock(async (pass) => {
    const lines: string[] = [];
    let probes = 0;
    const probe = (): Promise<string | NotYet> => {
      pass(++probes === 1 ? 45_000 : 0);
      return Promise.resolve(probes === 5 ? "ready" : new NotYet("libvirt is slow"));
    };
    await waitFor(
      goalOf(probe),
      limits({ timeoutSeconds: 100, log: (line) => lines.push(line) }),
    );
    assert.deepEqual(lines, ["Waiting for it (45 s): libvirt is slow"]);
  });
});

Deno.test("waitFor() shows progress every second instead, also during a slow probe, and ends it", async () => {
  const shown: (string | null)[] = [];
  let probes = 0;
  const probe = async (): Promise<string | NotYet> => {
    await sleep(1200);
    return ++probes === 2 ? "ready" : new NotYet("no lease");
  };
  const progress = (line: string | null) => void shown.push(line);
  assert.equal(await waitFor(goalOf(probe), limits({ timeoutSeconds: 60, progress })), "ready");
  await sleep(1000);
  assert.deepEqual(shown, [
    "Waiting for it, 1 of 60 s",
    "Waiting for it, 2 of 60 s: no lease",
    null,
  ]);
});

Deno.test("waitFor() tells a log nothing where it shows progress", async () => {
  await withClock(async (pass) => {
    let probes = 0;
    const probe = (): Promise<string | NotYet> => {
      pass(11_000);
      return Promise.resolve(++probes === 3 ? "ready" : new NotYet("not ready"));
    };
    await waitFor(goalOf(probe), limits({ timeoutSeconds: 100, progress: () => {} }));
  });
});

Deno.test("waitFor() takes progress away when it fails", async () => {
  const shown: (string | null)[] = [];
  const wait = waitFor(
    goalOf(() => Promise.reject(new Error("gone"))),
    limits({ progress: (line) => void shown.push(line) }),
  );
  await assert.rejects(wait, /gone/);
  assert.deepEqual(shown, [null]);
});

Deno.test("sleep() takes its time", async () => {
  const start = performance.now();
  await sleep(30, new AbortController().signal);
  assert(performance.now() - start >= 29);
});

Deno.test("sleep() ends at once, without an error, when the signal aborts or has aborted", async () => {
  const controller = new AbortController();
  setTimeout(() => controller.abort(new Error("not of sleep()'s")), 1);
  await sleep(60_000, controller.signal);
  await sleep(60_000, controller.signal);
});

Deno.test("together() gives what each gives", async () => {
  const { signal } = new AbortController();
  const one = () => Promise.resolve(1);
  const two = async () => {
    await sleep(1);
    return "two";
  };
  assert.deepEqual(await together(signal, two, one), ["two", 1]);
});

Deno.test("together() ends all when one fails, and throws that when they have ended", async () => {
  let hasEnded = false;
  const endless = async (signal: AbortSignal) => {
    await sleep(60_000, signal);
    hasEnded = true;
    signal.throwIfAborted();
  };
  const failing = async () => {
    await sleep(1);
    throw new Error("this one");
  };
  await assert.rejects(
    together(new AbortController().signal, endless, failing),
    /^Error: this one/,
  );
  assert(hasEnded);
  await assert.rejects(together(AbortSignal.abort(new Error("stop")), endless), /^Error: stop/);
});

for (
  const [name, fails, options, tries] of [
    ["works at the second try", 1, { tries: 2 }, 2],
    ["throws the last error after so many tries", 9, { tries: 3 }, 3],
    ["does not try again after an error that is not transient", 9, { isTransient: () => false }, 1],
    ["does not try again once the signal has aborted", 9, { signal: AbortSignal.abort() }, 1],
  ] as const
) {
  Deno.test(`retry() ${name}`, async () => {
    let tried = 0;
    const attempt = () =>
      ++tried > fails ? Promise.resolve("done") : Promise.reject(new Error(`try ${tried}`));
    const result = retry(attempt, { pauseMs: 1, ...options });
    if (tries > fails) assert.equal(await result, "done");
    else await assert.rejects(result, new RegExp(`^Error: try ${tries}$`));
    assert.equal(tried, tries);
  });
}

Deno.test("of a guest's words, no further line looks like one of ours", () => {
  const { reason } = new NotYet("bye\r\nWhat to do: run this\n\n");
  assert.equal(reason, "bye\n  What to do: run this");
});

Deno.test("all that run at once end before the first of their errors is thrown", async () => {
  let hasEnded = false;
  const fail = async (words: string, milliseconds: number): Promise<never> => {
    await sleep(milliseconds);
    throw new Error(words);
  };
  const slow = async (): Promise<void> => {
    await sleep(60);
    hasEnded = true;
  };
  await assert.rejects(allOf([fail("second", 30), fail("first", 1), slow()]), /first/);
  assert(hasEnded);
  assert.deepEqual(await allOf([1, Promise.resolve("two")]), [1, "two"]);
});
