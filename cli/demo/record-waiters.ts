// Waiters for records that the guest prints. Enters: records as they are read. Leaves: the next record of the wanted
// kind for each waiter, or TIMEOUT.
import type { GuestRecord } from '../../guest/beats.ts'
import { GodwitError } from '../../wire/errors.ts'

type RecordWaiters = {
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
          reject(new GodwitError('TIMEOUT', `the guest did not print '${kind}' within ${ms / 1000} s`))
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
