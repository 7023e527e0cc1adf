// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../../errors.ts";
import { isLoopback, isLoopbackHost } from "../address_policy.ts";
import { systemLookup } from "../connect.ts";
import { type HttpOptions, httpRequest, type HttpResponse } from "../http.ts";
import { type Challenge, parseChallenges } from "./challenge.ts";
import type { Credentials } from "./credentials.ts";
import type { Reference } from "./reference.ts";
import { registryFailure } from "./registry_failure.ts";
import { shownUrl } from "../url_login.ts";

/** What is needed to log in. */
export interface LoginOptions extends HttpOptions {
  readonly credentials: Credentials;
  /** What is to be done with the repository. */
  readonly access: "pull" | "pull,push";
}

/** What a registry lets us in with. It is never part of a message. */
export interface Login {
  /** The header Authorization. */
  readonly authorization: string;
  /** When it ends, by `performance.now()`. */
  readonly until: number;
}

const LEAST_SECONDS = 60; // that a token holds, by docker's specification of it
const MOST_TOKEN_BYTES = 64 * 1024;
/** By how much a login ends before its time, so that a request has time to arrive. */
const EARLY_SECONDS = 10;

/**
 * Logs in as the answer asks for it, by a token or by the password itself. Throws SystemFailure if there are
 * no credentials for that, or they are refused.
 */
export async function logIn(
  response: HttpResponse,
  reference: Reference,
  options: LoginOptions,
): Promise<Login> {
  const challenges = parseChallenges(response.headers.get("www-authenticate") ?? "");
  const bearer = challenges.find(({ scheme }) => scheme === "bearer");
  if (bearer !== undefined) return await fetchToken(bearer, response, reference, options);
  const { basic } = options.credentials;
  if (!challenges.some(({ scheme }) => scheme === "basic")) {
    throw new SystemFailure({
      what: `The registry "${reference.registry}" wants a login of a kind that is not supported`,
      advice: "Ask its administrator for a login by password or token (Basic or Bearer)",
    });
  }
  if (basic === null) throw await loginRefused(reference, options, response);
  return { authorization: `Basic ${basic}`, until: Infinity };
}

/**
 * Gets a token for this repository alone, whatever more the registry asks for: docker's specification of
 * token authentication.
 */
async function fetchToken(
  { parameters }: Challenge,
  response: HttpResponse,
  reference: Reference,
  options: LoginOptions,
): Promise<Login> {
  const { credentials: { basic }, access } = options;
  const url = tokenUrl(parameters.get("realm") ?? "", response, reference);
  const service = parameters.get("service");
  if (service !== undefined) url.searchParams.set("service", service);
  url.searchParams.set("scope", `repository:${reference.repository}:${access}`);
  const http = response.loops ? options : { ...options, lookup: distantOnly(options) };
  const headers: Record<string, string> = basic === null ? {} : { authorization: `Basic ${basic}` };
  using answer = await httpRequest({ url, headers }, http);
  if (answer.status === 401 || answer.status === 403) {
    throw await loginRefused(reference, options, answer);
  }
  if (answer.status !== 200) {
    throw await registryFailure(answer, { what: `Cannot get a token from ${shownUrl(url)}` });
  }
  return readToken(await answer.text(MOST_TOKEN_BYTES), url);
}

/** The URL of the token server. Throws SystemFailure if a registry may not name it. */
function tokenUrl(realm: string, { loops }: HttpResponse, { registry, isPlain }: Reference): URL {
  const url = URL.parse(realm);
  const isAllowed = url !== null && url.username === "" && url.password === "" &&
    (url.protocol === "https:" || isPlain && url.protocol === "http:") &&
    (loops || !isLoopbackHost(url));
  if (isAllowed) return url;
  throw new SystemFailure({
    what: `The registry "${registry}" names a server for tokens that is none: ` +
      (url === null ? "it is no URL" : shownUrl(url)),
    advice: "Ask the registry's administrator: it must be an https:// URL, and not this host",
  });
}

/** Looks names up, but for this host's own addresses. */
function distantOnly({ lookup = systemLookup }: HttpOptions): NonNullable<HttpOptions["lookup"]> {
  return async (name) => (await lookup(name)).filter((address) => !isLoopback(address));
}

function readToken(text: string, url: URL): Login {
  const { token, seconds } = tokenIn(text);
  if (/^[!-~]+$/.test(token)) {
    const held = Math.max(seconds, LEAST_SECONDS) - EARLY_SECONDS;
    return { authorization: `Bearer ${token}`, until: performance.now() + held * 1000 };
  }
  throw new SystemFailure({ // without its words, which may hold one
    what: `The server for tokens ${shownUrl(url)} sends none`,
    advice: "Ask the registry's administrator",
  });
}

function tokenIn(text: string): { token: string; seconds: number } {
  try {
    const { token, access_token, expires_in } = JSON.parse(text);
    return { token: String(token || access_token || ""), seconds: Number(expires_in) || 0 };
  } catch {
    return { token: "", seconds: 0 };
  }
}

/** The failure of a login that was refused, or of one that there are no credentials for. */
export async function loginRefused(
  { registry, repository }: Reference,
  { access, credentials: { basic, unused } }: Pick<LoginOptions, "access" | "credentials">,
  response: HttpResponse,
): Promise<SystemFailure> {
  const act = access === "pull" ? "pull" : "push";
  const image = `the image "${repository}" of the registry "${registry}"`;
  if (basic !== null) {
    return await registryFailure(response, {
      what: `The login for "${registry}" may not ${act} ${image}`,
      advice: `Check the path, and log in again: podman login ${registry}`,
    });
  }
  return new SystemFailure({
    what: `Cannot ${act} ${image} without a login`,
    cause: unused === null ? undefined : new Error(unused),
    advice: `Check the path, and log in: podman login ${registry}`,
  });
}
