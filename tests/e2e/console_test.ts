// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { sleep } from "../../src/wait.ts";
import { atMost, call, e2eTest, PROGRAM, settingsFile, until } from "./bed.ts";

const MACHINE = "gci-e2e-console";
const LEAVE = "\x1d";

/** The program at a terminal of its own, which util-linux's script(1) makes. */
class AtTerminal implements AsyncDisposable {
  screen = "";
  readonly #child: Deno.ChildProcess;
  readonly #keyboard: WritableStreamDefaultWriter<Uint8Array>;
  readonly #shown: Promise<void>;

  constructor(args: readonly string[]) {
    const command = [...PROGRAM, ...args].join(" ");
    this.#child = new Deno.Command("script", {
      args: ["--quiet", "--flush", "--return", "--command", `exec ${command}`, "/dev/null"],
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    this.#keyboard = this.#child.stdin.getWriter();
    this.#shown = this.#show();
  }

  async type(text: string): Promise<void> {
    await this.#keyboard.write(new TextEncoder().encode(text));
  }

  /** Waits until the screen shows this. */
  async shows(pattern: RegExp): Promise<void> {
    await until(() => pattern.test(this.screen), {
      what: `the screen shows ${pattern}`,
      instead: () => this.screen,
    });
  }

  /** The status with which the program ends by itself. */
  async end(): Promise<number> {
    const { code } = await this.#child.status;
    await this.#shown;
    return code;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#keyboard.close().catch(() => {});
    await this.end();
  }

  async #show(): Promise<void> {
    const text = this.#child.stdout.pipeThrough(new TextDecoderStream());
    for await (const part of text) this.screen += part;
  }
}

e2eTest(
  "console is the machine's serial console at a terminal, for one person at a time, and ends with the machine",
  async () => {
    using file = settingsFile();
    const console = ["--config", file.path, "console", MACHINE];
    try {
      assert.equal((await call(["prepare", "-d", "lite", "-m", MACHINE])).status, 0);
      {
        await using first = new AtTerminal(console);
        await first.shows(/\^\] \(Ctrl and \]\) leaves it/);
        await first.type("\r");
        await first.shows(/# $/);
        await first.type("echo six times seven is $((6 * 7))\r");
        await first.shows(/^six times seven is 42/m);

        const second = await call(["console", MACHINE]);
        assert.equal(second.status, 2);
        assert.match(second.stderr, /Active console session.*\nWhat to do: .* --force/);

        await using third = new AtTerminal([...console, "--force"]);
        assert.equal(await first.end(), 2);
        assert.match(first.screen, /another session used --force/);
        await third.type("\r");
        await third.shows(/# $/);
        await third.type(`echo not this${LEAVE}`);
        assert.equal(await third.end(), 0);
        assert.match(third.screen, /Left the console/);

        await using fourth = new AtTerminal(console);
        await fourth.type("\r");
        await fourth.shows(/# $/);
        await fourth.type("#" + "x".repeat(200_000));
        await fourth.type(LEAVE);
        assert.equal(await fourth.end(), 0);
      }
      const cancelled = new Deno.Command(PROGRAM[0] ?? "", {
        args: [...PROGRAM.slice(1), ...console],
        stdin: "null",
        stdout: "null",
        stderr: "piped",
      }).spawn();
      await sleep(3000);
      const start = performance.now();
      cancelled.kill("SIGTERM");
      const { code, stderr } = await cancelled.output();
      assert.equal(code, 2);
      assert.match(new TextDecoder().decode(stderr), /Cancelled by SIGTERM/);
      assert(performance.now() - start < atMost(1) * 1000);

      const printed = call(["console", MACHINE]);
      await sleep(3000);
      await call([
        "run",
        "-m",
        MACHINE,
        "--",
        "sudo",
        "sh",
        "-c",
        "printf '\\033[31mred\\033]0;t\\007\\n' >/dev/ttyS0; poweroff -f",
      ]);
      const { status, stdout } = await printed;
      assert.equal(status, 0);
      assert.match(stdout, /^red0;t\ufffd$/m); // nothing that a terminal would obey
      assert.match(stdout, /reboot: Power down/);
    } finally {
      await call(["cleanup", "-m", MACHINE]);
    }
  },
  { thorough: true },
);

e2eTest("console says that there is no such machine of ours", async () => {
  const { status, stderr } = await call(["console", "nobody"]);
  assert.equal(status, 2);
  assert.match(stderr, /The machine "nobody" does not exist/);
}, { thorough: true });
