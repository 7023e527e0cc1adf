// SPDX-License-Identifier: GPL-2.0-or-later
import { type Failure, SystemFailure } from "../../errors.ts";
import type { HttpResponse } from "../http.ts";

const MOST_BYTES = 64 * 1024;
const MOST_ERRORS = 3;

const ADVICE: Readonly<Record<number, string>> = {
  403: "Check what the login may do: podman login REGISTRY changes it",
  404: "Check the path: some registries need a project or a repository of this name first",
  413: "Raise the limit for the size of a request in the proxy before the registry",
  429: "Wait, or log in: the registry limits how much each client may ask",
};

/** The failure of something, with what the registry answered for its cause. */
export async function registryFailure(
  response: HttpResponse,
  failure: Pick<Failure, "what" | "advice">,
): Promise<SystemFailure> {
  const words = await wordsOf(response);
  const status = `the registry answers with the status ${response.status}`;
  const cause = new Error(words === "" ? status : `${status}: ${words}`);
  return new SystemFailure({ advice: ADVICE[response.status], ...failure, cause });
}

/** The registry's reasons, as the distribution spec has them: code, message and detail; "" if it has none. */
async function wordsOf(response: HttpResponse): Promise<string> {
  const text = await response.text(MOST_BYTES).catch(() => ""); // the status is known
  let content: unknown;
  try {
    content = JSON.parse(text);
  } catch {
    return "";
  }
  const errors = content instanceof Object && "errors" in content ? content.errors : null;
  if (!Array.isArray(errors)) return "";
  return errors.slice(0, MOST_ERRORS).map((error: unknown) => {
    if (!(error instanceof Object)) return "";
    const { code, message, detail } = error as Record<string, unknown>;
    return [code, message, detail].filter((word) => typeof word === "string" && word !== "")
      .join(": ");
  }).filter((words) => words !== "").join("; ");
}
