// SPDX-License-Identifier: GPL-2.0-or-later

const MOST_CHARACTERS = 300;

/** The URL as messages have it, in double quotes: without a password or a signature that it may carry. */
export function shownUrl({ origin, pathname, search }: URL): string {
  const shown = `${origin}${pathname}${search === "" ? "" : "?…"}`;
  return `"${shown.length > MOST_CHARACTERS ? `${shown.slice(0, MOST_CHARACTERS)}…` : shown}"`;
}

/** The header that logs in with the URL's user and password; null if it has none. */
export function basicAuthorization({ username, password }: URL): string | null {
  if (username === "" && password === "") return null;
  const bytes = new TextEncoder().encode(`${decoded(username)}:${decoded(password)}`);
  return `Basic ${bytes.toBase64()}`;
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a lone percent sign
  }
}
