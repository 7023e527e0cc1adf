// SPDX-License-Identifier: GPL-2.0-or-later
import { type Failure, severalFailures } from "./errors.ts";

/** The errors of several actions, each of which is done even if another failed. */
export class Problems {
  readonly errors: unknown[] = [];

  /** Does it and keeps its error. Throws only the signal's reason, if that has aborted. */
  async collect(action: () => Promise<unknown>, signal?: AbortSignal): Promise<void> {
    try {
      await action();
    } catch (error) {
      signal?.throwIfAborted();
      this.errors.push(error);
    }
  }

  /** Throws SystemFailure with all errors as details, if there are any. */
  throwAll(failure: Pick<Failure, "what" | "advice">): void {
    if (this.errors.length > 0) throw severalFailures(failure, this.errors);
  }
}
