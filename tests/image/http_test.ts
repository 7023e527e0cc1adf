// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { explain } from "../../src/errors.ts";
import { type HttpOptions, httpRequest } from "../../src/image/http.ts";
import { proxyFor } from "../../src/image/proxy.ts";
import { type Answer, RawServer, write } from "../fakes/raw_server.ts";
import { CA_FILE, TLS, TLS_NAMES } from "../fakes/test_tls.ts";

const OPTIONS: HttpOptions = { env: {}, signal: new AbortController().signal };

const OK: Answer = (_, conn) => write(conn, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");

function redirectTo(location: string): Answer {
  return (_, conn) => write(conn, `HTTP/1.1 302 Found\r\nLocation: ${location}\r\n\r\n`);
}

/** The body of what is there. */
async function get(url: URL, options: Partial<HttpOptions> = {}): Promise<string> {
  using response = await httpRequest({ url }, { ...OPTIONS, ...options });
  assert.equal(response.status, 200);
  return await response.text(1000);
}

/** What a request fails with, as it is printed. */
async function failureOf(url: URL | string, options: Partial<HttpOptions> = {}): Promise<string> {
  return await get(new URL(url), options).then(() => assert.fail("no failure"), explain);
}

/** An address of this host's that is no loopback one; null if it has none. */
function outerAddress(): string | null {
  return Deno.networkInterfaces().find(({ family, address }) =>
    family === "IPv4" && !address.startsWith("127.")
  )?.address ?? null;
}

for (
  const [framing, answer] of [
    ["Content-Length", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, and more"],
    ["the end of the connection", "HTTP/1.0 200\r\n\r\nhello"],
    [
      "chunks",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nX: y\r\n\r\n",
    ],
    ["an answer that only says to wait", "HTTP/1.1 103 X\r\n\r\nHTTP/1.1 200 OK\r\n\r\nhello"],
  ] as const
) {
  Deno.test(`a body that ends by ${framing} is read, in one piece and byte by byte`, async () => {
    for (const size of [1, answer.length]) {
      await using server = new RawServer(async (_, conn) => {
        await conn.setNoDelay(true);
        for (let i = 0; i < answer.length; i += size) await write(conn, answer.slice(i, i + size));
      });
      assert.equal(await get(server.url()), "hello");
    }
  });
}

for (
  const [what, answer, word] of [
    ["no HTTP", "SSH-2.0-OpenSSH_10\r\n", /does not speak HTTP/],
    ["nothing", "", /ended too soon/],
    ["half a head", "HTTP/1.1 200 OK\r\nContent-Le", /ended too soon/],
    ["half a body", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe", /ended too soon/],
    ["half a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe", /too soon/],
    [
      "a chunk without its end",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhello",
      /malformed chunk/,
    ],
    [
      "a chunk of no length",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello",
      /malformed chunk/,
    ],
    ["two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", /length/],
    ["a length below 0", "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", /malformed length/],
    ["a coding of its own", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", /not supported/],
    ["a malformed header", "HTTP/1.1 200 OK\r\nno colon\r\n\r\n", /malformed header/],
    ["a head without end", `HTTP/1.1 200 OK\r\n${"X: y\r\n".repeat(20_000)}`, /more than 65536/],
    ["a line without end", `HTTP/1.1 200 ${"x".repeat(100_000)}`, /more than 65536 bytes/],
    ["only that it works on it", "HTTP/1.1 100 Continue\r\n\r\n".repeat(30), /rules/],
    ["a body without end", `HTTP/1.1 200 OK\r\n\r\n${"x".repeat(1001)}`, /more than 1000 bytes/],
  ] as const
) {
  Deno.test(`a server that sends ${what} is told as that`, async () => {
    await using server = new RawServer((_, conn) => write(conn, answer));
    const failure = await failureOf(server.url("/image"));
    assert.match(failure, word);
    assert(failure.startsWith(`Cannot fetch "http://${server.host}/image"\n`), failure);
  });
}

Deno.test("a server that is silent fails in time: before its head, in it and in its body", async () => {
  for (
    const start of ["", "HTTP/1.1 200 OK\r\nX", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe"]
  ) {
    const { promise, resolve } = Promise.withResolvers<void>();
    await using server = new RawServer(async (_, conn) => {
      await write(conn, start);
      await promise;
    });
    assert.match(await failureOf(server.url(), { silenceMs: 100 }), /no answer for 0.1 s/, start);
    resolve();
  }
});

Deno.test("a header with bytes that are no ASCII is as good as another", async () => {
  await using server = new RawServer((_, conn) =>
    write(conn, "HTTP/1.1 200 OK\r\nX-Name: b\u{2013}c\r\nContent-Length: 5\r\n\r\nhello")
  );
  assert.equal(await get(server.url()), "hello");
});

Deno.test("a signal ends a request that waits, with its reason", async () => {
  const { promise, resolve } = Promise.withResolvers<void>();
  const cancel = new AbortController();
  await using server = new RawServer(async () => {
    cancel.abort(new Error("cancelled here"));
    await promise;
  });
  await assert.rejects(get(server.url(), { signal: cancel.signal }), /cancelled here/);
  resolve();
});

Deno.test("five redirects are followed, and not six, nor a circle", async () => {
  await using server = new RawServer(async (head, conn) => {
    const left = Number(/^GET \/(\d)/.exec(head)?.[1]);
    await (left === 0 ? OK : redirectTo(left === 9 ? "/9" : String(left - 1)))(head, conn, "");
  });
  assert.equal(await get(server.url("/5")), "hello");
  assert.match(await failureOf(server.url("/6")), /redirects more than 5 times/);
  assert.match(await failureOf(server.url("/9")), /redirects more than 5 times/);
});

Deno.test("another origin gets no credentials: not those of headers, nor those of the URL", async () => {
  await using other = new RawServer(OK);
  await using server = new RawServer(redirectTo(other.url("/blob").href));
  const url = server.url();
  [url.username, url.password] = ["user", "p%40ss"];
  const headers = { cookie: "c", "x-token": "t", range: "bytes=0-" };
  using response = await httpRequest({ url, headers }, OPTIONS);
  assert.equal(response.url.href, other.url("/blob").href);
  const [first = ""] = server.requests;
  assert.match(first, new RegExp(`^authorization: Basic ${btoa("user:p@ss")}\r$`, "m"));
  assert.match(first, /^cookie: c\r$/m);
  const [second = ""] = other.requests;
  assert.match(second, /^range: bytes=0-\r$/m);
  assert.doesNotMatch(second, /authorization|cookie|x-token/i);
});

Deno.test("no message has the password, the user or the signature of a URL", async () => {
  await using server = new RawServer(redirectTo("http://eve:secret3@169.254.1.1/?secret4"));
  const url = server.url("/a?X-Signature=secret1");
  [url.username, url.password] = ["secret0", "secret2"];
  const failure = await failureOf(url);
  assert.match(failure, /169\.254\.1\.1/);
  assert.doesNotMatch(failure, /secret/);
});

for (
  const host of [
    "169.254.169.254",
    "2852039166",
    "0xa9.0xfe.43518",
    "[::ffff:169.254.169.254]",
    "[fe80::1]",
    "[fd00:ec2::254]",
    "[64:ff9b::169.254.169.254]",
    "100.100.100.200",
    "169.254.1.1:8080",
    "metadata.google.internal",
    "METADATA.google.internal.",
  ]
) {
  Deno.test(`nobody is sent to http://${host}/`, async () => {
    await using server = new RawServer(redirectTo(`http://${host}/latest/meta-data`));
    const proxied = { http_proxy: server.url().href, no_proxy: "127.0.0.1" };
    for (const env of [{}, proxied]) {
      const options = { env, silenceMs: 500 };
      assert.match(await failureOf(server.url(), options), /leads to a link-local/);
      assert.match(await failureOf(`http://${host}/`, options), /leads to a link-local/);
    }
    assert.equal(server.requests.length, 2);
  });
}

Deno.test("a name is looked up once, and only an address that was checked is connected to", async () => {
  await using server = new RawServer(OK);
  const asked: string[] = [];
  const answers = [["169.254.169.254", "fe80::1%eth0", "127.0.0.1"], ["169.254.169.254"]];
  const lookup = (name: string) => {
    asked.push(name);
    return Promise.resolve(answers.shift() ?? []);
  };
  const url = new URL(server.url());
  url.hostname = "images.example";
  assert.equal(await get(url, { lookup }), "hello");
  assert.deepEqual(asked, ["images.example"]);
  assert.match(server.requests[0] ?? "", /^host: images\.example:\d+\r$/m);
  assert.match(await failureOf(url, { lookup, silenceMs: 500 }), /leads to a link-local/);
  assert.match(
    await failureOf(url, { lookup }),
    /no address is known of the host "images\.example"/,
  );
});

Deno.test("a name that is unknown, and a name service that is silent, are told as that", async () => {
  const unknown = await failureOf("http://unknown.invalid/");
  assert.match(unknown, /\nbecause: no address is known of the host "unknown\.invalid"\n/);
  const options = { lookup: () => new Promise<string[]>(() => {}), silenceMs: 50 };
  const silent = await failureOf("http://images.example/", options);
  assert.match(silent, /no answer of the name service for 0\.05 s/);
  const cancel = new AbortController();
  const cancelled = failureOf("http://images.example/", {
    ...options,
    silenceMs: 60_000,
    signal: cancel.signal,
  });
  cancel.abort(new Error("cancelled here"));
  assert.match(await cancelled, /^cancelled here/);
});

Deno.test("another host may not redirect to this one, which may redirect to itself", {
  ignore: outerAddress() === null,
}, async () => {
  await using inner = new RawServer(OK);
  await using loop = new RawServer(redirectTo(inner.url().href));
  assert.equal(await get(loop.url()), "hello");
  const port = inner.url().port;
  for (const host of ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"]) {
    await using outer = new RawServer(redirectTo(`http://${host}:${port}/`), outerAddress() ?? "");
    assert.match(await failureOf(outer.url()), /leads to this host itself/, host);
  }
  assert.equal(inner.requests.length, 1);
});

/** A server with a certificate, which redirects /down to http. */
function serveTls(): Deno.HttpServer<Deno.NetAddr> {
  const options = { hostname: "127.0.0.1", port: 0, ...TLS, onListen: () => {} };
  return Deno.serve(
    options,
    ({ url }) =>
      url.endsWith("/down") ? Response.redirect("http://127.0.0.1/") : new Response("hello"),
  );
}

const lookup = () => Promise.resolve(["127.0.0.1"]);

Deno.test("the certificates of SSL_CERT_FILE are trusted, for the names that they are for", async () => {
  await using server = serveTls();
  const { port } = server.addr;
  const env = { SSL_CERT_FILE: CA_FILE };
  for (const name of TLS_NAMES) {
    const url = new URL(`https://${name}:${port}/`);
    assert.equal(await get(url, { lookup, env }), "hello", name);
    assert.match(await failureOf(url, { lookup }), /UnknownIssuer/);
  }
  const other = `https://other.example:${port}/`;
  assert.match(await failureOf(other, { lookup, env }), /not valid for name "other\.example"/);
  const missing = { SSL_CERT_FILE: "/nonexistent.pem" };
  assert.match(await failureOf(other, { lookup, env: missing }), /no such file.*nonexistent/);
});

Deno.test("a server that says nothing by TLS, or speaks no TLS, is told as that", async () => {
  await using silent = new RawServer(OK); // it waits for the end of a request
  const options = { silenceMs: 100 };
  assert.match(await failureOf(`https://${silent.host}/`, options), /no answer for 0\.1 s/);
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const answering = listener.accept().then(async (conn) => {
    await write(conn, "HTTP/1.1 400 Bad Request\r\n\r\n");
    await conn.read(new Uint8Array(10_000));
    conn.close();
  });
  const failure = await failureOf(`https://127.0.0.1:${listener.addr.port}/`);
  assert.match(failure, /^Cannot fetch "https:.*\nbecause: /);
  await answering;
});

Deno.test("nobody is sent from https to http", async () => {
  await using server = serveTls();
  const url = `https://127.0.0.1:${server.addr.port}/down`;
  const failure = await failureOf(url, { env: { SSL_CERT_FILE: CA_FILE } });
  assert.match(failure, /it redirects from https to "http:\/\/127\.0\.0\.1\/"/);
});

/** Connects its client to where it wants, if the client logs in. */
async function tunnel(head: string, conn: Deno.TcpConn): Promise<void> {
  const port = Number(/^CONNECT \S+:(\d+) /.exec(head)?.[1]);
  if (!head.includes(`proxy-authorization: Basic ${btoa("user:secret")}\r`)) {
    return await write(conn, "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
  }
  using there = await Deno.connect({ hostname: "127.0.0.1", port });
  await write(conn, "HTTP/1.1 200 Connection established\r\n\r\n");
  const pipe = async (from: Deno.TcpConn, to: Deno.TcpConn): Promise<void> => {
    const buffer = new Uint8Array(1000);
    for (let length; (length = await from.read(buffer)) !== null;) {
      for (let sent = 0; sent < length;) sent += await to.write(buffer.subarray(sent, length));
    }
  };
  await Promise.race([pipe(conn, there), pipe(there, conn)].map((it) => it.catch(() => {})));
}

Deno.test("https goes through the proxy of https_proxy, by a tunnel, and by nothing else", async () => {
  await using server = serveTls();
  await using proxy = new RawServer(tunnel);
  const url = `https://registry.example:${server.addr.port}/`;
  const env = { SSL_CERT_FILE: CA_FILE, https_proxy: `http://user:secret@${proxy.host}` };
  const unknown = () => Promise.reject(new Error("looked up here"));
  assert.equal(await get(new URL(url), { env, lookup: unknown }), "hello");
  assert.match(proxy.requests[0] ?? "", /^CONNECT registry\.example:\d+ HTTP\/1\.1\r\n/);

  const wrong = { ...env, https_proxy: `http://user:wrong@${proxy.host}` };
  const refused = await failureOf(url, { env: wrong });
  assert.match(refused, /The proxy "http:\/\/127\.0\.0\.1:\d+\/" answers 407 for "registry/);
  assert.doesNotMatch(refused, /wrong/);

  const excepted = { ...env, no_proxy: "example" };
  assert.equal(await get(new URL(url), { env: excepted, lookup }), "hello");
  assert.equal(proxy.requests.length, 2);
});

Deno.test("http goes through the proxy of http_proxy, which gets the whole URL", async () => {
  await using proxy = new RawServer(OK);
  const env = { HTTP_PROXY: `user:secret@${proxy.host}` };
  assert.equal(await get(new URL("http://images.example/a?b"), { env }), "hello");
  const [request = ""] = proxy.requests;
  assert.match(request, /^GET http:\/\/images\.example\/a\?b HTTP\/1\.1\r\n/);
  assert.match(request, /^host: images\.example\r$/m);
  assert.match(request, new RegExp(`^proxy-authorization: Basic ${btoa("user:secret")}\r$`, "m"));
});

Deno.test("a proxy that is no http:// URL is refused, with its variable", async () => {
  for (const value of ["https://proxy", "socks5://proxy", "http://"]) {
    const failure = await failureOf("http://images.example/", { env: { ALL_PROXY: value } });
    assert.match(failure, /the proxy of the variable "ALL_PROXY": it is no http/, value);
  }
});

Deno.test("no_proxy has domains, addresses and networks, with or without a port", () => {
  const env = { all_proxy: "http://proxy" };
  const isProxied = (url: string, no_proxy: string) =>
    proxyFor(new URL(url), { ...env, no_proxy }) !== null;
  for (
    const [url, list, expected] of [
      ["http://a.example.org", "", true],
      ["http://a.example.org", "*", false],
      ["http://a.example.org", "b, example.org", false],
      ["http://a.example.org", ".Example.org", false],
      ["http://a.example.org", "*.example.org", false],
      ["http://badexample.org", "example.org", true],
      ["http://example.org:81", "example.org:81", false],
      ["http://example.org:82", "example.org:81", true],
      ["https://example.org", "example.org:443", false],
      ["http://10.1.2.3", "10.0.0.0/8", false],
      ["http://11.1.2.3", "10.0.0.0/8", true],
      ["http://10.1.2.3", "10.0.0.0/99, 10.0.0.0/", true],
      ["http://[fd00::1]", "fd00::/8", false],
      ["http://[fd00::1]", "fd00::1", false],
      ["http://[fd00::1]:81", "[fd00::1]:81", false],
      ["http://[fd00::1]", "[fd00::1]:81", true],
    ] as const
  ) assert.equal(isProxied(url, list), expected, `${url} ${list}`);
});

/** Reads the body and says that it is there. To /large, it says instead that it is too large. */
async function takeBody(head: string, conn: Deno.TcpConn, start: string): Promise<void> {
  if (head.startsWith("PUT /large")) return await write(conn, "HTTP/1.1 413 Too Large\r\n\r\n");
  const buffer = new Uint8Array(1024 ** 2);
  let left = Number(/^content-length: (\d+)/m.exec(head)?.[1]) - start.length;
  while (left > 0) left -= await conn.read(buffer) ?? assert.fail("no body");
  await write(conn, `HTTP/1.1 ${left === 0 ? 201 : 400} X\r\nContent-Length: 0\r\n\r\n`);
}

Deno.test("a body is sent whole, and an answer in its middle counts", async () => {
  await using server = new RawServer(takeBody);
  const put = async (path: string, count: number) => {
    const body = { bytes: count * 1e6, chunks: new Array(count).fill(new Uint8Array(1e6)) };
    using response = await httpRequest({ url: server.url(path), method: "PUT", body }, OPTIONS);
    return response.status;
  };
  assert.equal(await put("/small", 3), 201);
  assert.equal(await put("/large", 30), 413);
});
