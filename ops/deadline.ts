// A deadline on every wait.
import { type ErrorCode, GodwitError } from '../wire/errors.ts'

type DeadlineOptions = { ms: number; what: string; code?: ErrorCode; signal?: AbortSignal | undefined }

/** The promise's value, or a coded error (default TIMEOUT) after `ms`; an aborted signal rejects with its reason. */
export async function within<T>(promise: Promise<T>, { ms, what, code = 'TIMEOUT', signal }: DeadlineOptions): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  let onAbort: (() => void) | undefined
  try {
    return await Promise.race([
      promise,
      new Promise<never>((_, reject) => {
        timer = setTimeout(() => reject(new GodwitError(code, `${what}: no answer within ${ms} ms`)), ms)
        if (signal) {
          onAbort = () => reject(signal.reason)
          if (signal.aborted) onAbort()
          else signal.addEventListener('abort', onAbort, { once: true })
        }
      }),
    ])
  } finally {
    clearTimeout(timer)
    if (onAbort) signal?.removeEventListener('abort', onAbort)
  }
}

/** Waits; an aborted signal rejects with its reason. */
export async function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason)
    const onAbort = () => {
      clearTimeout(timer)
      reject(signal?.reason)
    }
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', onAbort)
      resolve()
    }, ms)
    signal?.addEventListener('abort', onAbort, { once: true })
  })
}

/** Calls `probe` every `everyMs` until it returns a value, within the deadline. */
export async function eventually<T>(
  probe: () => Promise<T | undefined> | T | undefined,
  { ms, what, everyMs = 50, code = 'TIMEOUT', signal }: DeadlineOptions & { everyMs?: number },
): Promise<T> {
  const end = performance.now() + ms
  for (;;) {
    const value = await probe()
    if (value !== undefined) return value
    if (performance.now() >= end) throw new GodwitError(code, `${what}: not within ${ms} ms`)
    await sleep(everyMs, signal)
  }
}

/** The promise, or the signal's reason; never an unhandled rejection. */
export function raceAbort<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  const raced = new Promise<T>((resolve, reject) => {
    // An already aborted signal emits no event.
    if (signal.aborted) reject(signal.reason)
    promise.then(resolve, reject)
    signal.addEventListener('abort', () => reject(signal.reason), { once: true })
  })
  raced.catch(() => {})
  return raced
}
