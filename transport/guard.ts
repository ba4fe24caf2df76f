// Waits that must end with their stream or connection, though the operation underneath may never settle (native calls
// cannot be cancelled). Enters: promises. Leaves: promises of the same values that reject at once when the guard fails.
// Always holds: nothing is kept for a settled operation (Promise.race with one long-lived promise would keep a reaction
// for each).
import type { GodwitError } from '../wire/errors.ts'

type Guard = {
  /** The outcome of the operation, or the guard's error if that is first. */
  run<T>(operation: Promise<T>): Promise<T>
  /** Rejects all pending and later operations. The first error stays. */
  fail(error: GodwitError): void
  readonly error: GodwitError | undefined
}

export function createGuard(): Guard {
  const pending = new Set<(error: GodwitError) => void>()
  let failure: GodwitError | undefined
  return {
    run<T>(operation: Promise<T>) {
      return new Promise<T>((resolve, reject) => {
        if (failure) {
          operation.catch(() => {})
          reject(failure)
          return
        }
        pending.add(reject)
        operation.then(
          value => {
            pending.delete(reject)
            resolve(value)
          },
          error => {
            pending.delete(reject)
            reject(error)
          },
        )
      })
    },
    fail(error) {
      if (failure) return
      failure = error
      for (const reject of pending) reject(error)
      pending.clear()
    },
    get error() {
      return failure
    },
  }
}
