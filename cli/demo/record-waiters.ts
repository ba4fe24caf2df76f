// Who waits for the guest to say something. Enters: records as they are read. Leaves: to each waiter the next of its kind, or TIMEOUT.
import type { GuestRecord } from '../../guest/beats.ts'
import { GodwitError } from '../../wire/errors.ts'

export type RecordWaiters = {
  give(record: GuestRecord): void
  /** The next record of this kind from now on. */
  next<K extends GuestRecord['kind']>(kind: K, ms: number): Promise<Extract<GuestRecord, { kind: K }>>
}

export function createRecordWaiters(): RecordWaiters {
  const waiting = new Set<(record: GuestRecord) => void>()
  return {
    give(record) {
      for (const take of waiting) take(record)
    },
    next: <K extends GuestRecord['kind']>(kind: K, ms: number) =>
      new Promise<Extract<GuestRecord, { kind: K }>>((resolve, reject) => {
        const done = () => {
          clearTimeout(timer)
          waiting.delete(take)
        }
        const timer = setTimeout(() => {
          done()
          reject(new GodwitError('TIMEOUT', `the guest did not say '${kind}' within ${ms / 1000} s`))
        }, ms)
        const take = (record: GuestRecord) => {
          if (record.kind !== kind) return
          done()
          resolve(record as Extract<GuestRecord, { kind: K }>)
        }
        waiting.add(take)
      }),
  }
}
