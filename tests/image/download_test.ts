// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { explain } from "../../src/errors.ts";
import {
  download,
  type Downloaded,
  type DownloadOptions,
  type DownloadRequest,
} from "../../src/image/download.ts";
import { type Answer, RawServer, write } from "../fakes/raw_server.ts";

const CONTENT = Array.from({ length: 5000 }, (_, i) => `line ${i}\n`).join("");
const BYTES = CONTENT.length;
const SHA256 = createHash("sha256").update(CONTENT).digest("hex");
const ETAG = '"v1"';

/** A directory for downloads, and what is in it. */
class Downloads implements AsyncDisposable {
  readonly path = Deno.makeTempDirSync({ prefix: "libvirt-gci-test-" });

  names(): string[] {
    return [...Deno.readDirSync(this.path)].map(({ name }) => name).sort();
  }

  async get(
    url: URL,
    request: Partial<DownloadRequest> = {},
    options: Partial<DownloadOptions> = {},
  ): Promise<Downloaded> {
    return await download(
      { url, bytes: null, sha256: null, mostBytes: 1e6, ...request },
      {
        env: {},
        signal: new AbortController().signal,
        directory: this.path,
        pauseMs: 1,
        silenceMs: 5000,
        ...options,
      },
    );
  }

  /** What a download fails with, as it is printed. */
  async failureOf(...args: Parameters<Downloads["get"]>): Promise<string> {
    return await this.get(...args).then(() => assert.fail("no failure"), explain);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Deno.remove(this.path, { recursive: true });
  }
}

/** Checks that it is the content, and that nothing is left once it is disposed of. */
async function assertContent(downloaded: Promise<Downloaded>, downloads: Downloads): Promise<void> {
  {
    await using file = await downloaded;
    assert.equal(await Deno.readTextFile(file.path), CONTENT);
    assert.deepEqual([file.bytes, file.sha256], [BYTES, SHA256]);
    assert.equal((await Deno.stat(file.path)).mode! & 0o777, 0o600);
  }
  assert.deepEqual(downloads.names(), []);
}

/** The first byte that a request asks for; 0 if it asks for all. */
function startOf(head: string): number {
  return Number(/^range: bytes=(\d+)-\r$/m.exec(head)?.[1] ?? 0);
}

/** Sends the content from where the request wants it, as much as `send` says of what there is. */
function serve(send: (rest: string, head: string) => string = (rest) => rest): Answer {
  return async (head, conn) => {
    const start = startOf(head);
    const part = `206 Partial Content\r\nContent-Range: bytes ${start}-${BYTES - 1}/${BYTES}`;
    const length = `Content-Length: ${BYTES - start}\r\nETag: ${ETAG}`;
    const rest = send(CONTENT.slice(start), head);
    await write(conn, `HTTP/1.1 ${start === 0 ? "200 OK" : part}\r\n${length}\r\n\r\n${rest}`);
  };
}

/** Answers with the first, then with the second, and so on; then with the last. */
function oneByOne(...answers: readonly Answer[]): Answer {
  let count = 0;
  return (...args) => (answers[count++] ?? answers.at(-1))?.(...args) ?? assert.fail();
}

const HALF = serve((rest) => rest.slice(0, rest.length / 2));

Deno.test("a file is downloaded, and who waits for it hears how much there is", async () => {
  await using downloads = new Downloads();
  await using server = new RawServer(serve());
  const told: (number | null)[][] = [];
  const onBytes = (...bytes: [number, number | null]) => void told.push(bytes);
  await assertContent(downloads.get(server.url("/a"), {}, { onBytes }), downloads);
  assert.deepEqual(told.at(-1), [BYTES, BYTES]);
});

Deno.test("a transfer that breaks in its middle goes on where it was", async () => {
  await using downloads = new Downloads();
  await using server = new RawServer(oneByOne(HALF, HALF, serve()));
  await assertContent(downloads.get(server.url()), downloads);
  assert.deepEqual(server.requests.map(startOf), [0, BYTES / 2, BYTES * 3 / 4].map(Math.floor));
  assert.match(server.requests[1] ?? "", /^if-range: "v1"\r$/m);
});

Deno.test("a silent server is given up in time, and asked for the rest", async () => {
  await using downloads = new Downloads();
  const { promise, resolve } = Promise.withResolvers<void>();
  const stall: Answer = async (...args) => {
    await HALF(...args);
    await promise;
  };
  await using server = new RawServer(oneByOne(stall, serve()));
  await assertContent(downloads.get(server.url(), {}, { silenceMs: 200 }), downloads);
  assert.deepEqual(server.requests.map(startOf), [0, Math.floor(BYTES / 2)]);
  resolve();
});

Deno.test("a download that failed stays to be continued by the next, whose hash is right too", async () => {
  await using downloads = new Downloads();
  const none: Answer = () => Promise.resolve();
  await using server = new RawServer(oneByOne(HALF, none, none, none, serve()));
  const failure = await downloads.failureOf(server.url());
  assert.match(failure, /Cannot fetch.*\nbecause: the connection ended too soon/);
  assert.equal(downloads.names().length, 2);
  await assertContent(downloads.get(server.url()), downloads);
  assert.equal(startOf(server.requests.at(-1) ?? ""), Math.floor(BYTES / 2));
});

Deno.test("a server that ignores Range sends all again", async () => {
  await using downloads = new Downloads();
  const whole: Answer = (_, conn) =>
    write(conn, `HTTP/1.1 200 OK\r\nContent-Length: ${BYTES}\r\n\r\n${CONTENT}`);
  await using server = new RawServer(oneByOne(HALF, whole));
  await assertContent(downloads.get(server.url()), downloads);
  assert.equal(startOf(server.requests[1] ?? ""), Math.floor(BYTES / 2));
});

Deno.test("without a name for the version or a SHA-256, nothing is continued", async () => {
  for (const sha256 of [null, SHA256]) {
    await using downloads = new Downloads();
    const half: Answer = (_, conn) =>
      write(conn, `HTTP/1.1 200 OK\r\nContent-Length: ${BYTES}\r\n\r\n${CONTENT.slice(0, 9)}`);
    await using server = new RawServer(oneByOne(half, serve()));
    await assertContent(downloads.get(server.url(), { sha256 }), downloads);
    assert.deepEqual(server.requests.map(startOf), [0, sha256 === null ? 0 : 9]);
  }
});

Deno.test("when the server has another version, the download begins again", async () => {
  const old: Answer = (_, conn) =>
    write(conn, `HTTP/1.1 200 OK\r\nContent-Length: 99\r\nETag: "v0"\r\n\r\nold content`);
  const gone: Answer = (_, conn) =>
    write(conn, "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n");
  const shifted: Answer = (_, conn) =>
    write(
      conn,
      `HTTP/1.1 206 X\r\nContent-Range: bytes 3-9/99\r\nContent-Length: 7\r\n\r\nshifted`,
    );
  for (const answers of [[old, serve()], [old, gone, serve()], [old, shifted, serve()]]) {
    await using downloads = new Downloads();
    await using server = new RawServer(oneByOne(...answers));
    await assertContent(downloads.get(server.url()), downloads);
    assert.match(server.requests[1] ?? "", /^if-range: "v0"\r$/m);
    assert.equal(startOf(server.requests.at(-1) ?? ""), 0);
  }
});

Deno.test("a part that is shorter than asked for is followed by the rest", async () => {
  await using downloads = new Downloads();
  const part: Answer = async (head, conn) => {
    const start = startOf(head);
    const end = Math.min(start + 20_000, BYTES);
    const range = `Content-Range: bytes ${start}-${end - 1}/${BYTES}\r\nETag: ${ETAG}`;
    const length = `Content-Length: ${end - start}`;
    await write(
      conn,
      `HTTP/1.1 206 X\r\n${range}\r\n${length}\r\n\r\n${CONTENT.slice(start, end)}`,
    );
  };
  await using server = new RawServer(oneByOne(HALF, part));
  await assertContent(downloads.get(server.url()), downloads);
  assert(server.requests.length > 2);
});

Deno.test("a server that is down for a moment, or says so, is asked again", async () => {
  await using downloads = new Downloads();
  const busy: Answer = (_, conn) => write(conn, "HTTP/1.1 503 Service Unavailable\r\n\r\n");
  await using server = new RawServer(oneByOne(busy, busy, serve()));
  await assertContent(downloads.get(server.url()), downloads);
  await using down = new RawServer(busy);
  assert.match(await downloads.failureOf(down.url()), /the status 503/);
  assert.equal(down.requests.length, 3);
});

Deno.test("what will not get better is not asked for again", async () => {
  for (const status of [401, 403, 404]) {
    await using downloads = new Downloads();
    await using server = new RawServer((_, conn) => write(conn, `HTTP/1.1 ${status} No\r\n\r\n`));
    const failure = await downloads.failureOf(server.url());
    assert.match(failure, new RegExp(`the status ${status}\nWhat to do: Check`));
    assert.equal(server.requests.length, 1);
    assert.deepEqual(downloads.names(), []);
  }
});

Deno.test("a file that is not as promised is refused with both, and removed", async () => {
  const endless: Answer = (_, conn) => write(conn, `HTTP/1.0 200 OK\r\n\r\n${CONTENT}`);
  const cases: [Answer, Partial<DownloadRequest>, RegExp][] = [
    [serve(), { sha256: "0".repeat(64) }, new RegExp(`its SHA-256 is ${SHA256}, not 0{64}`)],
    [serve(), { bytes: BYTES + 1 }, new RegExp(`it has ${BYTES} bytes, not ${BYTES + 1}`)],
    [serve(), { bytes: BYTES - 1 }, new RegExp(`it has ${BYTES} bytes, not ${BYTES - 1}`)],
    [serve(), { mostBytes: BYTES - 1 }, new RegExp(`more than ${BYTES - 1} bytes`)],
    [endless, { bytes: BYTES + 1 }, new RegExp(`it has ${BYTES} bytes, not ${BYTES + 1}`)],
    [endless, { bytes: BYTES - 1 }, new RegExp(`more than ${BYTES - 1} bytes`)],
    [endless, { mostBytes: BYTES - 1 }, new RegExp(`more than ${BYTES - 1} bytes`)],
  ];
  for (const [answer, request, word] of cases) {
    await using downloads = new Downloads();
    await using server = new RawServer(answer);
    const failure = await downloads.failureOf(server.url("/a?secret"), request);
    assert.match(failure, word);
    assert.match(failure, /^Cannot use "http:\S+\/a\?…": .*\nWhat to do: Check/);
    assert.equal(server.requests.length, 1);
    assert.deepEqual(downloads.names(), []);
  }
});

Deno.test("what is no SHA-256 names no file", async () => {
  await using downloads = new Downloads();
  for (const sha256 of ["../../etc/passwd", SHA256.toUpperCase(), ""]) {
    const failure = await downloads.failureOf(new URL("http://127.0.0.1:1/"), { sha256 });
    assert.match(failure, /is no SHA-256/);
  }
  assert.deepEqual(downloads.names(), []);
});

Deno.test("two who download one file at once both get it, and the second waits", async () => {
  await using downloads = new Downloads();
  await using server = new RawServer(serve());
  let waits = 0;
  const first = await downloads.get(server.url());
  const second = downloads.get(server.url(), {}, { onWait: () => void waits++ });
  while (waits === 0) await new Promise((resolve) => setTimeout(resolve, 10));
  assert.equal(await Deno.readTextFile(first.path), CONTENT);
  assert.equal(server.requests.length, 1);
  await first[Symbol.asyncDispose]();
  await assertContent(second, downloads);
  assert.deepEqual([waits, server.requests.length], [1, 2]);
});

Deno.test("a whole file of this SHA-256 that is there already is not fetched again", async () => {
  await using downloads = new Downloads();
  await Deno.writeTextFile(`${downloads.path}/${SHA256}.download`, CONTENT, { mode: 0o600 });
  await assertContent(downloads.get(new URL("http://127.0.0.1:1/"), { sha256: SHA256 }), downloads);
});

Deno.test("what nobody has continued for a week is removed", async () => {
  await using downloads = new Downloads();
  await using server = new RawServer(serve());
  for (const [name, days] of [["old", 8], ["new", 6]] as const) {
    const path = `${downloads.path}/${name}.download`;
    const time = new Date(Date.now() - days * 24 * 3600 * 1000);
    await Deno.writeTextFile(path, "x");
    await Deno.utime(path, time, time);
  }
  await (await downloads.get(server.url()))[Symbol.asyncDispose]();
  assert.deepEqual(downloads.names(), ["new.download"]);
});

Deno.test("a directory that others can write to is refused", async () => {
  await using downloads = new Downloads();
  await Deno.chmod(downloads.path, 0o777);
  const failure = await downloads.failureOf(new URL("http://127.0.0.1:1/"));
  assert.match(failure, /Other users can write the downloads: .* has the mode 777/);
});

Deno.test("a cancel ends a download, which stays to be continued", async () => {
  await using downloads = new Downloads();
  const cancel = new AbortController();
  const { promise, resolve } = Promise.withResolvers<void>();
  await using server = new RawServer(async (...args) => {
    await HALF(...args);
    await promise;
  });
  const onBytes = (bytes: number) => bytes > 0 && cancel.abort(new Error("cancelled here"));
  const { signal } = cancel;
  const failure = await downloads.failureOf(server.url(), {}, { onBytes, signal, silenceMs: 5000 });
  assert.match(failure, /^cancelled here/);
  assert.equal(downloads.names().length, 2);
  resolve();
});
