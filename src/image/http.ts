// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import { connect, type Lookup, systemLookup } from "./connect.ts";
import type { HttpConnection } from "./http_connection.ts";
import { Broken, MessageReader, requestHead } from "./http_message.ts";
import type { Variables } from "./proxy.ts";
import { basicAuthorization, shownUrl } from "./url_login.ts";

/** How requests are made. */
export interface HttpOptions {
  /** The variables of the process: proxies, and `SSL_CERT_FILE`. */
  readonly env: Variables;
  readonly signal: AbortSignal;
  /** How long a server may say nothing. */
  readonly silenceMs?: number;
  /** How names become addresses, by default as the system has it. */
  readonly lookup?: Lookup;
}

/** What is sent behind the head of a request. */
export interface RequestBody {
  readonly bytes: number;
  readonly chunks: AsyncIterable<Uint8Array<ArrayBuffer>> | Iterable<Uint8Array<ArrayBuffer>>;
}

export interface HttpRequest {
  readonly url: URL;
  /** GET by default. Only GET and HEAD follow redirects. */
  readonly method?: "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE";
  /** Sent to the URL's own origin. Another, after a redirect, gets only {@linkcode HARMLESS} ones. */
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: RequestBody;
}

const SILENCE_MS = 30_000;
const MOST_REDIRECTS = 5;
const REDIRECTS: readonly number[] = [301, 302, 303, 307, 308];
/** What says only which bytes are wanted. */
const HARMLESS: readonly string[] = ["accept", "if-none-match", "if-range", "range"];

/** An answer, whose body is still to be read. Whoever gets it disposes of it. */
export class HttpResponse implements Disposable {
  readonly status: number;
  readonly headers: Headers;
  /** Who answered, after redirects. */
  readonly url: URL;
  /** The length of the body; null if the server does not say. */
  readonly promisedBytes: number | null;
  readonly #connection: HttpConnection;
  readonly #reader: MessageReader;

  constructor(
    url: URL,
    head: { readonly status: number; readonly headers: Headers },
    { connection, reader }: { readonly connection: HttpConnection; readonly reader: MessageReader },
  ) {
    this.url = url;
    this.status = head.status;
    this.headers = head.headers;
    this.promisedBytes = reader.bytesLeft;
    this.#connection = connection;
    this.#reader = reader;
  }

  /** Whether it came from this host itself. */
  get loops(): boolean {
    return this.#connection.route.loops;
  }

  /** Reads some bytes of the body into the buffer; null at its end. Throws {@linkcode Broken}. */
  read(buffer: Uint8Array<ArrayBuffer>): Promise<number | null> {
    return this.#reader.read(buffer);
  }

  /** The whole body. Throws SystemFailure if that is more than so many bytes. */
  async bytes(mostBytes: number): Promise<Uint8Array<ArrayBuffer>> {
    const chunks: Uint8Array<ArrayBuffer>[] = [];
    for (let length = 0;;) {
      const buffer = new Uint8Array(64 * 1024);
      const read = await this.read(buffer).catch((error) => {
        throw cannotFetch(this.url, error);
      });
      if (read === null) return new Uint8Array(await new Blob(chunks).arrayBuffer());
      length += read;
      if (length > mostBytes) throw cannotFetch(this.url, `it has more than ${mostBytes} bytes`);
      chunks.push(buffer.subarray(0, read));
    }
  }

  async text(mostBytes: number): Promise<string> {
    return new TextDecoder().decode(await this.bytes(mostBytes));
  }

  [Symbol.dispose](): void {
    this.#connection[Symbol.dispose]();
  }
}

/**
 * Makes the request and gives the answer, whatever its status. Follows five redirects at most: never from
 * https to http, to a metadata service, or from another host to this one. Throws SystemFailure if there
 * is no answer, with {@linkcode Broken} for its cause if another try may help.
 */
export async function httpRequest(
  request: HttpRequest,
  options: HttpOptions,
): Promise<HttpResponse> {
  const { method = "GET", body } = request;
  let { url } = request;
  let headers = headersOf(request);
  let mayLoop = true;
  for (let redirects = 0;; redirects++) {
    const response = await exchange({ url, method, headers, body }, { ...options, mayLoop });
    using undo = new DisposableStack();
    undo.use(response);
    const next = method === "GET" || method === "HEAD" ? redirectOf(response) : null;
    if (next === null) {
      undo.move(); // it is the caller's
      return response;
    }
    if (redirects === MOST_REDIRECTS) {
      throw cannotFetch(request.url, `it redirects more than ${MOST_REDIRECTS} times`);
    }
    mayLoop = response.loops;
    if (next.origin !== url.origin) headers = harmless(headers);
    url = next;
  }
}

function headersOf({ url, headers }: HttpRequest): Headers {
  const all = new Headers(headers);
  const login = basicAuthorization(url);
  if (login !== null && !all.has("authorization")) all.set("authorization", login);
  return all;
}

function harmless(headers: Headers): Headers {
  return new Headers([...headers].filter(([name]) => HARMLESS.includes(name)));
}

/** Where the answer sends us; null if it does not. Throws SystemFailure if it may not. */
function redirectOf({ url, status, headers }: HttpResponse): URL | null {
  const location = headers.get("location");
  if (location === null || !REDIRECTS.includes(status)) return null;
  const next = URL.parse(location, url);
  if (next === null || !/^https?:$/.test(next.protocol)) {
    throw cannotFetch(url, "it redirects to what is no http(s) URL");
  }
  next.username = next.password = next.hash = "";
  if (url.protocol === "https:" && next.protocol === "http:") {
    throw cannotFetch(url, `it redirects from https to ${shownUrl(next)}`);
  }
  return next;
}

interface Exchange extends Pick<HttpRequest, "body"> {
  readonly url: URL;
  readonly method: string;
  readonly headers: Headers;
}

/** Sends one request, and reads the head of its answer. */
async function exchange(
  request: Exchange,
  { silenceMs = SILENCE_MS, lookup = systemLookup, ...options }: HttpOptions & {
    readonly mayLoop: boolean;
  },
): Promise<HttpResponse> {
  const { url, method } = request;
  let connection: HttpConnection | null = null;
  try {
    connection = await connect(url, { silenceMs, lookup, ...options });
    const reader = new MessageReader(connection);
    const unsent = await send(request, connection).then(() => null, (error) => error);
    if (unsent !== null && !(unsent instanceof Broken)) throw unsent;
    const head = await reader.head(method).catch((error) => { // which may say why it took no more
      throw unsent ?? error;
    });
    return new HttpResponse(url, head, { connection, reader });
  } catch (error) {
    connection?.[Symbol.dispose]();
    options.signal.throwIfAborted();
    throw error instanceof SystemFailure ? error : cannotFetch(url, error);
  }
}

async function send(
  { url, method, headers, body }: Exchange,
  connection: HttpConnection,
): Promise<void> {
  const { proxy } = connection.route;
  const all = new Headers(headers);
  all.set("host", url.host);
  all.set("user-agent", "libvirt-gci");
  all.set("accept-encoding", "identity");
  all.set("connection", "close");
  if (body !== undefined) all.set("content-length", String(body.bytes));
  const login = proxy && basicAuthorization(proxy);
  if (login) all.set("proxy-authorization", login);
  const path = url.pathname + url.search;
  await connection.write(requestHead(method, proxy ? url.origin + path : path, all));
  for await (const chunk of body?.chunks ?? []) await connection.write(chunk);
}

/** The failure of a request, which says nothing that is secret in the URL. */
export function cannotFetch(url: URL, reason: unknown, advice?: string): SystemFailure {
  const cause = typeof reason === "string" ? new Error(reason) : reason;
  return new SystemFailure({ what: `Cannot fetch ${shownUrl(url)}`, cause, advice });
}

/** The failure of a request whose answer has a status that its caller has no use for. */
export function unexpectedStatus({ url, status }: HttpResponse): SystemFailure {
  const advice = STATUS_ADVICE[status];
  return cannotFetch(url, `the server answers with the status ${status}`, advice);
}

const STATUS_ADVICE: Readonly<Record<number, string>> = {
  401: "Check the user and the password, or the token",
  403: "Check the user and the password, or the token, and what they may read",
  404: "Check the URL",
  407: "Set https_proxy or http_proxy to a URL with the proxy's user and password",
  429: "Wait, and try again",
};
